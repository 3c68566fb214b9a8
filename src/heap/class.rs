//! Size classes: which block an allocation gets. Pure.
//!
//! Classes are 8, then multiples of 16 up to 128, then eight to each doubling: at most an eighth of a block is lost.
//! Blocks of a class lie side by side in a *slab*, from its start, so a block is aligned to whatever divides its class's
//! size; slabs are aligned to their own length.

/// The number of classes.
pub(super) const CLASSES: usize = FINE + DOUBLINGS * EIGHT;

/// Classes up to 128 bytes.
const FINE: usize = 9;
/// From 128 bytes to 64 KiB.
const DOUBLINGS: usize = 9;
const EIGHT: usize = 8;

/// The largest block, in bytes. What is larger gets units of its own.
pub(super) const BLOCK_MAX: usize = 1 << 16;

/// Blocks up to this many bytes share a unit.
const UNIT_BLOCK_MAX: usize = 8 << 10;

/// The bytes of a unit, as a power of two: the smallest slab, and what larger spans are counted in.
pub(super) const UNIT_SHIFT: u32 = 16;
/// The bytes of a unit.
pub(super) const UNIT: usize = 1 << UNIT_SHIFT;
/// The bytes of a slab of larger blocks, as a power of two.
const WIDE_SHIFT: u32 = 19;

/// A class, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u8);

const SIZES: [u32; CLASSES] = {
    let mut sizes = [8; CLASSES];
    let mut at = 1;
    while at < CLASSES {
        sizes[at] = if at < FINE {
            16 * at as u32
        } else {
            let (doubling, step) = ((at - FINE) / EIGHT, (at - FINE) % EIGHT);
            (128 << doubling) / 8 * (8 + step as u32 + 1)
        };
        at += 1;
    }
    sizes
};

/// Up to this many bytes a table tells the class: sizes of a program come in no order that a processor could guess branches by.
const SMALL_MAX: usize = 1024;

/// For each multiple of 8 the smallest class that holds it.
static SMALL: [u8; SMALL_MAX / 8 + 1] = {
    let mut classes = [0; SMALL_MAX / 8 + 1];
    let (mut at, mut class) = (0, 0);
    while at < classes.len() {
        while (SIZES[class] as usize) < at * 8 {
            class += 1;
        }
        classes[at] = class as u8;
        at += 1;
    }
    classes
};

impl Class {
    /// The smallest class for so many bytes (at most [`BLOCK_MAX`]) at this alignment, a power of two; `None` where only a
    /// span of units will do.
    #[inline]
    pub(super) fn of(size: usize, align: usize) -> Option<Self> {
        if align > 16 {
            return Self::aligned(size, align);
        }
        // Blocks of 8 bytes are aligned to no more.
        let size = size.max(align);
        (size <= BLOCK_MAX).then(|| Self::of_size(size))
    }

    #[cold]
    fn aligned(size: usize, align: usize) -> Option<Self> {
        let size = size.max(align).checked_next_multiple_of(align).filter(|&size| size <= BLOCK_MAX)?;
        let first = usize::from(Self::of_size(size).0);
        (first..CLASSES).find(|&at| (SIZES[at] as usize).is_multiple_of(align)).map(|at| Self(at as u8))
    }

    #[inline]
    fn of_size(size: usize) -> Self {
        if size <= SMALL_MAX {
            return Self(SMALL[size.div_ceil(8)]);
        }
        let last = size - 1;
        let doubling = last.ilog2() as usize - 7;
        Self((FINE + doubling * EIGHT + (last >> (doubling + 4) & (EIGHT - 1))) as u8)
    }

    /// A class's number.
    #[inline]
    pub(super) fn number(self) -> usize {
        usize::from(self.0)
    }

    /// The class of this number.
    pub(super) fn numbered(number: usize) -> Self {
        Self(number.min(CLASSES - 1) as u8)
    }

    /// Bytes of a block.
    #[inline]
    pub(super) fn size(self) -> usize {
        SIZES[self.number()] as usize
    }

    /// Bytes of a slab, as a power of two.
    #[inline]
    pub(super) fn slab_shift(self) -> u32 {
        if self.size() <= UNIT_BLOCK_MAX { UNIT_SHIFT } else { WIDE_SHIFT }
    }

    /// Units of a slab.
    pub(super) fn slab_units(self) -> u32 {
        1 << (self.slab_shift() - UNIT_SHIFT)
    }

    /// Blocks of a slab.
    pub(super) fn slab_blocks(self) -> u32 {
        ((1 << self.slab_shift()) / self.size()) as u32
    }
}

/// The mask that makes of a block's address that of its slab, for blocks of this size and alignment; `None` where [`Class::of`] gives none. It
/// takes no table, as who frees a block needs no class.
#[inline]
pub(super) fn slab_mask(size: usize, align: usize) -> Option<usize> {
    if align > 16 {
        return Class::aligned(size, align).map(|class| usize::MAX << class.slab_shift());
    }
    let shift = if size <= UNIT_BLOCK_MAX { UNIT_SHIFT } else { WIDE_SHIFT };
    (size <= BLOCK_MAX).then_some(usize::MAX << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_gets_the_smallest_block_that_holds_it() {
        assert!(SIZES.is_sorted_by(|a, b| a < b));
        assert_eq!(SIZES[CLASSES - 1] as usize, BLOCK_MAX);
        for size in 0..=BLOCK_MAX {
            let class = Class::of(size, 1).expect("a class");
            assert!(class.size() >= size, "{size}");
            assert!(class.number() == 0 || (SIZES[class.number() - 1] as usize) < size, "{size}");
            assert!(size <= 128 || (class.size() - size) * 8 <= size, "{size} gets {}", class.size());
        }
        assert_eq!(Class::of(BLOCK_MAX + 1, 1), None);
    }

    #[test]
    fn blocks_are_aligned_as_asked() {
        for shift in 0..=20 {
            let align = 1usize << shift;
            for size in [0, 1, 8, 9, 100, 129, 5000, 40_000, BLOCK_MAX] {
                match Class::of(size, align) {
                    Some(class) => {
                        assert!(class.size() >= size && class.size().is_multiple_of(align), "{size} {align}");
                        assert!(1usize << class.slab_shift() >= align, "{size} {align}");
                        assert!(class.slab_blocks() > 0);
                        assert_eq!(slab_mask(size, align), Some(usize::MAX << class.slab_shift()));
                    }
                    None => assert!(align > BLOCK_MAX || size.next_multiple_of(align) > BLOCK_MAX, "{size} {align}"),
                }
            }
        }
    }
}
