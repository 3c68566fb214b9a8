//! The native part of the Python package `cowbell_fork`, loaded by `ctypes.PyDLL`: one object for all builds of
//! CPython 3.12 to 3.15 with the GIL, since it uses the stable ABI and the few layout facts that stand in `layout`.
//!
//! ```text
//! layout   where the interpreter keeps what is read and written: facts, no pointers
//! python   the only door to the interpreter
//! kinds    what the walk must know of each type
//! extents  where an object lies, with what it has elsewhere
//! sink     to whom that is told
//! walk     what is reached, made immortal, left out
//! exports  what ctypes calls
//! ```

mod exports;
mod extents;
mod kinds;
mod layout;
mod python;
mod sink;
mod walk;
