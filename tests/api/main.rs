//! What cowbell does, seen from its public interface.
//!
//! Forking needs a single thread, so the tests run one after the other on the main thread; each is a
//! claim, and its name says it.

mod case;
mod exactness;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    // One thread means the main one: no other is started.
    arguments.test_threads = Some(1);
    let trials = [exactness::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit();
}
