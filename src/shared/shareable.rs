//! The types that may lie in memory that processes share.
//!
//! # Safety
//! Each implementation is for a type of which [`Shareable`] is true.
#![expect(unsafe_code, reason = "declares and implements an unsafe trait")]

use std::num;
use std::sync::atomic;

/// A type whose objects may be used by several processes at once, each through `&T` at the same address.
///
/// Implemented for atomics, numbers, and arrays, slices and tuples of such. Implement it for a struct of your own
/// whose fields all have it.
///
/// # Safety
/// - It holds no pointer, reference or descriptor number: other processes have other memory behind it. (A
///   `&'static` to a constant would point to the same there, but nothing checks that.)
/// - Its methods keep it valid when a process dies in the middle of one: there is nobody to clean up.
/// - It has no drop glue: nobody drops it.
pub unsafe trait Shareable: Sync + 'static {}

macro_rules! shareable {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: a number: no pointer, no drop glue, and changed, if at all, by one instruction.
            unsafe impl Shareable for $type {}
        )*
    };
}

shareable!(
    (),
    bool,
    char,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    num::NonZeroU32,
    num::NonZeroU64,
    num::NonZeroUsize,
    atomic::AtomicBool,
    atomic::AtomicU8,
    atomic::AtomicU16,
    atomic::AtomicU32,
    atomic::AtomicU64,
    atomic::AtomicUsize,
    atomic::AtomicI8,
    atomic::AtomicI16,
    atomic::AtomicI32,
    atomic::AtomicI64,
    atomic::AtomicIsize,
);

// SAFETY: nothing but its elements.
unsafe impl<T: Shareable> Shareable for [T] {}
// SAFETY: nothing but its elements.
unsafe impl<T: Shareable, const N: usize> Shareable for [T; N] {}

macro_rules! shareable_tuples {
    ($(($($part:ident)*)),*) => {
        $(
            // SAFETY: nothing but its parts.
            unsafe impl<$($part: Shareable),*> Shareable for ($($part,)*) {}
        )*
    };
}

shareable_tuples!((A), (A B), (A B C), (A B C D), (A B C D E), (A B C D E F));
