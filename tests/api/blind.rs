//! Reports say so where a watch could not see: after an exec, with descriptors closed, by system calls.
#![expect(unsafe_code, reason = "programs are executed, descriptors closed")]

use crate::case::{Outcome, Turns, child_that_waits, passed, skipped};
use crate::look::{Bytes, anonymous_pages, ends_soon, first_byte, frozen_pages, original, set, wait, write};
use crate::watching::{copied, for_each, release, watches_that};
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::report::Census;
use cowbell::sys::uffd::Door;
use cowbell::sys::{self, Errno, pidfd};
use cowbell::watch::Watch;
use libtest_mimic::Trial;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::CStr;
use std::sync::atomic::Ordering;

/// Executes a program that does nothing for long.
fn execute_sleep() -> ! {
    const PROGRAM: &CStr = c"/bin/sleep";
    let arguments = [PROGRAM.as_ptr(), c"1000".as_ptr(), std::ptr::null()];
    // SAFETY: C strings and a list that ends with null.
    unsafe { libc::execv(PROGRAM.as_ptr(), arguments.as_ptr()) };
    panic!("{}", std::io::Error::last_os_error());
}

fn executing_another_program_ends_the_accounting_while_that_runs_on() -> Outcome {
    if !std::path::Path::new("/bin/sleep").exists() {
        return skipped("no /bin/sleep here");
    }
    for_each(&Watch::ALL, |watch| {
        let frozen = frozen_pages("executed", 9)?;
        let (mine, theirs) = Turns::new()?;
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            [2, 6].iter().for_each(|&page| write(*frozen, page));
            theirs.take();
            execute_sleep();
            #[expect(unreachable_code, reason = "a closure has to return something")]
            ()
        })?;
        let keeper = pidfd::open(child.keeper_pid().ok_or("a keeper")?)?;
        mine.give();
        ends_soon(&keeper, "the keeper")?;
        assert!(child.try_wait()?.is_none(), "the program runs on");
        assert!(child.report().is_err() && child.end_epoch().is_err());
        child.kill(libc::SIGTERM)?;
        let exit = wait(&mut child)?;
        assert_eq!((exit.ended, exit.report.census), (Ended::Signaled(libc::SIGTERM), Census::AtExec));
        assert_eq!((copied(&exit.report), exit.report.arenas[0].copied_unobserved.0), (set([2, 6]), 0));
        release(frozen)
    })
}

fn closing_all_descriptors_is_not_executing() -> Outcome {
    // All but the trap, which needs a descriptor in the program itself: the tests that follow have it.
    for_each(&watches_that(|watch| watch != Watch::Trap), |watch| {
        let frozen = frozen_pages("closed", 60)?;
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            write(*frozen, 1);
            close_all();
            (10..50).for_each(|page| write(*frozen, page));
        })?;
        let exit = wait(&mut child)?;
        assert_eq!((exit.ended, exit.report.census), (Ended::Exited(0), Census::Last));
        assert_eq!((copied(&exit.report).count().0, exit.report.arenas[0].copied_unobserved.0), (41, 0));
        release(frozen)
    })
}

/// Closes all descriptors, as a daemon does.
fn close_all() {
    // SAFETY: the child uses none of them any more.
    assert_eq!(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) }, 0);
}

fn a_trap_whose_descriptor_the_program_closed_says_so_and_hangs_nobody() -> Outcome {
    for_each(&[Watch::Trap], |watch| {
        for reopened in [false, true] {
            let frozen = frozen_pages("closed", 60)?;
            let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
                write(*frozen, 1);
                close_all();
                if reopened {
                    // The trap's number now means another file.
                    (0..100).for_each(|_| std::mem::forget(std::fs::File::open("/dev/null")));
                }
                (10..50).for_each(|page| write(*frozen, page));
                let right = (10..50).all(|page| {
                    let was = original(page as usize * sys::page_size().bytes());
                    first_byte(*frozen, page).load(Ordering::Relaxed) == was.wrapping_add(2)
                });
                assert!(right);
            })?;
            let exit = wait(&mut child)?;
            assert!(exit.success(), "{:?}", exit.panic);
            assert!(exit.report.trap_lost);
            let arena = &exit.report.arenas[0];
            assert!(arena.observed_set().contains(cowbell::page::PageIndex(1)));
            if exit.report.census == Census::Last {
                assert_eq!(arena.copied_pages.0, 41);
            } else {
                assert_eq!(exit.report.census, Census::Lost);
            }
            assert!(exit.report.to_string().contains("LOST"), "{}", exit.report);
            release(frozen)?;
        }
        Ok(())
    })
}

fn a_trap_closed_where_no_descriptor_can_be_opened_hangs_nobody() -> Outcome {
    for_each(&[Watch::Trap], |watch| {
        let frozen = frozen_pages("nothing to open", 60)?;
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            write(*frozen, 1);
            close_all();
            let old = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..old }).expect("setrlimit");
            (10..50).for_each(|page| write(*frozen, page));
        })?;
        let exit = wait(&mut child)?;
        assert!(exit.success() && exit.report.trap_lost, "{exit:?}");
        release(frozen)
    })
}

/// Epochs end while threads write: whatever is written belongs to one of them, and no page is left unarmed.
fn epochs_under_concurrent_writers_miss_nothing() -> Outcome {
    const PAGES: u64 = 64;
    for_each(&watches_that(Watch::arms), |watch| {
        let frozen = frozen_pages("contended", PAGES as usize)?;
        let data: Bytes = frozen.root();
        let words = sys::shared_words::SharedWords::new(1)?;
        let [stop, ..] = words.words() else { return Err("a word".into()) };
        let (mine, theirs) = Turns::new()?;
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            std::thread::scope(|scope| {
                for thread in 0..3u64 {
                    scope.spawn(move || {
                        let mut page = thread;
                        while stop.load(Ordering::Relaxed) == 0 {
                            page = (page * 5 + 7 * thread + 1) % PAGES;
                            write(data, page);
                        }
                    });
                }
            });
            theirs.give();
            theirs.take();
            (0..PAGES).for_each(|page| write(data, page));
            theirs.give();
            theirs.take();
        })?;
        let mut all = set([]);
        for _ in 0..300 {
            all.union_with(&child.end_epoch()?[0].pages);
            child.events()?;
        }
        stop.store(1, Ordering::Relaxed);
        assert!(mine.take(), "the threads are done");
        all.union_with(&child.end_epoch()?[0].pages);
        assert_eq!(all, child.census()?[0].copied, "each copied page was in an epoch");
        mine.give();
        assert!(mine.take(), "everything is written once more");
        assert_eq!(child.end_epoch()?[0].pages, set(0..PAGES), "no page was left unarmed");
        mine.give();
        let exit = wait(&mut child)?;
        assert_eq!((exit.report.census, exit.report.arenas[0].copied_unobserved.0), (Census::Last, 0));
        release(frozen)
    })
}

fn without_a_last_census_there_is_no_keeper_and_the_report_says_so() -> Outcome {
    let frozen = frozen_pages("unkept", 5)?;
    let options = ForkOptions::new().last_census(false);
    let (mut child, turns) = child_that_waits(&options, |_| write(*frozen, 3))?;
    assert_eq!(child.keeper_pid(), None);
    assert_eq!(child.census()?[0].copied, set([3]), "the parent can look all the same");
    assert!(child.report().is_err() && child.end_epoch().is_err());
    turns.give();
    let report = wait(&mut child)?.report;
    assert_eq!((report.census, copied(&report)), (Census::NotTaken, set([])));
    for watch in watches_that(|watch| watch != Watch::Census) {
        let e = fork::spawn(&options.clone().watch(watch), |_| ()).err().ok_or("it needs the keeper")?;
        assert!(e.is_invalid(), "{e}");
    }
    passed()
}

/// Reads zeroes into the second half of a page by a system call.
fn read_into(data: Bytes, page: u64) -> Result<usize, Errno> {
    let zero = std::fs::File::open("/dev/zero").expect("/dev/zero");
    let at = sys::page_size().bytes() * page as usize + 2048;
    let target = data[at..at + 8].as_ptr();
    // SAFETY: eight bytes of atomics, which nobody else uses meanwhile.
    let buffer = unsafe { std::slice::from_raw_parts_mut(target.cast_mut().cast::<u8>(), 8) };
    rustix::io::read(&zero, buffer)
}

fn a_system_call_that_writes_into_an_armed_page_fails_or_is_seen_and_the_census_is_exact() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let frozen = frozen_pages("by the kernel", 9)?;
        let data: Bytes = frozen.root();
        let door = wait(&mut fork::spawn(&ForkOptions::new().watch(watch), |_| ())?)?.report.door;
        let refused = watch == Watch::Trap || (watch == Watch::Monitor && door == Some(Door::UserModeOnly));
        let options = ForkOptions::new().watch(watch);
        let (mut child, turns) = child_that_waits(&options, |_| {
            write(data, 1);
            assert_eq!(read_into(data, 1), Ok(8), "a page that is a copy already takes it");
            std::hint::black_box(first_byte(data, 6).load(Ordering::Relaxed));
            for page in [4, 6] {
                assert_eq!(read_into(data, page), if refused { Err(Errno::FAULT) } else { Ok(8) });
            }
        })?;
        let living = child.census()?[0].copied.clone();
        assert_eq!(anonymous_pages(child.pid(), frozen.image().range())?, living.count().0);
        turns.give();
        let report = wait(&mut child)?.report;
        let arena = &report.arenas[0];
        assert_eq!(copied(&report), living);
        assert_eq!(living.difference(&set([1, 4, 6])), set([]));
        if refused {
            assert_eq!(arena.observed_set(), set([1]), "a write that failed is none");
            assert_eq!(arena.copied_unobserved.0, living.count().0 - 1);
            assert!(report.to_string().contains("EFAULT"), "{report}");
        } else {
            // Without permission faults of the kernel are not told.
            let untold = report.page_faults.is_some_and(|faults| !faults.by_kernel);
            assert_eq!((living, arena.copied_unobserved.0), (set([1, 4, 6]), if untold { 2 } else { 0 }));
            assert_eq!(report.to_string().contains("perf_event_paranoid"), untold, "{report}");
        }
        release(frozen)
    })
}

/// Does a core dump end only the process that dies, and not all that share its memory (Linux 5.16)?
fn has_own_core_dumps() -> bool {
    let kernel = &cowbell::support::Support::get().machine.kernel;
    let mut numbers = kernel.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(16))
}

fn a_bus_error_elsewhere_is_the_programs_own() -> Outcome {
    for_each(&Watch::ALL, |watch| {
        let frozen = frozen_pages("bystander", 2)?;
        let file = rustix::fs::memfd_create(c"short", rustix::fs::MemfdFlags::CLOEXEC)?;
        let range = sys::map::anonymous(4096)?;
        // SAFETY: fresh memory that nobody refers to.
        unsafe { sys::map::map_shared_at(range, sys::map::Access::ReadWrite, std::os::fd::AsFd::as_fd(&file), 0) }?;
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
            write(*frozen, 1);
            // SAFETY: none; a page behind the end of its file is a SIGBUS.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(range.start).write_volatile(1) };
        })?;
        let exit = wait(&mut child)?;
        assert_eq!(exit.ended, Ended::Signaled(libc::SIGBUS));
        match exit.report.census {
            Census::Last => assert_eq!(copied(&exit.report), set([1])),
            // Before Linux 5.16 a core dump, also one that is not kept, ends the keeper: a loss that is told.
            Census::Lost if !has_own_core_dumps() => {}
            census => panic!("{census:?}"),
        }
        release(frozen)
    })
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        executing_another_program_ends_the_accounting_while_that_runs_on,
        closing_all_descriptors_is_not_executing,
        a_trap_whose_descriptor_the_program_closed_says_so_and_hangs_nobody,
        a_trap_closed_where_no_descriptor_can_be_opened_hangs_nobody,
        epochs_under_concurrent_writers_miss_nothing,
        without_a_last_census_there_is_no_keeper_and_the_report_says_so,
        a_system_call_that_writes_into_an_armed_page_fails_or_is_seen_and_the_census_is_exact,
        a_bus_error_elsewhere_is_the_programs_own,
    ]
}
