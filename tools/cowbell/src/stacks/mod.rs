//! The code of a write: names of instructions, native stacks, and those of programs that an interpreter runs.
//!
//! [`names`] runs in the front, where time costs no writer anything; [`native`] and the readers of [`languages`] run in
//! the tracer, while the thread whose stack they read stands still.

pub mod elf;
pub mod instruction;
pub mod languages;
pub mod names;
pub mod native;
pub mod own_name;
mod perf_map;
pub mod types;

/// Frames kept of a stack, from the innermost one.
const FRAMES_MAX: usize = 64;

#[cfg(test)]
pub mod fixture;
