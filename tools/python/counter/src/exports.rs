//! The functions that `ctypes` calls. `_count.py` declares the same functions and structs.
//!
//! # Safety
//! All are called through `ctypes.PyDLL`, one at a time. A counter or reading is a pointer that a function here gave and
//! `cowbell_count_forget` did not take back.
#![expect(unsafe_code, reason = "C functions get pointers")]

use std::ffi::c_char;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering::Relaxed};

use cowbell::page::Range;
use cowbell::sys::procfs::maps::Mapping;
use cowbell::sys::{c_library, prctl};

use crate::count::{Counter, Reading, Refusal, check};
use crate::held::Pages;
use crate::known;

/// A failure, in numbers that `_count.py` has sentences for.
#[repr(C)]
pub struct Failure {
    /// The number of the [`Refusal`]: 1 to 6; 0 for none.
    kind: i32,
    /// The errno, where there is one.
    errno: i32,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (kind, errno) = match refusal {
            Refusal::TooOld(e) => (1, e.raw_os_error()),
            Refusal::Refused(e) => (2, e.raw_os_error()),
            Refusal::Taken => (3, 0),
            Refusal::NoProc(e) => (4, e.raw_os_error()),
            Refusal::Closed => (5, 0),
            Refusal::Restarted => (6, 0),
        };
        Self { kind, errno }
    }
}

/// Bytes, of one reading or since an earlier one.
#[repr(C)]
#[derive(Default)]
pub struct Counts {
    /// Copied.
    copied: u64,
    /// Copied, but may have been reused instead.
    unsure: u64,
    /// Shared once, written when nobody else had it any more.
    reused: u64,
    /// Not there when counting began.
    new: u64,
    /// Shared once, and not there any more.
    gone: u64,
    /// Shared when counting began.
    shared: u64,
    /// Copied before counting began: at most so much.
    before_max: u64,
    /// Bytes of mappings that cannot be watched.
    unwatched: u64,
    /// Bytes a page.
    page: u64,
    /// 1 where the notes are those of a tool that watches from outside.
    is_foreign: u64,
}

/// One mapping in which pages were copied.
#[repr(C)]
pub struct Place {
    /// Bytes copied there.
    copied: u64,
    /// The place's name, ending with a zero, and cut to fit.
    name: [c_char; 256],
}

/// # Safety
/// See the module; `out` is valid or null.
pub(crate) unsafe fn tell(failure: impl Into<Failure>, out: *mut Failure) {
    if !out.is_null() {
        // SAFETY: the caller's promise.
        unsafe { out.write(failure.into()) };
    }
}

/// The counter of this process, or why there is none. Written in a child before anything else of it runs.
static COUNTER: AtomicPtr<Counter> = AtomicPtr::new(ptr::null_mut());
static KIND: AtomicI32 = AtomicI32::new(0);
static ERRNO: AtomicI32 = AtomicI32::new(0);
static IS_ENABLED: AtomicBool = AtomicBool::new(false);
static IS_REGISTERED: AtomicBool = AtomicBool::new(false);

/// Lets libc's `fork` count in every child from now on. Returns 0, or -1 and says why not.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_enable(out: *mut Failure) -> i32 {
    if let Err(refusal) = check() {
        // SAFETY: the caller gives room for one.
        unsafe { tell(refusal, out) };
        return -1;
    }
    IS_ENABLED.store(true, Relaxed);
    if IS_REGISTERED.swap(true, Relaxed) {
        return 0;
    }
    // SAFETY: it takes no lock but that of malloc, which libc's fork has made the child's own before it calls this.
    match unsafe { c_library::after_fork_in_child(begin) } {
        Ok(()) => 0,
        Err(e) => {
            // SAFETY: the caller gives room for one.
            unsafe { tell(Refusal::Refused(e), out) };
            -1
        }
    }
}

/// Children that are forked from now on do not count; this process does, if it did.
#[unsafe(no_mangle)]
extern "C" fn cowbell_count_disable() {
    IS_ENABLED.store(false, Relaxed);
}

/// Runs in each child, first of all.
extern "C" fn begin() {
    known::begin();
    let inherited = COUNTER.swap(ptr::null_mut(), Relaxed);
    let armed = IS_ENABLED.load(Relaxed).then(Counter::arm).transpose();
    let failure = match armed {
        Ok(counter) => {
            COUNTER.store(counter.map_or(ptr::null_mut(), |counter| Box::into_raw(Box::new(counter))), Relaxed);
            Failure { kind: 0, errno: 0 }
        }
        Err(refusal) => refusal.into(),
    };
    KIND.store(failure.kind, Relaxed);
    ERRNO.store(failure.errno, Relaxed);
    if !inherited.is_null() {
        // SAFETY: it is the parent's, made below `arm` by `Box::into_raw`, and this process has its only copy.
        unsafe { Box::from_raw(inherited) }.close();
    }
}

/// The counter of this process. Null where there is none; then it says why, with kind 0 where nothing was asked for.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_mine(out: *mut Failure) -> *const Counter {
    let failure = Failure { kind: KIND.load(Relaxed), errno: ERRNO.load(Relaxed) };
    // SAFETY: the caller gives room for one.
    unsafe { tell(failure, out) };
    COUNTER.load(Relaxed)
}

/// Called in a process that has just forked: a tool that watches it from outside begins to count anew then.
#[unsafe(no_mangle)]
extern "C" fn cowbell_count_after_fork() {
    let counter = COUNTER.load(Relaxed);
    // SAFETY: it is null, or this process' own.
    if unsafe { counter.as_ref() }.is_some_and(Counter::is_foreign) {
        COUNTER.store(ptr::null_mut(), Relaxed);
        KIND.store(Failure::from(Refusal::Restarted).kind, Relaxed);
        // SAFETY: made in `begin` by `Box::into_raw`, and nobody finds it any more.
        drop(unsafe { Box::from_raw(counter) });
    }
}

/// Reads the page tables. Null where that fails.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_read(counter: *const Counter, out: *mut Failure) -> *mut Reading {
    // SAFETY: the caller's counter.
    match unsafe { &*counter }.read() {
        Ok(reading) => Box::into_raw(Box::new(reading)),
        Err(refusal) => {
            // SAFETY: the caller gives room for one.
            unsafe { tell(refusal, out) };
            ptr::null_mut()
        }
    }
}

/// Adds up a reading; with an earlier one that is not null, what came since.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_sum(
    counter: *const Counter,
    reading: *const Reading,
    earlier: *const Reading,
    out: *mut Counts,
) {
    // SAFETY: the caller's counter.
    let counter = unsafe { &*counter };
    // SAFETY: the caller's reading.
    let reading = unsafe { &*reading };
    // SAFETY: null, or the caller's reading.
    let earlier = unsafe { earlier.as_ref() };
    let page = cowbell::sys::page_size().bytes() as u64;
    let since = |now: &Pages, of: fn(&Reading) -> &Pages| match earlier {
        Some(earlier) => now.since(of(earlier)).bytes(),
        None => now.bytes(),
    };
    let counts = Counts {
        copied: since(&reading.copied, |reading| &reading.copied),
        unsure: since(&reading.unsure, |reading| &reading.unsure),
        reused: since(&reading.reused, |reading| &reading.reused),
        new: since(&reading.new, |reading| &reading.new),
        gone: reading.gone_bytes.saturating_sub(earlier.map_or(0, |earlier| earlier.gone_bytes)),
        shared: counter.shared_pages() * page,
        before_max: if earlier.is_some() { 0 } else { counter.before_max * page },
        unwatched: counter.unwatched_bytes(),
        page,
        is_foreign: u64::from(counter.is_foreign()),
    };
    // SAFETY: the caller gives room for one.
    unsafe { out.write(counts) };
}

/// The mapping at a place, of those in which a reading (or what came since an earlier one) has copies, the most first.
/// Returns 0 where there are no more.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_place(
    reading: *const Reading,
    earlier: *const Reading,
    at: usize,
    out: *mut Place,
) -> i32 {
    // SAFETY: the caller's reading.
    let reading = unsafe { &*reading };
    // SAFETY: null, or the caller's reading.
    let copied = match unsafe { earlier.as_ref() } {
        Some(earlier) => reading.copied.since(&earlier.copied),
        None => reading.copied.since(&Pages::default()),
    };
    let mut named: Vec<(&str, u64)> = Vec::new();
    for Mapping { range, name, .. } in &reading.mappings {
        let bytes = copied.bytes_in(Range { start: range.start, len: range.len });
        match named.iter_mut().find(|(known, _)| *known == name.as_str()) {
            Some((_, sum)) => *sum += bytes,
            None => named.push((name, bytes)),
        }
    }
    named.retain(|(_, bytes)| *bytes > 0);
    named.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let Some((name, bytes)) = named.get(at) else { return 0 };
    let mut place = Place { copied: *bytes, name: [0; 256] };
    // The last one stays zero.
    for (to, from) in place.name.iter_mut().take(255).zip(name.bytes()) {
        *to = from as c_char;
    }
    // SAFETY: the caller gives room for one.
    unsafe { out.write(place) };
    1
}

/// Gives a reading back.
///
/// # Safety
/// See the module; the reading is not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_forget(reading: *mut Reading) {
    // SAFETY: `cowbell_count_read` made it by `Box::into_raw`.
    drop(unsafe { Box::from_raw(reading) });
}

/// This process dies when the thread that forked it ends.
#[unsafe(no_mangle)]
extern "C" fn cowbell_count_die_with_parent() {
    // The death with the parent is a courtesy: without it a child that hangs outlives a parent that was killed.
    let _refused = prctl::die_with_parent();
}
