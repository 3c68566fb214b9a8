//! The patterns and the sets under glibc.

#[path = "patterns.rs"]
mod patterns;
#[path = "sets.rs"]
mod sets;

#[global_allocator]
static ALLOCATOR: std::alloc::System = std::alloc::System;

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
