//! The facts that a pool of workers leans on: limits of one process, and what several share: a listener, a channel, a file.

use crate::child::{self, Gate};
use crate::claim::{Claim, Verdict, claim};
use crate::evidence::status_kib;
use crate::memory::{Kind, Memory};
use crate::tracee;
use cowbell::sys::map;
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::{Errno, channel, limits, memfd, process};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::net::{self, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

pub const CLAIMS: &[Claim] = &[
    claim!(
        data_limit_counts_private_writable_mappings,
        "`RLIMIT_DATA` counts private writable mappings, touched or not (VmData): one beyond it is ENOMEM, a shared or a read-only one is not; copies in one that was there before are not stopped."
    ),
    claim!(
        anybody_may_volunteer_for_the_oom_killer,
        "Any process may raise its own `oom_score_adj` to 1000; a child has it, too, and the parent of who raised it has not."
    ),
    claim!(
        shutdown_of_a_listener_ends_accept_in_every_process,
        "`shutdown(SHUT_RD)` of a listening TCP socket makes `accept` EINVAL in every process that has it, also one that waits there already, and new connections are refused; accepted ones live on."
    ),
    claim!(
        descriptor_comes_with_the_message_it_was_sent_with,
        "Of messages one behind the other in a stream socket each brings the descriptor that was sent with its first byte (`SCM_RIGHTS`), and no other's, also when the sender has closed it and ended."
    ),
    claim!(
        processes_that_append_to_a_memfd_overwrite_nothing,
        "Writes to a memfd with `O_APPEND`, by several processes at once through one descriptor, all arrive, each in one piece and in its order."
    ),
];

fn descriptor_comes_with_the_message_it_was_sent_with() -> Verdict {
    let (mine, theirs) = channel::pair().expect("socketpair");
    // The third brings none.
    let is_with = |n: u8| n != 2;
    child::spawn(|| {
        for n in 0..5 {
            let file = memfd::create("kernel-claim").expect("memfd_create");
            memfd::write_at(file.as_fd(), &[n], 0).expect("pwrite");
            channel::send(theirs.as_fd(), &[n; 100], is_with(n).then(|| file.as_fd())).expect("there is room");
        }
    })
    .finish();
    drop(theirs);
    for n in 0..5 {
        let (message, file) = channel::receive(mine.as_fd()).expect("recvmsg").expect("a message");
        assert_eq!((message, file.is_some()), (vec![n; 100], is_with(n)));
        let content = file.map(|file| {
            let mut byte = [255];
            memfd::read_at(&file, &mut byte, 0).expect("pread");
            byte[0]
        });
        assert!(content.is_none_or(|content| content == n), "{content:?} with message {n}");
    }
    assert!(channel::receive(mine.as_fd()).expect("recvmsg").is_none(), "the sender is gone");
    Ok(())
}

fn processes_that_append_to_a_memfd_overwrite_nothing() -> Verdict {
    const LINES: usize = 20_000;
    let file = memfd::create_to_append("kernel-claim").expect("memfd_create");
    let line = |who: u8, n: usize| format!("{who} says {n:06}\n");
    let writers = [1, 2, 3].map(|who| {
        child::spawn(|| {
            for n in 0..LINES {
                assert_eq!(rustix::io::write(&file, line(who, n).as_bytes()), Ok(line(who, n).len()));
            }
        })
    });
    writers.into_iter().for_each(child::Child::finish);
    let mut content = vec![0; 4 * LINES * line(1, 0).len()];
    let len = memfd::read_at(&file, &mut content, 0).expect("pread");
    let text = String::from_utf8_lossy(&content[..len]);
    for who in [1, 2, 3] {
        let theirs = text.lines().filter(|said| said.starts_with(&format!("{who} ")));
        assert!(theirs.eq((0..LINES).map(|n| line(who, n).trim_end().to_owned())), "all that {who} said, in order");
    }
    Ok(())
}

fn data_limit_counts_private_writable_mappings() -> Verdict {
    const ROOM: usize = 64 << 20;
    let earlier = Memory::marked(Kind::PrivateMemfd, 64)?;
    let data = || status_kib(process::pid(), "VmData") as usize * 1024;
    let before = data();
    let limit = rustix::process::Rlimit { current: Some((before + ROOM) as u64), ..getrlimit(Resource::Data) };
    setrlimit(Resource::Data, limit).expect("lowering is allowed");

    assert_eq!(map::anonymous(2 * ROOM), Err(Errno::NOMEM));
    assert_eq!(data(), before);
    // Twice the room, shared and reserved: no data.
    let words = SharedWords::new(2 * ROOM / 8).expect("shared memory is not data");
    words.words()[0].store(1, Ordering::SeqCst);
    map::reserve(2 * ROOM, 1).expect("addresses are not data");
    assert_eq!(data(), before);
    map::anonymous(ROOM / 2).expect("within the limit");
    assert_eq!(data(), before + ROOM / 2, "untouched, and it counts");
    assert_eq!(map::anonymous(ROOM), Err(Errno::NOMEM));
    for page in 0..earlier.pages() {
        earlier.touch(page);
    }
    assert_eq!(data(), before + ROOM / 2, "copies do not count");
    Ok(())
}

fn oom_score() -> i32 {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").expect("/proc");
    text.trim().parse().expect("a number")
}

fn anybody_may_volunteer_for_the_oom_killer() -> Verdict {
    let before = oom_score();
    child::spawn(|| {
        limits::die_first_of_memory();
        assert_eq!(oom_score(), 1000);
        child::spawn(|| assert_eq!(oom_score(), 1000)).finish();
    })
    .finish();
    assert_eq!(oom_score(), before);
    Ok(())
}

fn shutdown_of_a_listener_ends_accept_in_every_process() -> Verdict {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
    let address = listener.local_addr().expect("its address");
    let invalid = |listener: &TcpListener| {
        let error = listener.accept().expect_err("nobody connects");
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    };
    let (go, accepted) = (Gate::new(), Gate::new());
    let waiting = child::spawn(|| {
        let (mut stream, _) = listener.accept().expect("the parent connects");
        accepted.open();
        invalid(&listener);
        std::io::Write::write_all(&mut stream, b"still here").expect("it lives on");
    });
    let late = child::spawn(|| {
        go.pass();
        invalid(&listener);
    });
    let stream = TcpStream::connect(address).expect("somebody listens");
    accepted.pass();
    tracee::blocked_in(waiting.pid, |number, _| [libc::SYS_accept4, libc::SYS_accept].contains(&number));

    let socket = TcpStream::from(OwnedFd::from(listener));
    socket.shutdown(net::Shutdown::Read).expect("a listening socket");
    waiting.finish();
    go.open();
    late.finish();
    let refused = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(std::io::read_to_string(stream).expect("what was sent"), "still here");
    Ok(())
}
