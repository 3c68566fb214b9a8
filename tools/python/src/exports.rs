//! The functions that `ctypes` calls. `_native.py` declares the same functions and structs.
//!
//! # Safety
//! All are called through `ctypes.PyDLL`, which holds the GIL over the call. A walk is a pointer that
//! `cowbell_fork_walk` gave and `cowbell_fork_end` did not take back; objects are references that the caller owns.
#![expect(unsafe_code, reason = "C functions get pointers")]

use std::ffi::c_void;
use std::ptr;

use crate::layout::Layout;
use crate::python::{Gil, Object, PyObject};
use crate::sink::{Sink, Tell};
use crate::walk::{Options, Totals, Walk};

/// The fate of the instances of one type.
#[repr(C)]
pub struct Row {
    /// The type.
    of: *mut PyObject,
    /// Instances made immortal.
    objects: u64,
    /// The objects' size, bytes.
    bytes: u64,
    /// References to instances that were not followed.
    left_out: u64,
    /// Why not.
    why_not: u64,
    /// 1: has a finalizer; 2: may hold objects that it does not show.
    marks: u64,
}

/// The data that is read of one object, for the comparison with what Python says of it.
#[repr(C)]
#[derive(Default)]
pub struct Probe {
    /// The first word.
    word: u64,
    /// 1 if that means immortal, else 0.
    is_immortal: u64,
    /// The address of the type.
    of: u64,
    /// The value that stands where a str, bytes or tuple keeps its hash.
    kept_hash: i64,
}

fn gil() -> Gil {
    // SAFETY: see the module: ctypes.PyDLL holds the GIL.
    unsafe { Gil::assume_held() }
}

/// # Safety
/// See the module.
unsafe fn walk<'a>(walk: *mut Walk) -> &'a mut Walk {
    // SAFETY: the caller's promise; the GIL keeps other threads away.
    unsafe { &mut *walk }
}

/// Reads an object, of at least 32 bytes. Returns 0, or -1 if the version is not known and -2 in a subinterpreter.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_probe(object: *mut PyObject, out: *mut Probe) -> i32 {
    if Layout::of_version(gil().version()).is_none() {
        return -1;
    }
    if !gil().is_main_interpreter() {
        return -2;
    }
    // SAFETY: the caller owns a reference.
    let Some(object) = (unsafe { Object::new(object) }) else { return -1 };
    let word = object.word();
    let probe = Probe {
        word,
        is_immortal: u64::from(Layout::is_immortal(word)),
        of: object.type_of().pointer() as u64,
        kept_hash: object.kept_hash() as i64,
    };
    // SAFETY: the caller gives room for one.
    unsafe { out.write(probe) };
    0
}

/// Begins a walk; null if the version is not known.
#[unsafe(no_mangle)]
extern "C" fn cowbell_fork_walk(hashes: i32, dicts: i32) -> *mut Walk {
    let options = Options { hashes: hashes != 0, dicts: dicts != 0 };
    Walk::new(options, None, gil()).map_or(ptr::null_mut(), |walk| Box::into_raw(Box::new(walk)))
}

/// Begins a walk that changes nothing: `tell` is called with `to` for each piece of memory that immortal objects lie in.
///
/// # Safety
/// See the module; `tell` may be called so until the walk is ended.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_where(tell: Tell, to: *mut c_void) -> *mut Walk {
    let options = Options { hashes: false, dicts: false };
    // SAFETY: the caller's promise.
    let sink = unsafe { Sink::new(tell, to) };
    Walk::new(options, Some(sink), gil()).map_or(ptr::null_mut(), |walk| Box::into_raw(Box::new(walk)))
}

/// Tells whether an object is immortal.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_is_immortal(object: *mut PyObject) -> i32 {
    // SAFETY: the caller owns a reference.
    unsafe { Object::new(object) }.map_or(0, |object| i32::from(Layout::is_immortal(object.word())))
}

/// Instances of a type are not entered, for the reason `why`.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_stop_at(of: *mut Walk, stop: *mut PyObject, why: u8) {
    // SAFETY: the caller owns a reference.
    if let Some(stop) = unsafe { Object::new(stop) } {
        // SAFETY: the caller's walk.
        unsafe { walk(of) }.kinds.stop_at(stop, why);
    }
}

/// Instances of a type are handed out by [`cowbell_fork_asked`].
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_ask_about(of: *mut Walk, asked: *mut PyObject) {
    // SAFETY: the caller owns a reference.
    if let Some(asked) = unsafe { Object::new(asked) } {
        // SAFETY: the caller's walk.
        unsafe { walk(of) }.kinds.ask_about(asked);
    }
}

/// Begins with an object.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_reach(of: *mut Walk, root: *mut PyObject) {
    // SAFETY: the caller owns a reference.
    if let Some(root) = unsafe { Object::new(root) } {
        // SAFETY: the caller's walk.
        unsafe { walk(of) }.reach(root);
    }
}

/// Begins with `count` objects, whose references stand side by side: an array of objects. Nulls are passed over.
///
/// # Safety
/// See the module; the array stays alive and as it is during the call.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_reach_array(of: *mut Walk, first: *const *mut PyObject, count: usize) {
    for at in 0..count {
        // SAFETY: the caller says that there are so many.
        let place = unsafe { first.add(at) };
        // SAFETY: as above; arrays of objects are aligned.
        let pointer = unsafe { place.read() };
        // SAFETY: the array owns a reference.
        if let Some(object) = unsafe { Object::new(pointer) } {
            // SAFETY: the caller's walk.
            unsafe { walk(of) }.reach(object);
        }
    }
}

/// Works for about `budget` containers, and returns how much is left; 0: done.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_step(of: *mut Walk, budget: usize) -> u64 {
    // SAFETY: the caller's walk.
    let walk = unsafe { walk(of) };
    walk.step(budget);
    walk.totals().left
}

/// An object of a type that was asked about; null: no more. It is immortal.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_asked(of: *mut Walk) -> *mut PyObject {
    // SAFETY: the caller's walk.
    unsafe { walk(of) }.take_asked().map_or(ptr::null_mut(), Object::pointer)
}

/// Writes what was done to `out`.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_totals(of: *mut Walk, out: *mut Totals) {
    // SAFETY: the caller's walk.
    let totals = unsafe { walk(of) }.totals();
    // SAFETY: the caller gives room for one.
    unsafe { out.write(totals) };
}

/// Writes what became of the instances of the type at a place. Returns 0 where there are no more.
///
/// # Safety
/// See the module.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_row(of: *mut Walk, at: usize, out: *mut Row) -> i32 {
    // SAFETY: the caller's walk.
    let Some(kind) = unsafe { walk(of) }.kinds.get(at) else { return 0 };
    let row = Row {
        of: kind.of.pointer(),
        objects: kind.objects,
        bytes: kind.bytes,
        left_out: kind.left_out,
        why_not: u64::from(kind.why_not),
        marks: u64::from(kind.has_finalizer) | u64::from(kind.is_opaque) << 1,
    };
    // SAFETY: the caller gives room for one.
    unsafe { out.write(row) };
    1
}

/// Ends a walk.
///
/// # Safety
/// See the module; the walk is not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn cowbell_fork_end(of: *mut Walk) {
    // SAFETY: `cowbell_fork_walk` made it by `Box::into_raw`.
    drop(unsafe { Box::from_raw(of) });
}
