//! One interval's watch: arming an address space, and answering what its userfaultfds say.

use super::address_space::{AddressSpace, ProcessAccess};
use super::baseline::{self, Baseline, Was, page_bytes};
use super::entries;
use super::faults_armed::{Sampling, WriterStack};
use super::moves::Collected;
use super::ranges::Ranges;
use super::tables::PageTables;
use super::threads::Threads;
use super::verdict::{Page, Sight, verdict};
use crate::record::{Event, Mode, UNKNOWN_CALL, WatchReason, Watched, WriteClass};
use crate::stacks::native::UnwindRegisters;
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry, Query};
use cowbell::sys::remote::{RemoteMemory, RemoteUffd};
use cowbell::sys::uffd::{Features, UffdMessage as Message, WaitingWrite};
use std::collections::HashMap;
use std::sync::Arc;

/// The userfaultfds of one process: made there once, kept for all its intervals.
#[derive(Debug, Default)]
pub struct Doors {
    /// Synchronous: each first write to an armed page is a message. In [`Mode::Trace`] all pages are, in [`Mode::Faults`] some.
    pub events: Option<Arc<RemoteUffd>>,
    /// Asynchronous: the kernel notes which pages were written.
    pub asynchronous: Option<RemoteUffd>,
    /// Why there is no synchronous one though there should be.
    pub without_events: Option<String>,
}

/// Features that the synchronous one must have.
pub const EVENT_FEATURES: Features = Features::PAGEFAULT_FLAG_WP
    .union(Features::THREAD_ID)
    .union(Features::EXACT_ADDRESS)
    .union(Features::WP_HUGETLBFS_SHMEM)
    .union(MOVES);
/// Features that the asynchronous one must have.
pub const BIT_FEATURES: Features = Features::WP_ASYNC.union(Features::WP_HUGETLBFS_SHMEM).union(MOVES);
/// Features of the synchronous one by which single pages are sampled. It tells no change of mappings: nobody is to wait for that.
/// It is handed on to children, so that in these nothing is injected.
pub const SAMPLE_FEATURES: Features =
    Features::PAGEFAULT_FLAG_WP.union(Features::THREAD_ID).union(Features::EXACT_ADDRESS).union(Features::EVENT_FORK);
const ANY: Query =
    Query { all: Categories::empty(), none: Categories::empty(), any: Categories::empty(), rearm: false };
const MOVES: Features = Features::EVENT_REMAP.union(Features::EVENT_REMOVE).union(Features::EVENT_UNMAP);

/// A page that was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The effect of the write, as far as known when it was seen.
    pub class: WriteClass,
    /// The frame the page had before it; 0 where not known.
    pub frame: u64,
    /// When it was seen.
    pub time_ns: u64,
}

/// A fault that was looked at; the writer still waits.
pub struct WaitingFault {
    /// The page.
    pub page: u64,
    /// The event of the write; `None` for a page that was seen before.
    pub event: Option<Event>,
}

/// Messages that were read but not looked at yet.
#[derive(Debug, Default)]
pub struct UnreadMessages {
    /// Messages of the synchronous userfaultfd.
    pub events: Vec<Message>,
    /// Messages of the asynchronous one.
    pub moves: Vec<Message>,
    /// The userfaultfds that the synchronous one gave for children which were forked since.
    pub children: Vec<RemoteUffd>,
}

impl UnreadMessages {
    /// Reads both userfaultfds; false if there was nothing.
    ///
    /// # Errors
    /// Those of reading.
    pub fn hear(&mut self, doors: &Doors) -> Result<bool, Errno> {
        let mut any = false;
        if let Some(uffd) = &doors.events {
            any |= self.hear_events(uffd)?;
        }
        if let Some(uffd) = &doors.asynchronous {
            any |= uffd.read(|message| self.moves.push(message))?;
        }
        Ok(any)
    }

    /// Reads the synchronous one; false if there was nothing.
    ///
    /// # Errors
    /// Those of reading.
    pub fn hear_events(&mut self, uffd: &RemoteUffd) -> Result<bool, Errno> {
        uffd.read_with_children(|message| self.events.push(message), |child| self.children.push(child))
    }
}

/// One interval while it is open.
pub struct OpenInterval {
    /// The interval's number.
    pub interval: u32,
    /// The reason why it is watched.
    pub role: WatchReason,
    /// The way in which pages are observed.
    pub mode: Mode,
    /// The process whose memory is watched.
    pub pid: i32,
    /// Since when.
    pub begun_ns: u64,
    /// The process' page tables.
    pub pagemap: PageTables,
    /// The process' mappings, with how each is observed.
    pub space: AddressSpace,
    /// The pages that they held.
    pub base: Baseline,
    /// The pages written, as far as seen.
    pub written: HashMap<u64, Written>,
    /// The pages that were written before they were moved, by their present addresses.
    pub moved: HashMap<u64, Written>,
    /// In [`Mode::Faults`]: the stacks of those who wrote to armed pages.
    pub stacks: HashMap<u64, WriterStack>,
    /// In [`Mode::Faults`]: which pages are armed.
    pub sampling: Sampling,
    /// Events that are not yet in the capture.
    pub events: Vec<Event>,
    /// In [`Mode::Faults`]: `Some` if pages may have been written by faults that were not told, and how many of these there were.
    pub untold: Option<u64>,
    /// Pages that may have been written and went before they were counted.
    pub uncounted: u64,
    /// The page faults that the process had when the interval opened, where counted.
    pub faults_before: Option<u64>,
    /// The ranges in which pages that the process held may be gone.
    pub dropped: Ranges,
    /// True if callers of code that says little of itself are read: with stacks only.
    pub callers: bool,
    /// When all page tables were read last, and how long it took.
    pub collected: Collected,
    pub(super) doors: Doors,
    pub(super) told: UnreadMessages,
    pub(super) memory: RemoteMemory,
    pub(super) frames: bool,
    pub(super) threads: Threads,
}

impl OpenInterval {
    /// Gives back what the next interval of the same process goes on with.
    pub fn into_rest(self) -> (Doors, AddressSpace) {
        (self.doors, self.space)
    }

    /// Looks at a fault. Afterwards [`Self::release`] the page. `interrupted`: its thread may be on its way to a stop.
    pub fn look(&mut self, fault: WaitingWrite, time_ns: u64, interrupted: bool) -> WaitingFault {
        let page = fault.address as u64 / page_bytes() * page_bytes();
        if !fault.write_protect || self.is_known(page) {
            return WaitingFault { page, event: None };
        }
        let entry = entries::entry(&self.pagemap, page).unwrap_or(Entry::empty());
        let class = self.class_of_write(page, entry);
        let tid = self.threads.ours(fault.tid);
        let at = self.threads.blocked(tid, interrupted);
        let at_itself = at.filter(|at| at.syscall.is_none());
        let by_signal = at_itself.is_some_and(|at| self.is_signal_frame(at.pc, at.sp, fault.address as u64));
        let (at, unknown) = if by_signal { (None, Some(UNKNOWN_CALL)) } else { (at, None) };
        let (pc, syscall) = at.map_or((0, unknown), |at| (at.pc, at.syscall));
        self.written.insert(page, Written { class, frame: entry.frame(), time_ns });
        let code = self.code(pc);
        let by_itself = at.filter(|at| self.callers && at.syscall.is_none());
        let caller = by_itself.map_or(0, |at| self.caller(at.pc, at.sp));
        let byte = Some((fault.address as u64 - page) as u32);
        WaitingFault {
            page,
            event: Some(Event { time_ns, page, tid, pc, code, class, syscall, stack: None, caller, byte }),
        }
    }

    /// Answers faults while a thread of the process is waited for that may need that itself. What else is told is kept for
    /// its turn.
    pub fn answer_meanwhile(&mut self, time_ns: u64) {
        if let Some(uffd) = &self.doors.events {
            let _none = self.told.hear_events(uffd);
        }
        let mut waiting = std::mem::take(&mut self.told.events);
        waiting.retain(|message| {
            let Message::Fault(fault) = *message else { return true };
            let page = fault.address as u64 / page_bytes() * page_bytes();
            // The ring tells of it where only some pages are armed.
            if self.mode == Mode::Trace {
                let seen = self.look(fault, time_ns, true);
                self.events.extend(seen.event);
            }
            // Else it is looked at again, as a page that is known.
            !self.release(page)
        });
        self.told.events = waiting;
    }

    /// Completes the last event of a thread of which was not known where it stood: one that is due a signal does not sleep
    /// while the kernel writes for it, but takes its signal right after. A page of which only a signal's frame can be the writer is the kernel's.
    pub fn place(&mut self, tid: i32, (pc, sp): (u64, u64), call: i64) {
        let last = self.events.iter().rposition(|event| event.tid == tid);
        let is_open = |event: &Event| event.pc == 0 && event.syscall != Some(UNKNOWN_CALL);
        let open = last.and_then(|at| self.events.get(at).filter(|event| is_open(event)).map(|event| (at, event.page)));
        let Some((at, page)) = open else { return };
        let by_signal = call < 0 && self.is_signal_frame(pc, sp, page + page_bytes() - 1);
        let code = self.code(pc);
        let Some(event) = self.events.get_mut(at) else { return };
        if by_signal {
            event.syscall = Some(UNKNOWN_CALL);
        } else {
            (event.pc, event.code) = (pc, code);
            event.syscall = event.syscall.or(i32::try_from(call).ok().filter(|&call| call >= 0));
        }
    }

    /// Lets the writer of a page go on. False: an event must be read first, then again.
    pub fn release(&self, page: u64) -> bool {
        self.doors.events.as_ref().is_none_or(|uffd| release(uffd, page))
    }

    /// Tells whether this page was written already, here or before it was moved here.
    pub fn is_known(&self, page: u64) -> bool {
        self.written.contains_key(&page) || self.moved.contains_key(&page)
    }

    /// A page as the verdict needs it.
    pub(super) fn page(&self, page: u64) -> Page {
        let backing = self.space.find(page).map(|map| map.backing);
        Page { was: self.base.at(page), backing, dropped: self.dropped.contains(page) }
    }

    /// The effect that a write to a page that has this entry will have.
    pub(super) fn class_of_write(&self, page: u64, entry: Entry) -> WriteClass {
        let known = self.page(page);
        // Asked only where it matters: it reads page tables.
        let part_of_huge = matches!(known.was, Some(Was::Private | Was::Swapped))
            && entry.contains(Entry::EXCLUSIVE)
            && self.may_be_part_of_a_huge_page(page);
        verdict(known, Sight::Before { entry, part_of_huge }).unwrap_or(WriteClass::FirstTouch)
    }

    /// A part of a huge page that only this process maps is copied all the same while others map another part. Frames
    /// tell afterwards; without them, a shared neighbour leaves it open.
    fn may_be_part_of_a_huge_page(&self, page: u64) -> bool {
        let huge = baseline::huge_bytes();
        let Some(map) = self.space.find(page).filter(|_| !self.frames) else { return false };
        let start = (page / huge * huge).max(map.mapping.start);
        let end = (page / huge * huge + huge).min(map.mapping.end);
        let mut shared = false;
        let range = Range { start: start as usize, len: (end - start) as usize };
        let read = self.pagemap.read(range, |_, entry| {
            shared |= entry.contains(Entry::PRESENT) && !entry.contains(Entry::EXCLUSIVE);
        });
        read.is_err() || shared
    }

    /// The number of the place that an instruction's address means now.
    pub fn code(&mut self, pc: u64) -> u32 {
        if !self.told.moves.is_empty() {
            self.space.doubt();
        }
        self.space.code(pc, ProcessAccess { memory: &self.memory, doors: &self.doors })
    }

    /// The place of the call by which the function at `pc` was run, where its code says little of itself.
    fn caller(&mut self, pc: u64, sp: u64) -> u32 {
        self.space.caller(pc, sp, ProcessAccess { memory: &self.memory, doors: &self.doors })
    }

    /// The stack of a thread that stands still, as places; `None` if it takes the frame pointer, and that is not known.
    pub fn stack(&mut self, registers: UnwindRegisters) -> Option<Vec<u32>> {
        self.space.stack(registers, ProcessAccess { memory: &self.memory, doors: &self.doors })
    }

    /// Every mapping of code with the number of its module: start, end and offset.
    pub fn code_modules(&mut self) -> Vec<(u64, u64, u64, u32)> {
        self.space.code_modules(&self.memory)
    }

    /// A thread ended.
    pub fn forget_thread(&mut self, tid: i32) {
        self.threads.forget(tid);
    }

    /// Reads the synchronous userfaultfd.
    pub fn read_events(&mut self, messages: &mut Vec<Message>) -> bool {
        if self.told.events.is_empty()
            && self.doors.events.as_ref().is_none_or(|uffd| self.told.hear_events(uffd) != Ok(true))
        {
            return false;
        }
        messages.append(&mut self.told.events);
        true
    }

    /// Takes the userfaultfds that were given for children which were forked since.
    pub fn take_children(&mut self) -> Vec<RemoteUffd> {
        std::mem::take(&mut self.told.children)
    }

    /// The userfaultfds, to wait for.
    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Notes which pages the kernel saw written in the mappings without events.
    ///
    /// # Errors
    /// The process is gone.
    pub fn collect(&mut self, now_ns: u64) -> Result<(), Errno> {
        let started = cowbell::sys::monotonic_ns();
        self.collect_in(baseline::user_space(), now_ns)?;
        let ended_ns = cowbell::sys::monotonic_ns();
        self.collected = Collected { ended_ns, took_ns: ended_ns - started };
        Ok(())
    }

    /// The same of a range only.
    ///
    /// # Errors
    /// The process is gone.
    pub fn collect_in(&mut self, range: Range, now_ns: u64) -> Result<(), Errno> {
        let query = Query {
            all: Categories::WP_ALLOWED | Categories::WRITTEN,
            none: Categories::FILE,
            any: Categories::PRESENT | Categories::SWAPPED | Categories::PFN_ZERO | Categories::HUGE,
            rearm: false,
        };
        let (mut due, long) = self.base.apart(range);
        for long in long {
            // Few of many pages were written. The kernel finds these several times as fast if nothing else is asked for.
            self.pagemap.scan(long, &Query { all: Categories::WRITTEN, ..ANY }, |range| due.push(range))?;
        }
        let mut found = Vec::new();
        for range in due {
            self.pagemap.scan_categories(range, &query, |range, categories| {
                if !categories.contains(Categories::PFN_ZERO) {
                    found.push((range, categories));
                }
            })?;
        }
        for (range, categories) in found {
            for range in baseline::without_zeroes(&self.pagemap, range, categories) {
                self.collect_range(range, now_ns)?;
            }
        }
        Ok(())
    }

    fn collect_range(&mut self, range: Range, now_ns: u64) -> Result<(), Errno> {
        let (mut entries, page) = (Vec::new(), page_bytes());
        if self.frames {
            self.pagemap.read(range, |_, entry| entries.push(entry.frame()))?;
        }
        for (index, address) in (range.start as u64..range.end() as u64).step_by(page as usize).enumerate() {
            // Nobody armed what was mapped later: the census counts it.
            let armed = self.space.find(address).is_some_and(|map| map.mapping.watched == Watched::Async);
            if !armed || self.is_known(address) {
                continue;
            }
            let frame = self.base.frame(address).unwrap_or(0);
            let seen = Sight::After { before: frame, now: entries.get(index).copied().unwrap_or(0) };
            let Some(class) = verdict(self.page(address), seen) else { continue };
            self.written.insert(address, Written { class, frame, time_ns: now_ns });
        }
        Ok(())
    }
}

/// Lets the writer of a page go on. False: an event must be read first, then again.
pub fn release(uffd: &RemoteUffd, page: u64) -> bool {
    let range = Range { start: page as usize, len: page_bytes() as usize };
    match uffd.write_protect(range, false) {
        Ok(()) => true,
        Err(Errno::AGAIN) => false,
        // Unmapped or moved meanwhile: the writer tries again, and meets what is there now.
        Err(_) => {
            let _gone = uffd.wake(range);
            true
        }
    }
}
