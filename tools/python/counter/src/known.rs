//! The functions that `ctypes` calls about frozen data. `_causes.py` declares the same functions and structs.
//!
//! # Safety
//! As in `exports`. A place of frozen data is a pointer that `cowbell_count_frozen_new` gave and neither
//! `cowbell_count_frozen_keep` nor `cowbell_count_frozen_drop` took.
#![expect(unsafe_code, reason = "C functions get pointers")]

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use cowbell::page::Range;
use cowbell::sys::process;
use cowbell::sys::procfs::{self, maps};
use cowbell::sys::remote::RemoteMemory;

use crate::count::{Reading, Refusal};
use crate::exports::{Failure, tell};
use crate::frozen::{Causes, Frozen, Kind};
use crate::held::Pages;

/// The list that children forked from now on inherit, and the one that this process inherited. Neither is written any more, or given back.
static NEXT: AtomicPtr<Frozen> = AtomicPtr::new(ptr::null_mut());
static MINE: AtomicPtr<Frozen> = AtomicPtr::new(ptr::null_mut());

/// Runs in each child.
pub fn begin() {
    MINE.store(NEXT.load(Relaxed), Relaxed);
}

/// Begins with nothing.
#[unsafe(no_mangle)]
extern "C" fn cowbell_count_frozen_new() -> *mut Frozen {
    Box::into_raw(Box::default())
}

/// Adds a piece of memory; kinds are those of [`Kind`].
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_frozen_add(to: *mut Frozen, kind: u8, start: usize, len: usize) {
    let kind = if kind == Kind::Object as u8 { Kind::Object } else { Kind::Array };
    if start != 0 && len > 0 {
        // SAFETY: the caller's.
        unsafe { &mut *to }.add(kind, Range { start, len });
    }
}

/// All was added. Returns 0, or -1 and says why not.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_frozen_sort(of: *mut Frozen, out: *mut Failure) -> i32 {
    let mappings = match maps::read(procfs::SELF) {
        Ok(mappings) => mappings,
        Err(e) => {
            // SAFETY: the caller gives room for one.
            unsafe { tell(Refusal::NoProc(e), out) };
            return -1;
        }
    };
    // Not the interpreter's own objects, which lie in its file among all that it writes.
    let kept = mappings.iter().filter(|mapping| mapping.is_private() && mapping.is_writable() && mapping.inode == 0);
    // SAFETY: the caller's.
    unsafe { &mut *of }.sort(&kept.map(|mapping| mapping.range).collect::<Vec<_>>());
    0
}

/// Looks at so many blocks of memory more. Returns how many are left, or -1 and says why not.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_frozen_look(of: *mut Frozen, budget: usize, out: *mut Failure) -> i64 {
    match RemoteMemory::open(process::pid()) {
        // SAFETY: the caller's.
        Ok(memory) => unsafe { &mut *of }.look(budget, |at, to| read(&memory, at, to)) as i64,
        Err(e) => {
            // SAFETY: the caller gives room for one.
            unsafe { tell(Refusal::NoProc(e), out) };
            -1
        }
    }
}

/// Reads memory; bytes that are not there any more are left as they are in `to`.
fn read(memory: &RemoteMemory, at: usize, to: &mut [u8]) {
    let _gone = memory.read(at as u64, to);
}

/// Children that are forked from now on have it.
///
/// # Safety
/// See the module; it is not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_frozen_keep(of: *mut Frozen) {
    let before = NEXT.swap(of, Relaxed);
    if !before.is_null() && before != MINE.load(Relaxed) {
        // SAFETY: it came here the same way, and nobody else knows it.
        drop(unsafe { Box::from_raw(before) });
    }
}

/// Gives it back.
///
/// # Safety
/// See the module; it is not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_frozen_drop(of: *mut Frozen) {
    // SAFETY: `cowbell_count_frozen_new` made it by `Box::into_raw`.
    drop(unsafe { Box::from_raw(of) });
}

/// Tells what the pages were written for that a reading has as copied, or what came since an earlier one. Returns 1; 0 where
/// nothing was known of frozen data when this process was forked; -1 where memory cannot be read, and says why.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_count_causes(
    reading: *const Reading,
    earlier: *const Reading,
    out: *mut Causes,
    failure: *mut Failure,
) -> i32 {
    // SAFETY: null, or what nobody writes or gives back.
    let Some(frozen) = (unsafe { MINE.load(Relaxed).as_ref() }) else { return 0 };
    // SAFETY: the caller's reading.
    let reading = unsafe { &*reading };
    // SAFETY: null, or the caller's reading.
    let copied = match unsafe { earlier.as_ref() } {
        Some(earlier) => reading.copied.since(&earlier.copied),
        None => reading.copied.since(&Pages::default()),
    };
    match RemoteMemory::open(process::pid()) {
        Ok(memory) => {
            let page = cowbell::sys::page_size().bytes();
            let causes = frozen.explain(copied.runs(), page, |at, to| read(&memory, at, to));
            // SAFETY: the caller gives room for one.
            unsafe { out.write(causes) };
            1
        }
        Err(e) => {
            // SAFETY: the caller gives room for one.
            unsafe { tell(Refusal::NoProc(e), failure) };
            -1
        }
    }
}
