//! The patterns under mimalloc.

#[path = "patterns.rs"]
mod patterns;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    patterns::main();
}
