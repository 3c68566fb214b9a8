//! What a pool's parent has of the newest data.

use crate::arena::Frozen;

/// What a pool's parent has of the newest data: the data itself, as [`Frozen`], or its file, as [`Loaded`](super::load::Loaded). There is no other.
pub trait Held: file::File {}

impl<T: 'static> Held for Frozen<T> {}

pub(super) mod file {
    use crate::arena::Frozen;
    use crate::error::Result;
    use crate::sys::map::Range;

    /// The file of frozen data, and where it is mapped.
    pub trait File {
        /// The addresses at which processes of the pool have it.
        fn range(&self) -> Range;

        /// Does this process have it there?
        fn is_mapped_here(&self) -> bool;

        /// The bytes that the file takes, in memory or swapped out; `None` for one that lies on a disk.
        ///
        /// # Errors
        /// None known.
        fn held_bytes(&self) -> Result<Option<u64>>;
    }

    impl<T: 'static> File for Frozen<T> {
        fn range(&self) -> Range {
            self.image().range()
        }

        fn is_mapped_here(&self) -> bool {
            true
        }

        fn held_bytes(&self) -> Result<Option<u64>> {
            self.image().held_bytes()
        }
    }
}
