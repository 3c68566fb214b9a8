//! All that cowbell does, seen from its public interface.
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
mod collections;
mod copying;
mod endurance;
mod exactness;
mod faulting;
mod faults;
mod fork;
mod freezing;
mod frozen;
mod growing;
mod images;
mod images_refused;
mod inherit;
mod limits;
mod look;
mod outside;
mod panics;
#[cfg(feature = "pool")]
mod pool;
#[cfg(feature = "pool")]
mod pool_context;
#[cfg(feature = "pool")]
mod pool_early;
#[cfg(feature = "pool")]
mod pool_ends;
#[cfg(feature = "pool")]
mod pool_faults;
#[cfg(feature = "pool")]
mod pool_figures;
#[cfg(feature = "pool")]
mod pool_futures;
#[cfg(feature = "pool")]
mod pool_kit;
#[cfg(feature = "pool")]
mod pool_leaving;
#[cfg(feature = "pool")]
mod pool_loaded;
#[cfg(feature = "pool")]
mod pool_loaders;
#[cfg(feature = "pool")]
mod pool_log;
#[cfg(feature = "pool")]
mod pool_metrics;
#[cfg(feature = "pool")]
mod pool_panics;
#[cfg(feature = "pool")]
mod pool_processes;
#[cfg(feature = "pool")]
mod pool_refused;
#[cfg(feature = "pool")]
mod pool_replace;
#[cfg(feature = "pool")]
mod pool_results;
#[cfg(feature = "pool")]
mod pool_review;
#[cfg(feature = "pool")]
mod pool_several;
#[cfg(feature = "pool")]
mod pool_signals;
#[cfg(feature = "pool")]
mod pool_storm;
#[cfg(feature = "pool")]
mod pool_tickets;
#[cfg(feature = "pool")]
mod pool_types;
mod reshare;
mod shared;
mod shared_collections;
mod shared_deaths;
mod shared_locks;
mod sound;
mod threads;
mod transfer;
mod transfer_refused;
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
        collections::trials(),
        copying::trials(),
        limits::trials(),
        frozen::trials(),
        freezing::trials(),
        transfer::trials(),
        transfer_refused::trials(),
        images::trials(),
        images_refused::trials(),
        faults::trials(),
        growing::trials(),
        fork::trials(),
        threads::trials(),
        panics::trials(),
        inherit::trials(),
        outside::trials(),
        reshare::trials(),
        watching::trials(),
        blind::trials(),
        shared::trials(),
        shared_collections::trials(),
        shared_locks::trials(),
        shared_deaths::trials(),
        sound::trials(),
        faulting::trials(),
        endurance::trials(),
        exactness::trials(),
        #[cfg(feature = "pool")]
        pool::trials(),
        #[cfg(feature = "pool")]
        pool_tickets::trials(),
        #[cfg(feature = "pool")]
        pool_processes::trials(),
        #[cfg(feature = "pool")]
        sound::pools::trials(),
        #[cfg(feature = "pool")]
        pool_context::trials(),
        #[cfg(feature = "pool")]
        pool_faults::trials(),
        #[cfg(feature = "pool")]
        pool_early::trials(),
        #[cfg(feature = "pool")]
        pool_figures::trials(),
        #[cfg(feature = "pool")]
        pool_loaded::trials(),
        #[cfg(feature = "pool")]
        pool_loaders::trials(),
        #[cfg(feature = "pool")]
        pool_log::trials(),
        #[cfg(feature = "pool")]
        pool_metrics::trials(),
        #[cfg(feature = "pool")]
        pool_ends::trials(),
        #[cfg(feature = "pool")]
        pool_leaving::trials(),
        #[cfg(feature = "pool")]
        pool_results::trials(),
        #[cfg(feature = "pool")]
        pool_refused::trials(),
        #[cfg(feature = "pool")]
        pool_review::trials(),
        #[cfg(feature = "pool")]
        pool_several::trials(),
        #[cfg(feature = "pool")]
        pool_replace::trials(),
        #[cfg(feature = "pool")]
        pool_futures::trials(),
        #[cfg(feature = "pool")]
        pool_panics::trials(),
        #[cfg(feature = "pool")]
        pool_signals::trials(),
        #[cfg(feature = "pool")]
        pool_storm::trials(),
        #[cfg(feature = "pool")]
        pool_types::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
