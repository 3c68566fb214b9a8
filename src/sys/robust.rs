//! Robust mutexes between processes: `pthread_mutex_t` with `PTHREAD_PROCESS_SHARED`,
//! `PTHREAD_MUTEX_ROBUST` and `PTHREAD_MUTEX_ERRORCHECK`.
//!
//! # Safety
//! While a thread holds such a mutex, the thread's list of robust mutexes points into it, and both the C
//! library and the kernel follow the list. So the memory of a held mutex must neither move nor be unmapped.
#![expect(unsafe_code, reason = "the C library's mutexes are used through pointers")]

use super::Errno;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::time::Duration;

/// A robust mutex, to be used where it was made by [`RobustMutex::init`].
///
/// The kernel gives it free when its holder's **thread** ends, however that happens, and the next
/// to lock it is told. All who use it must be in one pid namespace: its owner is noted by thread id.
#[repr(transparent)]
pub struct RobustMutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: the C library's functions may be called from any thread; nothing else looks inside.
unsafe impl Sync for RobustMutex {}

/// The way a mutex was locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// The mutex was unlocked by its last holder.
    Clean,
    /// The last holder died with the mutex: [`RobustMutex::make_consistent`] must be called before it is unlocked.
    OwnerDied,
}

/// The time to wait for a mutex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockPatience {
    /// Not at all.
    None,
    /// Until `CLOCK_MONOTONIC` shows so many nanoseconds.
    Until(u64),
    /// For ever.
    Endless,
}

impl RobustMutex {
    /// `pthread_mutex_init`. *Async-signal-safe.*
    ///
    /// # Safety
    /// `place` is valid for a mutex, and nobody uses it yet. It stays where it is as long as the mutex is used.
    ///
    /// # Errors
    /// ENOMEM, ENOTSUP: as far as is known never on Linux.
    pub unsafe fn init(place: *mut Self) -> Result<(), Errno> {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the attributes are ours.
        check(unsafe { libc::pthread_mutexattr_init(attributes) })?;
        // SAFETY: they were initialised just now.
        check(unsafe { libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) })?;
        // SAFETY: as before.
        check(unsafe { libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) })?;
        // SAFETY: as before.
        check(unsafe { libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_ERRORCHECK) })?;
        // SAFETY: the caller gives the place, and the attributes are complete.
        let made = check(unsafe { libc::pthread_mutex_init(place.cast(), attributes) });
        // SAFETY: they are initialised, and the mutex does not refer to them.
        unsafe { libc::pthread_mutexattr_destroy(attributes) };
        made
    }

    /// `pthread_mutex_lock`, `pthread_mutex_trylock` or `pthread_mutex_clocklock`. *Async-signal-safe.*
    ///
    /// # Safety
    /// The mutex was made by [`Self::init`] where it is now, and its memory stays mapped at this address as
    /// long as this thread holds it.
    ///
    /// # Errors
    /// EBUSY and ETIMEDOUT when patience is over; EDEADLK when this thread holds it already.
    pub unsafe fn lock(&self, patience: LockPatience) -> Result<Locked, Errno> {
        let mutex = self.0.get();
        let code = match patience {
            // SAFETY: the caller's promise.
            LockPatience::None => unsafe { libc::pthread_mutex_trylock(mutex) },
            // SAFETY: the caller's promise.
            LockPatience::Endless => unsafe { libc::pthread_mutex_lock(mutex) },
            // SAFETY: the caller's promise.
            LockPatience::Until(deadline_ns) => unsafe { lock_until(mutex, deadline_ns) },
        };
        match code {
            0 => Ok(Locked::Clean),
            libc::EOWNERDEAD => Ok(Locked::OwnerDied),
            code => Err(Errno::from_raw_os_error(code)),
        }
    }

    /// `pthread_mutex_consistent`: the mutex works on as before. *Async-signal-safe.*
    ///
    /// # Safety
    /// This thread got it as [`Locked::OwnerDied`] and holds it.
    pub unsafe fn make_consistent(&self) {
        // SAFETY: the caller's promise.
        let done = unsafe { libc::pthread_mutex_consistent(self.0.get()) };
        debug_assert_eq!(done, 0, "pthread_mutex_consistent");
    }

    /// `pthread_mutex_unlock`; nothing happens where another thread holds it, or nobody. *Async-signal-safe.*
    ///
    /// # Safety
    /// As [`Self::lock`].
    pub unsafe fn unlock(&self) {
        // SAFETY: the caller's promise; the type checks the owner.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

/// Waits for a mutex until `CLOCK_MONOTONIC` shows so many nanoseconds.
#[cfg(target_env = "gnu")]
unsafe fn lock_until(mutex: *mut libc::pthread_mutex_t, deadline_ns: u64) -> i32 {
    unsafe extern "C" {
        // Since glibc 2.30.
        fn pthread_mutex_clocklock(
            mutex: *mut libc::pthread_mutex_t,
            clock: libc::clockid_t,
            deadline: *const libc::timespec,
        ) -> i32;
    }
    let deadline = timespec(Duration::from_nanos(deadline_ns));
    // SAFETY: the mutex is the caller's, the time is valid for the call.
    unsafe { pthread_mutex_clocklock(mutex, libc::CLOCK_MONOTONIC, &raw const deadline) }
}

/// The same by the machine's clock, which is the only one this C library waits by: setting the clock back
/// while somebody waits makes the wait longer.
#[cfg(not(target_env = "gnu"))]
unsafe fn lock_until(mutex: *mut libc::pthread_mutex_t, deadline_ns: u64) -> i32 {
    let left = Duration::from_nanos(deadline_ns.saturating_sub(super::monotonic_ns()));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let deadline = timespec(Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(left));
    // SAFETY: the mutex is the caller's, the time is valid for the call.
    unsafe { libc::pthread_mutex_timedlock(mutex, &raw const deadline) }
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos() as libc::c_long }
}

fn check(code: i32) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}
