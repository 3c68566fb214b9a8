//! The watch by page faults: the faults that it takes for writes, the threads that it tells of, and its words where it cannot.
#![expect(unsafe_code, reason = "programs fork and write behind the library's back, system calls are refused")]

use crate::case::{Outcome, Turns, child_that_waits, passed, skipped, soak};
use crate::exactness::{Bytes as Data, Case, case, freeze};
use crate::look::{Bytes, descriptors, first_byte, frozen_pages, has_children, set, until, usable, wait, write};
use crate::watching::{copied, release};
use cowbell::arena::HugePages;
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::page::PageIndex;
use cowbell::report::Report;
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{self, executable, pidfd, process};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::atomic::{AtomicU64, Ordering};

fn options() -> ForkOptions<'static> {
    ForkOptions::new().watch(Watch::Faults)
}

fn pages_of_events(report: &Report) -> Vec<u64> {
    report.events.iter().map(|event| event.page.0).collect()
}

/// An event as it must be under each watch that has events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    page: u64,
    /// The number of the write whose thread it was; 0 for the main thread.
    thread: u64,
    pc: u64,
    address: u64,
}

/// The events of a case whose writes come one after the other.
fn told(case: &Case, watch: Watch, data: Data, threads: &[AtomicU64]) -> Result<Vec<Told>, TestCaseError> {
    let fail = |e: &dyn std::fmt::Display| TestCaseError::fail(format!("{watch}: {e}"));
    threads.iter().for_each(|thread| thread.store(0, Ordering::SeqCst));
    let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
        case.act_in_turn(data, |write| threads[write].store(process::tid() as u64, Ordering::SeqCst));
    })
    .map_err(|e| fail(&e))?;
    let exit = child.wait().map_err(|e| fail(&e))?;
    let report = exit.report;
    if exit.ended != Ended::Exited(0) || report.events_lost > 0 {
        return Err(fail(&format!("{:?}, {report}", exit.ended)));
    }
    let thread_of = |tid: i32| {
        let own = |thread: &AtomicU64| thread.load(Ordering::SeqCst) == tid as u64;
        if tid == report.pid { Some(0) } else { threads.iter().position(own).map(|at| at as u64 + 1) }
    };
    let mut told = Vec::new();
    for event in &report.events {
        let thread = thread_of(event.tid).ok_or_else(|| fail(&format!("nobody's thread {}", event.tid)))?;
        told.push(Told { page: event.page.0, thread, pc: event.pc, address: event.address });
    }
    told.sort();
    Ok(told)
}

/// Page, thread, instruction and byte of each event are those that the trap tells.
fn events_are_those_of_the_trap() -> Outcome {
    for watch in [Watch::Faults, Watch::Trap] {
        if let Err(why) = usable(watch)? {
            return skipped(why);
        }
    }
    let cases = std::env::var("COWBELL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let words = SharedWords::new(64)?;
    let tested = runner.run(&case(false, 1 << 20), |case| {
        let fail = |e: cowbell::Error| TestCaseError::fail(e.to_string());
        let frozen = freeze(case.bytes, HugePages::Never).map_err(fail)?;
        let data: Data = frozen.root();
        let [faults, trap] = [Watch::Faults, Watch::Trap].map(|watch| told(&case, watch, data, words.words()));
        proptest::prop_assert_eq!(faults?, trap?);
        // SAFETY: the children are gone and the data is used no more.
        unsafe { frozen.release() }.map_err(fail)
    });
    tested.map_err(|e| e.to_string())?;
    passed()
}

/// Reading a page that was not touched is a fault, too: it is not taken for the write that came later.
fn a_page_that_is_read_first_is_told_with_its_write() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let frozen = frozen_pages("read first", 200)?;
    let words = SharedWords::new(1)?;
    let reader = words.words().first().ok_or("a word")?;
    let mut child = fork::spawn(&options(), |_| {
        let data: Bytes = *frozen;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                reader.store(process::tid() as u64, Ordering::SeqCst);
                std::hint::black_box(
                    (0..200).map(|page| first_byte(data, page).load(Ordering::SeqCst)).fold(0, u8::wrapping_add),
                );
            });
        });
        (50..60).for_each(|page| write(data, page));
    })?;
    let report = wait(&mut child)?.report;
    assert_eq!(pages_of_events(&report), (50..60).collect::<Vec<_>>());
    assert!(report.events.iter().all(|event| event.tid == child.pid()), "{:?}", report.events);
    assert_ne!(reader.load(Ordering::SeqCst), 0);
    assert_eq!(report.arenas[0].observed_set(), set(50..60));
    release(frozen)?;
    passed()
}

/// A write by another process takes no fault of the child's: the read before it is not taken for the write.
fn a_write_that_no_fault_tells_is_unseen_and_no_read_is_taken_for_it() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let frozen = frozen_pages("from outside", 40)?;
    let (mut child, turns) = child_that_waits(&options(), |_| {
        std::hint::black_box(first_byte(*frozen, 30).load(Ordering::SeqCst));
        write(*frozen, 2);
    })?;
    let at = std::ptr::from_ref(first_byte(*frozen, 30)).addr();
    let bytes = [0xffu8; 8];
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(at), iov_len: bytes.len() };
    // SAFETY: it reads eight bytes of ours, and the child uses that page no more.
    let written = unsafe { libc::process_vm_writev(child.pid(), &raw const local, 1, &raw const remote, 1, 0) };
    assert_eq!(written, 8, "{}", std::io::Error::last_os_error());
    turns.give();
    let report = wait(&mut child)?.report;
    assert_eq!((copied(&report), pages_of_events(&report)), (set([2, 30]), vec![2]));
    if cfg!(target_arch = "x86_64") {
        assert_eq!(report.arenas[0].copied_unobserved.0, 1);
        assert!(report.to_string().contains("unseen   1 copied page without a page fault"), "{report}");
    }
    release(frozen)?;
    passed()
}

/// A child of the child that nobody watches shares its copies, so that writing them faults anew on both sides.
fn faults_of_the_childs_children_are_not_the_childs() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let frozen = frozen_pages("grandchild", 40)?;
    let mut child = fork::spawn(&options(), |_| {
        write(*frozen, 1);
        // SAFETY: one thread, and the grandchild makes no call but to leave.
        let grandchild = unsafe { libc::fork() };
        if grandchild == 0 {
            [1, 7, 8].iter().for_each(|&page| write(*frozen, page));
            process::exit(0);
        }
        write(*frozen, 1);
        // SAFETY: a status that is not asked for.
        assert_eq!(unsafe { libc::waitpid(grandchild, std::ptr::null_mut(), 0) }, grandchild);
        write(*frozen, 9);
    })?;
    let exit = wait(&mut child)?;
    assert_eq!((exit.ended, copied(&exit.report)), (Ended::Exited(0), set([1, 9])));
    assert_eq!((pages_of_events(&exit.report), exit.report.arenas[0].observed_set()), (vec![1, 9], set([1, 9])));
    release(frozen)?;
    passed()
}

/// Faults that were seen while nobody asked are kept, and told when somebody does.
fn events_of_a_living_child_are_told_when_they_are_asked_for() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let frozen = frozen_pages("asked", 20)?;
    let (mine, theirs) = Turns::new()?;
    let mut child = fork::spawn(&options(), |_| {
        [7, 3].iter().for_each(|&page| write(*frozen, page));
        theirs.give();
        theirs.take();
        std::hint::black_box(first_byte(*frozen, 12).load(Ordering::SeqCst));
        [3, 5].iter().for_each(|&page| write(*frozen, page));
    })?;
    assert!(mine.take());
    let pages = |child: &mut fork::Child| {
        child.events().map(|events| events.iter().map(|event| event.page).collect::<Vec<_>>())
    };
    assert_eq!(pages(&mut child)?, [7, 3].map(PageIndex), "in the order of their times");
    assert_eq!(pages(&mut child)?, []);
    mine.give();
    let report = wait(&mut child)?.report;
    assert_eq!((pages_of_events(&report), report.arenas[0].observed_set()), (vec![5], set([3, 5, 7])));
    assert_eq!((report.events_lost, report.page_faults.and_then(|faults| faults.lost)), (0, Some(0)));
    release(frozen)?;
    passed()
}

/// A keeper that cannot run leaves the rings full: the pages are exact, and what was lost is counted.
fn faults_beyond_the_rings_are_counted_and_the_pages_stay_exact() -> Outcome {
    const PAGES: u64 = 40_000;
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let frozen = frozen_pages("overflow", PAGES as usize)?;
    let (mine, theirs) = Turns::new()?;
    let mut child = fork::spawn(&options(), |_| {
        theirs.take();
        (0..PAGES).for_each(|page| write(*frozen, page));
        theirs.give();
        theirs.take();
    })?;
    let keeper = child.keeper_pid().ok_or("a keeper")?;
    let keeper = (pidfd::open(keeper)?, keeper);
    pidfd::signal(&keeper.0, libc::SIGSTOP)?;
    until("the keeper stops", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", keeper.1)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })?;
    mine.give();
    assert!(mine.take());
    pidfd::signal(&keeper.0, libc::SIGCONT)?;
    mine.give();
    let exit = wait(&mut child)?;
    let (report, arena) = (&exit.report, &exit.report.arenas[0]);
    assert_eq!((exit.ended, arena.copied_pages.0), (Ended::Exited(0), PAGES));
    let faults = report.page_faults.ok_or("told of faults")?;
    if let Some(lost) = faults.lost {
        assert!(lost > 0 && arena.copied_unobserved.0 > 0, "{faults:?}");
        assert!(arena.copied_unobserved.0 <= lost, "{} unseen, {lost} lost", arena.copied_unobserved);
        assert!(report.to_string().contains(&format!("LOST: {lost} page faults")), "{report}");
    }
    assert_eq!(arena.observed_set().count().0, report.events.len() as u64 + report.events_lost);
    release(frozen)?;
    passed()
}

/// From now on `perf_event_open` is refused in this process, as by a container's filter.
fn refuse_perf_events() {
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            jf: 1,
            ..step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_perf_event_open as u32)
        },
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    rustix::thread::set_no_new_privs(true).expect("PR_SET_NO_NEW_PRIVS");
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is valid for the call, which copies it.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(done, 0, "PR_SET_SECCOMP: {}", std::io::Error::last_os_error());
}

fn refused_perf_events_are_an_error_that_names_the_setting() -> Outcome {
    let before = descriptors();
    refuse_perf_events();
    let refused = fork::spawn(&options(), |_| ()).err().ok_or("perf events are refused")?;
    assert!(refused.is_permission() && refused.to_string().contains("perf_event_open"), "{refused}");
    let hint = refused.hint().ok_or("a hint")?;
    assert!(hint.contains("kernel.perf_event_paranoid") && hint.contains("seccomp"), "{hint}");
    assert_eq!((descriptors(), has_children()), (before, false), "nothing is left");
    passed()
}

/// Rings are made smaller until they fit; where not even a page may be locked the error says what helps.
fn rings_take_as_much_as_may_be_locked() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    if rustix::process::geteuid().is_root() {
        return skipped("root may lock all memory");
    }
    setrlimit(Resource::Memlock, Rlimit { current: Some(0), ..getrlimit(Resource::Memlock) })?;
    let frozen = frozen_pages("locked", 100)?;
    let mut children = Vec::new();
    let refused = loop {
        match child_that_waits(&options(), |_| (0..100).for_each(|page| write(*frozen, page))) {
            Ok((child, turns)) => children.push((child, turns)),
            Err(e) => break e,
        }
        if children.len() > 200 {
            return Err("all these children have rings, and nothing may be locked".into());
        }
    };
    assert!(!children.is_empty(), "each user may lock kernel.perf_event_mlock_kb a CPU");
    let refused = refused.message().unwrap_or_default().to_owned();
    assert!(refused.contains("ulimit -l") && refused.contains("perf_event_mlock_kb"), "{refused}");
    for (mut child, turns) in children {
        turns.give();
        let report = wait(&mut child)?.report;
        assert_eq!(copied(&report), set(0..100));
        let lost = report.page_faults.and_then(|faults| faults.lost).unwrap_or(u64::MAX);
        assert!(report.arenas[0].copied_unobserved.0 <= lost, "{report}");
    }
    release(frozen)?;
    passed()
}

/// The parent holds no descriptor for the rings: many workers need no more of them than under other watches.
fn many_children_take_no_descriptors_of_the_parent() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let count = if soak() { 1000 } else { 40 };
    let frozen = frozen_pages("many", 4)?;
    let before = descriptors();
    let mut children = Vec::new();
    for _ in 0..count {
        children.push(child_that_waits(&options(), |_| write(*frozen, 1))?);
    }
    // Three of a child, and two of the pipes by which it takes turns.
    assert_eq!(descriptors(), before + 5 * count);
    for (mut child, turns) in children {
        turns.give();
        let report = wait(&mut child)?.report;
        assert_eq!((copied(&report), pages_of_events(&report)), (set([1]), vec![1]));
    }
    release(frozen)?;
    passed()
}

/// The child's own registers come with each event, so that its stack can be walked.
fn events_have_the_registers_of_the_writer() -> Outcome {
    if let Err(why) = usable(Watch::Faults)? {
        return skipped(why);
    }
    let frozen = frozen_pages("registers", 3)?;
    let (mut child, turns) = child_that_waits(&options(), |_| write(*frozen, 2))?;
    let events = child.events()?;
    let [event] = events.as_slice() else { return Err(Failed::from(format!("{events:?}"))) };
    // The child has this process's stack and code.
    let here = std::ptr::from_ref(&frozen).addr() as u64;
    assert!(event.registers.sp.abs_diff(here) < 8 << 20, "{event:x?}, {here:#x}");
    let executable = executable::executable();
    assert!((event.registers.pc as usize).wrapping_sub(executable.start) < executable.len, "{event:x?}");
    assert!((event.time_ns..event.time_ns + 60_000_000_000).contains(&sys::monotonic_ns()));
    turns.give();
    wait(&mut child)?;
    release(frozen)?;
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        events_are_those_of_the_trap,
        a_page_that_is_read_first_is_told_with_its_write,
        a_write_that_no_fault_tells_is_unseen_and_no_read_is_taken_for_it,
        faults_of_the_childs_children_are_not_the_childs,
        events_of_a_living_child_are_told_when_they_are_asked_for,
        faults_beyond_the_rings_are_counted_and_the_pages_stay_exact,
        refused_perf_events_are_an_error_that_names_the_setting,
        rings_take_as_much_as_may_be_locked,
        many_children_take_no_descriptors_of_the_parent,
        events_have_the_registers_of_the_writer,
    ]
}
