//! The patterns under glibc.

#[path = "patterns.rs"]
mod patterns;

#[global_allocator]
static ALLOCATOR: std::alloc::System = std::alloc::System;

fn main() {
    patterns::main();
}
