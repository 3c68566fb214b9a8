//! Signals to the whole group, as supervisors and terminals send them, end no job that the parent still wants.
#![expect(unsafe_code, reason = "a terminal is opened, and handlers are installed")]

use crate::apart::Process;
use crate::case::{Outcome, Turns, passed};
use crate::look::{SOON, ends_soon, until};
use crate::pool_kit::{Gate, data, in_time, table, worker_pidfds, zygote_of};
use cowbell::fork::{self, ForkOptions};
use cowbell::pool::{JobError, OnSignal, Pool, PoolBuilder, Shutdown, Signal};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::{pidfd, pipe, process, signal};
use libtest_mimic::{Failed, Trial};
use rustix::process::{Signal as Number, getpgrp, kill_process_group, setpgid, setsid};
use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

const ALL: [(Signal, i32); 6] = [
    (Signal::Hangup, libc::SIGHUP),
    (Signal::Interrupt, libc::SIGINT),
    (Signal::Quit, libc::SIGQUIT),
    (Signal::Terminate, libc::SIGTERM),
    (Signal::User1, libc::SIGUSR1),
    (Signal::User2, libc::SIGUSR2),
];

/// The parent of a service: it leads a group of its own, and fetches its signals.
fn lead() -> Result<OwnedFd, Failed> {
    setpgid(None, None)?;
    Ok(signal::receive(&ALL.map(|(_, number)| number))?)
}

/// A supervisor's signal.
fn send_to_group(number: i32) -> Result<(), Failed> {
    let number = ALL.iter().find(|(_, one)| *one == number).map(|(_, one)| Number::from_named_raw(*one));
    kill_process_group(getpgrp(), number.flatten().ok_or("a signal")?)?;
    Ok(())
}

fn fetch(signals: &OwnedFd, number: i32) -> Result<(), Failed> {
    let come = pidfd::readable(signals.as_fd(), Some(SOON))?;
    assert!(come && signal::received(signals) == Some(number), "the parent gets signal {number}");
    Ok(())
}

fn a_signal_to_the_group_ends_no_job_and_the_parent_drains() -> Outcome {
    let signals = lead()?;
    for (_, number) in ALL {
        let gate = Gate::new()?;
        let pool = Pool::builder().workers(3).spawn(data()?, move |_, job: u64| {
            gate.pass();
            3 * job
        })?;
        let before = pool.workers();
        let tickets = (0..200).map(|job| pool.submit(job)).collect::<Result<Vec<_>, _>>()?;
        gate.reached()?;
        send_to_group(number)?;
        fetch(&signals, number)?;
        // A handler would do this: no further jobs, those that are there to their end.
        gate.open();
        assert_eq!(pool.workers(), before);
        let (stats, exits) = std::thread::scope(|scope| {
            let results =
                scope.spawn(|| tickets.into_iter().map(|ticket| ticket.wait()).collect::<Result<Vec<_>, _>>());
            let results = results.join().expect("it does not panic").expect("no job is lost");
            assert_eq!(results, (0..200).map(|job| 3 * job).collect::<Vec<_>>());
            (pool.stats(), pool.shutdown(Shutdown::Drain))
        });
        assert_eq!((stats.deaths, stats.jobs, stats.started), (0, 200, 3), "signal {number}");
        assert!(exits?.iter().all(|exit| exit.left_by_itself));
        crate::pool_kit::alone()?;
    }
    passed()
}

fn a_storm_of_signals_to_the_group_loses_no_job() -> Outcome {
    let _fetched = lead()?;
    let pool = Pool::builder().workers(3).spawn(data()?, |_, job: u64| 3 * job)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), Failed> {
        let sender = scope.spawn(|| -> Result<u64, String> {
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                let (_, number) = ALL[sent as usize % ALL.len()];
                send_to_group(number).map_err(|e| format!("{e:?}"))?;
                sent += 1;
            }
            Ok(sent)
        });
        for round in 0..20u64 {
            let results = in_time(SOON, || pool.map(0..5000).collect::<Result<Vec<_>, _>>())?;
            assert_eq!(results?, (0..5000).map(|job| 3 * job).collect::<Vec<_>>(), "round {round}");
        }
        over.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("it does not panic")?;
        assert!(sent > 100, "{sent}");
        Ok(())
    })?;
    assert_eq!((pool.stats().deaths, pool.stats().started), (0, 3));
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn a_signal_while_the_pool_is_made_or_a_worker_replaced_does_no_harm() -> Outcome {
    let _fetched = lead()?;
    let over = table(1)?;
    let sender = Process::start(|| {
        // This process is of the same group, and is not to be ended by it.
        ALL.iter().for_each(|(_, number)| signal::ignore(*number));
        while over[0].load(Ordering::SeqCst) == 0 {
            let sent = ALL.iter().try_for_each(|(_, number)| send_to_group(*number));
            if sent.is_err() || process::parent_pid() == 1 {
                return 1;
            }
        }
        0
    });
    for _ in 0..30 {
        let pool =
            Pool::builder().workers(2).worker_signal(Signal::User1, OnSignal::Hook).spawn(data()?, |_, job: u64| {
                if job == 7 {
                    signal::send(process::pid(), signal::KILL);
                }
                job
            })?;
        let failed = pool.map(0..20).filter(Result::is_err).count();
        assert_eq!(failed, 1, "the job that kills its worker");
        until("it is replaced", || pool.stats().started == 3)?;
        assert_eq!(pool.stats().deaths, 1);
        pool.shutdown(Shutdown::Drain)?;
    }
    over[0].store(1, Ordering::SeqCst);
    assert_eq!(sender.end_within(SOON), Some(Ended::Exited(0)));
    passed()
}

fn a_signal_whose_default_is_asked_for_ends_the_process() -> Outcome {
    for (name, number) in ALL {
        let pool =
            Pool::builder().workers(1).worker_signal(name, OnSignal::Default).spawn(data()?, |_, number: i32| {
                signal::send(process::pid(), number);
            })?;
        for (_, other) in ALL.iter().filter(|(other, _)| *other != name) {
            pool.submit(*other)?.wait()?;
        }
        let ended = pool.submit(number)?.wait();
        let died = matches!(&ended, Err(JobError::Died { death, .. }) if death.ended == Ended::Signaled(number));
        assert!(died, "{name:?}: {ended:?}");
        until("it is replaced", || pool.stats().started == 2)?;
        // The zygote was asked for nothing.
        let zygote = zygote_of(&pool)?;
        ALL.iter().for_each(|(_, number)| signal::send(zygote, *number));
        assert_eq!(pool.submit(if number == libc::SIGHUP { libc::SIGINT } else { libc::SIGHUP })?.wait(), Ok(()));
        drop(pool);

        let pool = Pool::builder().workers(1).zygote_signal(name, OnSignal::Default).spawn(data()?, |_, (): ()| ())?;
        let workers = worker_pidfds(&pool)?;
        signal::send(zygote_of(&pool)?, number);
        for worker in workers {
            ends_soon(worker, "a worker whose zygote is gone")?;
        }
    }
    let refused = Pool::builder().zygote_signal(Signal::Terminate, OnSignal::Hook).spawn(data()?, |_, (): ()| ());
    assert!(refused.is_err_and(|e| e.to_string().contains("zygote_signal")));
    passed()
}

/// Where a handler counts, which may run at any instruction.
static COUNTED: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn count(_: i32, _: *mut signal::Info, _: *mut c_void) {
    // SAFETY: it points to a word that all processes share, for good; the hook has stored it before it installs this.
    unsafe { &*COUNTED.load(Ordering::SeqCst) }.fetch_add(1, Ordering::SeqCst);
}

fn hooked(counts: &'static [AtomicU64], installs: bool) -> PoolBuilder {
    Pool::builder().workers(1).worker_signal(Signal::User2, OnSignal::Hook).on_worker_start(move |_| {
        // The signal comes before there is a handler, and waits.
        signal::send(process::pid(), libc::SIGUSR2);
        counts[1].fetch_add(1, Ordering::SeqCst);
        COUNTED.store(std::ptr::from_ref(&counts[0]).cast_mut(), Ordering::SeqCst);
        if installs {
            // SAFETY: the handler adds to an atomic, which may be done anywhere.
            unsafe { signal::install(libc::SIGUSR2, count) }.expect("a handler");
        }
    })
}

fn a_signal_that_is_left_to_a_hook_waits_for_its_handler() -> Outcome {
    let counts = table(2)?;
    let pool = hooked(counts, true).spawn(data()?, |_, (): ()| signal::send(process::pid(), libc::SIGUSR2))?;
    for sent in 1..5 {
        until("the handler ran", || counts[0].load(Ordering::SeqCst) == sent)?;
        pool.submit(())?.wait()?;
    }
    assert_eq!((pool.stats().deaths, counts[1].load(Ordering::SeqCst)), (0, 1));
    pool.shutdown(Shutdown::Drain)?;

    // A hook that has installed none: the signal stays blocked, for a thread that fetches it.
    let counts = table(2)?;
    let pool = hooked(counts, false).spawn(data()?, |_, (): ()| {
        let signals = signal::receive(&[libc::SIGUSR2]).expect("a descriptor");
        signal::received(signals)
    })?;
    assert_eq!(pool.submit(())?.wait(), Ok(Some(libc::SIGUSR2)), "the one from before the hook");
    signal::send(pool.workers()[0], libc::SIGUSR2);
    assert_eq!(pool.submit(())?.wait(), Ok(Some(libc::SIGUSR2)));
    assert_eq!((pool.stats().deaths, counts[0].load(Ordering::SeqCst)), (0, 0));
    passed()
}

fn a_hook_has_no_handler_of_signal_hooks_if_the_program_had_one_before() -> Outcome {
    // The program registers after the first pool was made, and so before the second.
    for handled in [true, false] {
        let told = Arc::new(AtomicBool::new(false));
        let (hooks, jobs) = (Arc::clone(&told), Arc::clone(&told));
        let register = |told| signal_hook::flag::register(libc::SIGUSR2, told).expect("registered");
        let builder = Pool::builder().workers(1).worker_signal(Signal::User2, OnSignal::Hook);
        let pool =
            builder.on_worker_start(move |_| _ = register(Arc::clone(&hooks))).spawn(data()?, move |_, (): ()| {
                signal::send(process::pid(), libc::SIGUSR2);
                jobs.load(Ordering::SeqCst)
            })?;
        register(told);
        assert_eq!((pool.submit(())?.wait()?, pool.stats().deaths), (handled, 0));
    }
    passed()
}

fn a_job_that_waits_in_a_system_call_waits_on() -> Outcome {
    let (from, to) = pipe::pair()?;
    let from = File::from(from);
    let gate = table(1)?;
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, (): ()| {
        gate[0].store(1, Ordering::SeqCst);
        let mut byte = [0; 1];
        (&from).read(&mut byte).map(|got| (got, byte[0])).map_err(|e| e.to_string())
    })?;
    let ticket = pool.submit(())?;
    until("the job is about to read", || gate[0].load(Ordering::SeqCst) == 1)?;
    let worker = pool.workers()[0];
    for _ in 0..100 {
        ALL.iter().for_each(|(_, number)| signal::send(worker, *number));
        std::thread::yield_now();
    }
    File::from(to).write_all(b"x")?;
    assert_eq!(ticket.wait()?, Ok((1, b'x')));
    passed()
}

fn a_program_that_a_job_executes_ignores_what_the_program_ignored() -> Outcome {
    ALL.iter().for_each(|(_, number)| signal::restore_default(*number));
    // Programs under nohup, and those that scripts start by `cmd &`, begin like this.
    let ignored = [libc::SIGHUP, libc::SIGINT];
    ignored.into_iter().for_each(signal::ignore);
    let pool = Pool::builder().workers(1).spawn(data()?, |_, (): ()| {
        ALL.iter().for_each(|(_, number)| signal::send(process::pid(), *number));
        let status = Command::new("cat").arg("/proc/self/status").output().expect("cat").stdout;
        String::from_utf8(status).expect("a text")
    });
    ignored.into_iter().for_each(signal::restore_default);
    let status = pool?.submit(())?.wait()?;
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).ok_or("SigIgn")?;
    let bits = u64::from_str_radix(bits.trim(), 16)?;
    for (_, number) in ALL {
        assert_eq!(bits >> (number - 1) & 1 == 1, ignored.contains(&number), "signal {number}: {bits:x}");
    }
    passed()
}

fn a_process_that_a_job_forks_takes_no_notice_unless_its_handlers_are_reset() -> Outcome {
    ALL.iter().for_each(|(_, number)| signal::restore_default(*number));
    let pool = Pool::builder().workers(1).spawn(data()?, |_, reset: bool| {
        let options = ForkOptions::new().reset_handlers(reset);
        let child = fork::spawn(&options, |_| {
            signal::send(process::pid(), libc::SIGTERM);
            7
        });
        format!("{:?}", child.and_then(|mut child| child.wait()).expect("a child").ended)
    })?;
    for (reset, ended) in [(false, Ended::Exited(7)), (true, Ended::Signaled(libc::SIGTERM))] {
        assert_eq!(pool.submit(reset)?.wait()?, format!("{ended:?}"));
    }
    passed()
}

fn a_program_that_a_job_executes_has_the_kernels_defaults() -> Outcome {
    // The tests may have been started with some ignored.
    ALL.iter().for_each(|(_, number)| signal::restore_default(*number));
    let pool = Pool::builder().workers(1).spawn(data()?, |_, number: i32| -> Option<i32> {
        let mut program = Command::new("sleep").arg("1000").spawn().expect("sleep");
        signal::send(program.id() as i32, number);
        program.wait().expect("an end").signal()
    })?;
    for (_, number) in ALL {
        assert_eq!(in_time(SOON, || pool.submit(number).and_then(|ticket| ticket.wait()))??, Some(number));
    }
    passed()
}

/// A terminal of its own: this end, and the other, by name.
fn terminal() -> Result<(OwnedFd, OwnedFd), Failed> {
    let (mut ours, mut theirs) = (-1, -1);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: the numbers are valid for the call; the rest may be null.
    if unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the call has just opened it for us.
    let ours = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: the call has just opened it for us.
    Ok((ours, unsafe { OwnedFd::from_raw_fd(theirs) }))
}

/// A service that a terminal starts and then sends what `act` makes it send: it drains, and no job is lost.
fn on_a_terminal(number: i32, act: impl FnOnce(OwnedFd) -> io::Result<()>) -> Result<(), Failed> {
    let (ours, theirs) = terminal()?;
    let (mine, service) = Turns::new()?;
    let pid = table(1)?;
    let process = Process::start(|| {
        let run = || -> Result<(), Failed> {
            // SAFETY: this process ends without another look at its copy of that end.
            unsafe { rustix::io::close(ours.as_raw_fd()) };
            setsid()?;
            // SAFETY: it makes the terminal this session's, and touches no memory.
            let taken = unsafe { libc::ioctl(theirs.as_raw_fd(), libc::TIOCSCTTY, 0) };
            assert_eq!(taken, 0, "{}", io::Error::last_os_error());
            let signals = signal::receive(&ALL.map(|(_, number)| number))?;
            let gate = Gate::new()?;
            let pool = Pool::builder().workers(2).spawn(data()?, move |_, job: u64| {
                gate.pass();
                job
            })?;
            let tickets = (0..50).map(|job| pool.submit(job)).collect::<Result<Vec<_>, _>>()?;
            gate.reached()?;
            pid[0].store(process::pid() as u64, Ordering::SeqCst);
            service.give();
            fetch(&signals, number)?;
            gate.open();
            let results = tickets.into_iter().map(|ticket| ticket.wait()).collect::<Result<Vec<_>, _>>()?;
            assert_eq!(results, (0..50).collect::<Vec<_>>());
            assert_eq!(pool.stats().deaths, 0);
            pool.shutdown(Shutdown::Drain)?;
            Ok(())
        };
        run().map_or_else(
            |e| {
                eprintln!("{}", e.message().unwrap_or_default());
                1
            },
            |()| 0,
        )
    });
    drop(theirs);
    assert!(mine.take(), "the service has begun");
    act(ours)?;
    assert_eq!(process.end_within(SOON), Some(Ended::Exited(0)));
    Ok(())
}

fn ctrl_c_in_a_terminal_drains_and_loses_no_job() -> Outcome {
    let write = |keys: &'static [u8]| {
        move |terminal: OwnedFd| {
            let mut terminal = File::from(terminal);
            let written = terminal.write_all(keys);
            // The terminal must not hang up meanwhile.
            std::mem::forget(terminal);
            written
        }
    };
    on_a_terminal(libc::SIGINT, write(b"\x03"))?;
    on_a_terminal(libc::SIGQUIT, write(b"\x1c"))?;
    passed()
}

fn a_terminal_that_hangs_up_drains_and_loses_no_job() -> Outcome {
    on_a_terminal(libc::SIGHUP, |terminal| {
        drop(terminal);
        Ok(())
    })?;
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_signal_to_the_group_ends_no_job_and_the_parent_drains,
        a_storm_of_signals_to_the_group_loses_no_job,
        a_signal_while_the_pool_is_made_or_a_worker_replaced_does_no_harm,
        a_signal_whose_default_is_asked_for_ends_the_process,
        a_signal_that_is_left_to_a_hook_waits_for_its_handler,
        a_hook_has_no_handler_of_signal_hooks_if_the_program_had_one_before,
        a_job_that_waits_in_a_system_call_waits_on,
        a_program_that_a_job_executes_has_the_kernels_defaults,
        a_program_that_a_job_executes_ignores_what_the_program_ignored,
        a_process_that_a_job_forks_takes_no_notice_unless_its_handlers_are_reset,
        ctrl_c_in_a_terminal_drains_and_loses_no_job,
        a_terminal_that_hangs_up_drains_and_loses_no_job,
    ]
}
