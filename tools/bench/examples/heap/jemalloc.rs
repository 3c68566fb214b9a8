//! The patterns under jemalloc.

#[path = "patterns.rs"]
mod patterns;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    patterns::main();
}
