//! The tracer: a process of its own that follows the target with ptrace, arms each forked child, answers its page
//! events and writes records.
//!
//! ```text
//!  front ──socket── tracer ──ptrace── target
//!    │ orders  →       │  follow.rs    stops: forks, exec, ends, signals
//!    │ ← records       │  intervals.rs  opens and closes intervals (arms, settles)
//!                      │  watch.rs     one interval: userfaultfds, page events
//! ```
//!
//! One thread does all: ptrace binds a tracee to a thread, and a page event is answered fastest where nothing is locked.
//! It is a process apart from the front so that whoever kills the command does not strike in the middle of an injection
//! (`sys::inject`): this one notices that the front is gone, lets everybody go, and ends.

pub mod ability;
mod account;
mod address_space;
mod arm;
mod baseline;
mod birth;
mod codes;
mod compare;
mod entries;
mod executable;
mod faults;
mod faults_armed;
mod faults_look;
mod faults_moved;
mod faults_page;
mod faults_sample;
mod faults_settle;
mod faults_stand_in;
mod faults_told;
mod files;
mod follow;
mod growth;
mod images;
mod intervals;
mod kernel_writes;
mod layout;
pub mod lender;
pub mod link;
mod maps;
mod moves;
mod ranges;
mod sample;
mod settle;
mod start;
mod tables;
mod threads;
mod touched;
mod tree;
mod user_fault;
mod verdict;
mod watch;

use crate::record::{Finish, Gap, GapKind, Mode, Record, WatchReason};
use codes::Codes;
use compare::Originals;
use cowbell::sys::epoll::Poller;
use cowbell::sys::pidfd::Ended;
use cowbell::sys::ptrace::WaitStatus;
use cowbell::sys::remote::Drain;
use cowbell::sys::uffd::UffdMessage as Message;
use cowbell::sys::{self, Errno, ptrace, signal};
use faults::Faults;
use faults_stand_in::StandIn;
use growth::GrowthLooks;
use images::Images;
use lender::Lenders;
use link::{Link, Options, TracerCommand, TracerMessage};
use sample::{Halted, Sampler};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use tree::Tree;

/// Events are handed on in batches of so many, or when the target pauses.
const BATCH: usize = 256;
/// The time that the target must pause until its events are handed on.
const PAUSE: Duration = Duration::from_millis(50);
/// When to look again after the kernel could not lift a protection.
const RETRY: Duration = Duration::from_micros(100);
/// The time that threads may take to stand still when everybody is let go.
const LEAVE: Duration = Duration::from_secs(5);

const SIGNALS: u64 = 0;
const LINK: u64 = 1;
const FAULTS: u64 = 2;
const MOMENTS: u64 = 3;
const DOORS: u64 = 16;

/// Runs the tracer on the socket from the front.
pub fn run(stream: UnixStream) -> ExitCode {
    let Ok((link, options)) = Link::open(stream) else { return ExitCode::FAILURE };
    match Tracer::begin(link, options) {
        Ok(mut tracer) => {
            tracer.follow();
            tracer.finish();
            ExitCode::SUCCESS
        }
        Err((mut link, failed, message)) => {
            link.say(&TracerMessage::Failed { failed, message });
            link.flush_all();
            ExitCode::FAILURE
        }
    }
}

/// Everything the tracer knows.
struct Tracer {
    link: Link,
    options: Options,
    mode: Mode,
    frames: bool,
    poller: Poller,
    signals: OwnedFd,
    tree: Tree,
    originals: Originals,
    lenders: Lenders,
    drain: Drain,
    sampler: Sampler,
    /// Only in [`Mode::Faults`].
    faults: Option<Faults>,
    codes: Codes,
    images: Images,
    growth: GrowthLooks,
    /// Tasks that stand at their first instruction and whose maker has not told of them yet.
    newborn: HashSet<i32>,
    /// Threads that stand still because everybody is about to be let go, with the signal they are due.
    parked: HashMap<i32, i32>,
    /// Stops were announced while one thread was waited for.
    stops_unread: bool,
    leaving: bool,
    leaving_since_ns: u64,
    /// Pages whose writers could not be let go before an event was read.
    owed: Vec<(i32, u64)>,
    intervals: u32,
    /// The number of processes that were not weighed at their ends, because that had taken too much of the time.
    unweighed: u64,
    /// The most memories that were added up together as a process ended.
    most_together: u64,
    /// The time that this ran to weigh processes, and to add up memories: nobody's own memory is left out for the latter.
    weighing_ran_ns: u64,
    together_ran_ns: u64,
    started_ns: u64,
    root: i32,
    root_ended: Option<Ended>,
    spent: Finish,
    /// In [`Mode::Faults`]: the time that this ran so that some pages of processes could be armed. They were held up for as long at least.
    sampling_ran_ns: u64,
    /// In [`Mode::Faults`]: who lets writers go while this is busy.
    stand_in: Option<StandIn>,
}

impl Tracer {
    fn now(&self) -> u64 {
        sys::monotonic_ns() - self.started_ns
    }

    fn say(&mut self, record: Record) {
        self.say_news();
        self.link.say(&TracerMessage::Record(record));
    }

    /// Tells of the code that was seen, before what refers to it.
    fn say_news(&mut self) {
        for news in self.codes.take_news() {
            self.link.say(&news);
        }
    }

    fn gap(&mut self, pid: i32, what: GapKind, detail: impl Into<String>) {
        let time_ns = self.now();
        self.say(Record::Gap(Gap { pid, time_ns, what, detail: detail.into() }));
    }

    /// Serves everybody until nobody is left.
    fn follow(&mut self) {
        let (mut found, mut waits_to_write) = (Vec::new(), false);
        while !self.tree.threads.is_empty() && !self.all_parked() && !self.has_waited_enough() {
            let pending = self.link.flush();
            if pending != waits_to_write {
                let _gone = self.poller.also_writable(self.link.socket(), LINK, pending);
                waits_to_write = pending;
            }
            if std::mem::take(&mut self.stops_unread) {
                self.serve_stops();
            }
            if self.poller.wait(Some(self.patience()), &mut found).is_err() {
                return;
            }
            if found.is_empty() && self.owed.is_empty() {
                self.hand_on_events(1);
            }
            for &token in &found {
                self.serve(token);
            }
            self.pay();
            self.look_at_growth();
        }
    }

    fn serve(&mut self, token: u64) {
        match token {
            SIGNALS => {
                // One, whatever it was: if there are more, the descriptor stays readable.
                let _any = signal::received(&self.signals);
                self.serve_stops();
            }
            LINK => {
                while let Some(command) = self.link.command() {
                    self.obey(command);
                    if self.link.is_broken() {
                        let _gone = self.poller.remove(self.link.socket());
                        break;
                    }
                }
            }
            FAULTS => self.serve_faults(),
            MOMENTS => self.ask_growth(),
            door => self.serve_door(door),
        }
    }

    fn serve_door(&mut self, door: u64) {
        let pid = ((door - DOORS) / 2) as i32;
        if (door - DOORS).is_multiple_of(2) { self.serve_events(pid) } else { self.serve_moves(pid) }
    }

    /// Waits for the next stop of one thread, and answers page events meanwhile: it may itself wait for such an answer.
    fn wait_for(&mut self, tid: i32) -> Result<WaitStatus, Errno> {
        let mut found = Vec::new();
        loop {
            if let Some((_, status)) = ptrace::wait(Some(tid), false)? {
                return Ok(status);
            }
            // Nobody looks at growth meanwhile: a look that is due must not make this a loop that never sleeps.
            let patience = if self.owed.is_empty() { PAUSE } else { RETRY };
            self.poller.wait(Some(patience), &mut found)?;
            for &token in &found {
                match token {
                    SIGNALS => {
                        let _any = signal::received(&self.signals);
                        self.stops_unread = true;
                    }
                    LINK => {}
                    FAULTS => self.hear_news(),
                    MOMENTS => self.ask_growth(),
                    door => self.serve_door(door),
                }
            }
            self.pay();
        }
    }

    /// The time in which nothing may happen until it is time to look again.
    fn patience(&self) -> Duration {
        if self.owed.is_empty() { self.growth.patience() } else { RETRY }
    }

    /// Lets writers go that could not be let go before. The kernel refuses while a mapping changes, which is over only some
    /// time after the event about it was read.
    fn pay(&mut self) {
        let processes = &self.tree.processes;
        self.owed.retain(|&(pid, page)| processes.get(&pid).is_some_and(|process| !process.release(page)));
    }

    fn serve_stops(&mut self) {
        loop {
            match ptrace::wait(None, false) {
                Ok(Some((tid, status))) => {
                    let (started, told) = (sys::monotonic_ns(), self.spent.told_ns());
                    self.on_status(tid, status);
                    self.spent.stops_ns += self.since(started, told);
                }
                Ok(None) => return,
                Err(Errno::CHILD) => {
                    self.tree = Tree::default();
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn obey(&mut self, command: TracerCommand) {
        match command {
            TracerCommand::Signal(number) => sys::signal::send(self.root, number),
            TracerCommand::Detach if self.leaving => {}
            TracerCommand::Detach => {
                self.leaving = true;
                self.leaving_since_ns = self.now();
                let tids: Vec<i32> = self.tree.threads.keys().copied().collect();
                for tid in tids {
                    let _gone = ptrace::interrupt(tid);
                }
            }
        }
    }

    fn all_parked(&self) -> bool {
        self.leaving && self.tree.threads.keys().all(|tid| self.parked.contains_key(tid))
    }

    /// A thread in an uninterruptible system call does not stand still; it is let go as it is.
    fn has_waited_enough(&self) -> bool {
        self.leaving && self.now() - self.leaving_since_ns > LEAVE.as_nanos() as u64
    }

    /// Answers the page events of a process.
    fn serve_events(&mut self, pid: i32) {
        if self.mode == Mode::Faults {
            return self.serve_armed(pid);
        }
        let (started, told) = (sys::monotonic_ns(), self.spent.told_ns());
        let Some(mut watch) = self.tree.processes.get_mut(&pid).and_then(|process| process.watch.take()) else {
            return;
        };
        let keeps = self.keeps_originals(pid);
        let (mut messages, mut stopped) = (Vec::new(), Vec::new());
        while watch.read_events(&mut messages) {
            let time_ns = self.now();
            for message in messages.drain(..) {
                let Message::Fault(fault) = message else {
                    // The thread that makes the change goes on already: what is dropped shows at the next fault, or at the end.
                    watch.follow(&message, &[]);
                    continue;
                };
                let seen = watch.look(fault, time_ns, self.leaving);
                let mut halted = None;
                if let Some(mut event) = seen.event {
                    let kept = keeps && self.originals.keep(&watch, &event);
                    halted = self.sample(&mut watch, &mut event, fault.address as u64);
                    if kept || event.stack.is_some() {
                        self.drain.run();
                    }
                    watch.events.push(event);
                }
                if !watch.release(seen.page) {
                    self.owed.push((pid, seen.page));
                }
                stopped.extend(halted);
            }
        }
        let full = watch.events.len() >= BATCH;
        if let Some(process) = self.tree.processes.get_mut(&pid) {
            process.watch = Some(watch);
        }
        for Halted { tid, status } in stopped {
            self.on_status(tid, status);
        }
        self.spent.events_ns += self.since(started, told);
        if full {
            self.hand_on_events(BATCH);
        }
    }

    /// Tells whether contents of this process' pages are lost to somebody when it writes them. A child's copies are compared with
    /// what the parent has, as long as that is watched.
    fn keeps_originals(&self, pid: i32) -> bool {
        let Some(process) = self.tree.processes.get(&pid) else { return false };
        let parent = self.tree.processes.get(&process.parent).is_some_and(|parent| parent.watch.is_some());
        process.role != WatchReason::Child || !parent || self.tree.processes.values().any(|other| other.parent == pid)
    }

    /// Follows moves and removals in the mappings that have no events.
    fn serve_moves(&mut self, pid: i32) {
        let (started, now) = (sys::monotonic_ns(), self.now());
        let Some(process) = self.tree.processes.get_mut(&pid) else { return };
        // One that has its memory for itself must not wait for an answer at each of its unmappings: this one is the last.
        process.kept = process.kept.take().filter(|doors| doors.asynchronous.is_none());
        let Some(watch) = process.watch.as_mut() else { return };
        let mut messages = Vec::new();
        let changes = watch.read_moves(now, &mut messages);
        for message in &messages {
            watch.follow(message, &changes);
        }
        self.spent.events_ns += sys::monotonic_ns() - started;
    }

    /// Hands on the events of every interval that has at least so many.
    fn hand_on_events(&mut self, least: usize) {
        self.say_news();
        for process in self.tree.processes.values_mut() {
            let Some(watch) = process.watch.as_mut().filter(|watch| watch.events.len() >= least) else { continue };
            let events = std::mem::take(&mut watch.events);
            self.link.say(&TracerMessage::Record(Record::Events { interval: watch.interval, events }));
        }
    }

    /// Lets go who is left, and writes the last record.
    fn finish(&mut self) {
        self.leave();
        self.tell_what_was_lost();
        let record = Finish { time_ns: self.now(), ended: self.root_ended, ..self.spent.clone() };
        self.say(Record::Finish(record));
        self.link.flush_all();
        if !self.images.is_empty() {
            self.link.wait_until_heard();
        }
    }
}
