//! Answers for the tracer while that is busy for long: with opening or closing an interval of many pages, say.
//!
//! Whoever writes to an armed page waits for the tracer to read its stack ([`super::faults_armed`]). While that works elsewhere nobody
//! is to wait: a thread lets the writers go, without a stack, until the tracer is back. Most of that work is done before the thread would
//! be awake, so it is woken only once the tracer has been away for a while.

use super::baseline::page_bytes;
use super::watch::release;
use cowbell::sys::epoll::Poller;
use cowbell::sys::remote::RemoteUffd;
use cowbell::sys::uffd::UffdMessage;
use cowbell::sys::{Errno, eventfd, pidfd, process, timer};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// The time for which writers wait for the tracer itself.
const PATIENCE: Duration = Duration::from_millis(1);

const WAKE: u64 = 0;

/// The thread, and what it shares with the tracer.
pub struct StandIn {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// The userfaultfds by their processes, as long as the tracer has them.
    known: Mutex<HashMap<i32, Weak<RemoteUffd>>>,
    /// The userfaultfds of children that were forked meanwhile, with their makers. The thread holds the lock while it answers.
    children: Mutex<Vec<(i32, RemoteUffd)>>,
    /// The tracer is busy.
    is_needed: AtomicBool,
    /// The thread may be answering: it has to be woken to stop that.
    answers: AtomicBool,
    /// The tracer is about to go.
    ends: AtomicBool,
    /// Begins to answer.
    timer: OwnedFd,
    /// Stops answering.
    wake: OwnedFd,
}

impl StandIn {
    /// Starts the thread. `None` where there are too many descriptors or threads: then writers wait until the tracer is back.
    pub fn start() -> Option<Self> {
        let (timer, wake) = (timer::create().ok()?, eventfd::new().ok()?);
        let [is_needed, answers, ends] = [false; 3].map(AtomicBool::new);
        let (known, children) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { known, children, is_needed, answers, ends, timer, wake });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("cowbell-answers".to_owned()).spawn(move || stand_by(&theirs));
        Some(Self { shared, thread: Some(thread.ok()?) })
    }

    /// From now on this process' writers are answered as well.
    pub fn know(&self, pid: i32, uffd: &Arc<RemoteUffd>) {
        lock(&self.shared.known).insert(pid, Arc::downgrade(uffd));
    }

    /// The tracer begins something long. False if nobody but `pid` could come to wait: then there is nothing to end.
    pub fn begin(&self, pid: i32) -> bool {
        let mut known = lock(&self.shared.known);
        known.retain(|_, uffd| uffd.strong_count() > 0);
        let is_needed = known.keys().any(|&other| other != pid);
        if is_needed {
            self.shared.is_needed.store(true, Ordering::SeqCst);
            timer::set(&self.shared.timer, Some(PATIENCE));
        }
        is_needed
    }

    /// The tracer is back. Returns what was given for children meanwhile, by their makers.
    pub fn end(&self) -> Vec<(i32, RemoteUffd)> {
        self.stop();
        // The thread holds these until it has stopped.
        std::mem::take(&mut lock(&self.shared.children))
    }

    /// The thread sees that it is not needed before it answers, or this sees that it answers.
    fn stop(&self) {
        self.shared.is_needed.store(false, Ordering::SeqCst);
        timer::set(&self.shared.timer, None);
        if self.shared.answers.load(Ordering::SeqCst) {
            eventfd::notify(&self.shared.wake);
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        self.stop();
        timer::set(&self.shared.timer, Some(Duration::ZERO));
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Locks: a thread that panicked while it held the lock left whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stand_by(shared: &Shared) {
    while !shared.ends.load(Ordering::Acquire) {
        timer::wait(&shared.timer);
        let mut children = lock(&shared.children);
        shared.answers.store(true, Ordering::SeqCst);
        // The tracer may have been back before, and woken nobody. What it says from now on follows on its being back.
        if pidfd::readable(shared.wake.as_fd(), Some(Duration::ZERO)) == Ok(true) {
            eventfd::take_notice(&shared.wake);
        }
        if shared.is_needed.load(Ordering::SeqCst) {
            // Without it everybody waits until the tracer is back.
            let _refused = answer(shared, &mut children);
        }
        shared.answers.store(false, Ordering::SeqCst);
    }
}

/// Lets everybody go who waits, until the tracer is back.
fn answer(shared: &Shared, children: &mut Vec<(i32, RemoteUffd)>) -> Result<(), Errno> {
    let known: Vec<(i32, Arc<RemoteUffd>)> =
        lock(&shared.known).iter().filter_map(|(&pid, uffd)| Some((pid, uffd.upgrade()?))).collect();
    let poller = Poller::new()?;
    poller.add(&shared.wake, WAKE)?;
    for (token, (_, uffd)) in (WAKE + 1..).zip(&known) {
        poller.add(uffd, token)?;
    }
    let mut found = Vec::new();
    while shared.is_needed.load(Ordering::SeqCst) {
        poller.wait(None, &mut found)?;
        for &token in found.iter().filter(|&&token| token != WAKE) {
            let Some((pid, uffd)) = known.get((token - WAKE - 1) as usize) else { continue };
            let mut pages = Vec::new();
            while hear(uffd, &mut pages, |child| children.push((*pid, child))) {}
            while let Some(page) = pages.pop() {
                // The kernel refuses while the process forks: until the message about that is read.
                if !release(uffd, page) {
                    pages.push(page);
                    hear(uffd, &mut pages, |child| children.push((*pid, child)));
                    process::yield_now();
                }
            }
        }
    }
    Ok(())
}

/// Reads which pages are waited for, and what watches children; false if there was nothing.
pub fn hear(uffd: &RemoteUffd, pages: &mut Vec<u64>, forked: impl FnMut(RemoteUffd)) -> bool {
    let seen = |message| {
        if let UffdMessage::Fault(fault) = message {
            pages.push(fault.address as u64 / page_bytes() * page_bytes());
        }
    };
    uffd.read_with_children(seen, forked) == Ok(true)
}
