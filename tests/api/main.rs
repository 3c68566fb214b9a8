//! What cowbell does, seen from its public interface.
//!
//! Forking needs a single thread, so the tests run one after the other on the main thread; each is a
//! claim, and its name says it.

/// Functions as tests of their own names, each in a process of its own.
macro_rules! claims {
    ($($test:ident),* $(,)?) => { std::vec![$(crate::apart::claim(concat!(module_path!(), "::", stringify!($test)), $test)),*] };
}

mod apart;
mod arena;
mod blind;
mod case;
mod endurance;
mod exactness;
mod faults;
mod fork;
mod frozen;
mod images;
mod inherit;
mod limits;
mod look;
mod reshare;
mod shared;
mod shared_deaths;
mod transfer;
mod watching;

use libtest_mimic::Arguments;

fn main() {
    // A static program before Linux 6.4 reads this from a file: not where a test has taken all descriptors.
    cowbell::sys::page_size();
    let mut arguments = Arguments::from_args();
    // One thread means the main one: no other is started.
    arguments.test_threads = Some(1);
    let trials = [
        arena::trials(),
        limits::trials(),
        frozen::trials(),
        transfer::trials(),
        images::trials(),
        faults::trials(),
        fork::trials(),
        inherit::trials(),
        reshare::trials(),
        watching::trials(),
        blind::trials(),
        shared::trials(),
        shared_deaths::trials(),
        endurance::trials(),
        exactness::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
