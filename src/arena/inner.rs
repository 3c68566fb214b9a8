//! The parts of an arena besides its memory, from its making to its release.

use super::growing::Growing;
use super::image::Image;
use crate::sys::map::Range;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// The part that all handles to an arena share. It lives from `build` to `release`.
pub(crate) struct Inner {
    pub(crate) name: std::boxed::Box<str>,
    pub(crate) slot: u16,
    pub(crate) generation: u16,
    /// The reserved addresses; once it is frozen, only its image's are its own.
    pub(crate) range: Range,
    /// The most that can be allocated, in bytes.
    pub(super) capacity: usize,
    /// Only plain old data is allocated from it.
    pub(super) plain: bool,
    /// The number of the process, in a line of forks, whose arena it is; see [`table::process_number`].
    pub(super) process: usize,
    pub(super) growing: Mutex<Growing>,
    /// Held by who writes to memory of a growing arena, and alone by who freezes it. Before `growing`.
    pub(super) writing: RwLock<()>,
    pub(super) frozen: OnceLock<Arc<Image>>,
}

impl Inner {
    /// The addresses that are the arena's now. *Async-signal-safe.*
    pub(crate) fn addresses(&self) -> Range {
        self.image().map_or(self.range, |image| image.range())
    }

    /// The frozen image, if the arena is frozen. *Async-signal-safe.*
    pub(crate) fn image(&self) -> Option<&Arc<Image>> {
        self.frozen.get()
    }
}
