//! The sets under cowbell's heap, without the allocators that take a C compiler.

#[path = "sets.rs"]
mod sets;

#[global_allocator]
static ALLOCATOR: cowbell::heap::Heap = cowbell::heap::Heap;

fn main() -> cowbell::Result<()> {
    let mut words = std::env::args().skip(1);
    let what = words.next().unwrap_or_default();
    sets::main(&what, words.next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0))
}
