//! A thread's own slabs, and blocks that move between threads.
//!
//! ```text
//!  alloc   the first free block of the slab at the head of the class's queue; else what others freed, the rest of the slab,
//!          the queue's next slab, a new slab
//!  free    to the slab, if it is this thread's own; else to the slab's list of blocks freed by others, and the first of these puts
//!          the slab into its owner's mailbox
//! ```
//! A thread that ends leaves its [`Local`] with all its slabs to the next that starts. Meanwhile it is *vacant*: whoever frees a block of such a slab
//! takes the slab over.
//!
//! # Safety
//! A [`Local`] is used by the thread that claimed it, and while it is vacant by whoever holds the lock. It is never unmapped. Only its user
//! changes its slabs, but for `remote` and `mailed`.
#![expect(unsafe_code, reason = "slabs and their owners are found by address")]

use super::central;
use super::class::{CLASSES, Class};
use super::links::{EMPTY, collect, extend, read_link, write_link};
use super::lock::{self, HeapGuard};
use super::metadata::{MARKS_END, NEVER, NONE_IN_USE, Slab, Unit};
use super::state::KINDS;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};

/// The first vacant one of each kind.
pub(super) static VACANT: [AtomicUsize; KINDS] = [const { AtomicUsize::new(0) }; KINDS];

/// The number of claimed ones. Whoever frees what is another's has one, or holds the lock: so a fork knows whether somebody may be in the middle of it.
pub(super) static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Slabs of one thread and one kind.
#[repr(C, align(64))]
pub(super) struct Local {
    /// For each class the first slab that may have a free block, or [`EMPTY`].
    heads: [AtomicPtr<Slab>; CLASSES],
    /// Slabs of which others freed blocks, by link.
    pub(super) mailbox: AtomicU32,
    pub(super) kind: AtomicU8,
    /// No thread has it.
    pub(super) vacant: AtomicU8,
    /// The next one of all, and of the vacant ones: addresses.
    pub(super) next: AtomicUsize,
    pub(super) next_vacant: AtomicUsize,
}

/// Looks after mail of Locals that no thread has, so that their memory is not kept for nothing.
pub(super) fn settle_vacant(held: &HeapGuard) {
    for vacant in &VACANT {
        let mut at = vacant.load(Ordering::Relaxed);
        while let Some(local) = owner_at(at) {
            if local.mailbox.load(Ordering::Relaxed) != 0 {
                local.give_up_unused(held);
            }
            at = local.next_vacant.load(Ordering::Relaxed);
        }
    }
}

/// Puts a Local to those that nobody has.
fn vacate(local: &'static Local, _held: &HeapGuard) {
    let vacant = &VACANT[usize::from(local.kind.load(Ordering::Relaxed))];
    local.next_vacant.store(vacant.load(Ordering::Relaxed), Ordering::Relaxed);
    local.vacant.store(1, Ordering::Relaxed);
    CLAIMED.fetch_sub(1, Ordering::Relaxed);
    vacant.store(local.address(), Ordering::Relaxed);
}

/// Tells a slab's owner that others freed blocks of it.
pub(super) fn mail(slab: &'static Slab) {
    if slab.mailed.swap(1, Ordering::AcqRel) != 0 {
        // The slab's owner has not looked yet, and will find these, too.
        return;
    }
    let Some(local) = owner_at(slab.owner.load(Ordering::Acquire)) else {
        // The owner found the block without being told, and gave the slab back.
        slab.mailed.store(0, Ordering::Release);
        return;
    };
    let link = Unit::of_slab(slab).link();
    let mut head = local.mailbox.load(Ordering::Relaxed);
    loop {
        slab.mail_next.store(head, Ordering::Relaxed);
        match local.mailbox.compare_exchange_weak(head, link, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

/// The Local at an owner's address; `None` for a mark.
pub(super) fn owner_at(owner: usize) -> Option<&'static Local> {
    // SAFETY: an owner that is no mark is the address of a Local, which is never unmapped and consists of atomics.
    (owner >= MARKS_END).then(|| unsafe { &*std::ptr::with_exposed_provenance::<Local>(owner) })
}

impl Local {
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).expose_provenance()
    }

    #[inline]
    fn head(&self, class: Class) -> &'static Slab {
        // SAFETY: a head is EMPTY or a header, and both are there for good.
        unsafe { &*self.heads[class.number()].load(Ordering::Relaxed) }
    }

    fn set_head(&self, class: Class, slab: &'static Slab) {
        if !std::ptr::eq(slab, &EMPTY) {
            slab.notice.store(NEVER, Ordering::Relaxed);
        }
        self.heads[class.number()].store(std::ptr::from_ref(slab).cast_mut(), Ordering::Relaxed);
    }

    /// A free block; 0 where there is no memory.
    #[inline]
    pub(super) fn take(&self, class: Class) -> usize {
        let slab = self.head(class);
        let block = slab.free.load(Ordering::Relaxed);
        if block == 0 {
            return self.refill(class);
        }
        // SAFETY: it is in the slab's list, which is this thread's.
        let next = unsafe { read_link(block) };
        slab.free.store(next, Ordering::Relaxed);
        slab.used.store(slab.used.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        block
    }

    /// # Safety
    /// The slab is this one's, and the block is one of it that nobody uses any more.
    #[inline]
    pub(super) unsafe fn put(&self, slab: &'static Slab, block: usize) {
        // SAFETY: passed on to the caller.
        unsafe { write_link(block, slab.free.load(Ordering::Relaxed)) };
        slab.free.store(block, Ordering::Relaxed);
        let used = slab.used.load(Ordering::Relaxed) - 1;
        slab.used.store(used, Ordering::Relaxed);
        if used <= slab.notice.load(Ordering::Relaxed) {
            self.look_after(slab, None);
        }
    }

    /// A slab that was full has a free block, or one that is not the first of its class has no block in use.
    #[cold]
    #[inline(never)]
    fn look_after(&self, slab: &'static Slab, held: Option<&HeapGuard>) {
        let class = Class::numbered(slab.class.load(Ordering::Relaxed).into());
        if slab.is_full() {
            self.enqueue(slab, class);
        }
        // The first one of its class stays, or a block taken and freed again and again would make a slab each time.
        if slab.used.load(Ordering::Relaxed) <= slab.notice.load(Ordering::Relaxed) {
            self.give_up(slab, class, held);
        }
    }

    /// Gives back a slab that has no block in use.
    fn give_up(&self, slab: &'static Slab, class: Class, held: Option<&HeapGuard>) {
        self.dequeue(slab, class);
        let first = Unit::of_slab(slab);
        match held {
            Some(held) => central::release(first, class.slab_units(), held),
            None => central::release(first, class.slab_units(), &lock::take()),
        }
    }

    /// Puts a slab at the end of its class's queue: until its turn comes it gathers free blocks, or gets rid of all.
    fn enqueue(&self, slab: &'static Slab, class: Class) {
        let (head, link) = (self.head(class), Unit::of_slab(slab).link());
        if std::ptr::eq(head, &EMPTY) {
            slab.next.store(link, Ordering::Relaxed);
            slab.prev.store(link, Ordering::Relaxed);
            return self.set_head(class, slab);
        }
        let last = head.prev.load(Ordering::Relaxed);
        slab.notice.store(NONE_IN_USE, Ordering::Relaxed);
        slab.next.store(Unit::of_slab(head).link(), Ordering::Relaxed);
        slab.prev.store(last, Ordering::Relaxed);
        head.prev.store(link, Ordering::Relaxed);
        if let Some(last) = Unit::linked(last) {
            last.slab().next.store(link, Ordering::Relaxed);
        }
    }

    /// Takes a slab out of its class's queue, which is a ring.
    fn dequeue(&self, slab: &'static Slab, class: Class) {
        let (next, prev) = (slab.next.load(Ordering::Relaxed), slab.prev.load(Ordering::Relaxed));
        let is_alone = next == Unit::of_slab(slab).link();
        if let (Some(after), Some(before)) = (Unit::linked(next), Unit::linked(prev)) {
            before.slab().next.store(next, Ordering::Relaxed);
            after.slab().prev.store(prev, Ordering::Relaxed);
            if std::ptr::eq(self.head(class), slab) {
                self.set_head(class, if is_alone { &EMPTY } else { after.slab() });
            }
        }
        slab.next.store(0, Ordering::Relaxed);
        slab.prev.store(0, Ordering::Relaxed);
    }

    /// Finds a free block where the head of the queue has none.
    #[cold]
    #[inline(never)]
    fn refill(&self, class: Class) -> usize {
        if self.mailbox.load(Ordering::Relaxed) != 0 {
            self.open_mail(None);
        }
        if central::purge_is_due() {
            central::purge_unwanted(&lock::take());
        }
        loop {
            let slab = self.head(class);
            if std::ptr::eq(slab, &EMPTY) {
                break;
            }
            if slab.free.load(Ordering::Relaxed) == 0 {
                collect(slab);
            }
            if slab.free.load(Ordering::Relaxed) != 0 || extend(slab, class) {
                return self.take(class);
            }
            self.dequeue(slab, class);
            slab.notice.store(class.slab_blocks() as i32 - 1, Ordering::Relaxed);
        }
        if self.new_slab(class) { self.take(class) } else { 0 }
    }

    /// Puts a new slab at the head of the class's queue; false where there is no memory.
    fn new_slab(&self, class: Class) -> bool {
        let held = lock::take();
        settle_vacant(&held);
        let units = class.slab_units();
        let Some(taken) = central::take(units, units, self.kind.load(Ordering::Relaxed), &held) else { return false };
        let slab = taken.first.slab();
        slab.free.store(0, Ordering::Relaxed);
        slab.remote.store(0, Ordering::Relaxed);
        slab.used.store(0, Ordering::Relaxed);
        slab.fresh.store(0, Ordering::Relaxed);
        slab.blocks.store(class.slab_blocks(), Ordering::Relaxed);
        slab.class.store(class.number() as u8, Ordering::Relaxed);
        slab.dirty.store(taken.dirty.into(), Ordering::Relaxed);
        // Read by who sends mail.
        slab.owner.store(self.address(), Ordering::Release);
        self.enqueue(slab, class);
        extend(slab, class)
    }

    /// Takes in what others freed.
    pub(super) fn open_mail(&self, held: Option<&HeapGuard>) {
        let mut link = self.mailbox.swap(0, Ordering::Acquire);
        while let Some(unit) = Unit::linked(link) {
            let slab = unit.slab();
            link = slab.mail_next.load(Ordering::Relaxed);
            // Before its list is taken: who frees a block after this sends it again.
            slab.mailed.swap(0, Ordering::AcqRel);
            if slab.owner.load(Ordering::Acquire) != self.address() {
                // The slab was taken over, or given back and made again by another, after it was sent.
                if slab.remote.load(Ordering::Acquire) != 0 {
                    mail(slab);
                }
                continue;
            }
            collect(slab);
            if slab.free.load(Ordering::Relaxed) != 0 {
                self.look_after(slab, held);
            }
        }
    }

    /// Makes a slab of a vacant one this one's. False if it is not so any more, or of another kind.
    pub(super) fn take_over(&self, slab: &'static Slab, from: &'static Local) -> bool {
        let _held = lock::take();
        let still = slab.owner.load(Ordering::Relaxed) == from.address() && from.vacant.load(Ordering::Relaxed) != 0;
        if !still || from.kind.load(Ordering::Relaxed) != self.kind.load(Ordering::Relaxed) {
            return false;
        }
        let class = Class::numbered(slab.class.load(Ordering::Relaxed).into());
        if !slab.is_full() {
            from.dequeue(slab, class);
        }
        slab.owner.store(self.address(), Ordering::Release);
        collect(slab);
        self.enqueue(slab, class);
        true
    }

    /// Gives all slabs back that have no block in use.
    pub(super) fn give_up_unused(&self, held: &HeapGuard) {
        self.open_mail(Some(held));
        for class in (0..CLASSES).map(Class::numbered) {
            let mut slab = self.head(class);
            let last = slab.prev.load(Ordering::Relaxed);
            while !std::ptr::eq(slab, &EMPTY) {
                let (link, next) = (Unit::of_slab(slab).link(), slab.next.load(Ordering::Relaxed));
                collect(slab);
                if slab.used.load(Ordering::Relaxed) == 0 {
                    self.give_up(slab, class, Some(held));
                }
                slab = if link == last { &EMPTY } else { Unit::linked(next).map_or(&EMPTY, Unit::slab) };
            }
        }
    }

    /// Forgets the slabs to allocate from: the Local is new, or all of them are about to be frozen.
    pub(super) fn forget_heads(&self) {
        self.heads.iter().for_each(|head| head.store(std::ptr::from_ref(&EMPTY).cast_mut(), Ordering::Relaxed));
    }

    /// Gives the Local up: it is nobody's from now on.
    pub(super) fn leave(&'static self, held: &HeapGuard) {
        self.give_up_unused(held);
        vacate(self, held);
    }
}
