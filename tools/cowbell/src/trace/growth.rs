//! Looks, in turn, at how many private pages each watched process has, and where the thread stands that has run most since
//! the look before when there are more than ever.
//!
//! A copy takes the place of the page that was there, so it does not count: what grows is new memory. New memory makes no
//! page event, because there is nothing to protect; so where it grows is an estimate, by as many looks as it took.

use super::sample::{self, Doing};
use super::user_fault::{self, FaultState};
use super::{MOMENTS, PAUSE, Tracer};
use crate::record::{Grew, Looks, Record};
use cowbell::sys::perf::Ring;
use cowbell::sys::{self, procfs, ptrace};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The time between two looks while something grows.
const SOON_NS: u64 = 10_000_000;
/// And while nothing does.
const LATE_NS: u64 = 40_000_000;
/// Looks take at most this part of the time, by how long the tracer runs for them: on a busy machine it is due a processor for much longer.
const SHARE: u64 = 100;
/// But for so much in any case.
const FREE_NS: u64 = 50_000_000;
/// Growth by fewer pages is not told yet, and none by a smaller part of all growth: so it takes at most some hundred stacks.
const PAGES_MIN: u64 = 256;
const PART_MIN: u64 = 64;
/// Only the first thread is asked in a process that has more threads than this.
const THREADS_MAX: usize = 64;

/// When to look again, and what was found before.
#[derive(Debug, Default)]
pub struct GrowthLooks {
    due_ns: u64,
    period_ns: u64,
    /// The time that the tracer has run for looks and stacks.
    ran_ns: u64,
    seen: HashMap<i32, Seen>,
    /// Threads that were interrupted for their stacks, with the growth that each is to explain.
    asked: HashMap<i32, Grown>,
    /// Threads that are to be interrupted once they take a page fault of their own, which these tell.
    waiting: HashMap<i32, (Grown, Ring)>,
}

/// A growth that wants a stack.
#[derive(Clone, Copy, Debug)]
struct Grown {
    pid: i32,
    pages: u64,
    time_ns: u64,
}

/// The findings of looks at one process.
#[derive(Debug, Default)]
struct Seen {
    looks: Looks,
    /// The most private pages that were told of.
    told: u64,
    /// The time its threads had run by then.
    ran_ns: HashMap<i32, u64>,
}

impl GrowthLooks {
    /// A process is watched from now on, or again; it has so many private pages, if that is known.
    pub fn begin(&mut self, pid: i32, pages: u64) {
        let now = || resident(pid).map_or(0, |(private, _)| private);
        let pages = if pages == 0 { now() } else { pages };
        let looks = Looks { first: pages, most: pages, files_most: 0 };
        self.seen.entry(pid).or_insert_with(|| Seen { looks, told: pages, ran_ns: HashMap::new() });
        self.period_ns = SOON_NS;
        self.due_ns = self.due_ns.min(sys::monotonic_ns() + SOON_NS);
    }

    /// The time until the next look, if that is sooner.
    pub fn patience(&self) -> Duration {
        if self.seen.is_empty() {
            return PAUSE;
        }
        Duration::from_nanos(self.due_ns.saturating_sub(sys::monotonic_ns())).min(PAUSE)
    }
}

impl Tracer {
    /// Looks at everybody, if it is time.
    pub(super) fn look_at_growth(&mut self) {
        let (started, ran) = (sys::monotonic_ns(), sys::ran_ns());
        if self.growth.seen.is_empty() || started < self.growth.due_ns || self.leaving {
            return;
        }
        let watched = self.tree.processes.iter().filter(|(_, process)| process.watch.is_some());
        let pids: Vec<i32> = watched.map(|(&pid, _)| pid).collect();
        let affordable = self.growth.ran_ns < FREE_NS + self.now() / SHARE;
        let mut grows = false;
        for pid in pids {
            let Some(grown) = self.growth.seen.get_mut(&pid).and_then(|seen| seen.look(pid)) else { continue };
            grows = true;
            // Growth that is not told now is told with the next stack.
            if affordable {
                self.tell_growth(pid, grown);
            }
        }
        let took = sys::monotonic_ns() - started;
        self.spent.growth_ns += took;
        let growth = &mut self.growth;
        growth.ran_ns += sys::ran_ns() - ran;
        growth.period_ns = if grows { SOON_NS } else { (growth.period_ns * 2).min(LATE_NS) };
        growth.due_ns = started + took + growth.period_ns;
    }

    /// Asks the thread that ran most where it is. One that fills memory itself is interrupted, and tells when it stands still; one for
    /// which the kernel does is read as it is; one that sleeps otherwise has grown before, and elsewhere.
    fn tell_growth(&mut self, pid: i32, pages: u64) {
        let grown = Grown { pid, pages, time_ns: self.now() };
        let Some(process) = self.tree.processes.get(&pid) else { return };
        let threads: HashSet<i32> = process.threads.difference(&process.ending).copied().collect();
        let Some(seen) = self.growth.seen.get_mut(&pid) else { return };
        seen.told += pages;
        let busiest = if self.options.stacks_every > 0 { seen.busiest(pid, &threads) } else { None };
        match busiest.and_then(|tid| Some((tid, sample::doing(pid, tid)?))) {
            // One that is asked already stands for what comes before it answers.
            Some((tid, Doing::Running)) if self.growth.asked.contains_key(&tid) => {
                self.growth.asked.entry(tid).and_modify(|asked| asked.pages += pages);
            }
            Some((tid, Doing::Running)) => self.wait_to_ask(grown, tid),
            Some((tid, Doing::Reading)) => self.say_growth(grown, Some((tid, false))),
            _ => self.say_growth(grown, None),
        }
    }

    /// Waits until a thread takes a page fault of its own. For one that took none since the last look the kernel fills memory.
    fn wait_to_ask(&mut self, grown: Grown, tid: i32) {
        if let Some((mut earlier, ring)) = self.growth.waiting.remove(&tid) {
            let _closed = self.poller.remove(&ring);
            earlier.pages += grown.pages;
            return self.say_growth(earlier, Some((tid, false)));
        }
        match user_fault::next(tid).filter(|ring| self.poller.add(ring, MOMENTS).is_ok()) {
            Some(ring) => drop(self.growth.waiting.insert(tid, (grown, ring))),
            None => self.say_growth(grown, Some((tid, false))),
        }
    }

    /// Interrupts the threads that took the page fault they were waited for.
    pub(super) fn ask_growth(&mut self) {
        let waiting = std::mem::take(&mut self.growth.waiting);
        for (tid, (grown, mut ring)) in waiting {
            let news = user_fault::news(&mut ring);
            if news == FaultState::None {
                self.growth.waiting.insert(tid, (grown, ring));
                continue;
            }
            let _closed = self.poller.remove(&ring);
            // Nobody can be asked who has ended.
            if news == FaultState::Came && ptrace::interrupt(tid).is_ok() {
                self.growth.asked.insert(tid, grown);
            } else {
                self.say_growth(grown, None);
            }
        }
    }

    /// A thread stands still: perhaps because it was asked.
    pub(super) fn answer_growth(&mut self, tid: i32) {
        if let Some(grown) = self.growth.asked.remove(&tid) {
            let (started, ran) = (sys::monotonic_ns(), sys::ran_ns());
            self.say_growth(grown, Some((tid, true)));
            self.spent.growth_ns += sys::monotonic_ns() - started;
            self.growth.ran_ns += sys::ran_ns() - ran;
        }
    }

    /// Ends the looks at a process and returns their findings; growth that a thread was asked about without an answer is told.
    pub(super) fn end_growth(&mut self, pid: i32) -> Option<Looks> {
        let asked = self.growth.asked.iter().map(|(&tid, &grown)| (tid, grown));
        let waiting = self.growth.waiting.iter().map(|(&tid, &(grown, _))| (tid, grown));
        let unanswered: Vec<(i32, Grown)> = asked.chain(waiting).filter(|(_, grown)| grown.pid == pid).collect();
        for (tid, grown) in unanswered {
            self.growth.asked.remove(&tid);
            // The poller forgets what is closed.
            self.growth.waiting.remove(&tid);
            self.say_growth(grown, None);
        }
        self.growth.seen.remove(&pid).map(|seen| seen.looks)
    }

    /// Writes down that a process has grown, with the stack of a thread. `thread`: which, and whether it stands still.
    fn say_growth(&mut self, grown: Grown, thread: Option<(i32, bool)>) {
        let Grown { pid, pages, time_ns } = grown;
        let mut looked = None;
        if let Some(process) = self.tree.processes.get_mut(&pid)
            && let (Some((tid, stands)), Some(watch)) = (thread, &mut process.watch)
        {
            looked = self.sampler.look(watch, tid, process.parent, stands);
        }
        let (stack, new) = looked.map_or((None, None), |(number, new)| (Some(number), new));
        if let Some(new) = new {
            self.say(Record::Stack(new));
        }
        self.say(Record::Grew(Grew { pid, time_ns, pages, stack }));
    }
}

impl Seen {
    /// Looks at a process; by how much more it has grown than was told, if that is worth telling.
    fn look(&mut self, pid: i32) -> Option<u64> {
        let (private, of_files) = resident(pid)?;
        self.looks.most = self.looks.most.max(private);
        self.looks.files_most = self.looks.files_most.max(of_files);
        let grown = self.looks.most.saturating_sub(self.told);
        (grown >= PAGES_MIN.max((self.told - self.looks.first) / PART_MIN)).then_some(grown)
    }

    /// The thread that has run most since the look before.
    fn busiest(&mut self, pid: i32, threads: &HashSet<i32>) -> Option<i32> {
        if threads.len() > THREADS_MAX {
            return threads.get(&pid).copied();
        }
        let ran: HashMap<i32, u64> = threads.iter().map(|&tid| (tid, sample::ran_ns(pid, tid))).collect();
        let since = |(tid, ns): (&i32, &u64)| (ns.saturating_sub(self.ran_ns.get(tid).copied().unwrap_or(0)), *tid);
        let busiest = ran.iter().map(since).max().map(|(_, tid)| tid);
        self.ran_ns = ran;
        busiest
    }
}

/// The resident pages of a process: private ones, and those of files and shared mappings.
pub fn resident(pid: i32) -> Option<(u64, u64)> {
    let text = procfs::text(pid, "statm").ok()?;
    let mut fields = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, of_files) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some((resident.saturating_sub(of_files), of_files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_private_pages_of_this_process_grow_with_what_it_touches() {
        let pid = sys::process::pid();
        let (before, _) = resident(pid).expect("ours");
        let page = sys::page_size().bytes();
        let mut fresh = vec![0u8; 4096 * page];
        fresh.iter_mut().step_by(page).for_each(|byte| *byte = 1);
        let (after, _) = resident(pid).expect("ours");
        // The kernel adds up what each processor has counted only now and then.
        assert!(after >= before + 3500, "{before}, {after}");
        assert_eq!(fresh.iter().step_by(page).map(|&byte| u64::from(byte)).sum::<u64>(), 4096);
    }

    #[test]
    fn the_busiest_thread_is_the_one_that_ran_since() {
        let (pid, tid) = (sys::process::pid(), sys::process::tid());
        let (told, wait) = std::sync::mpsc::channel::<()>();
        let (say, hear) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            say.send(sys::process::tid()).expect("heard");
            let _over = wait.recv();
        });
        let threads = HashSet::from([tid, hear.recv().expect("its number")]);
        let mut seen = Seen::default();
        seen.busiest(pid, &threads);
        let until = sample::ran_ns(pid, tid) + 20_000_000;
        while sample::ran_ns(pid, tid) < until {
            std::hint::spin_loop();
        }
        assert_eq!(seen.busiest(pid, &threads), Some(tid));
        drop(told);
        sleeper.join().expect("it ends");
    }
}
