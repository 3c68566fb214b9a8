//! Where pieces of memory are told to: a function of the part that counts pages.
#![expect(unsafe_code, reason = "a C function is called")]

use std::ffi::c_void;

use crate::extents::Piece;

/// The function that is told: `to`, the kind of a piece, its address and its length in bytes.
pub type Tell = unsafe extern "C" fn(to: *mut c_void, kind: Piece, at: usize, bytes: usize);

/// The function, with its first argument.
#[derive(Clone, Copy)]
pub struct Sink {
    tell: Tell,
    to: *mut c_void,
}

impl Sink {
    /// # Safety
    /// The function may be called with this argument for as long as the value is used.
    pub const unsafe fn new(tell: Tell, to: *mut c_void) -> Self {
        Self { tell, to }
    }

    /// Tells a piece.
    pub fn tell(self, kind: Piece, at: usize, bytes: usize) {
        // SAFETY: whoever made the value promised that.
        unsafe { (self.tell)(self.to, kind, at, bytes) };
    }
}
