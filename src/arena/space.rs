//! The free bytes of an arena: a bump pointer, and the spans given back behind it.
//!
//! Pure bookkeeping over offsets; it lives outside the arena, so that no allocator metadata lies on
//! a page that will be frozen. Small spans are kept in a bin for each length and are used again for that length:
//! constant time, and collections that grow ask for the same lengths again and again. Large spans are joined with
//! their neighbours and split where needed.

use std::collections::{BTreeMap, BTreeSet};

/// Lengths are multiples of this many bytes, so that remainders stay usable.
const GRAIN: usize = 16;

/// Spans up to this many bytes go to bins.
const SMALL_MAX: usize = 1024;

/// The number of large spans that are tried before the bump pointer moves; it bounds the time of one allocation.
const TRIES: usize = 8;

/// Free and used bytes in `0..capacity`.
///
/// Invariants: no free spans overlap, and all end at or before `next`; the large ones touch neither each other nor
/// `next`; `by_len` holds the same spans as `by_offset`, turned around.
#[derive(Debug)]
pub(crate) struct Space {
    /// Everything from here on was never used, or was given back.
    next: usize,
    capacity: usize,
    /// Offsets of small free spans; those of `(n + 1) * GRAIN` bytes in bin `n`.
    bins: [Vec<usize>; SMALL_MAX / GRAIN],
    /// Large free spans.
    by_offset: BTreeMap<usize, usize>,
    by_len: BTreeSet<(usize, usize)>,
}

impl Space {
    pub(crate) fn new(capacity: usize) -> Self {
        let bins = std::array::from_fn(|_| Vec::new());
        Self { next: 0, capacity, bins, by_offset: BTreeMap::new(), by_len: BTreeSet::new() }
    }

    /// Bytes from the start to the end of the last used one.
    pub(super) fn used(&self) -> usize {
        self.next
    }

    /// Takes `len` bytes (not 0) whose offset plus `base` is a multiple of `align`; `None` when they do not fit.
    pub(crate) fn take(&mut self, len: usize, align: usize, base: usize) -> Option<usize> {
        let len = len.checked_next_multiple_of(GRAIN)?;
        if align <= GRAIN
            && len <= SMALL_MAX
            && let Some(offset) = self.bins[len / GRAIN - 1].pop()
        {
            return Some(offset);
        }
        let aligned = |offset: usize| Some(base.checked_add(offset)?.checked_next_multiple_of(align)? - base);
        let fits = self.by_len.range((len, 0)..).take(TRIES).find_map(|&(free, offset)| {
            let start = aligned(offset)?;
            (start.checked_add(len)? <= offset + free).then_some((offset, free, start))
        });
        if let Some((offset, free, start)) = fits {
            self.remove(offset, free);
            self.insert(offset, start - offset);
            self.insert(start + len, offset + free - (start + len));
            return Some(start);
        }
        let start = aligned(self.next)?;
        let end = start.checked_add(len).filter(|&end| end <= self.capacity)?;
        let gap = (self.next, start - self.next);
        self.next = end;
        self.insert(gap.0, gap.1);
        Some(start)
    }

    /// Gives back what [`Self::take`] handed out with the same length.
    pub(crate) fn give(&mut self, offset: usize, len: usize) {
        let mut start = offset;
        let mut len = len.next_multiple_of(GRAIN);
        if start + len == self.next {
            self.next = start;
            // The last large span may end here now.
            if let Some((&last, &free)) = self.by_offset.last_key_value()
                && last + free == self.next
            {
                self.remove(last, free);
                self.next = last;
            }
            return;
        }
        if len > SMALL_MAX {
            if let Some((&before, &free)) = self.by_offset.range(..start).next_back()
                && before + free == start
            {
                self.remove(before, free);
                (start, len) = (before, len + free);
            }
            if let Some(&free) = self.by_offset.get(&(start + len)) {
                self.remove(start + len, free);
                len += free;
            }
        }
        self.insert(start, len);
    }

    /// Makes a taken span longer or shorter where it lies; false when its neighbour is in the way.
    pub(super) fn resize(&mut self, offset: usize, old: usize, new: usize) -> bool {
        let Some(new) = new.checked_next_multiple_of(GRAIN) else { return false };
        let old = old.next_multiple_of(GRAIN);
        if new <= old {
            if new < old {
                self.give(offset + new, old - new);
            }
            return true;
        }
        let Some(end) = offset.checked_add(new) else { return false };
        if offset + old == self.next {
            if end > self.capacity {
                return false;
            }
            self.next = end;
            return true;
        }
        match self.by_offset.get(&(offset + old)) {
            Some(&free) if free >= new - old => {
                self.remove(offset + old, free);
                self.insert(end, free - (new - old));
                true
            }
            _ => false,
        }
    }

    fn insert(&mut self, offset: usize, len: usize) {
        if len > SMALL_MAX {
            self.by_offset.insert(offset, len);
            self.by_len.insert((len, offset));
        } else if len > 0 {
            self.bins[len / GRAIN - 1].push(offset);
        }
    }

    /// Takes a large span out of the books.
    fn remove(&mut self, offset: usize, len: usize) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Take(usize, u32),
        Give(usize),
        Resize(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (prop_oneof![1usize..600, 900usize..4000], 0u32..9).prop_map(|(len, shift)| Step::Take(len, shift)),
            2 => any::<usize>().prop_map(Step::Give),
            1 => (any::<usize>(), 1usize..3000).prop_map(|(which, len)| Step::Resize(which, len)),
        ]
    }

    impl Space {
        fn check(&self, live: &[(usize, usize)]) {
            let mut spans: Vec<_> = self.by_offset.iter().map(|(&o, &l)| (o, l, true)).collect();
            spans.extend(live.iter().map(|&(o, l)| (o, l.next_multiple_of(GRAIN), false)));
            for (bin, offsets) in self.bins.iter().enumerate() {
                spans.extend(offsets.iter().map(|&offset| (offset, (bin + 1) * GRAIN, false)));
            }
            spans.sort_unstable();
            let mut at = 0;
            let mut large_before = false;
            for (offset, len, large) in spans {
                assert_eq!(offset, at, "no byte is lost and none is used twice");
                assert!(!(large && large_before), "large free neighbours are one span");
                (at, large_before) = (offset + len, large);
            }
            assert_eq!(at, self.next);
            assert!(!large_before, "no large free span touches the bump pointer");
            assert_eq!(self.by_len.len(), self.by_offset.len());
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_used_once_or_free_once(steps in proptest::collection::vec(step(), 1..200)) {
            let base = 0x4000_0000;
            let mut space = Space::new(65536);
            let mut live: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Take(len, shift) => {
                        if let Some(offset) = space.take(len, 1 << shift, base) {
                            prop_assert_eq!((base + offset) % (1 << shift), 0);
                            prop_assert_eq!(offset % 16, 0, "as `alloc_slice` promises");
                            prop_assert!(offset + len <= 65536);
                            live.push((offset, len));
                        }
                    }
                    Step::Give(which) if !live.is_empty() => {
                        let (offset, len) = live.swap_remove(which % live.len());
                        space.give(offset, len);
                    }
                    Step::Resize(which, new) if !live.is_empty() => {
                        let at = which % live.len();
                        if space.resize(live[at].0, live[at].1, new) {
                            live[at].1 = new;
                        }
                    }
                    _ => {}
                }
                space.check(&live);
            }
            while let Some((offset, len)) = live.pop() {
                space.give(offset, len);
            }
            // Free spans are found again, at least in the lengths they were used in.
            let small = space.bins[0].len();
            for _ in 0..small {
                let used = space.used();
                prop_assert!(space.take(1, 1, base).is_some());
                prop_assert_eq!(space.used(), used);
            }
        }
    }
}
