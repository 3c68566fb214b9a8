//! Refuses targets the runtime cannot work on, with a sentence instead of a page of errors.
//! It never looks at the build host: what the kernel can do is asked at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("OS") != "linux" || target("POINTER_WIDTH") != "64" {
        fail("cowbell runs on 64-bit Linux only");
    }
    if target("ENV") != "gnu" {
        // fork by raw clone3 repairs the thread id that glibc caches; musl keeps it elsewhere.
        fail("cowbell needs glibc: choose a *-linux-gnu target");
    }
    if !matches!(target("ARCH").as_str(), "x86_64" | "aarch64") {
        fail("cowbell knows the signal frames of x86_64 and aarch64 only");
    }
}

fn fail(why: &str) {
    println!("cargo::error={why}");
}
