//! The layout of an image that was poured into its file in pieces.

use crate::sys::map::Range;

/// The layout of an image in its file: pieces of so many bytes, and so many bytes from the start of one to that of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    pub(crate) len: usize,
    pub(crate) stride: usize,
}

impl Pieces {
    /// The place in the file of a byte of the image, and the number of bytes that follow it there.
    pub(super) fn place(self, offset: usize) -> (u64, usize) {
        let (piece, inside) = (offset / self.len, offset % self.len);
        ((piece * self.stride + inside) as u64, self.len - inside)
    }
}

/// A function that knows the objects, and tells which block of memory holds an address of an image.
pub(crate) type Blocks = fn(usize) -> Option<Range>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_apart_in_the_file() {
        let pieces = Pieces { len: 100, stride: 110 };
        assert_eq!(pieces.place(0), (0, 100));
        assert_eq!(pieces.place(99), (99, 1));
        assert_eq!(pieces.place(100), (110, 100));
        assert_eq!(pieces.place(250), (270, 50));
    }
}
