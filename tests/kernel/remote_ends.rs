//! The ends of a tracer, of a target, and of a writer that waits: what becomes of an injected userfaultfd and of the others.

use crate::child::{self, Child, Gate};
use crate::claim::{ADMIN, Claim, Need, Verdict, claim};
use crate::evidence;
use crate::memory::{Kind, Memory};
use crate::remote::entry_of;
use crate::tracee;
use crate::watcher::SYNC;
use cowbell::sys::pagemap::Entry;
use cowbell::sys::ptrace::{self, EventStop, Stop, Until, WaitStatus};
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::uffd::Features;
use cowbell::sys::{Errno, pidfd, pipe, prctl, signal};
use std::os::fd::AsFd;
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        targets_go_on_when_the_tracer_is_killed,
        "When the tracer is killed, a tracee that is stopped goes on, and so does one that waits in a fault for the tracer's userfaultfd; the registration is gone."
    )
    .needs(&[Need::Uffd]),
    claim!(
        userfaultfd_outlives_the_address_space,
        "After the watched process has executed another program or ended, its userfaultfd is neither readable nor hung up; registering is ENOMEM and protecting ESRCH."
    )
    .needs(&[Need::Uffd]),
    claim!(
        protecting_fails_while_an_event_is_unread,
        "`UFFDIO_WRITEPROTECT` is EAGAIN from the moment a mapping changes until the event that the userfaultfd asked for is read."
    )
    .needs(&[Need::Uffd]),
    claim!(
        killed_writer_leaves_its_page_alone,
        "A thread that is killed while it waits in a synchronous fault ends at once; its page was announced and is not copied."
    )
    .needs(&[Need::Uffd]),
    claim!(
        frames_of_a_tracee_show_to_the_administrator,
        "The page frames of another process show in its pagemap with CAP_SYS_ADMIN."
    )
    .needs(&[ADMIN]),
];

/// Tells whether the memory, all of it, is registered for write-protection.
fn registered(pid: i32, memory: &Memory) -> bool {
    evidence::smaps(pid, memory).flags.iter().any(|flag| flag == "uw")
}

/// A target whose tracer, another process, did `traced` and then waits to be killed.
pub fn with_tracer(target: impl FnOnce(&Gate), traced: impl FnOnce(i32, &Gate)) -> (Child, Child) {
    let (ids, go, ready) = (pipe::pair().expect("pipe"), Gate::new(), Gate::new());
    let told = pipe::pair().expect("pipe");
    let tracer = child::spawn(|| {
        traced(cowbell::sys::tracing::take_number(&ids.0).expect("an id"), &go);
        pipe::give_byte(&told.1);
        Gate::new().pass();
    });
    let child = child::spawn(|| {
        prctl::allow_tracing_by(tracer.pid);
        ready.open();
        target(&go);
    });
    ready.pass();
    let mut bytes = ids.1;
    rustix::io::write(&mut bytes, &child.pid.to_ne_bytes()).expect("write");
    assert!(pipe::take_byte(&told.0), "the tracer is ready");
    (child, tracer)
}

fn targets_go_on_when_the_tracer_is_killed() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    for faulting in [false, true] {
        let (child, tracer) = with_tracer(
            |go| {
                go.pass();
                memory.store(1, 200);
            },
            |pid, go| {
                ptrace::seize(pid, tracee::ALL).expect("PTRACE_SEIZE");
                tracee::interrupt(pid);
                let uffd = tracee::watch(pid, false, SYNC);
                tracee::arm(&uffd, memory.range);
                go.open();
                if faulting {
                    ptrace::resume(pid, Until::Event, 0).expect("PTRACE_CONT");
                    tracee::next_fault(&uffd);
                }
                // The descriptor lives as long as this process.
                std::mem::forget(uffd);
            },
        );
        assert!(registered(child.pid, &memory));
        let ended = pidfd::wait_end(child.pidfd.as_fd(), Some(Duration::from_millis(50)));
        assert!(!ended.expect("poll"), "it stands");
        tracer.kill();
        child.finish();
    }
    let (child, tracer) = with_tracer(
        |_| Gate::new().pass(),
        |pid, _| {
            ptrace::seize(pid, tracee::ALL).expect("PTRACE_SEIZE");
            tracee::interrupt(pid);
            let uffd = tracee::watch(pid, false, SYNC);
            tracee::arm(&uffd, memory.range);
            std::mem::forget(uffd);
        },
    );
    assert!(registered(child.pid, &memory));
    tracer.kill();
    assert!(!registered(child.pid, &memory), "no longer");
    child.kill();
    Ok(())
}

/// The things that can be had from a userfaultfd.
#[derive(Debug, PartialEq)]
struct Abilities {
    /// Poll's answer.
    ready: bool,
    read: Result<bool, Errno>,
    register: Result<(), Errno>,
    protect: Result<(), Errno>,
}

fn abilities(uffd: &RemoteUffd, memory: &Memory) -> Abilities {
    let ready = pidfd::readable(uffd.as_fd(), Some(Duration::ZERO)).expect("poll");
    let read = uffd.read(|event| panic!("{event:?}"));
    let register = uffd.register(memory.range);
    Abilities { ready, read, register, protect: uffd.write_protect(memory.range, true) }
}

fn userfaultfd_outlives_the_address_space() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let gone = Abilities { ready: false, read: Ok(false), register: Err(Errno::NOMEM), protect: Err(Errno::SRCH) };
    let go = Gate::new();
    let child = tracee::spawn(tracee::ALL, || {
        use std::os::unix::process::CommandExt;
        go.pass();
        let failed =
            std::process::Command::new("/proc/self/exe").arg("--list").stdout(std::process::Stdio::null()).exec();
        panic!("exec: {failed}");
    });
    tracee::interrupt(child.pid);
    let uffd = tracee::watch(child.pid, false, SYNC);
    let live = Abilities { ready: false, read: Ok(false), register: Ok(()), protect: Ok(()) };
    assert_eq!(abilities(&uffd, &memory), live, "while it lives");
    // The child's writes on its way are not the matter here.
    uffd.write_protect(memory.range, false).expect("UFFDIO_WRITEPROTECT");
    go.open();
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    tracee::until(child.pid, Stop::Event(EventStop::Exec));
    assert_eq!(abilities(&uffd, &memory), gone, "after exec");
    let newer = {
        // The event is inside of the system call, so the thread goes on to its return, and no further: the program would end.
        ptrace::interrupt(child.pid).expect("PTRACE_INTERRUPT");
        ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
        tracee::until(child.pid, Stop::Trap);
        tracee::watch(child.pid, false, SYNC)
    };
    signal::kill(child.pid);
    tracee::until(child.pid, Stop::Event(EventStop::Exit));
    assert_eq!(tracee::end(child.pid), WaitStatus::Signaled(libc::SIGKILL));
    assert_eq!(abilities(&newer, &memory), gone, "after the end");
    Ok(())
}

fn protecting_fails_while_an_event_is_unread() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let go = Gate::new();
    let child = tracee::spawn(tracee::ALL, || {
        go.pass();
        memory.drop_pages(memory.at(1));
    });
    tracee::interrupt(child.pid);
    let uffd = tracee::watch(child.pid, false, SYNC | Features::EVENT_REMOVE);
    tracee::arm(&uffd, memory.range);
    go.open();
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    pidfd::readable(uffd.as_fd(), None).expect("poll");
    assert_eq!(uffd.write_protect(memory.at(2), false), Err(Errno::AGAIN), "unread");
    let mut removed = None;
    uffd.read(|event| removed = Some(event)).expect("read");
    assert!(matches!(removed, Some(cowbell::sys::uffd::UffdMessage::Remove(range)) if range == memory.at(1)));
    tracee::until(child.pid, Stop::Event(EventStop::Exit));
    assert_eq!(uffd.write_protect(memory.at(2), false), Ok(()), "read");
    assert_eq!(tracee::end(child.pid), WaitStatus::Exited(0));
    Ok(())
}

fn killed_writer_leaves_its_page_alone() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let go = Gate::new();
    let child = tracee::spawn(tracee::ALL, || {
        go.pass();
        memory.store(1, 200);
    });
    tracee::interrupt(child.pid);
    let uffd = tracee::watch(child.pid, false, SYNC);
    tracee::arm(&uffd, memory.range);
    go.open();
    ptrace::resume(child.pid, Until::Event, 0).expect("PTRACE_CONT");
    assert_eq!(tracee::next_fault(&uffd).address, memory.at(1).start, "announced");
    signal::kill(child.pid);
    tracee::until(child.pid, Stop::Event(EventStop::Exit));
    let entry = entry_of(child.pid, &memory, 1);
    assert!(entry.contains(Entry::PRESENT | Entry::UFFD_WP) && !entry.contains(Entry::EXCLUSIVE), "{entry:?}");
    assert_eq!(tracee::end(child.pid), WaitStatus::Signaled(libc::SIGKILL));
    Ok(())
}

fn frames_of_a_tracee_show_to_the_administrator() -> Verdict {
    let memory = Memory::marked(Kind::Anonymous, 4)?;
    let child = child::spawn(|| Gate::new().pass());
    assert_eq!(entry_of(child.pid, &memory, 1).frame(), evidence::entry(&memory, 1).frame(), "shared");
    assert_ne!(evidence::entry(&memory, 1).frame(), 0);
    child.kill();
    Ok(())
}
