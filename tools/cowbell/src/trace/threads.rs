//! The threads that page events name, and where they stand.
//!
//! A process in a pid namespace of its own (a container's) knows its threads by other numbers, and its events have those.

use cowbell::sys::change::{self, MemoryCall, Waits};
use cowbell::sys::process;
use cowbell::sys::procfs::syscall::BlockedThread;
use cowbell::sys::procfs::{self, status::Status};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// The time for which a thread that has not gone to sleep yet is asked where it is, on a busy machine.
const ASK_NS_MAX: u64 = 20_000_000;
/// The same for one that never goes to sleep while the kernel writes for it: it is due a signal, or was interrupted.
const RESTLESS_NS_MAX: u64 = 500_000;

/// The file that tells a thread's turns is kept open, of at most so many threads of a process.
const SCHEDULES_MAX: usize = 64;

/// In a process with more threads none is asked what it changes.
const ASKED_MAX: usize = 64;

/// The threads of one process.
#[derive(Default)]
pub struct Threads {
    pid: i32,
    /// By the number in the process' own namespace, where that is another.
    ours: Option<HashMap<i32, i32>>,
    /// `/proc/PID/task/TID/syscall` of those that were asked.
    syscalls: HashMap<i32, OwnedFd>,
    /// `/proc/PID/task/TID/schedstat` of those whose stacks were read.
    schedules: HashMap<i32, File>,
}

impl Threads {
    /// The threads of a process.
    pub fn of(pid: i32) -> Self {
        let namespaced = numbers(pid, pid).len() > 1;
        Self { pid, ours: namespaced.then(HashMap::new), syscalls: HashMap::new(), schedules: HashMap::new() }
    }

    /// The thread that an event names by `theirs`, by our number; 0 if it is not to be found.
    pub fn ours(&mut self, theirs: i32) -> i32 {
        let Some(ours) = &mut self.ours else { return theirs };
        if let Some(&known) = ours.get(&theirs) {
            return known;
        }
        let is_it = |tid: &i32| numbers(self.pid, *tid).last() == Some(&theirs);
        let Some(found) = procfs::threads(self.pid).unwrap_or_default().into_iter().find(is_it) else { return 0 };
        ours.insert(theirs, found);
        found
    }

    /// The place where a thread waits. The message comes just before it sleeps, so it may still run. `interrupted`: it may have
    /// been.
    pub fn blocked(&mut self, tid: i32, interrupted: bool) -> Option<BlockedThread> {
        if tid == 0 {
            return None;
        }
        if !self.syscalls.contains_key(&tid) {
            // A child that shares the memory (vfork) is a process of its own.
            let opened = procfs::syscall::open(self.pid, tid).or_else(|_| procfs::syscall::open(tid, tid));
            self.syscalls.insert(tid, opened.ok()?);
        }
        let known = self.syscalls.get(&tid)?;
        let started = cowbell::sys::monotonic_ns();
        let mut limit = RESTLESS_NS_MAX;
        loop {
            let found = procfs::syscall::blocked_in(known);
            let waited = cowbell::sys::monotonic_ns() - started;
            if found.is_none() && waited > limit && limit < ASK_NS_MAX && !interrupted && !is_due_a_signal(tid) {
                limit = ASK_NS_MAX;
            } else if found.is_some() || waited > limit {
                return found;
            }
            process::yield_now();
        }
    }

    /// The place where a thread waits at this moment, if it was asked before.
    pub fn blocked_now(&self, tid: i32) -> Option<BlockedThread> {
        self.syscalls.get(&tid).and_then(procfs::syscall::blocked_in)
    }

    /// The number of times that a thread was given a processor: while it is the same, a thread that was asleep has not run. `None`
    /// where the kernel does not count them.
    pub fn turns(&mut self, tid: i32) -> Option<u64> {
        if !self.schedules.contains_key(&tid) {
            if self.schedules.len() >= SCHEDULES_MAX {
                self.schedules.clear();
            }
            let opened = File::open(format!("/proc/{}/task/{tid}/schedstat", self.pid)).ok()?;
            self.schedules.insert(tid, opened);
        }
        let mut text = [0; 96];
        let Ok(got) = self.schedules.get(&tid)?.read_at(&mut text, 0) else {
            self.schedules.remove(&tid);
            return None;
        };
        let [_, _, turns] = schedule(std::str::from_utf8(text.get(..got)?).ok()?)?;
        (turns > 0).then_some(turns)
    }

    /// The changes of the address space that threads wait to tell, while a message about one can be read. Empty if none
    /// was found: then another process makes the change, or the thread did not come to sleep in time.
    pub fn changes(&mut self) -> Vec<MemoryCall> {
        let tids = procfs::threads(self.pid).unwrap_or_default();
        if tids.len() > ASKED_MAX {
            return Vec::new();
        }
        for tid in &tids {
            if let (false, Ok(opened)) = (self.syscalls.contains_key(tid), procfs::syscall::open(self.pid, *tid)) {
                self.syscalls.insert(*tid, opened);
            }
        }
        until_told(|| tids.iter().filter_map(|tid| self.syscalls.get(tid)).map(change::waits).collect())
    }

    /// A thread ended: its number may come again for another.
    pub fn forget(&mut self, tid: i32) {
        self.syscalls.remove(&tid);
        self.schedules.remove(&tid);
        if let Some(ours) = &mut self.ours {
            ours.retain(|_, known| *known != tid);
        }
    }
}

/// The changes that threads wait to make, as soon as there is one. `ask`: the purpose for which each of them waits.
fn until_told(mut ask: impl FnMut() -> Vec<Waits>) -> Vec<MemoryCall> {
    let started = cowbell::sys::monotonic_ns();
    loop {
        let found = ask();
        let change = |waits: &Waits| if let Waits::ToChange(change) = waits { Some(*change) } else { None };
        let changes: Vec<MemoryCall> = found.iter().filter_map(change).collect();
        // The message is readable a moment before its thread sleeps, and on a busy machine the thread may lose its
        // processor in that moment.
        let limit = if found.contains(&Waits::NotYet) { ASK_NS_MAX } else { RESTLESS_NS_MAX };
        if !changes.is_empty() || cowbell::sys::monotonic_ns() - started > limit {
            return changes;
        }
        process::yield_now();
    }
}

/// The numbers in a thread's `schedstat`: the nanoseconds that it ran, and those that it waited to run, and its turns.
pub fn schedule(text: &str) -> Option<[u64; 3]> {
    let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
    Some([numbers.next()?, numbers.next()?, numbers.next()?])
}

/// Tells whether a thread has a signal to take that it does not block.
fn is_due_a_signal(tid: i32) -> bool {
    Status::of(tid).is_ok_and(|status| status.is_due_a_signal())
}

/// A thread's numbers, from our pid namespace inwards to its own.
pub fn numbers(pid: i32, tid: i32) -> Vec<i32> {
    Status::of_thread(pid, tid).map(|status| status.thread_ids()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_runs_yet_is_waited_for_and_one_that_waits_for_else_is_not() {
        let started = cowbell::sys::monotonic_ns();
        let late = || match cowbell::sys::monotonic_ns() - started {
            ..4_000_000 => vec![Waits::Otherwise, Waits::NotYet],
            _ => vec![Waits::Otherwise, Waits::ToChange(MemoryCall::Maps)],
        };
        assert_eq!(until_told(late), [MemoryCall::Maps]);
        assert_eq!(until_told(|| vec![Waits::Otherwise]), [], "another process makes the change");
        assert_eq!(until_told(|| vec![Waits::NotYet]), [], "not for ever");
    }

    #[test]
    fn a_thread_of_our_own_namespace_keeps_its_number() {
        let me = process::pid();
        assert_eq!(numbers(me, me).first(), Some(&me));
        let mut threads = Threads::of(me);
        let outer = threads.ours.is_some();
        assert!(outer || threads.ours(me) == me);
        // The table is that of another namespace, in which the last number counts.
        threads.ours = Some(HashMap::new());
        let inner = *numbers(me, me).last().expect("a number");
        assert_eq!((threads.ours(inner), threads.ours(i32::MAX)), (me, 0));
    }
}
