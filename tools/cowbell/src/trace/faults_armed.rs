//! Exact stacks beside page faults: a few of the pages that a process held stop whoever writes to them first.
//!
//! ```text
//!  ring               every fault: address, instruction, thread, time      nobody waits
//!  synchronous        one page of N is armed: its writer waits until       the stack is that of the write itself
//!  userfaultfd        its stack is read, then goes on
//! ```
//!
//! Pages are chosen by their addresses alone, so that what is written where has no part in it. The choice for 2 N is a part of that
//! for N: where stacks tell nothing new any more, every second armed page is let go. A userfaultfd that is closed
//! lets everybody go, so a tool that is killed leaves nobody behind.
//!
//! Each program makes its userfaultfd once, by a system call that is injected before its first instruction; its children are given
//! theirs by the kernel as they are forked (`EVENT_FORK`). So of those that have begun only a process that is attached to makes a call
//! that is not its own, once.

use super::Tracer;
use super::arm::protect;
use super::baseline::{huge_bytes, page_bytes};
use super::birth::Unarmed;
use super::faults_page::is_in_huge;
use super::faults_stand_in::{StandIn, hear};
use super::intervals::events_of;
use super::maps;
use super::sample::{Halted, StackTaken};
use super::tree::Tracee;
use super::watch::{Doors, OpenInterval, release};
use crate::record::{Closed, Event, Mode, WriteClass};
use cowbell::sys;
use cowbell::sys::map::Range;
use cowbell::sys::ptrace::{self, Stop};
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::uffd::{UffdMessage as Message, WaitingWrite};
use std::sync::Arc;

/// The number of pages that are armed at most, if every page were to have a stack: fewer for `--stacks 1/N`.
const ARMED_MAX: u64 = 1 << 16;
/// But never more than one page of so many: of a small process nearly all pages would be armed.
const EVERY_MIN: u64 = 8;
/// The time that the tracer may run to read the stacks of a process, and its share of the process' time: one of so many parts.
const FREE_NS: u64 = 40_000_000;
const SHARE: u64 = 20;
/// Beyond that a stack may follow on the one before it after so many times what that took.
const REST: u64 = 20;
/// After so many writers that waited for nothing new it is enough to ask half as many.
const THIN_EVENTS: u32 = 32;
/// But so many pages stay armed, as far as they were: what is done next may be something else.
const ARMED_MIN: u64 = 128;
/// The time that the tracer may run to arm pages, of all processes together, and its share of the time: one of so many parts.
const ARM_FREE_NS: u64 = 20_000_000;
const ARM_SHARE: u64 = 25;

/// The stack of who wrote to an armed page.
#[derive(Clone, Copy, Debug)]
pub struct WriterStack {
    /// The thread.
    pub tid: i32,
    /// When the write was seen, since the header.
    pub time_ns: u64,
    /// The stack's number.
    pub stack: u32,
}

/// The sampling of one interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampling {
    /// One page of so many is armed.
    every: u64,
    /// The time that this ran to go through the mappings and arm pages.
    pub arming_ran_ns: u64,
    /// One page of so many may be armed at the least.
    every_max: u64,
    /// The time that this ran to read stacks. On a busy machine their writers wait for longer, but they would do so at their own work, too.
    spent_ns: u64,
    /// When the last stack was read, and how long that took.
    last_ns: u64,
    took_ns: u64,
    /// The number of writers, one after the other, whose stacks told nothing new.
    in_vain: u32,
}

impl Sampling {
    /// For a process that holds so many pages; `stacks_every`: as the user asks for them.
    pub fn new(stacks_every: u32, pages: u64) -> Self {
        let every = (pages * u64::from(stacks_every)).div_ceil(ARMED_MAX).max(EVERY_MIN).next_power_of_two();
        Self { every, every_max: every.max(pages / ARMED_MIN), ..Self::default() }
    }

    /// Tells whether this page is one of those armed.
    fn has(self, page: u64) -> bool {
        hash(page / page_bytes()) & (self.every - 1) == 0
    }

    /// The stack of a writer was read, for which this ran for so long. The first one says nothing of the next: with it the files are read
    /// of which the process has code, which takes some tens of milliseconds where these are many.
    fn took(&mut self, now_ns: u64, ran_ns: u64) {
        if self.last_ns > 0 {
            self.spent_ns += ran_ns;
            self.took_ns = ran_ns;
        }
        self.last_ns = now_ns;
    }

    /// One writer waited, and told something new, or not; true if too many wait.
    fn count(&mut self, is_new: bool) -> bool {
        self.in_vain = if is_new { 0 } else { self.in_vain + 1 };
        let too_many = self.in_vain >= THIN_EVENTS;
        if too_many {
            self.in_vain = 0;
        }
        too_many && self.every * 2 <= self.every_max
    }

    /// Tells whether a stack may be read now, in an interval that began at `begun_ns`.
    fn may_take(self, begun_ns: u64, now_ns: u64) -> bool {
        self.spent_ns <= FREE_NS + now_ns.saturating_sub(begun_ns) / SHARE
            || now_ns.saturating_sub(self.last_ns) > REST * self.took_ns
    }
}

/// Spreads neighbouring numbers over all bits (the finaliser of SplitMix64).
fn hash(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl OpenInterval {
    /// Arms some pages of a mapping, but none in a huge page: the kernel would map that by its parts from then on, which makes every
    /// access and every fork dearer. Where another userfaultfd watches the mapping there are no stacks.
    pub(super) fn arm_some(&mut self, start: u64, end: u64) {
        let Some(uffd) = &self.doors.events else { return };
        let (sampling, pagemap, mut huge) = (self.sampling, &self.pagemap, None);
        let mut chosen: Vec<u64> = self.base.held_in(start, end).filter(|&page| sampling.has(page)).collect();
        chosen.retain(|&page| {
            let part_of = page / huge_bytes();
            // The parts of a huge page are neighbours: one is asked for all.
            let is_huge = match huge {
                Some((known, is_huge)) if known == part_of => is_huge,
                _ => is_in_huge(pagemap, page),
            };
            huge = Some((part_of, is_huge));
            !is_huge
        });
        let range = Range { start: start as usize, len: (end - start) as usize };
        if !chosen.is_empty() && uffd.register(range).is_ok() {
            for page in chosen {
                let _without = protect(uffd, one(page), &self.doors, &mut self.told);
            }
        }
    }

    /// Tells whether this page is one of those of which some are armed: one that the process held, and no part of a huge page.
    pub(super) fn samples(&self, page: u64) -> bool {
        self.doors.events.is_some() && self.base.at(page).is_some() && !is_in_huge(&self.pagemap, page)
    }

    /// Lets every second armed page go that was not written yet.
    fn thin(&mut self) {
        let fewer = Sampling { every: self.sampling.every * 2, ..self.sampling };
        self.disarm(|page| !fewer.has(page));
        self.sampling = fewer;
    }

    /// Lets armed pages go.
    fn disarm(&self, which: impl Fn(u64) -> bool) {
        let Some(uffd) = &self.doors.events else { return };
        let armed = self.base.held_in(0, u64::MAX).filter(|&page| self.sampling.has(page) && which(page));
        for page in armed.filter(|page| !self.stacks.contains_key(page)) {
            // One that is gone by now was let go with its mapping.
            let _gone = uffd.write_protect(one(page), false);
        }
    }

    /// The interval closes, and its process shares its memory with nobody any more: nobody is to wait for a look.
    pub(super) fn rest(&self, closed: Closed) {
        if self.mode == Mode::Faults && closed == Closed::Unshared {
            self.disarm(|_| true);
        }
    }
}

fn one(page: u64) -> Range {
    Range { start: page as usize, len: page_bytes() as usize }
}

impl Tracer {
    /// Tells whether some pages may be armed in one more process: what forks all the time is not to pay for it each time.
    pub(super) fn may_sample(&self) -> bool {
        self.options.stacks_every > 0 && !self.leaving && self.sampling_ran_ns < ARM_FREE_NS + self.now() / ARM_SHARE
    }

    /// A process has executed a program: its thread is to make a userfaultfd before the first instruction of that.
    pub(super) fn begin_to_sample(&mut self, tid: i32, pid: i32) {
        if self.mode != Mode::Faults || !self.frames || !self.may_sample() {
            return;
        }
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.to_sample = ptrace::interrupt(tid).is_ok();
        }
    }

    /// Tells whether this process is to make its userfaultfd.
    pub(super) fn wants_sampling(&self, pid: i32) -> bool {
        self.tree.processes.get(&pid).is_some_and(|process| process.to_sample)
    }

    /// Makes a process' userfaultfd, by its thread that stands in a [`Stop::Trap`]. Returns the stop that it is left in, `None` if it
    /// ended. Where it is refused there are stacks all the same, if not as good ones.
    pub(super) fn open_sampling(&mut self, tid: i32, pid: i32) -> Option<Stop> {
        let (started, ran) = (sys::monotonic_ns(), sys::ran_ns());
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.to_sample = false;
        }
        let stop = match self.open_doors(tid, pid, Mode::Faults) {
            Ok((doors, stop)) => {
                if is_handed_on(pid, &doors) {
                    self.keep(pid, doors);
                }
                Some(stop)
            }
            Err(Unarmed::Because(_)) => Some(Stop::Trap),
            Err(Unarmed::Ending(status)) => {
                self.on_status(tid, status);
                None
            }
        };
        self.sampling_ran_ns += sys::ran_ns() - ran;
        self.spent.arming_ns += sys::monotonic_ns() - started;
        stop
    }

    /// Keeps a process' userfaultfds while no interval is open. In [`Mode::Trace`] whoever writes would wait for the answer of the
    /// synchronous one.
    pub(super) fn keep(&mut self, pid: i32, doors: Doors) {
        let is_wanted = match self.mode {
            Mode::Faults => doors.events.is_some(),
            Mode::Count | Mode::Trace => doors.events.is_none() && doors.asynchronous.is_some(),
        };
        if is_wanted
            && !self.leaving
            && self.waits_for(pid, &doors)
            && let Some(process) = self.tree.processes.get_mut(&pid)
        {
            process.kept = Some(doors);
        }
    }

    /// A process was forked: what its maker's userfaultfd gave for it is its own from now on. If two were given, which is whose is not
    /// known.
    pub(super) fn inherit_sampling(&mut self, maker: i32, child: i32) {
        let holder = self.tree.holder(maker);
        self.take_children(holder, Vec::new());
        let Some(process) = self.tree.processes.get_mut(&holder) else { return };
        let mut given = std::mem::take(&mut process.children);
        if let (Some(only), true) = (given.pop(), given.is_empty()) {
            let _refused = self.poller.remove(&only);
            self.keep(child, Doors { events: Some(Arc::new(only)), ..Doors::default() });
        }
    }

    /// Takes over what a process' userfaultfd gave for children that it is just forking. Such a child stands still until its maker's stop
    /// is served. One that nevertheless waits for a page is not followed (`CLONE_UNTRACED`), or the kernel stores its thread id there before
    /// its first stop: it is let go, and has no exact stacks.
    fn take_children(&mut self, pid: i32, mut given: Vec<RemoteUffd>) {
        let Some(process) = self.tree.processes.get_mut(&pid) else { return };
        given.extend(process.watch.as_mut().map(|watch| watch.take_children()).unwrap_or_default());
        process.children.extend(given);
        process.children.retain(|child| !child.has_events());
        for child in &process.children {
            // Those that are known already are refused.
            let _known = self.poller.add(child, events_of(pid));
        }
    }

    /// Something long begins that concerns this process; false if nobody else could come to wait meanwhile.
    pub(super) fn leave_to_stand_in(&self, pid: i32) -> bool {
        self.stand_in.as_ref().is_some_and(|stand_in| stand_in.begin(pid))
    }

    /// Takes over again from the stand-in, if there was one.
    pub(super) fn take_back(&mut self, stood_in: bool) {
        let given = self.stand_in.as_ref().filter(|_| stood_in).map(StandIn::end);
        for (pid, child) in given.into_iter().flatten() {
            self.take_children(pid, vec![child]);
        }
    }

    /// Answers those who wait to write to armed pages, once their stacks are read.
    pub(super) fn serve_armed(&mut self, pid: i32) {
        let Some(process) = self.tree.processes.get_mut(&pid) else { return };
        let Some(mut watch) = process.watch.take() else {
            let owed = serve_kept(process);
            self.owed.extend(owed.into_iter().map(|page| (pid, page)));
            return self.take_children(pid, Vec::new());
        };
        let (mut messages, mut halted) = (Vec::new(), Vec::new());
        while watch.read_events(&mut messages) {
            for message in messages.drain(..) {
                // Nothing else is told.
                let Message::Fault(fault) = message else { continue };
                let started = sys::monotonic_ns();
                let page = fault.address as u64 / page_bytes() * page_bytes();
                let told = self.sampler.told();
                halted.extend(self.sample_armed(&mut watch, fault, page));
                let is_new = self.sampler.told() > told;
                if !watch.release(page) {
                    self.owed.push((pid, page));
                }
                self.spent.stacks_ns += sys::monotonic_ns() - started;
                if watch.sampling.count(is_new) {
                    watch.thin();
                }
            }
        }
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.watch = Some(watch);
        }
        self.take_children(pid, Vec::new());
        for Halted { tid, status } in halted {
            self.on_status(tid, status);
        }
    }

    /// Takes the stack of who waits to write. A thread inside of a system call cannot be interrupted there, and has none.
    fn sample_armed(&mut self, watch: &mut OpenInterval, fault: WaitingWrite, page: u64) -> Option<Halted> {
        let time_ns = self.now();
        let may_take = watch.sampling.may_take(watch.begun_ns, time_ns);
        if self.leaving || !may_take || !fault.write_protect || watch.stacks.contains_key(&page) {
            return None;
        }
        let tid = watch.threads.ours(fault.tid);
        let at = watch.threads.blocked(tid, false).filter(|at| at.syscall.is_none())?;
        let parent = self.tree.processes.get(&watch.pid).map_or(0, |process| process.parent);
        let (class, ran) = (WriteClass::CopyOrReuse, sys::ran_ns());
        let mut event =
            Event { time_ns, page, tid, pc: at.pc, code: 0, class, syscall: None, stack: None, caller: 0, byte: None };
        let taken = self.sampler.take(watch, &mut event, fault.address as u64, parent);
        // The fault of a thread that was interrupted comes to nothing, whether the thread has stopped by now or not, and comes again.
        if let (StackTaken::Late | StackTaken::Stands(..), Some(faults)) = (&taken, &mut self.faults) {
            faults.counts.interrupt(watch.pid);
        }
        watch.sampling.took(self.now(), sys::ran_ns() - ran);
        self.drain.run();
        watch.stacks.extend(event.stack.map(|stack| (page, WriterStack { tid, time_ns, stack })));
        self.tell_taken(taken)
    }
}

/// Lets everybody go who waits in a process without an open interval; returns the pages of those who could not be let go yet.
fn serve_kept(process: &mut Tracee) -> Vec<u64> {
    let Tracee { kept, children, .. } = process;
    let Some(uffd) = kept.as_ref().and_then(|doors| doors.events.as_ref()) else { return Vec::new() };
    let mut pages = Vec::new();
    while hear(uffd, &mut pages, |child| children.push(child)) {}
    pages.retain(|&page| !release(uffd, page));
    pages
}

/// Tells whether the kernel will give children theirs: it does if any mapping is registered as they are forked. The first thread's stack
/// is there as long as the program.
fn is_handed_on(pid: i32, doors: &Doors) -> bool {
    let Some(uffd) = &doors.events else { return false };
    let maps = maps::read(pid).unwrap_or_default();
    let stack = maps.iter().find(|map| map.mapping.name == "[stack]").map(|map| &map.mapping);
    stack.is_some_and(|stack| {
        uffd.register(Range { start: stack.start as usize, len: (stack.end - stack.start) as usize }).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_for_twice_as_many_is_a_part_of_the_choice_and_half_as_large() {
        let pages = (0x7_f000_0000_u64..).map(|number| number * page_bytes()).take(1 << 16);
        let sampling = Sampling::new(64, 1 << 16);
        let fewer = Sampling { every: sampling.every * 2, ..sampling };
        assert_eq!(sampling.every, 64);
        let chosen: Vec<u64> = pages.filter(|&page| sampling.has(page)).collect();
        let left = chosen.iter().filter(|&&page| fewer.has(page)).count();
        assert!((900..1150).contains(&chosen.len()), "{}", chosen.len());
        assert!((430..600).contains(&left), "{left}");
        assert!(!(0..1 << 16).map(|number| number * page_bytes()).any(|page| fewer.has(page) && !sampling.has(page)));
    }

    #[test]
    fn fewer_pages_are_armed_once_writers_wait_in_vain() {
        let mut sampling = Sampling::new(64, 1000);
        assert_eq!(sampling.every, EVERY_MIN);
        assert_eq!((0..200).position(|_| sampling.count(false)), None, "these are few already");
        let mut sampling = Sampling::new(64, 1 << 16);
        assert!(!(0..200).any(|nth| sampling.count(nth % THIN_EVENTS == 0)), "each so many tell something new");
        assert_eq!((0..200).position(|_| sampling.count(false)), Some(THIN_EVENTS as usize - 8));
        assert_eq!((0..200).position(|_| sampling.count(false)), Some(THIN_EVENTS as usize - 1));
    }

    #[test]
    fn stacks_take_no_more_than_their_share() {
        let mut sampling = Sampling::new(64, 1000);
        sampling.took(1_000_000, 300_000_000);
        assert!(sampling.may_take(0, 1_000_001), "the first one read files");
        let over = (0..1000).position(|_| {
            sampling.took(10_000_000, 100_000);
            !sampling.may_take(0, 10_000_000)
        });
        assert_eq!(over, Some(405), "40 ms, and a twentieth of ten");
        sampling.took(10_000_000, 100_000);
        assert!(
            !sampling.may_take(0, 12_000_000) && sampling.may_take(0, 12_100_000),
            "20 times what the last one took"
        );
        assert!(sampling.may_take(0, 1_000_000_000));
    }
}
