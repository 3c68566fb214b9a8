//! Support: what this kernel lets this user do, one field per feature, each with its reason.
//!
//! Every feature is probed by trying it on throwaway descriptors and mappings, never by comparing
//! versions. [`Support::get`] asks once per process, [`Support::probe`] anew. The five watches are
//! answered from the features; printing a [`Support`] gives the text of `cowbell doctor`.
//!
//! ```
//! let support = cowbell::support::Support::get();
//! match support.asynchronous().require() {
//!     Ok(()) => println!("pages written can be listed epoch by epoch"),
//!     Err(why) => println!("{why}"), // names the feature, the Linux version and the command that helps
//! }
//! ```

mod features;
mod get;
mod probe;
mod text;
mod watches;

pub use crate::facts::{Door, Headroom, Limit};
pub use features::{Availability, Feature, Machine, Missing, Support};
