//! The lock beside everything that is changed in more than one step.
//!
//! The mutex itself never stays unusable: whoever gets it after a death makes it consistent at once. Whether
//! what it protects may be half changed is a word of its own, `dirty`, set before a change that cannot be finished
//! by others and taken back after it. So a death, a panic and a leaked guard all show in the same way.
//!
//! # Safety
//! A [`Lock`] is made in its place in shared memory and stays there. It stays mapped while it is held: a
//! [`LockGuard`] borrows it, and guards, which may be leaked, own a handle to the mapping.
#![expect(unsafe_code, reason = "robust mutexes must stay where they are")]

use super::mapping::{Shared, SharedMapping};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::monotonic_ns;
use crate::sys::robust::{self, LockPatience, RobustMutex};
use crate::sys::{Errno, c_library};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The number of times that this process's line was forked by libc: the lock's owner is another process's in each.
static FORKS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of locks that this thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// Does this thread hold a lock of shared memory? A fork now would give the child the same exclusive
/// references into the same memory.
pub(crate) fn is_held_by_this_thread() -> bool {
    HELD.get() > 0
}

/// Makes libc's `fork` tell the child that it holds no lock. Does so once.
pub(super) fn notice_forks() -> Result<()> {
    /// Runs in every child of a `fork()`. *Async-signal-safe.*
    extern "C" fn entered() {
        FORKS.fetch_add(1, Ordering::Relaxed);
        HELD.set(0);
    }
    static NOTICED: OnceLock<()> = OnceLock::new();
    if NOTICED.get().is_none() {
        // SAFETY: it adds to an atomic and stores to a thread-local cell that needs no making.
        unsafe { c_library::after_fork_in_child(entered) }.map_err(|e| Error::os("pthread_atfork", e))?;
        // Two threads at once register it twice, which does no harm.
        let _first = NOTICED.set(());
    }
    Ok(())
}

/// A robust mutex and whether what it protects may be half changed. Lives in shared memory.
#[repr(C)]
pub(super) struct Lock {
    mutex: RobustMutex,
    dirty: AtomicU32,
}

/// Why a lock was not had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotLocked(pub(super) Errno);

impl Lock {
    /// A lock in its place, which is zeroed.
    ///
    /// # Safety
    /// The place is valid for a lock, nobody uses it yet, and it stays where it is.
    pub(super) unsafe fn init(place: NonNull<Self>) -> Result<()> {
        // SAFETY: the place of a field of a valid place.
        let mutex = unsafe { &raw mut (*place.as_ptr()).mutex };
        // SAFETY: the caller's promise.
        unsafe { RobustMutex::init(mutex) }.map_err(|e| Error::os("pthread_mutex_init", e))
    }

    /// Waits for the lock.
    pub(super) fn acquire(&self, patience: LockPatience) -> Result<LockGuard<'_>, NotLocked> {
        // SAFETY: every `Lock` was made by `init` in its place, and is mapped while it is held: see the
        // module's contract.
        let locked = unsafe { self.mutex.lock(patience) }.map_err(NotLocked)?;
        if locked == robust::Locked::OwnerDied {
            // Other words tell what its death left half done.
            // SAFETY: this thread got it so just now.
            unsafe { self.mutex.make_consistent() };
        }
        HELD.set(HELD.get() + 1);
        Ok(LockGuard { lock: self, forks: FORKS.load(Ordering::Relaxed), _of_this_thread: PhantomData })
    }
}

/// The lock, held by this thread. Given back when dropped.
pub(super) struct LockGuard<'a> {
    lock: &'a Lock,
    forks: usize,
    /// A mutex belongs to a thread: not `Send`; and not `Sync`, so that a leaked one is out of reach when its
    /// thread, and with it the lock, is gone.
    _of_this_thread: PhantomData<*const ()>,
}

impl LockGuard<'_> {
    /// Tells whether the guard is this process's, which it is not in a process forked by libc while the lock was held.
    pub(super) fn is_ours(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }

    /// May what it protects be half changed?
    pub(super) fn is_dirty(&self) -> bool {
        self.lock.dirty.load(Ordering::Relaxed) != 0
    }

    /// A change begins that nobody else could finish.
    pub(super) fn begin(&self) {
        self.lock.dirty.store(1, Ordering::Relaxed);
        in_order();
    }

    /// The change is complete.
    pub(super) fn end(&self) {
        in_order();
        self.lock.dirty.store(0, Ordering::Release);
    }
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        if self.is_ours() {
            HELD.set(HELD.get().saturating_sub(1));
            // SAFETY: as in `acquire`.
            unsafe { self.lock.mutex.unlock() };
        }
    }
}

/// Keeps the stores before it before the stores after it, as a process that dies in between leaves them. A
/// process dies between two instructions, and whoever gets its lock sees what it stored: only the compiler
/// may not reorder.
pub(super) fn in_order() {
    compiler_fence(Ordering::SeqCst);
}

/// An object of shared memory that is made of zeroes and locks.
///
/// # Safety
/// Zeroes are one, once [`Lock::init`] made the locks at `LOCKS` bytes from its start; there are no others in it.
pub(super) unsafe trait WithLocks {
    /// The offsets of its locks.
    const LOCKS: &'static [usize];
}

/// Makes an object in its place.
pub(super) fn make<T: WithLocks>(mapping: &Arc<SharedMapping>) -> Result<Shared<T>> {
    let init = |place: NonNull<T>| {
        for &offset in T::LOCKS {
            // SAFETY: the offset is of a lock in the object, whose place is valid.
            let lock = unsafe { place.byte_add(offset) };
            // SAFETY: fresh memory that stays where it is.
            unsafe { Lock::init(lock.cast()) }?;
        }
        Ok(())
    };
    // SAFETY: fresh memory is zeroes, so with its locks made it is a T, by the trait's promise.
    unsafe { Shared::with(mapping, init) }
}

/// Why a lock was not had. `G` is the guard that is given nevertheless where the data may be half changed.
pub enum LockError<G> {
    /// You have the lock, but the one who had it died, panicked or leaked its guard: the data may be half
    /// changed. It stays so for all until somebody calls
    /// [`mark_consistent`](super::SharedMutexGuard::mark_consistent).
    OwnerDied(G),
    /// Somebody else holds it (`try_lock`).
    Busy,
    /// Somebody else held it all the time (`lock_timeout`).
    TimedOut,
    /// This thread holds it already: it would wait for itself.
    Deadlock,
    /// The C library refused for another reason.
    Failed(Error),
}

impl<G> From<NotLocked> for LockError<G> {
    fn from(NotLocked(errno): NotLocked) -> Self {
        match errno {
            Errno::BUSY => Self::Busy,
            Errno::TIMEDOUT => Self::TimedOut,
            Errno::DEADLK => Self::Deadlock,
            errno => Self::Failed(Error::os("pthread_mutex_lock", errno)),
        }
    }
}

impl From<NotLocked> for Error {
    fn from(refused: NotLocked) -> Self {
        LockError::<()>::from(refused).into()
    }
}

/// This lets `?` work where the guard is not wanted: it is dropped, and the lock given back.
impl<G> From<LockError<G>> for Error {
    fn from(error: LockError<G>) -> Self {
        match error {
            LockError::OwnerDied(_) => Self::new(ErrorKind::OwnerDied),
            LockError::Busy => Self::os("pthread_mutex_trylock", Errno::BUSY),
            LockError::TimedOut => Self::os("pthread_mutex_clocklock", Errno::TIMEDOUT),
            LockError::Deadlock => {
                Self::os("pthread_mutex_lock", Errno::DEADLK).with_hint("this thread holds the lock already")
            }
            LockError::Failed(error) => error,
        }
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnerDied(_) => "the last holder of the lock died or panicked with it: the data may be half changed",
            Self::Busy => "somebody else holds the lock",
            Self::TimedOut => "somebody else held the lock all the time",
            Self::Deadlock => "this thread holds the lock already",
            Self::Failed(error) => return error.fmt(f),
        })
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockError({self})")
    }
}

impl<G> std::error::Error for LockError<G> {}

/// When a timeout is over; a time beyond the clock is never.
pub(super) fn deadline(timeout: Option<Duration>) -> LockPatience {
    let nanoseconds = timeout.and_then(|timeout| u64::try_from(timeout.as_nanos()).ok());
    let end = nanoseconds.and_then(|timeout| monotonic_ns().checked_add(timeout));
    // Beyond what the kernel's own clock counts.
    end.filter(|&end| i64::try_from(end).is_ok()).map_or(LockPatience::Endless, LockPatience::Until)
}
