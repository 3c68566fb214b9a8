//! The sets under cowbell's heap, without the allocators that take a C compiler.

#[path = "sets.rs"]
mod sets;

#[global_allocator]
static ALLOCATOR: cowbell::heap::Heap = cowbell::heap::Heap;

fn main() -> cowbell::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    sets::main(&words.iter().map(String::as_str).collect::<Vec<_>>())
}
