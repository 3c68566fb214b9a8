//! Counts of references of which a forked child writes to none that it has inherited.
//!
//! ```text
//!  the process that made a count        changes it where it lies, by one atomic instruction
//!  processes that come from it by fork  keep the difference to it in a slot of a table of their own
//! ```
//! The number of references is the count and its difference together. A difference of 0 takes no slot, so that counting up and down again, for however many
//! objects, uses the same few slots: a child gets 64 KiB of memory for them, where it would copy a page for each 512 counts. Where the slot of a count is
//! another's, the count is changed where it lies, and its page is copied.
//!
//! Slots are changed under a lock each, in whose word stands the number of the process that holds it. A child may be forked while another thread holds one. That
//! thread is not there, and its process' number is not the child's, so that such a lock is free. Each change is one store that decides, so what it guards is whole
//! whenever the fork comes.
//!
//! # Safety
//! A count lives until [`Count::free`]. The table is mapped once and stays for good; its slots are atomics.
#![expect(unsafe_code, reason = "counts and the table are found by their addresses")]

use super::hot;
use crate::sys::map::{self, Range};
use crate::sys::wipe_on_fork::OwnPage;
use std::hint;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};

/// A count, and in the low bits of its address which process made it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(NonNull<AtomicUsize>);

/// The bits of an address that are 0 because counts are aligned.
const MAKER_BITS: usize = align_of::<AtomicUsize>() - 1;
/// The counts of all processes from this number on bear it, and are counted by differences even by who made them.
const MAKER_MAX: u32 = MAKER_BITS as u32;

/// A count reaches this only if its references are leaked.
const COUNT_MAX: usize = isize::MAX as usize;

impl Count {
    /// A count of 1.
    pub(super) fn new() -> Self {
        let maker = number().min(MAKER_MAX) as usize;
        let count = Box::into_raw(hot(|| Box::new(AtomicUsize::new(1))));
        let tagged = count.map_addr(|address| address | maker);
        // An address of something is not null, and has only got more bits.
        NonNull::new(tagged).map_or_else(|| std::process::abort(), Self)
    }

    /// True if this process made it: then nobody keeps a difference to it, here or in processes that this one comes from.
    fn is_own(self) -> bool {
        let maker = (self.0.addr().get() & MAKER_BITS) as u32;
        maker == number() && maker < MAKER_MAX
    }

    fn place(self) -> *mut AtomicUsize {
        self.0.as_ptr().map_addr(|address| address & !MAKER_BITS)
    }

    fn word(&self) -> &AtomicUsize {
        // SAFETY: the count was made by `new`, and lives until `free`.
        unsafe { &*self.place() }
    }

    /// Counts one reference more. The caller has one.
    pub(super) fn add(self) {
        let before = if self.is_own() { self.word().fetch_add(1, Ordering::Relaxed) } else { self.change(1) - 1 };
        if before > COUNT_MAX {
            std::process::abort();
        }
    }

    /// Counts one reference less, which was the caller's, and tells whether it was the last one: then all that others did with theirs is done before.
    pub(super) fn remove(self) -> bool {
        if !self.is_own() {
            return self.change(-1) == 0;
        }
        if self.word().fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }

    /// The number of references.
    pub(super) fn get(self) -> usize {
        if self.is_own() { self.word().load(Ordering::Relaxed) } else { self.change(0) }
    }

    /// Changes a count that another process made, and returns the number of references after.
    #[cold]
    #[inline(never)]
    fn change(self, by: i32) -> usize {
        let word = self.word();
        match table() {
            Some(table) => table.change(word, by, number()),
            // No process has a table then, and so no difference: the count itself is all there is.
            None if by < 0 => word.fetch_sub(1, Ordering::AcqRel) - 1,
            None => word.fetch_add(by as usize, Ordering::AcqRel) + by as usize,
        }
    }

    /// Frees the count.
    ///
    /// # Safety
    /// There is no reference any more, and this is done once.
    pub(super) unsafe fn free(self) {
        // SAFETY: `new` made it by a box; the caller is the last one who knows of it.
        drop(unsafe { Box::from_raw(self.place()) });
    }
}

/// The page that tells this process from those that come from it; [`none`] where there can be no such.
static OWN: AtomicPtr<OwnPage> = AtomicPtr::new(null_mut());
/// The largest number that this process, or one that it comes from, ever had or was about to get.
static LARGEST: AtomicU32 = AtomicU32::new(1);

/// An address that is nothing's.
fn none<T>() -> *mut T {
    NonNull::dangling().as_ptr()
}

/// The number of this process, larger than that of each that it comes from; 0 for all where the kernel does not tell them apart.
#[inline]
fn number() -> u32 {
    let own = OWN.load(Ordering::Acquire);
    if own.is_null() || own == none() {
        return first_number(own);
    }
    // SAFETY: a box that is never given up.
    let own = unsafe { &*own };
    match own.number() {
        0 => number_after_fork(own),
        number => number as u32,
    }
}

/// The number where there is no page, because none was needed yet or none can be had. It is decided once: a process in which counts were changed by both ways
/// at a time would lose some.
#[cold]
fn first_number(own: *mut OwnPage) -> u32 {
    if own == none() {
        return 0;
    }
    let made = OwnPage::new().map_or(none(), |page| Box::into_raw(hot(|| Box::new(page))));
    if OWN.compare_exchange(null_mut(), made, Ordering::AcqRel, Ordering::Acquire).is_err() && made != none() {
        // SAFETY: it was made above, and nobody else has seen it.
        drop(unsafe { Box::from_raw(made) });
    }
    number()
}

/// The first who asks after a fork gives the process its number.
#[cold]
fn number_after_fork(own: &OwnPage) -> u32 {
    let next = LARGEST.load(Ordering::Relaxed) + 1;
    // Before the number is given: a child that is forked in between must not get the same one.
    LARGEST.fetch_max(next, Ordering::Relaxed);
    own.give_number(next.into()) as u32
}

/// Differences to counts, each in the slot that the count's address tells.
struct Table {
    slots: &'static [CountSlot],
}

/// A difference to a count.
#[repr(C, align(16))]
struct CountSlot {
    /// The number of the process that holds the lock; 0, or an older process' number, where it is free.
    holder: AtomicU32,
    difference: AtomicI32,
    /// The count's address; 0 where there is no difference.
    count: AtomicUsize,
}

/// Slots of a table. A page has 256.
const SLOTS: usize = 1 << 12;
/// Differences beyond this are the count's.
const DIFFERENCE_MAX: u32 = 1 << 30;
/// The number of looks that a thread takes before it lets others run.
const LOOKS: u32 = 100;

/// The table's first slot; [`none`] where there was no memory for it.
static TABLE: AtomicPtr<CountSlot> = AtomicPtr::new(null_mut());

/// The table of this process: its own, or what it has inherited, of which it copies the pages that it writes to.
fn table() -> Option<Table> {
    let mut at = TABLE.load(Ordering::Acquire);
    if at.is_null() {
        at = map_table();
    }
    // SAFETY: `map_table` mapped so many slots there for good, aligned to a page. They are atomics, for which zero is a value.
    (at != none()).then(|| Table { slots: unsafe { std::slice::from_raw_parts(at, SLOTS) } })
}

#[cold]
fn map_table() -> *mut CountSlot {
    let len = SLOTS * size_of::<CountSlot>();
    let made = map::anonymous(len);
    let at = made.map_or(none(), |range| std::ptr::with_exposed_provenance_mut(range.start));
    match TABLE.compare_exchange(null_mut(), at, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => at,
        Err(theirs) => {
            if let Ok(Range { start, .. }) = made {
                // SAFETY: it was mapped above, and nobody else has seen it.
                let _unmapped = unsafe { map::unmap(Range { start, len }) };
            }
            theirs
        }
    }
}

impl Table {
    /// Changes a count, and returns the number of references after. `process`: this one's number.
    fn change(&self, count: &AtomicUsize, by: i32, process: u32) -> usize {
        let address = std::ptr::from_ref(count).addr();
        // Neighbours have neighbouring slots.
        let Some(slot) = self.slots.get(address / size_of::<AtomicUsize>() % self.slots.len()) else {
            std::process::abort()
        };
        let _held = slot.hold(process);
        let owner = slot.count.load(Ordering::Relaxed);
        let before = if owner == address { slot.difference.load(Ordering::Relaxed) } else { 0 };
        let was = count.load(Ordering::Relaxed);
        let after = before.wrapping_add(by);
        let references = was.wrapping_add_signed(before as isize).wrapping_add_signed(by as isize);
        let fits = after.unsigned_abs() <= DIFFERENCE_MAX;
        // In each of these one store decides: the last one.
        if references == 0 {
            // The count's memory will be another's, which must begin without a difference.
            if owner == address {
                slot.count.store(0, Ordering::Release);
            }
        } else if owner == address && after == 0 {
            slot.count.store(0, Ordering::Release);
        } else if owner == address && fits {
            slot.difference.store(after, Ordering::Relaxed);
        } else if owner == 0 && by != 0 {
            slot.difference.store(by, Ordering::Relaxed);
            slot.count.store(address, Ordering::Release);
        } else if by != 0 {
            count.store(was.wrapping_add_signed(by as isize), Ordering::Relaxed);
        }
        references
    }
}

impl CountSlot {
    fn hold(&self, process: u32) -> SlotGuard<'_> {
        let mut looks = 0u32;
        loop {
            let holder = self.holder.load(Ordering::Relaxed);
            let is_free = holder != process;
            if is_free
                && self.holder.compare_exchange_weak(holder, process, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return SlotGuard(self);
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS) { std::thread::yield_now() } else { hint::spin_loop() }
        }
    }
}

/// A slot that this thread alone changes. Given back when dropped.
struct SlotGuard<'a>(&'a CountSlot);

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        self.0.holder.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    fn table(slots: usize) -> Table {
        let slot =
            || CountSlot { holder: AtomicU32::new(0), difference: AtomicI32::new(0), count: AtomicUsize::new(0) };
        Table { slots: Box::leak((0..slots).map(|_| slot()).collect()) }
    }

    fn is_empty(table: &Table) -> bool {
        table.slots.iter().all(|slot| slot.count.load(Ordering::Relaxed) == 0)
    }

    #[test]
    fn counting_up_and_down_again_writes_to_no_count() {
        let table = table(4);
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(1)).collect();
        for count in &counts {
            assert_eq!((table.change(count, 1, 2), table.change(count, -1, 2)), (2, 1));
        }
        assert!(is_empty(&table) && counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        // The fifth finds its slot taken.
        counts.iter().take(5).for_each(|count| _ = table.change(count, 1, 2));
        let words: Vec<usize> = counts.iter().take(5).map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(words.iter().sum::<usize>(), 6, "{words:?}");
    }

    #[test]
    fn a_count_without_references_keeps_no_slot() {
        let table = table(1);
        let count = AtomicUsize::new(2);
        assert_eq!((table.change(&count, -1, 2), table.change(&count, -1, 2)), (1, 0));
        count.store(1, Ordering::Relaxed);
        assert_eq!(table.change(&count, -1, 2), 0);
        // The same address is a new count's, as the allocator will have it.
        count.store(1, Ordering::Relaxed);
        assert_eq!((table.change(&count, 0, 3), is_empty(&table)), (1, true));
    }

    #[test]
    fn a_lock_of_a_process_that_this_one_comes_from_is_free() {
        let table = table(1);
        let count = AtomicUsize::new(1);
        // Held by a thread that was not forked along.
        table.slots.iter().for_each(|slot| slot.holder.store(2, Ordering::Relaxed));
        assert_eq!(table.change(&count, 1, 3), 2);
        assert_eq!(table.slots.iter().map(|slot| slot.holder.load(Ordering::Relaxed)).sum::<u32>(), 0);
    }

    proptest! {
        #[test]
        fn differences_and_counts_together_are_the_references(
            slots in 1usize..4,
            changes in proptest::collection::vec((0usize..6, any::<bool>()), 0..300),
        ) {
            let table = table(slots);
            let counts: Vec<AtomicUsize> = (0..6).map(|_| AtomicUsize::new(1)).collect();
            let mut references = [1usize; 6];
            for (which, up) in changes {
                references[which] = if up { references[which] + 1 } else { references[which] - 1 };
                let told = table.change(&counts[which], if up { 1 } else { -1 }, 2);
                prop_assert_eq!(told, references[which]);
                if told == 0 {
                    // The memory is a new count's.
                    counts[which].store(1, Ordering::Relaxed);
                    references[which] = 1;
                }
                prop_assert_eq!(table.change(&counts[which], 0, 2), references[which]);
            }
        }
    }

    #[test]
    fn of_threads_that_count_at_a_time_one_takes_the_last_reference() {
        const THREADS: usize = 4;
        const COUNTS: usize = 64;
        let last: Vec<AtomicU64> = (0..COUNTS).map(|_| AtomicU64::new(0)).collect();
        let counts: Vec<AtomicUsize> = (0..COUNTS).map(|_| AtomicUsize::new(THREADS)).collect();
        // Two processes' worth of changes meet in five slots.
        let table = table(5);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (table, counts, last) = (&table, &counts, &last);
                scope.spawn(move || {
                    let mut random = thread as u64 + 1;
                    let mut own = [1u32; COUNTS];
                    for _ in 0..200_000 {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let which = (random % COUNTS as u64) as usize;
                        if own[which] > 0 && (random >> 32).is_multiple_of(2) && own[which] < 50 {
                            own[which] += 1;
                            table.change(&counts[which], 1, 2);
                        } else if own[which] > 1 {
                            own[which] -= 1;
                            assert_ne!(table.change(&counts[which], -1, 2), 0, "others have theirs");
                        }
                    }
                    for (which, own) in own.iter().enumerate() {
                        for _ in 0..*own {
                            if table.change(&counts[which], -1, 2) == 0 {
                                last[which].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert!(last.iter().all(|last| last.load(Ordering::Relaxed) == 1));
        assert!(is_empty(&table));
    }
}
