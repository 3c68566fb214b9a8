//! scaffold
fn main() {
    let n = |at, or| std::env::args().nth(at).and_then(|n| n.parse().ok()).unwrap_or(or);
    match cowbell_bench::writes(n(1, 1024), n(2, 5)) {
        Ok(w) => println!("{w:#?}"),
        Err(e) => println!("{e}"),
    }
}
