//! Which code: names of instructions, native stacks, Python stacks.
//!
//! [`names`] runs in the front, where time costs no writer anything; [`native`] and [`python`] run in the tracer,
//! while the thread whose stack they read stands still.

mod elf;
pub mod names;
pub mod native;
mod perf_map;
pub mod python;

/// Frames kept of a stack, from the innermost one.
const FRAMES_MAX: usize = 64;

#[cfg(test)]
mod fixture;
