//! Counts the pages that a forked child copied, from within it; loaded by `ctypes.PyDLL` into the Python process.
//!
//! ```text
//! held     what the child had when counting began, and runs of pages: values only
//! count    arms the child's memory, and reads from the page tables what it wrote
//! frozen   where frozen data lies, and what of it a copied page was written for: values only
//! exports  what ctypes calls; known: of these, what is about frozen data
//! ```
//!
//! The kernel notes writes by itself (userfaultfd with `WP_ASYNC`, Linux 6.7): no handler runs, and nobody waits. A page
//! is **copied** when it was shared as counting began and was written since; it is **reused** when the other side had
//! given it up by then, which page frames tell where they may be read.

mod count;
mod exports;
mod frozen;
mod held;
mod known;
