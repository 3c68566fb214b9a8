//! The patterns and the sets under cowbell.

#[path = "patterns.rs"]
mod patterns;
#[path = "sets.rs"]
mod sets;

#[global_allocator]
static ALLOCATOR: cowbell::heap::Heap = cowbell::heap::Heap;

fn main() -> cowbell::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["set", words @ ..] => sets::main(words),
        words => {
            patterns::main(words.first().copied());
            Ok(())
        }
    }
}
