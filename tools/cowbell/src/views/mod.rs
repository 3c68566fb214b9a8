//! A profile as text for people. As JSON for programs it is [`Summary`](crate::analyse::Summary) itself.

pub mod check;
pub mod diff;
pub mod export;
pub mod html;
mod json;
mod kinds;
pub mod lab;
mod lines;
mod objects;
mod processes;
pub mod table;
mod tables;
mod text;
mod verdict;
mod why;
mod width;

pub use json::{Document, json};
pub use lines::{WIDTH, clean, some};
pub use text::text;
pub use verdict::{has_cause, sentence};

/// The amount of detail in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbosity {
    /// The most lines that are shown of each list.
    pub top: usize,
    /// Only the verdict and why; of a snapshot only the sums.
    pub quiet: bool,
    /// The lists behind the verdict too, and names in full; of a snapshot each process' own mappings.
    pub verbose: bool,
}
