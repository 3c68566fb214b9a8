//! Threads that begin and end, and forks in the middle of it.
#![expect(unsafe_code, reason = "a fork beside threads")]

use crate::memory::Block;
use crate::{Case, cases, status_kib};
use cowbell::heap::Heap;
use std::cell::RefCell;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases![
    threads_that_ended_leave_no_memory_behind,
    what_ended_threads_made_is_given_back_when_it_is_freed,
    destructors_of_thread_local_storage_may_allocate,
    a_child_forked_beside_busy_threads_allocates,
    a_child_forked_beside_threads_whose_allocations_are_recorded_allocates,
    a_child_forked_while_others_free_its_blocks_allocates,
    commands_run_beside_busy_threads,
];

fn threads_that_ended_leave_no_memory_behind() {
    let work = || {
        let blocks: Vec<_> = (0..2000).map(|at| Block::new(1 + at % 700, 8, at as u8)).collect();
        drop(blocks);
    };
    let many = || (0..300).for_each(|_| std::thread::spawn(work).join().expect("it ends well"));
    many();
    let before = status_kib("VmRSS");
    many();
    let more = status_kib("VmRSS").saturating_sub(before);
    assert!(more < 1024, "{more} KiB more");
}

fn what_ended_threads_made_is_given_back_when_it_is_freed() {
    let before = status_kib("VmRSS");
    let made: Vec<Vec<Block>> = (0..8)
        .map(|_| {
            let thread = std::thread::spawn(|| (0..200_000).map(|at| Block::new(100, 8, at as u8)).collect());
            thread.join().expect("it ends well")
        })
        .collect();
    assert!(status_kib("VmRSS") - before > 150 << 10);
    drop(made);
    Heap::trim();
    let left = status_kib("VmRSS").saturating_sub(before);
    assert!(left < 4 << 10, "{left} KiB are left");
}

struct AtTheEnd(Vec<String>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        let more: Vec<String> = (0..100).map(|at| format!("{at} of {}", self.0.len())).collect();
        self.0.extend(more);
        assert_eq!(self.0.len(), 100 + 7);
    }
}

thread_local! {
    static LAST: RefCell<Option<AtTheEnd>> = const { RefCell::new(None) };
}

/// A key's destructor frees and allocates this, in each of the rounds that the C library makes.
unsafe extern "C" fn last_of_all(value: *mut libc::c_void) {
    // SAFETY: the value is a box that this key's thread, or this function, made.
    let mut text = *unsafe { Box::from_raw(value.cast::<String>()) };
    text.push_str(" and again");
    let key = KEY.load(Ordering::Relaxed) as libc::pthread_key_t;
    // SAFETY: the key lives; the value is a box for this function.
    unsafe { libc::pthread_setspecific(key, Box::into_raw(Box::new(text)).cast()) };
}

static KEY: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

fn destructors_of_thread_local_storage_may_allocate() {
    let mut key = 0;
    // SAFETY: the key is filled in; the function stays.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(last_of_all)) }, 0);
    KEY.store(key, Ordering::Relaxed);
    for _ in 0..100 {
        std::thread::spawn(move || {
            LAST.with(|last| *last.borrow_mut() = Some(AtTheEnd(vec![String::from("x"); 7])));
            let text = Box::into_raw(Box::new(String::from("a key's value")));
            // SAFETY: the key lives; the value is a box for its destructor.
            assert_eq!(unsafe { libc::pthread_setspecific(key, text.cast()) }, 0);
        })
        .join()
        .expect("it ends well");
    }
}

/// Runs `work` while threads allocate and free as fast as they can.
pub fn beside_busy_threads(work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let done = &done;
            scope.spawn(move || {
                let mut round = 0usize;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    let blocks: Vec<_> =
                        (0..300).map(|at| Block::new(1 + (at * 37 + round) % 9000, 8, thread)).collect();
                    drop(blocks);
                    drop(Block::new(200_000, 8, thread));
                }
            });
        }
        /// Ends the threads, also should `work` panic.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        work();
    });
}

fn a_child_forked_beside_busy_threads_allocates() {
    beside_busy_threads(|| {
        let mine: Vec<_> = (0..1000).map(|at| Block::new(1 + at % 3000, 8, at as u8)).collect();
        for _ in 0..100 {
            // SAFETY: the child uses the heap, whose lock a fork takes, and leaves by _exit.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let more: Vec<_> = (0..1000).map(|at| Block::new(1 + at % 70_000, 8, at as u8)).collect();
                mine.iter().for_each(|block| block.check(block.layout.size()));
                drop(more);
                // SAFETY: it ends this process.
                unsafe { libc::_exit(0) };
            }
            wait_for(pid);
        }
    });
}

/// Another thread may be recording at the fork, and would never end that in the child.
fn a_child_forked_beside_threads_whose_allocations_are_recorded_allocates() {
    Heap::record_sites(3).expect("this heap");
    a_child_forked_beside_busy_threads_allocates();
}

fn a_child_forked_while_others_free_its_blocks_allocates() {
    let done = AtomicBool::new(false);
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Vec<Block>>(4);
    let make = || (0..2000).map(|at| Block::new(16 + at % 200, 8, 0xa5)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        scope.spawn(move || receiver.into_iter().for_each(drop));
        for _ in 0..150 {
            sender.send(make()).expect("the thread takes it");
            // SAFETY: the child uses the heap, whose lock a fork takes, and leaves by _exit.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let (one, other) = (make(), make());
                drop(one);
                drop((other, make()));
                // SAFETY: it ends this process.
                unsafe { libc::_exit(0) };
            }
            wait_for(pid);
        }
        drop(sender);
        done.store(true, Ordering::Relaxed);
    });
    assert!(done.load(Ordering::Relaxed));
}

/// Waits for a child that must end well, and soon.
pub fn wait_for(pid: i32) {
    let begun = Instant::now();
    let mut status = 0;
    // SAFETY: the status is filled in.
    while unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == 0 {
        if begun.elapsed() > Duration::from_secs(20) {
            // SAFETY: it is this process's child, not reaped yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(status, 0, "the child ended badly");
}

fn commands_run_beside_busy_threads() {
    beside_busy_threads(|| {
        for _ in 0..50 {
            let output = Command::new("/bin/echo").arg("well").output().expect("a command");
            assert_eq!(output.stdout, b"well\n");
        }
    });
}
