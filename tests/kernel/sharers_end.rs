//! A process that shares another's memory (`CLONE_VM`): when it ends, and who is told.
//!
//! # Safety
//! The sharer runs on a stack of its own with its maker's thread-local storage, so it only makes raw
//! system calls; what it uses lies in memory that is never unmapped.
#![expect(unsafe_code, reason = "a process is made in shared memory")]

use crate::child::{Child, Gate};
use crate::claim::{Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, mark};
use crate::sharing::{Dialogue, Job, leak, pair, reader_of_memory};
use cowbell::sys::pagemap::{COPIED, Pagemap};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{Errno, clone, prctl, process};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions};
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        sharer_dies_with_the_thread_that_forked_its_maker,
        "`PR_SET_PDEATHSIG` of a `CLONE_PARENT` sibling fires when the thread ends that forked its maker, though the maker lives."
    ),
    claim!(
        clone_parent_takes_the_makers_exit_signal,
        "A `CLONE_PARENT` child has the exit signal of the process that made it, SIGCHLD or none, whatever signal was asked for."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        core_dump_spares_the_sharer,
        "A process that dies with a core dump leaves its `CLONE_VM` sibling alive, and with it the memory."
    )
    .needs(&[Need::Scan]),
];

fn sharer_dies_with_the_thread_that_forked_its_maker() -> Verdict {
    for asks in [true, false] {
        let memory: &'static Memory = leak(Memory::marked(Kind::PrivateMemfd, 4)?);
        let forking = std::thread::spawn(move || {
            let dialogue = Dialogue::new();
            let job: Job = Box::new(move |words| {
                let asked = asks && prctl::die_with_parent().is_ok();
                loop {
                    dialogue.question.pass();
                    words[0].store(u64::from(asked), Ordering::SeqCst);
                    dialogue.answer.open();
                }
            });
            let pair = pair(memory, dialogue, || (), job, || ())?;
            assert_eq!(pair.ask(1), [u64::from(asks)], "PR_SET_PDEATHSIG");
            Ok(pair)
        });
        let pair = forking.join().expect("the forking thread")?;
        let sharer = pidfd::open(pair.sharer).expect("pidfd_open");
        let patience = if asks { None } else { Some(Duration::from_millis(100)) };
        assert_eq!(pidfd::wait_end(sharer.as_fd(), patience).expect("poll"), asks, "asked: {asks}");
        if asks {
            assert_eq!(pidfd::reap(sharer.as_fd()).expect("waitid"), Some(Ended::Signaled(libc::SIGKILL)));
        }
        assert_eq!(pidfd::reap(pair.maker.pidfd.as_fd()).expect("waitid"), None, "its maker lives");
    }
    Ok(())
}

extern "C" fn pass_and_exit(gate: *mut c_void) -> i32 {
    // SAFETY: the maker passes a gate that is never dropped.
    let gate = unsafe { &*gate.cast::<Gate>() };
    gate.pass();
    7
}

fn clone_parent_takes_the_makers_exit_signal() -> Verdict {
    for makers in [libc::SIGCHLD, 0] {
        // SIGUSR1 would kill the case.
        for asked in [0, libc::SIGUSR1] {
            let stack = Memory::new(Kind::Anonymous, 64)?.range;
            let go: &'static Gate = leak(Gate::new());
            let ready = Gate::new();
            let tid = SharedWords::new(1).expect("a shared page");
            let args = clone::ForkArgs { exit_signal: makers, ..clone::ForkArgs::default() };
            // SAFETY: this process has one thread; the child never leaves the block.
            let forked = unsafe { clone::fork(&args) }.expect("clone3");
            let clone::Forked::Parent { pid, pidfd } = forked else {
                let top = std::ptr::with_exposed_provenance_mut(stack.end());
                let flags = libc::CLONE_VM | libc::CLONE_PARENT | asked;
                let gate = std::ptr::from_ref(go).cast_mut().cast();
                // SAFETY: the entry makes raw calls only; gate and stack are never freed.
                let sharer = unsafe { libc::clone(pass_and_exit, top, flags, gate) };
                tid.words()[0].store(sharer as u64, Ordering::SeqCst);
                ready.open();
                loop {
                    Gate::new().pass();
                }
            };
            ready.pass();
            let sharer = tid.words()[0].load(Ordering::SeqCst) as i32;
            assert_eq!(exit_signal(pid), makers, "the maker");
            assert_eq!(exit_signal(sharer), makers, "the sharer, asked for {asked}");
            let end = pidfd::open(sharer).expect("pidfd_open");
            go.open();
            pidfd::wait_end(end.as_fd(), None).expect("poll");
            let found = rustix::process::wait(WaitOptions::NOHANG);
            let found =
                found.map(|found| found.map(|(pid, status)| (pid.as_raw_nonzero().get(), status.exit_status())));
            let expected = if makers == 0 { Err(Errno::CHILD) } else { Ok(Some((sharer, Some(7)))) };
            assert_eq!(found, expected, "without __WALL");
            if makers == 0 {
                assert_eq!(pidfd::reap(end.as_fd()).expect("waitid"), Some(Ended::Exited(7)), "with it");
            }
            Child { pid, pidfd }.kill();
        }
    }
    Ok(())
}

/// The exit signal of a process: field 38 of its stat.
fn exit_signal(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    fields.split_ascii_whitespace().nth(35).and_then(|field| field.parse().ok()).expect("field 38")
}

fn core_dump_spares_the_sharer() -> Verdict {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim().is_empty() || pattern.contains(['/', '|', '@']) {
        return Err(Skip(format!("core dumps would go to `{}`", pattern.trim())));
    }
    let maximum = rustix::process::getrlimit(Resource::Core).maximum;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).expect("setrlimit");
    rustix::process::chdir(crate::case::scratch()).expect("chdir");
    let memory: &'static Memory = leak(Memory::marked(Kind::PrivateMemfd, 4)?);
    let dialogue = Dialogue::new();
    let die = || {
        let own = Pid::from_raw(process::pid()).expect("a process id");
        rustix::process::kill_process(own, Signal::ABORT).expect("kill");
    };
    let pair = pair(memory, dialogue, || (), reader_of_memory(memory, dialogue), die)?;
    pair.next.open();
    let maker = Pid::from_raw(pair.maker.pid);
    let (_, status) = rustix::process::waitpid(maker, WaitOptions::empty()).expect("waitpid").expect("it ended");
    assert_eq!(status.terminating_signal(), Some(libc::SIGABRT));
    if !libc::WCOREDUMP(status.as_raw()) {
        return Err(Skip("no core was dumped".to_owned()));
    }
    assert_eq!(pair.ask(3), [u64::from(mark(0)), 201, 202], "the sharer lives and reads");
    let pagemap = Pagemap::open(pair.sharer).expect("pagemap");
    assert_eq!(evidence::scan(&pagemap, memory, &COPIED), pages([1, 2]), "and the page tables are there");
    Ok(())
}
