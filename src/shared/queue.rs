//! A bounded queue: any number of processes put in, any number take out, each may die at any instruction.
//!
//! ```text
//! lock                 held for some instructions at a time; a robust mutex
//! head, tail           how many were taken and put in; one store of either is the moment it happens
//! items, space         who waits for an element, who waits for room:
//!   turnstile          a robust mutex: of all who wait only its holder sleeps on the word below
//!   word               raised by every call to wake up: a futex
//!   sleeping           set by who is about to sleep, under the lock
//! ```
//! # Why no wake-up is lost
//! - **The waker dies.** It raises the word and wakes *before* the store that puts the element in, all under
//!   the lock. Who died before the wake-up has put nothing in; who died after it has woken somebody, who waits for
//!   the lock, gets it from the kernel, and looks. `sleeping` is taken back after the wake-up, so the next one
//!   wakes again.
//! - **The woken one dies** before it takes the element. It holds the turnstile: the kernel passes that on to the
//!   next who waits, who looks before it sleeps. If nobody waits there is nobody to be told.
//! - **It dies between waking up and having the lock**, or the one it waits for does: the kernel's business; it passes
//!   on wake-ups of robust mutexes whose receiver dies.
//! - A sleeper read the word under the lock. Who changes anything later raises it, and then the kernel does not let
//!   it fall asleep.
//!
//! `tests/shared_queue.rs` goes through all interleavings of this with deaths at every step.
//!
//! A waiter that is *stopped* (SIGSTOP) keeps the turnstile. The others therefore look every [`LOOK_AGAIN`].
//!
//! # Safety
//! Elements are read and written only under the lock.
#![expect(unsafe_code, reason = "the lock makes access exclusive")]

use super::lock::deadline;
use super::lock::{Lock, NotLocked, WithLocks, in_order, make};
use super::mapping::{Shared, SharedMapping, Slots};
use crate::error::{Error, Result};
use crate::sys::robust::LockPatience;
use crate::sys::{Errno, futex, monotonic_ns};
use bytemuck::Pod;
use std::fmt;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// The time after which those who wait behind another look for themselves.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Those who wait for the same.
#[repr(C)]
struct Waiters {
    turnstile: Lock,
    word: AtomicU32,
    sleeping: AtomicU32,
}

impl Waiters {
    /// Wakes the one who sleeps. Under the lock, and before the store it is told of.
    fn wake(&self) {
        if self.sleeping.load(Ordering::Relaxed) != 0 {
            self.word.fetch_add(1, Ordering::Release);
            let _woken = futex::wake(&self.word, 1);
            in_order();
            self.sleeping.store(0, Ordering::Relaxed);
            in_order();
        }
    }
}

/// The queue's head as it lies in the shared memory, beside the elements.
#[repr(C)]
struct Head {
    lock: Lock,
    items: Waiters,
    space: Waiters,
    /// Elements taken so far, modulo 2^64.
    head: AtomicUsize,
    /// Elements put in so far. Never less than `head`, nor more than `head` and the capacity.
    tail: AtomicUsize,
    closed: AtomicU32,
}

// SAFETY: zeroes are numbers, and these are all locks.
unsafe impl WithLocks for Head {
    const LOCKS: &'static [usize] = &[
        offset_of!(Head, lock),
        offset_of!(Head, items) + offset_of!(Waiters, turnstile),
        offset_of!(Head, space) + offset_of!(Waiters, turnstile),
    ];
}

/// A bounded queue of plain values between processes, made by [`SharedArena::queue`](super::SharedArena::queue). A
/// clone is the same queue.
///
/// First in, first out. An element is put in or not, taken or not: a process that is killed in the middle of a call
/// leaves the queue whole, and nobody waits for it. An element that a process took before it died is gone with it.
///
/// ```
/// use cowbell::shared::{QueueError, SharedArena};
///
/// let arena = SharedArena::new("jobs", 1 << 16)?;
/// let jobs = arena.queue::<u64>(64)?;
/// jobs.push(7)?;
/// jobs.close()?;
/// assert_eq!(jobs.pop()?, 7);
/// assert!(matches!(jobs.pop(), Err(QueueError::Closed)));
/// # Ok::<(), cowbell::Error>(())
/// ```
pub struct SharedQueue<T> {
    state: Shared<Head>,
    slots: Slots<T>,
    capacity: usize,
}

/// Why nothing was put in or taken.
#[derive(Debug)]
pub enum QueueError {
    /// There is no room (`try_push`).
    Full,
    /// There is nothing to take (`try_pop`).
    Empty,
    /// The queue was closed; for `pop`, and everything in it was taken.
    Closed,
    /// There was no room, or nothing to take, all the time.
    TimedOut,
    /// The C library or the kernel refused.
    Failed(Error),
}

impl<T: Pod + Send> SharedQueue<T> {
    pub(super) fn new(mapping: &Arc<SharedMapping>, capacity: usize) -> Result<Self> {
        // A power of two, so that places go on in order where the counts wrap around.
        let invalid = || Error::invalid(format!("{capacity} elements are no shared queue's capacity"));
        let places = capacity.checked_next_power_of_two().filter(|_| capacity > 0).ok_or_else(invalid)?;
        let slots = Slots::new(mapping, places)?;
        Ok(Self { state: make(mapping)?, slots, capacity })
    }

    /// The most elements it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of elements in it at about this moment.
    pub fn len(&self) -> usize {
        let head = self.state.head.load(Ordering::Acquire);
        self.state.tail.load(Ordering::Acquire).wrapping_sub(head).min(self.capacity)
    }

    /// Tells whether nothing is in it at about this moment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::Acquire) != 0
    }

    /// Puts an element in; waits while there is no room.
    ///
    /// # Errors
    /// [`QueueError::Closed`].
    pub fn push(&self, value: T) -> Result<(), QueueError> {
        self.wait(&self.state.space, None, |patience| self.put(value, patience))
    }

    /// Puts an element in if there is room.
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::Closed`].
    pub fn try_push(&self, value: T) -> Result<(), QueueError> {
        self.put(value, LockPatience::Endless)?.ok_or(QueueError::Full)
    }

    /// Puts an element in; waits while there is no room, at most so long.
    ///
    /// # Errors
    /// [`QueueError::TimedOut`], [`QueueError::Closed`].
    pub fn push_timeout(&self, value: T, timeout: Duration) -> Result<(), QueueError> {
        self.wait(&self.state.space, Some(timeout), |patience| self.put(value, patience))
    }

    /// Takes the oldest element; waits while there is none.
    ///
    /// # Errors
    /// [`QueueError::Closed`] when there will be none any more.
    pub fn pop(&self) -> Result<T, QueueError> {
        self.wait(&self.state.items, None, |patience| self.take(patience))
    }

    /// Takes the oldest element if there is one.
    ///
    /// # Errors
    /// [`QueueError::Empty`]; [`QueueError::Closed`] when there will be none any more.
    pub fn try_pop(&self) -> Result<T, QueueError> {
        self.take(LockPatience::Endless)?.ok_or(QueueError::Empty)
    }

    /// Takes the oldest element; waits while there is none, at most so long.
    ///
    /// # Errors
    /// [`QueueError::TimedOut`]; [`QueueError::Closed`] when there will be none any more.
    pub fn pop_timeout(&self, timeout: Duration) -> Result<T, QueueError> {
        self.wait(&self.state.items, Some(timeout), |patience| self.take(patience))
    }

    /// Nothing can be put in any more, by anybody; what is in it can still be taken. All who wait are told.
    ///
    /// # Errors
    /// What the C library refuses: as far as is known nothing.
    pub fn close(&self) -> Result<(), QueueError> {
        let _held = self.state.lock.acquire(LockPatience::Endless)?;
        self.state.items.wake();
        self.state.space.wake();
        self.state.closed.store(1, Ordering::Release);
        Ok(())
    }

    /// Puts an element in; `None` when there is no room.
    fn put(&self, value: T, patience: LockPatience) -> Result<Option<()>, QueueError> {
        let _held = self.state.lock.acquire(patience)?;
        if self.is_closed() {
            return Err(QueueError::Closed);
        }
        if self.len() == self.capacity {
            return Ok(None);
        }
        let tail = self.state.tail.load(Ordering::Relaxed);
        // SAFETY: the lock is held, and nobody takes the element before `tail` says that it is there.
        unsafe { self.slots.set(self.place(tail), value) };
        self.state.items.wake();
        in_order();
        self.state.tail.store(tail.wrapping_add(1), Ordering::Release);
        Ok(Some(()))
    }

    /// Takes an element; `None` when there is none.
    fn take(&self, patience: LockPatience) -> Result<Option<T>, QueueError> {
        let _held = self.state.lock.acquire(patience)?;
        if self.is_empty() {
            return if self.is_closed() { Err(QueueError::Closed) } else { Ok(None) };
        }
        let head = self.state.head.load(Ordering::Relaxed);
        // SAFETY: the lock is held.
        let value = unsafe { self.slots.get(self.place(head)) };
        self.state.space.wake();
        in_order();
        self.state.head.store(head.wrapping_add(1), Ordering::Release);
        Ok(Some(value))
    }

    fn place(&self, number: usize) -> usize {
        number & (self.capacity.next_power_of_two() - 1)
    }

    /// Tries until it works, and sleeps in between.
    fn wait<R>(
        &self,
        waiters: &Waiters,
        timeout: Option<Duration>,
        attempt: impl Fn(LockPatience) -> Result<Option<R>, QueueError>,
    ) -> Result<R, QueueError> {
        let deadline = deadline(timeout);
        let _turn = loop {
            if let Some(done) = attempt(deadline)? {
                return Ok(done);
            }
            let (turn, is_last) = earlier(deadline, LOOK_AGAIN);
            match waiters.turnstile.acquire(turn) {
                Ok(turn) => break turn,
                Err(NotLocked(Errno::TIMEDOUT)) if !is_last => {}
                Err(refused) => return Err(refused.into()),
            }
        };
        // Only this one of all waiters sleeps on the word.
        loop {
            let word = {
                let _held = self.state.lock.acquire(deadline)?;
                waiters.sleeping.store(1, Ordering::Relaxed);
                waiters.word.load(Ordering::Acquire)
            };
            // Looks after it said that it would sleep: what changes from now on raises the word.
            if let Some(done) = attempt(deadline)? {
                return Ok(done);
            }
            let left = match deadline {
                LockPatience::Until(deadline) => match deadline.saturating_sub(monotonic_ns()) {
                    0 => return Err(QueueError::TimedOut),
                    left => Some(Duration::from_nanos(left)),
                },
                _ => None,
            };
            futex::wait(&waiters.word, word, left).map_err(|e| QueueError::Failed(Error::os("futex", e)))?;
        }
    }
}

/// The deadline, or the end of a pause if that is sooner; and is it the deadline?
fn earlier(patience: LockPatience, pause: Duration) -> (LockPatience, bool) {
    match (patience, deadline(Some(pause))) {
        (LockPatience::Until(deadline), LockPatience::Until(pause)) if deadline <= pause => (patience, true),
        (_, pause) => (pause, false),
    }
}

impl<T> Clone for SharedQueue<T> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), slots: self.slots.clone(), capacity: self.capacity }
    }
}

impl<T> fmt::Debug for SharedQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedQueue(capacity {})", self.capacity)
    }
}

impl From<NotLocked> for QueueError {
    fn from(refused: NotLocked) -> Self {
        match refused {
            NotLocked(Errno::TIMEDOUT) => Self::TimedOut,
            refused => Self::Failed(refused.into()),
        }
    }
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Full => Self::os("push", Errno::AGAIN),
            QueueError::Empty => Self::os("pop", Errno::AGAIN),
            QueueError::Closed => Self::os("shared queue", Errno::PIPE).with_hint("the queue was closed"),
            QueueError::TimedOut => Self::os("shared queue", Errno::TIMEDOUT),
            QueueError::Failed(error) => error,
        }
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the queue is full",
            Self::Empty => "the queue is empty",
            Self::Closed => "the queue is closed",
            Self::TimedOut => "the queue did not change in time",
            Self::Failed(error) => return error.fmt(f),
        })
    }
}

impl std::error::Error for QueueError {}
