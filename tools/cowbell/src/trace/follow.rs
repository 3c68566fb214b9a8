//! The meaning of the target's stops, and the way it goes on.

use super::birth::{self, TaskKind};
use super::executable;
use super::tree::Tracee;
use super::{LEAVE, Tracer, ability};
use crate::record::{Closed, GapKind, Mode, Origin, Process, Record, WatchReason, Who};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::procfs;
use cowbell::sys::ptrace::{self, EventStop, Stop, Until, WaitStatus};
use std::collections::HashSet;

/// A fork that copies less than this, in bytes, is told in no report.
const TABLES_FEW: u64 = 256 << 10;
/// Then it is read again after so long.
const TABLES_AGAIN_NS: u64 = 50_000_000;

impl Tracer {
    pub(super) fn on_status(&mut self, tid: i32, status: WaitStatus) {
        match status {
            WaitStatus::Exited(code) => self.on_gone(tid, Ended::Exited(code)),
            WaitStatus::Signaled(signal) => self.on_gone(tid, Ended::Signaled(signal)),
            WaitStatus::Stopped(stop) => self.on_stop(tid, stop),
        }
    }

    fn on_stop(&mut self, tid: i32, stop: Stop) {
        let Some(&pid) = self.tree.threads.get(&tid) else {
            self.on_unknown(tid, stop);
            return;
        };
        self.spent.stops += 1;
        if matches!(stop, Stop::Trap | Stop::Group(_) | Stop::Signal(_)) {
            self.answer_growth(tid);
        }
        match stop {
            Stop::Event(made @ (EventStop::Fork | EventStop::Clone | EventStop::VFork)) => self.on_made(tid, pid, made),
            Stop::Event(EventStop::Exec) => self.on_exec(tid, pid),
            Stop::Event(EventStop::Exit) => self.on_exit(tid, pid),
            Stop::Trap | Stop::Group(_) if self.wants_arming(pid) => {
                let stop = self.arm_attached(tid, pid, stop);
                self.go_on(tid, stop);
            }
            Stop::Trap if self.wants_sampling(pid) => {
                if let Some(stop) = self.open_sampling(tid, pid) {
                    self.go_on(tid, stop);
                }
            }
            stop => {
                if matches!(stop, Stop::Signal(_)) && self.mode != Mode::Faults {
                    self.place(tid, pid);
                }
                self.go_on(tid, stop);
            }
        }
    }

    /// Tells the process' watch where a thread stands that takes a signal.
    fn place(&mut self, tid: i32, pid: i32) {
        let watch = self.tree.processes.get_mut(&pid).and_then(|process| process.watch.as_mut());
        if let (Some(watch), Ok(registers)) = (watch, ptrace::registers(tid)) {
            watch.place(tid, (registers.pc(), registers.sp()), registers.call_number());
        }
    }

    /// Lets a thread go on from a stop, as if nobody had looked.
    pub(super) fn go_on(&mut self, tid: i32, stop: Stop) {
        let due = if let Stop::Signal(signal) = stop { signal } else { 0 };
        let parks = matches!(stop, Stop::Signal(_) | Stop::Group(_) | Stop::Trap);
        if self.leaving && parks {
            self.parked.insert(tid, due);
            return;
        }
        // A thread that was killed meanwhile is in its next stop already, or gone: both will be reported.
        let _killed = match stop {
            Stop::Group(_) => ptrace::listen(tid),
            _ => ptrace::resume(tid, Until::Event, due),
        };
    }

    /// A task that its maker has not told of. At its first instruction it waits for that, unless the maker was killed. In any
    /// other stop it was itself killed before.
    fn on_unknown(&mut self, tid: i32, stop: Stop) {
        self.newborn.insert(tid);
        if stop != Stop::Trap {
            self.adopt(tid, stop);
        }
        self.adopt_orphans();
    }

    /// Lets tasks go on whose makers will not tell of them any more.
    fn adopt_orphans(&mut self) {
        for &task in &self.newborn.clone() {
            let status = procfs::status::Status::of(task).unwrap_or_default();
            let maker = status.number("Tgid").filter(|&pid| pid != task).or_else(|| status.number("PPid")).unwrap_or(0);
            let lives = self.tree.processes.get(&maker).is_some_and(|process| !process.is_ending());
            if !lives {
                self.adopt(task, Stop::Trap);
            }
        }
    }

    fn adopt(&mut self, task: i32, stop: Stop) {
        self.newborn.remove(&task);
        let status = procfs::status::Status::of(task).unwrap_or_default();
        let process = status.number("Tgid").filter(|pid| self.tree.processes.contains_key(pid));
        if let Some(pid) = process {
            self.tree.add_thread(pid, task);
        } else {
            let (family, parent) = (self.tree.new_family(), status.number("PPid").unwrap_or(0));
            self.tree.add(task, Tracee::new(task, parent, family, WatchReason::Child));
            self.name(task, parent, Origin::Forked);
            self.gap(task, GapKind::NotArmed, "its parent was killed while it forked");
        }
        match stop {
            Stop::Event(EventStop::Exit) => self.on_exit(task, process.unwrap_or(task)),
            stop => self.go_on(task, stop),
        }
    }

    /// A thread made a task.
    fn on_made(&mut self, maker: i32, pid: i32, event: EventStop) {
        let at_event = Stop::Event(event);
        let Ok(child) = ptrace::event_message(maker).map(|child| child as i32) else {
            // Killed meanwhile.
            self.go_on(maker, at_event);
            self.adopt_orphans();
            return;
        };
        match birth::kind(pid, child, event) {
            // The task was killed, and is reaped already or will be reported.
            TaskKind::Gone => self.go_on(maker, at_event),
            TaskKind::Thread => {
                self.tree.add_thread(pid, child);
                if self.newborn.remove(&child) {
                    self.go_on(child, Stop::Trap);
                }
                self.go_on(maker, at_event);
            }
            TaskKind::Shares => {
                let family = self.tree.processes.get(&pid).map_or(0, |process| process.family);
                let mut process = Tracee::new(child, pid, family, WatchReason::Child);
                process.shares = true;
                self.tree.add(child, process);
                self.name(child, pid, Origin::Shares);
                if self.newborn.remove(&child) {
                    self.go_on(child, Stop::Trap);
                }
                self.go_on(maker, at_event);
            }
            TaskKind::Copy => self.on_fork(maker, pid, child, event),
        }
    }

    /// Both stand still: the maker in its fork, the child before its first instruction.
    fn on_fork(&mut self, maker: i32, pid: i32, child: i32, event: EventStop) {
        let forked_ns = self.now();
        let call = ptrace::registers(maker).map_or(ptrace::CLONE, |registers| registers.call_number() as i32);
        let family = self.tree.processes.get(&pid).map_or(0, |process| process.family);
        let mut process = Tracee::new(child, pid, family, WatchReason::Child);
        process.born_ns = forked_ns;
        self.tree.add(child, process);
        self.inherit_sampling(pid, child);
        self.name(child, pid, Origin::Forked);
        let first = if self.newborn.remove(&child) {
            WaitStatus::Stopped(Stop::Trap)
        } else {
            match self.wait_for(child) {
                Ok(status) => status,
                Err(_) => {
                    self.on_gone(child, Ended::Unknown);
                    self.go_on(maker, Stop::Event(event));
                    return;
                }
            }
        };
        let mut maker_stop = Stop::Event(event);
        if self.options.who != Who::Child && !self.leaving {
            // One that vforked is held until the child has ended or executed a program, and then shares nothing with it.
            if event != EventStop::VFork {
                maker_stop = self.arm_maker(maker, pid);
            } else if self.tree.processes.get(&pid).is_some_and(|process| process.threads.len() > 1) {
                let why = "one of its threads waits until the child has ended or executed a program, and others run meanwhile";
                self.gap(pid, GapKind::NotArmed, why);
            }
        }
        match first {
            WaitStatus::Stopped(Stop::Trap) => {
                let stop = self.arm_child(child, call, forked_ns);
                if let Some(stop) = stop {
                    self.go_on(child, stop);
                }
            }
            // Killed before it began.
            status => self.on_status(child, status),
        }
        match maker_stop {
            Stop::Event(EventStop::Exit) => self.on_exit(maker, pid),
            stop => self.go_on(maker, stop),
        }
    }

    fn on_exec(&mut self, tid: i32, pid: i32) {
        self.close_interval(pid, Closed::Exec, false);
        let family = self.tree.new_family();
        let mut left = 0;
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            left = process.family;
            let gone: Vec<i32> = process.threads.iter().copied().filter(|&other| other != tid).collect();
            process.threads = HashSet::from([tid]);
            process.ending.clear();
            process.history.clear();
            process.known.clear();
            process.space = None;
            process.kept = None;
            process.to_sample = false;
            process.was_watched = false;
            process.family = family;
            process.shares = false;
            process.role = WatchReason::Parent;
            for other in gone {
                self.tree.threads.remove(&other);
            }
        }
        self.sampler.forget_process(pid);
        self.originals.forget(pid);
        self.end_growth(pid);
        self.name(pid, 0, Origin::Executed);
        self.hear_again(pid);
        self.tell_of_privilege(pid);
        self.unshare(left);
        self.begin_to_sample(tid, pid);
        self.go_on(tid, Stop::Event(EventStop::Exec));
    }

    fn on_exit(&mut self, tid: i32, pid: i32) {
        let now = self.now();
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.ending.insert(tid);
            let shares = process.shares;
            if process.is_ending() {
                let rest = self.close_interval(pid, Closed::Exit, true);
                // To let every page go takes longer than to wait until none is left. In trace all are armed, and the kernel's last stores
                // would be lost.
                if let (Mode::Faults, Some(process), Some((doors, _))) =
                    (self.mode, self.tree.processes.get_mut(&pid), rest)
                {
                    process.kept = Some(doors);
                }
                // One that shares its maker's memory has none of its own.
                if !shares {
                    self.weigh(pid);
                }
            } else if let (Some(watch), Ok(registers)) = (process.watch.as_mut(), ptrace::registers(tid)) {
                let pages = watch.thread_ends(registers.thread_pointer(), tid, now);
                self.owed.extend(pages.into_iter().map(|page| (pid, page)));
                self.pay_before_exit(pid);
            }
        }
        self.go_on(tid, Stop::Event(EventStop::Exit));
    }

    /// An unread event, or one whose thread has not gone on yet, holds up lifting the protection; the ending thread must
    /// not go on before.
    fn pay_before_exit(&mut self, pid: i32) {
        let deadline = self.now() + LEAVE.as_nanos() as u64;
        self.pay();
        while self.owed.iter().any(|&(of, _)| of == pid) && self.now() < deadline {
            self.serve_events(pid);
            // An unmapping is told to one userfaultfd after the other, and holds up both.
            self.serve_moves(pid);
            cowbell::sys::process::yield_now();
            self.pay();
        }
    }

    fn on_gone(&mut self, tid: i32, ended: Ended) {
        self.newborn.remove(&tid);
        self.parked.remove(&tid);
        let Some(pid) = self.tree.threads.remove(&tid) else { return };
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.threads.remove(&tid);
            process.ending.remove(&tid);
            if let Some(watch) = &mut process.watch {
                watch.forget_thread(tid);
            }
        }
        // A process' first thread is the last to be reported.
        if tid == pid {
            self.close_interval(pid, Closed::Lost, false);
            self.sampler.forget_process(pid);
            self.originals.forget(pid);
            self.end_growth(pid);
            let family = self.tree.processes.remove(&pid).map_or(0, |process| process.family);
            if let Some(faults) = &mut self.faults {
                faults.counts.forget(pid);
            }
            let time_ns = self.now();
            self.say(Record::Exit { pid, time_ns, ended });
            if pid == self.root {
                self.root_ended = Some(ended);
            }
            self.adopt_orphans();
            self.unshare(family);
        }
    }

    /// A process that is left alone with its memory shares it with nobody: nothing is copied any more.
    fn unshare(&mut self, family: u32) {
        if let Some(last) = self.tree.last_of(family) {
            let rest = self.close_interval(last, Closed::Unshared, true);
            if let (Some(process), Some((doors, space))) = (self.tree.processes.get_mut(&last), rest) {
                process.space = Some(space);
                self.keep(last, doors);
            }
        }
    }

    /// A program with privileges of its own runs without them while somebody traces it who has no privilege himself.
    pub(super) fn tell_of_privilege(&mut self, pid: i32) {
        if let Some(privilege) = ability::privilege_withheld(pid) {
            self.gap(pid, GapKind::PrivilegeWithheld, privilege);
        }
    }

    /// The page tables that a child has which has run nothing yet, and of which nothing is armed: that would make more of them. Of whoever
    /// forks again and again and has few they are read now and then.
    fn page_tables(&mut self, child: i32, parent: i32, now: u64) -> Option<u64> {
        let maker = self.tree.processes.get_mut(&parent)?;
        if maker.forked_little_ns.is_some_and(|at| now - at < TABLES_AGAIN_NS) {
            return None;
        }
        let bytes = procfs::status::Status::of(child).ok()?.bytes("VmPTE")?;
        maker.forked_little_ns = (bytes < TABLES_FEW).then_some(now);
        Some(bytes)
    }

    /// Writes down who a process is.
    pub(super) fn name(&mut self, pid: i32, parent: i32, origin: Origin) {
        let time_ns = self.now();
        let command = procfs::command(pid).unwrap_or_default();
        let executable = match origin {
            // The child runs its parent's executable.
            Origin::Forked | Origin::Shares => None,
            Origin::Started | Origin::Attached | Origin::Executed => executable::of(pid),
        };
        let page_tables = if origin == Origin::Forked { self.page_tables(pid, parent, time_ns) } else { None };
        self.say(Record::Process(Process { pid, parent, time_ns, origin, command, executable, page_tables }));
    }
}
