//! The processes and threads that are followed.

use super::address_space::AddressSpace;
use super::watch::{Doors, OpenInterval, release};
use crate::record::{PageRun, WatchReason};
use cowbell::sys::remote::RemoteUffd;
use std::collections::{HashMap, HashSet};

/// A process.
pub struct Tracee {
    /// The process that forked it; 0 where not known.
    pub parent: i32,
    /// The processes that have copies of the same memory share this number.
    pub family: u32,
    /// The role in which it is watched.
    pub role: WatchReason,
    /// When it was forked; 0 where not seen.
    pub born_ns: u64,
    /// The process' threads that are not gone.
    pub threads: HashSet<i32>,
    /// Those that are about to go.
    pub ending: HashSet<i32>,
    /// The process' open interval.
    pub watch: Option<Box<OpenInterval>>,
    /// When it last wrote each page, as far as seen in closed intervals.
    pub history: HashMap<u64, u64>,
    /// The verdicts of its closed intervals on its pages, the newest word on each.
    pub known: Vec<PageRun>,
    /// The address space of its last interval, as long as none is open: what is known of its code.
    pub space: Option<AddressSpace>,
    /// The process' userfaultfds, while no interval is open: the next one goes on with them, and nothing is injected for it.
    pub kept: Option<Doors>,
    /// True if it is to make one at the next stop of a thread, in [`Mode::Faults`](crate::record::Mode::Faults).
    pub to_sample: bool,
    /// The userfaultfds that these gave for children which the process was just forking.
    pub children: Vec<RemoteUffd>,
    /// True if it has, or had, an interval since it began its program.
    pub was_watched: bool,
    /// True if it is to be armed once a thread of it stands still.
    pub to_arm: bool,
    /// True if it has its parent's memory itself.
    pub shares: bool,
    /// True if it was said to run unwatched, because others were watched already.
    pub beyond: bool,
    /// When it was last seen to fork and copy few page tables, if it has not copied many since.
    pub forked_little_ns: Option<u64>,
}

impl Tracee {
    /// A process with one thread.
    pub fn new(pid: i32, parent: i32, family: u32, role: WatchReason) -> Self {
        Self {
            parent,
            family,
            role,
            born_ns: 0,
            threads: HashSet::from([pid]),
            ending: HashSet::new(),
            watch: None,
            history: HashMap::new(),
            known: Vec::new(),
            space: None,
            kept: None,
            to_sample: false,
            children: Vec::new(),
            was_watched: false,
            to_arm: false,
            shares: false,
            beyond: false,
            forked_little_ns: None,
        }
    }

    /// Tells whether nothing of it will run any more.
    pub fn is_ending(&self) -> bool {
        self.threads.is_subset(&self.ending)
    }

    /// Lets the writer of a page go on; false if that is to be tried again.
    pub fn release(&self, page: u64) -> bool {
        let doors = self.watch.as_ref().map(|watch| watch.doors()).or(self.kept.as_ref());
        doors.and_then(|doors| doors.events.as_ref()).is_none_or(|uffd| release(uffd, page))
    }

    /// When it last wrote a page, in the open interval or a closed one, as far as seen.
    pub fn wrote(&self, page: u64) -> Option<u64> {
        let open = self.watch.as_ref().and_then(|watch| {
            let written = watch.written.get(&page).map(|written| written.time_ns);
            written.or_else(|| watch.moved.get(&page).map(|moved| moved.time_ns))
        });
        open.or_else(|| self.history.get(&page).copied())
    }
}

/// All that is followed.
#[derive(Default)]
pub struct Tree {
    /// By process id.
    pub processes: HashMap<i32, Tracee>,
    /// The process of each thread.
    pub threads: HashMap<i32, i32>,
    families: u32,
}

impl Tree {
    /// A number for processes that begin a memory of their own.
    pub fn new_family(&mut self) -> u32 {
        self.families += 1;
        self.families
    }

    /// Adds a process with its first thread.
    pub fn add(&mut self, pid: i32, process: Tracee) {
        self.threads.insert(pid, pid);
        self.processes.insert(pid, process);
    }

    /// Adds a thread to a process.
    pub fn add_thread(&mut self, pid: i32, tid: i32) {
        self.threads.insert(tid, pid);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.threads.insert(tid);
        }
    }

    /// The one process that is left of a family, if it is one.
    pub fn last_of(&self, family: u32) -> Option<i32> {
        let mut left = self.processes.iter().filter(|(_, process)| process.family == family && !process.shares);
        let (&pid, _) = left.next()?;
        left.next().is_none().then_some(pid)
    }

    /// The process whose memory this one has: its maker's as long as it shares that (vfork), else its own.
    pub fn holder(&self, pid: i32) -> i32 {
        let shared_with = |pid: &i32| {
            let process = self.processes.get(pid).filter(|process| process.shares)?;
            Some(process.parent)
        };
        std::iter::successors(Some(pid), shared_with).take(self.processes.len() + 1).last().unwrap_or(pid)
    }

    /// The number of ancestors of a process that are followed.
    pub fn depth(&self, pid: i32) -> usize {
        let parent = |pid: &i32| self.processes.get(pid).map(|process| process.parent).filter(|&parent| parent != 0);
        std::iter::successors(parent(&pid), parent).take(self.processes.len()).count()
    }

    /// The number of processes that are watched.
    pub fn watched(&self) -> usize {
        self.processes.values().filter(|process| process.watch.is_some()).count()
    }
}
