//! Making room: slots, the memory of jobs and of results are used again.

use super::core::{Core, Front, Owner, lock};
use crate::arena::Space;
use crate::pool::memory::buffer;
use crate::pool::memory::heap;
use crate::pool::memory::region::TRIM_MIN;
use crate::pool::protocol::board::{BatchSlot, SLOTS};
use crate::pool::protocol::queue::FREE;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The time after which the memory of jobs is given back, if there are none at that moment.
const TRIM_EVERY: Duration = Duration::from_secs(1);

impl Core {
    /// Moves the results of a batch that is done into this process's own memory, as they are. Their buffers stay.
    pub(crate) fn park(&self, front: &mut Front, number: usize) -> bool {
        let slot = self.slot(number);
        if slot.output.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut row = Vec::new();
        self.results(number, None).for_each(|item| item.append_to(&mut row));
        front.parked.insert(number, row);
        self.free_output(slot);
        true
    }

    pub(crate) fn free_output(&self, slot: &BatchSlot) {
        let first = slot.output.swap(0, Ordering::AcqRel) as usize;
        heap::free_chain(&self.region, first);
    }

    /// Frees a slot whose results were read.
    pub(crate) fn free(&self, number: usize) {
        let slot = self.slot(number);
        self.free_output(slot);
        let mut front = lock(&self.front);
        self.free_input(&mut front, number);
        drop(front);
        self.ring_for_room();
    }

    pub(crate) fn free_input(&self, front: &mut Front, number: usize) {
        let slot = self.slot(number);
        // From where the first of them began, before some were skipped, to the end.
        let end = slot.input.load(Ordering::Acquire) as usize + slot.input_bytes.load(Ordering::Acquire) as usize;
        let first = slot.input_first.load(Ordering::Acquire) as usize;
        front.payloads.give(first - self.region.payloads().start, (end - first).max(1));
        if let Some(owner) = front.owners.get_mut(number) {
            *owner = None;
        }
        front.parked.remove(&number);
        slot.state.store(FREE, Ordering::Release);
        front.free.push(number as u16);
        if front.free.len() == SLOTS && front.payloads_end >= TRIM_MIN && front.trimmed.elapsed() > TRIM_EVERY {
            self.trim(front);
        }
    }

    /// Gives the memory of jobs back to the system. There are none.
    #[expect(unsafe_code, reason = "shared memory is given back")]
    pub(crate) fn trim(&self, front: &mut Front) {
        let all = self.region.payloads();
        front.payloads = Space::new(all.len);
        let used = std::mem::take(&mut front.payloads_end);
        front.trimmed = Instant::now();
        // SAFETY: all slots are free, and the lock is held, so no jobs lie there.
        unsafe { self.region.trim(all.start, used) };
    }

    pub(crate) fn ring_for_room(&self) {
        let room = &self.region.board().event_counts[0];
        room.notify_if_awaited();
    }

    /// Lets a batch run whose results nobody will read.
    pub(crate) fn abandon(&self, number: usize) {
        if self.check_process().is_err() {
            return;
        }
        let _only_if_queued = self.take_back(number);
        let mut front = lock(&self.front);
        if let Some(owner) = front.owners.get_mut(number) {
            *owner = Some(Owner::Nobody);
        }
        drop(front);
        if self.is_done(number) {
            self.make_room();
        }
    }

    /// Frees slots that are done: those of tickets that were dropped, and, by moving their results into this process's own
    /// memory, those of tickets that nobody has waited for. Where a worker waits for room, moves results that iterators have
    /// not asked for yet, too. Was there one?
    pub(crate) fn make_room(&self) -> bool {
        let mut made = false;
        let wanted = self.region.workers().iter().any(|worker| worker.waits.load(Ordering::Acquire) != 0);
        for number in 0..self.region.board().slots_used.load(Ordering::Acquire) as usize {
            if !self.is_done(number) {
                continue;
            }
            let mut front = lock(&self.front);
            match front.owners.get(number).and_then(Clone::clone) {
                Some(Owner::Ticket(owner)) => {
                    drop(front);
                    made |= owner.upgrade().is_some_and(|owner| owner.park(number));
                }
                Some(Owner::Nobody) if self.is_done(number) => {
                    let parked = front.parked.remove(&number);
                    for item in self.results(number, parked.as_deref()) {
                        buffer::discard(&self.region, &item.passengers());
                    }
                    self.free_output(self.slot(number));
                    self.free_input(&mut front, number);
                    made = true;
                }
                None if wanted && self.is_done(number) => made |= self.park(&mut front, number),
                Some(Owner::Nobody | Owner::Reader) | None => {}
            }
        }
        if made {
            self.ring_for_room();
        }
        made
    }
}
