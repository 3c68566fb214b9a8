//! Opening and closing intervals.

use super::account;
use super::address_space::AddressSpace;
use super::arm::Opening;
use super::baseline::page_bytes;
use super::birth::{self, Unarmed};
use super::compare::{self, Donor};
use super::kernel_writes::THREAD_DATA;
use super::link::Target;
use super::settle::{Close, settle};
use super::watch::{Doors, OpenInterval};
use super::{DOORS, Tracer};
use crate::record::{Closed, GapKind, Mode, PageRun, Record, WatchReason, Who};
use cowbell::sys;
use cowbell::sys::ptrace::{self, EventStop, Stop, Until, WaitStatus};

impl Tracer {
    /// Arms a child that stands before its first instruction. Returns the stop it is left in, `None` if it ended.
    pub(super) fn arm_child(&mut self, child: i32, syscall: i32, forked_ns: u64) -> Option<Stop> {
        let wanted = self.options.who != Who::Parent && !self.leaving;
        if !wanted || !self.has_room(child) {
            return Some(Stop::Trap);
        }
        let (started, told) = (sys::monotonic_ns(), self.spent.told_ns());
        let stop = match self.doors_of(child, child) {
            Ok((doors, stop)) => {
                self.open_interval(child, WatchReason::Child, doors, None, Some(forked_ns));
                let thread = ptrace::registers(child).map(|registers| registers.thread_pointer());
                let watch = self.tree.processes.get_mut(&child).and_then(|process| process.watch.as_mut());
                if let (Some(watch), Ok(thread)) = (watch, thread) {
                    watch.written_at_birth(thread, thread + THREAD_DATA, child, syscall);
                }
                Some(stop)
            }
            Err(Unarmed::Because(why)) => {
                self.gap(child, GapKind::NotArmed, why);
                Some(Stop::Trap)
            }
            Err(Unarmed::Ending(status)) => {
                self.on_status(child, status);
                None
            }
        };
        self.spent.arming_ns += self.since(started, told);
        stop
    }

    /// Arms the process that has just forked, whose thread `maker` stands in the fork. Returns the stop it is left in.
    pub(super) fn arm_maker(&mut self, maker: i32, pid: i32) -> Stop {
        let at_event = Stop::Event(EventStop::Fork);
        let (started, told) = (sys::monotonic_ns(), self.spent.told_ns());
        let role = self.tree.processes.get(&pid).map_or(WatchReason::Parent, |process| process.role);
        let stop = if let Some((doors, space)) = self.close_interval(pid, Closed::Forked, true) {
            let doors = if self.mode == Mode::Faults && !self.may_sample() { Doors::default() } else { doors };
            self.open_interval(pid, role, doors, Some(space), None);
            at_event
        } else if self.has_room(pid) {
            if self.mode == Mode::Faults || self.has_kept_doors(pid) {
                // Nothing is injected.
                self.arm_at(maker, pid, role, at_event);
                at_event
            } else {
                self.arm_first_time(maker, pid, role)
            }
        } else {
            at_event
        };
        self.spent.arming_ns += self.since(started, told);
        stop
    }

    fn arm_first_time(&mut self, maker: i32, pid: i32, role: WatchReason) -> Stop {
        // Nothing can be injected inside of fork: on to the return from it.
        let stop = match ptrace::interrupt(maker).and_then(|()| ptrace::resume(maker, Until::Event, 0)) {
            Ok(()) => match self.wait_for(maker) {
                Ok(WaitStatus::Stopped(stop)) => stop,
                Ok(ended) => {
                    self.on_status(maker, ended);
                    return Stop::Trap;
                }
                Err(_) => return Stop::Trap,
            },
            Err(_) => return Stop::Trap,
        };
        if !matches!(stop, Stop::Trap | Stop::Group(_)) {
            return stop;
        }
        self.arm_at(maker, pid, role, stop)
    }

    /// Arms a process by a thread of it that stands in `stop`. Returns the stop it is left in.
    fn arm_at(&mut self, tid: i32, pid: i32, role: WatchReason, stop: Stop) -> Stop {
        match self.doors_of(tid, pid) {
            Ok((doors, left)) => {
                self.open_interval(pid, role, doors, None, None);
                // A group stop that was there before is one still.
                if matches!(stop, Stop::Group(_)) { stop } else { left }
            }
            Err(Unarmed::Because(why)) => {
                self.gap(pid, GapKind::NotArmed, why);
                stop
            }
            Err(Unarmed::Ending(WaitStatus::Stopped(ending))) => ending,
            Err(Unarmed::Ending(ended)) => {
                self.on_status(tid, ended);
                Stop::Trap
            }
        }
    }

    /// Tells whether this process is to be armed at the next stop of a thread.
    pub(super) fn wants_arming(&self, pid: i32) -> bool {
        !self.leaving && self.tree.processes.get(&pid).is_some_and(|process| process.to_arm)
    }

    /// Arms a process that was attached to.
    pub(super) fn arm_attached(&mut self, tid: i32, pid: i32, stop: Stop) -> Stop {
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.to_arm = false;
        }
        let armed = self.tree.processes.get(&pid).is_some_and(|process| process.watch.is_some());
        if armed || !self.has_room(pid) {
            return stop;
        }
        let stop = match stop {
            Stop::Trap if self.mode == Mode::Faults && self.may_sample() => match self.open_sampling(tid, pid) {
                Some(stop) => stop,
                None => return Stop::Trap,
            },
            stop => stop,
        };
        let (started, told) = (sys::monotonic_ns(), self.spent.told_ns());
        let stop = self.arm_at(tid, pid, WatchReason::Attached, stop);
        self.spent.arming_ns += self.since(started, told);
        stop
    }

    /// The time since `started`, without what was told elsewhere meanwhile.
    pub(super) fn since(&self, started: u64, told: u64) -> u64 {
        (sys::monotonic_ns() - started).saturating_sub(self.spent.told_ns() - told)
    }

    fn has_kept_doors(&self, pid: i32) -> bool {
        self.tree.processes.get(&pid).is_some_and(|process| process.kept.is_some())
    }

    /// A process' userfaultfds: those that it has, or new ones, made by its thread `tid`; which stop that is left in.
    fn doors_of(&mut self, tid: i32, pid: i32) -> Result<(Doors, Stop), Unarmed> {
        let kept = self.tree.processes.get_mut(&pid).and_then(|process| process.kept.take());
        match (kept, self.mode) {
            (Some(doors), _) if self.mode != Mode::Faults || self.may_sample() => Ok((doors, Stop::Trap)),
            // Without one there are stacks all the same, if not as good ones.
            (_, Mode::Faults) => Ok((Doors::default(), Stop::Trap)),
            (_, mode) => self.open_doors(tid, pid, mode),
        }
    }

    /// Makes a process' userfaultfds, by its thread `tid`, and tells if it can be counted only.
    pub(super) fn open_doors(&mut self, tid: i32, pid: i32, mode: Mode) -> Result<(Doors, Stop), Unarmed> {
        let descends = matches!(self.options.target, Target::Run(_));
        let mut lenders = std::mem::take(&mut self.lenders);
        let opened = birth::open_doors(tid, pid, mode, descends, &mut lenders, &mut |tid| self.wait_for(tid));
        self.lenders = lenders;
        // In the other modes nobody needs a synchronous one to be told of.
        if let (Mode::Trace, Ok((Doors { without_events: Some(why), .. }, _))) = (mode, &opened) {
            self.gap(pid, GapKind::CountedOnly, why.clone());
        }
        opened
    }

    fn has_room(&mut self, pid: i32) -> bool {
        let room = self.tree.watched() < self.options.children_max;
        // A parent asks at each of its forks.
        let process = self.tree.processes.get_mut(&pid).filter(|process| !room && !process.beyond);
        if let Some(process) = process {
            process.beyond = true;
            let limit = self.options.children_max;
            self.gap(pid, GapKind::TooManyChildren, format!("no more than {limit} were to be watched at a time"));
        }
        room
    }

    /// `space`: that of the interval before, if there was one. `forked_ns`: when the parent forked it, for a newborn.
    fn open_interval(
        &mut self,
        pid: i32,
        role: WatchReason,
        doors: Doors,
        space: Option<AddressSpace>,
        forked_ns: Option<u64>,
    ) {
        self.intervals += 1;
        let space = space.or_else(|| self.tree.processes.get_mut(&pid).and_then(|process| process.space.take()));
        let (now_ns, frames) = (self.now(), self.frames);
        // A process with fewer rights than this one could make but the one userfaultfd.
        let mode = if doors.events.is_some() || self.mode == Mode::Faults { self.mode } else { Mode::Count };
        // A newborn has had none. A parent's would have to be read at each of its forks.
        let faults_before = match (role, forked_ns) {
            (WatchReason::Child, Some(_)) => Some(0),
            (WatchReason::Child, None) => sys::procfs::signal_safe::page_faults(pid),
            _ => None,
        };
        let (interval, codes) = (self.intervals, self.codes.clone());
        let stacks_every = self.options.stacks_every;
        let order = Opening { interval, role, mode, pid, frames, stacks_every, now_ns, faults_before, codes };
        // A parent of several threads may have written since.
        let parent = self.tree.processes.get(&pid).and_then(|process| self.tree.processes.get(&process.parent));
        let before = parent.filter(|_| forked_ns.is_some()).and_then(|parent| parent.watch.as_ref());
        let before = space.as_ref().or(before.map(|watch| &watch.space));
        let parent = parent.filter(|parent| parent.threads.len() == 1).and_then(|parent| parent.watch.as_ref());
        let relative = parent.filter(|watch| forked_ns.is_some_and(|forked_ns| forked_ns <= watch.begun_ns));
        let relative = relative.map(|watch| &watch.base);
        let stood_in = self.leave_to_stand_in(pid);
        let armed = OpenInterval::arm(&order, doors, relative, before);
        self.take_back(stood_in);
        let (watch, begin) = match armed {
            Ok(armed) => armed,
            Err(e) => {
                self.gap(pid, GapKind::NotArmed, format!("its page tables could not be read: {e}"));
                return;
            }
        };
        if !self.waits_for(pid, watch.doors()) {
            // Dropped, and with it the protection: nobody is left waiting.
            self.gap(pid, GapKind::NotArmed, "its events could not be waited for");
            return;
        }
        self.sampling_ran_ns += watch.sampling.arming_ran_ns;
        self.growth.begin(pid, begin.held.shared + begin.held.exclusive + watch.held_unwatched());
        self.say(Record::Begin(begin));
        if let Some(faults) = &self.faults {
            faults.hurry();
        }
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.watch = Some(Box::new(watch));
            (process.to_arm, process.was_watched) = (false, true);
        }
        // Events that other threads told while their process was armed.
        self.serve_events(pid);
        self.serve_moves(pid);
    }

    /// Waits for what a process' userfaultfds tell; false if that is refused.
    pub(super) fn waits_for(&self, pid: i32, doors: &Doors) -> bool {
        let token = events_of(pid);
        let added = [(doors.events.as_deref(), token), (doors.asynchronous.as_ref(), token + 1)].into_iter().all(
            |(door, token)| {
                let Some(door) = door else { return true };
                matches!(self.poller.add(door, token), Ok(()) | Err(sys::Errno::EXIST))
            },
        );
        if let (Some(stand_in), Some(uffd)) = (&self.stand_in, &doors.events) {
            stand_in.know(pid, uffd);
        }
        added
    }

    /// Closes a process' interval, if one is open, and returns what the next one goes on with.
    pub(super) fn close_interval(&mut self, pid: i32, closed: Closed, is_there: bool) -> Option<(Doors, AddressSpace)> {
        let started = sys::monotonic_ns();
        match closed {
            Closed::Exec => self.begin_to_compare(pid),
            _ if is_there => self.compare_faults(pid),
            _ => self.take_faults(),
        }
        let mut watch = self.tree.processes.get_mut(&pid)?.watch.take()?;
        // Nobody waits for an answer any more, but moves may still be told.
        let events = std::mem::take(&mut watch.events);
        if !events.is_empty() {
            self.say(Record::Events { interval: watch.interval, events });
        }
        let now_ns = self.now();
        if is_there {
            self.collect_of_parent(pid, now_ns);
        }
        let close = Close { closed, is_there, now_ns };
        let stood_in = self.leave_to_stand_in(pid);
        let mut end = if watch.mode == Mode::Faults {
            self.settle_faults(&watch, close)
        } else {
            let donor = if is_there { self.donor(pid) } else { None };
            settle(&mut watch, &self.originals, donor.as_ref(), close)
        };
        self.drain.run();
        if is_there {
            self.tell_images(&mut watch, &end);
        }
        // A parent that forks again goes on at once: what lies on its pages is told when its last interval closes.
        if is_there && matches!(end.closed, Closed::Exit | Closed::Unshared | Closed::Detached) {
            end.kinds = compare::kinds(&watch, &end);
            end.collector_new = compare::collector_new(&watch, &end);
        }
        self.take_back(stood_in);
        watch.rest(closed);
        if let Some(process) = self.tree.processes.get_mut(&pid).filter(|_| closed == Closed::Forked) {
            let pages = end.pages.iter().flat_map(|run| (0..run.pages).map(|nth| run.start + nth * page_bytes()));
            process.history.extend(pages.map(|page| (page, now_ns)));
            process.history.extend(watch.written.iter().map(|(&page, written)| (page, written.time_ns)));
        }
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            account::add(&mut process.known, end.pages.iter().copied());
            let mut moved: Vec<_> =
                watch.moved.iter().map(|(&start, moved)| PageRun { start, pages: 1, class: moved.class }).collect();
            moved.sort_by_key(|run| run.start);
            account::add(&mut process.known, moved.into_iter());
        }
        self.say(Record::End(end));
        if let Some(why) = self.sampler.no_lines(pid).map(str::to_owned) {
            self.gap(pid, GapKind::NoLines, why);
        }
        self.sampler.forget(watch.interval);
        self.spent.closing_ns += sys::monotonic_ns() - started;
        Some(watch.into_rest())
    }

    /// The process that may have the originals of this process' copies: its parent.
    pub(super) fn donor(&self, pid: i32) -> Option<Donor<'_>> {
        let process = self.tree.processes.get(&pid)?;
        Donor::new(process.parent, self.tree.processes.get(&process.parent)?, process)
    }

    /// Closes all intervals, and lets everybody go.
    pub(super) fn leave(&mut self) {
        let mut pids: Vec<i32> = self.tree.processes.keys().copied().collect();
        // Children first: a parent's watch tells whether it still has the originals of their copies.
        pids.sort_unstable_by_key(|&pid| (std::cmp::Reverse(self.tree.depth(pid)), pid));
        for &pid in &pids {
            self.close_interval(pid, Closed::Detached, true);
            if let Some(process) = self.tree.processes.get_mut(&pid) {
                process.kept = None;
            }
        }
        for pid in pids.iter().copied().filter(|&pid| pid != 0) {
            self.weigh(pid);
        }
        if self.unweighed > 0 {
            let detail = format!("{} of them, because that had taken its share of the time already", self.unweighed);
            self.gap(0, GapKind::NotWeighed, detail);
        }
        for (tid, due) in std::mem::take(&mut self.parked) {
            let _gone = ptrace::detach(tid, due);
        }
        for pid in pids.into_iter().filter(|&pid| pid != 0) {
            self.gap(pid, GapKind::StillRunning, "");
        }
    }

    /// Notes what the parent of a process has written up to now.
    fn collect_of_parent(&mut self, pid: i32, now_ns: u64) {
        let parent = self.tree.processes.get(&pid).map(|process| process.parent);
        let parent = parent.and_then(|parent| self.tree.processes.get_mut(&parent));
        if let Some(watch) = parent.and_then(|parent| parent.watch.as_mut()).filter(|watch| watch.mode != Mode::Faults)
        {
            // A parent that is gone has nothing left to compare with, which is found out then.
            let _gone = watch.collect(now_ns);
        }
    }
}

/// The poller's number of a process' synchronous userfaultfd; the next number is that of the asynchronous one.
pub fn events_of(pid: i32) -> u64 {
    DOORS + pid as u64 * 2
}
