//! Many forks leave nothing behind, and a death at any moment leaves a report or a counted loss.
//!
//! A child writes page after page and counts in shared memory, so that whoever kills it knows how far it
//! was: the pages it copied are exactly those written, and perhaps the one it was just about to write.

use crate::apart::claim_within;
use crate::case::{Outcome, Turns, child_that_waits, passed, skipped, soak};
use crate::look::{
    Bytes, SOON, descriptors, ends_soon, frozen_pages, has_children, maps, set, until, usable, wait, write,
};
use crate::watching::{copied, for_each, release};
use cowbell::arena::Frozen;
use cowbell::fork::{self, Child, Ended, Exit, ForkOptions};
use cowbell::page::PageSet;
use cowbell::report::Census;
use cowbell::sys::pidfd;
use cowbell::sys::shared_words::SharedWords;
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const KILLED: Ended = Ended::Signaled(libc::SIGKILL);

/// Numbers without a pattern, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn ten_thousand_forks_leave_no_descriptor_no_mapping_and_no_process() -> Outcome {
    let forks: usize = if soak() { 100_000 } else { 10_000 };
    let frozen = frozen_pages("ten thousand", 16)?;
    let mut watches = Vec::new();
    for watch in Watch::ALL {
        if usable(watch)?.is_ok() {
            watches.push(watch);
        }
    }
    let mut before = None;
    for n in 0..forks {
        // Every tenth is watched in another way than by census.
        let watch = if n.is_multiple_of(10) { watches[n / 10 % watches.len()] } else { Watch::Census };
        let page = n as u64 % 16;
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| write(*frozen, page))?;
        let exit = wait(&mut child)?;
        assert!(exit.success() && copied(&exit.report) == set([page]), "the {n}th, {watch}: {exit:?}");
        drop(child);
        if n % 1000 == 200 {
            let now = (descriptors(), maps().len(), has_children());
            assert_eq!(*before.get_or_insert(now), now, "after {n} forks");
            assert!(!now.2, "no process is left");
        }
    }
    passed()
}

/// A child that writes all pages of an arena in their order.
struct Writer {
    frozen: Frozen<Bytes>,
    done: SharedWords,
    pages: u64,
}

impl Writer {
    fn new(pages: u64) -> Result<Self, Failed> {
        Ok(Self { frozen: frozen_pages("in order", pages as usize)?, done: SharedWords::new(1)?, pages })
    }

    /// The number of pages the child has written.
    fn done(&self) -> &AtomicU64 {
        self.done.words().first().expect("a page holds a word")
    }

    /// Forks the child. With `then`, it waits at the end to be let go; with `touch`, it reads all pages first.
    fn fork(&self, watch: Watch, touch: bool, then: Option<&Turns>) -> Result<Child, Failed> {
        self.done().store(0, Ordering::SeqCst);
        let data: Bytes = self.frozen.root();
        Ok(fork::spawn(&ForkOptions::new().watch(watch), |_| {
            if touch {
                std::hint::black_box(
                    data.iter().step_by(64).map(|byte| u64::from(byte.load(Ordering::Relaxed))).sum::<u64>(),
                );
            }
            for page in 0..self.pages {
                write(data, page);
                self.done().fetch_add(1, Ordering::SeqCst);
            }
            then.map(Turns::take);
        })?)
    }

    fn has_written(&self, pages: u64) -> Result<(), Failed> {
        until("the child writes on", || self.done().load(Ordering::SeqCst) >= pages)
    }

    /// The set is what was written, or that and the page that was next.
    fn is_written_or_next(&self, pages: &PageSet) -> bool {
        let done = self.done().load(Ordering::SeqCst);
        *pages == set(0..done) || *pages == set(0..done + 1)
    }
}

fn keeper_of(child: &Child) -> Result<OwnedFd, Failed> {
    Ok(pidfd::open(child.keeper_pid().ok_or("a keeper")?)?)
}

/// All there is to be said of a child whose keeper saw it to its end.
fn check_killed(writer: &Writer, watch: Watch, exit: &Exit) -> Result<(), Failed> {
    let done = writer.done().load(Ordering::SeqCst);
    let arena = &exit.report.arenas[0];
    assert_eq!(exit.report.census, Census::Last);
    assert!(writer.is_written_or_next(&arena.copied_set()), "{done} written, copied {:?}", arena.copied_set());
    assert_eq!(arena.copied_pages, arena.copied_set().count());
    let bytes = arena.bytes_changed.ok_or("the copies can be compared")?;
    assert!((done..=done + 1).contains(&bytes), "a byte a page: {bytes} of {done}");
    if watch != Watch::Census {
        assert!(
            writer.is_written_or_next(&arena.observed_set()),
            "{done} written, observed {:?}",
            arena.observed_set()
        );
        assert!(arena.copied_unobserved.0 <= 1);
    }
    if watch.has_events() {
        let told = exit.report.events.len() as u64 + exit.report.events_lost;
        assert_eq!(told, arena.observed_set().count().0, "each observed page has an event, or one is counted as lost");
        assert!(exit.report.events_lost <= 1, "only the one that was being written down");
        assert!(exit.report.events.iter().map(|event| event.page.0).eq(0..exit.report.events.len() as u64));
    }
    Ok(())
}

const TRIES: u64 = 200;

fn a_child_killed_at_any_moment_leaves_an_exact_report() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let writer = Writer::new(200)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for n in 0..TRIES {
            let at = random.below(writer.pages);
            let mut child = writer.fork(watch, n.is_multiple_of(2), None)?;
            writer.has_written(at)?;
            child.kill(libc::SIGKILL)?;
            let exit = wait(&mut child)?;
            assert!(matches!(exit.ended, KILLED | Ended::Exited(0)), "{:?}", exit.ended);
            check_killed(&writer, watch, &exit).map_err(|e| format!("try {n}: {}", e.message().unwrap_or_default()))?;
        }
        assert!(!has_children());
        release(writer.frozen)
    })
}

fn a_keeper_killed_at_any_moment_lets_the_child_go_on_and_is_a_loss_that_is_told() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let writer = Writer::new(200)?;
        let mut random = Random(0xd1b5_4a32_d192_ed03);
        for _ in 0..TRIES {
            let at = random.below(writer.pages);
            let (mine, theirs) = Turns::new()?;
            let mut child = writer.fork(watch, false, Some(&theirs))?;
            let keeper = keeper_of(&child)?;
            writer.has_written(at)?;
            pidfd::signal(&keeper, libc::SIGKILL)?;
            ends_soon(&keeper, "the keeper")?;
            let seen_at_least = match watch {
                // Events that nobody asked for yet are lost with the keeper.
                Watch::Faults => 0,
                Watch::Monitor => at,
                _ => writer.pages,
            };
            writer.has_written(writer.pages)?;
            assert!(child.report().is_err() && child.end_epoch().is_err());
            mine.give();
            let exit = wait(&mut child)?;
            assert_eq!((exit.ended, exit.report.census), (Ended::Exited(0), Census::Lost));
            assert_eq!(exit.report.arenas[0].bytes_changed, Some(0), "nothing is made up");
            assert!(exit.report.to_string().contains("LOST"));
            if watch.has_events() {
                let observed = exit.report.arenas[0].observed_set();
                assert_eq!(observed, set(0..observed.count().0), "what was observed stands");
                assert!(observed.count().0 >= seen_at_least, "{} of {seen_at_least}", observed.count());
            }
        }
        assert!(!has_children());
        release(writer.frozen)
    })
}

fn child_and_keeper_killed_together_end_soon_and_the_loss_is_told() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let writer = Writer::new(200)?;
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for n in 0..TRIES {
            let mut child = writer.fork(watch, false, None)?;
            let keeper = keeper_of(&child)?;
            writer.has_written(random.below(writer.pages))?;
            if n.is_multiple_of(2) {
                pidfd::signal(&keeper, libc::SIGKILL)?;
                child.kill(libc::SIGKILL)?;
            } else {
                child.kill(libc::SIGKILL)?;
                pidfd::signal(&keeper, libc::SIGKILL)?;
            }
            let exit = wait(&mut child)?;
            match exit.report.census {
                Census::Lost => assert!(exit.report.to_string().contains("LOST")),
                _ => check_killed(&writer, watch, &exit)?,
            }
        }
        assert!(!has_children());
        release(writer.frozen)
    })
}

/// Waits until the kernel says that a process is stopped.
fn is_stopped(pid: i32) -> Result<(), Failed> {
    until("it stops", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

fn a_stopped_child_is_reported_and_goes_on_when_continued() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let writer = Writer::new(500)?;
        let mut random = Random(0x853c_49e6_748f_ea9b);
        for _ in 0..10 {
            let (mine, theirs) = Turns::new()?;
            let mut child = writer.fork(watch, false, Some(&theirs))?;
            writer.has_written(random.below(writer.pages))?;
            child.kill(libc::SIGSTOP)?;
            is_stopped(child.pid())?;
            assert!(child.wait_timeout(Duration::from_millis(5))?.is_none(), "a stop is no end");
            let report = child.report()?;
            assert_eq!(report.census, Census::Living);
            assert!(writer.is_written_or_next(&copied(&report)), "{:?}", copied(&report));
            child.kill(libc::SIGCONT)?;
            mine.give();
            let exit = wait(&mut child)?;
            assert_eq!((exit.ended, copied(&exit.report)), (Ended::Exited(0), set(0..writer.pages)));
            assert_eq!(exit.report.arenas[0].copied_unobserved.0, 0);
        }
        release(writer.frozen)
    })
}

fn a_stopped_child_can_be_killed() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let frozen = frozen_pages("stopped", 3)?;
        let (mut child, _turns) = child_that_waits(&ForkOptions::new().watch(watch), |_| write(*frozen, 2))?;
        child.kill(libc::SIGSTOP)?;
        is_stopped(child.pid())?;
        child.kill(libc::SIGKILL)?;
        let exit = wait(&mut child)?;
        assert_eq!((exit.ended, copied(&exit.report)), (KILLED, set([2])));
        release(frozen)
    })
}

fn a_stopped_monitor_holds_the_writer_up_until_it_is_continued() -> Outcome {
    for_each(&[Watch::Monitor], |watch| {
        let writer = Writer::new(500)?;
        let mut child = writer.fork(watch, false, None)?;
        let keeper = keeper_of(&child)?;
        writer.has_written(10)?;
        pidfd::signal(&keeper, libc::SIGSTOP)?;
        is_stopped(child.keeper_pid().ok_or("a keeper")?)?;
        let held = writer.done().load(Ordering::SeqCst);
        assert!(child.wait_timeout(Duration::from_millis(50))?.is_none());
        assert!(writer.done().load(Ordering::SeqCst) <= held + 1, "the writer waits");
        pidfd::signal(&keeper, libc::SIGCONT)?;
        let exit = wait(&mut child)?;
        assert_eq!((exit.ended, exit.report.census), (Ended::Exited(0), Census::Last));
        assert_eq!(exit.report.arenas[0].observed_set(), set(0..writer.pages));
        release(writer.frozen)
    })
}

fn a_keeper_that_never_answers_holds_the_wait_up_for_seconds_only() -> Outcome {
    let frozen = frozen_pages("unanswered", 3)?;
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| write(*frozen, 1))?;
    let keeper = keeper_of(&child)?;
    pidfd::signal(&keeper, libc::SIGSTOP)?;
    is_stopped(child.keeper_pid().ok_or("a keeper")?)?;
    turns.give();
    // The time given bounds the wait for the child; the keeper has its own.
    let exit = wait(&mut child)?;
    assert_eq!((exit.ended, exit.report.census), (Ended::Exited(0), Census::Lost));
    ends_soon(&keeper, "the keeper")?;
    assert!(!has_children());
    passed()
}

/// The keeper has nothing to do while the child lives; its silence counts from when there is.
fn a_child_that_lived_long_may_be_asked_at_once_whether_it_has_ended() -> Outcome {
    if !soak() {
        return skipped("takes longer than a keeper may be silent: COWBELL_SOAK=1");
    }
    let frozen = frozen_pages("long-lived", 3)?;
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| write(*frozen, 1))?;
    let keeper = keeper_of(&child)?;
    std::thread::sleep(Duration::from_secs(11));
    pidfd::signal(&keeper, libc::SIGSTOP)?;
    is_stopped(child.keeper_pid().ok_or("a keeper")?)?;
    turns.give();
    ends_soon(child.pidfd(), "the child")?;
    assert!(child.try_wait()?.is_none(), "the last census is to come");
    pidfd::signal(&keeper, libc::SIGCONT)?;
    let exit = wait(&mut child)?;
    assert_eq!((exit.report.census, copied(&exit.report)), (Census::Last, set([1])));
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    let name = "endurance::ten_thousand_forks_leave_no_descriptor_no_mapping_and_no_process";
    let long = claim_within(30 * SOON, name, ten_thousand_forks_leave_no_descriptor_no_mapping_and_no_process);
    let mut trials = claims![
        a_child_killed_at_any_moment_leaves_an_exact_report,
        a_keeper_killed_at_any_moment_lets_the_child_go_on_and_is_a_loss_that_is_told,
        child_and_keeper_killed_together_end_soon_and_the_loss_is_told,
        a_stopped_child_is_reported_and_goes_on_when_continued,
        a_stopped_child_can_be_killed,
        a_stopped_monitor_holds_the_writer_up_until_it_is_continued,
        a_keeper_that_never_answers_holds_the_wait_up_for_seconds_only,
        a_child_that_lived_long_may_be_asked_at_once_whether_it_has_ended,
    ];
    trials.push(long);
    trials
}
