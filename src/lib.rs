//! scaffold
pub mod error;
pub mod page;
pub mod sys;
pub use error::{Error, Result};
