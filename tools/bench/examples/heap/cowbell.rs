//! The patterns under cowbell.

#[path = "patterns.rs"]
mod patterns;

#[global_allocator]
static ALLOCATOR: cowbell::heap::Heap = cowbell::heap::Heap;

fn main() {
    patterns::main();
}
