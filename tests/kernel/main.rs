//! The kernel's behaviour that this crate rests on, as claims that can fail.
//!
//! A claim is a sentence about the kernel and a function that would notice if it were false. Each
//! runs in a forked process of its own, one at a time, under a time limit (see [`case`]). What a
//! machine or a user cannot do is a *skip*, with its reason: never a pass.
//!
//! `docs/KERNEL.md` has one row a claim: who relies on it, since when, and whether it may be
//! skipped. With `CI=true` a skip that its row does not allow is a failure.

mod case;
mod child;
mod claim;
mod docs;
mod evidence;
mod memory;
mod tracee;
mod watcher;

mod advice;
mod backing;
mod change_events;
mod changes;
mod copying;
mod ending;
mod forking;
mod frames;
mod holes;
mod huge;
mod io_ring;
mod keeper;
mod launching;
mod lending;
mod mapping;
mod pagemap;
mod perf;
mod perf_lives;
mod perf_rights;
mod pouring;
mod processes;
mod remote;
mod remote_ends;
mod robust;
mod sealing;
mod serving;
mod settling;
mod sharers_end;
mod sharing;
mod stores;
mod swapping;
mod taskstats;
#[cfg(feature = "userfaultfd")]
mod theirs;
mod threads;
mod tool;
mod tracing;
mod uffd;
mod writers;

use claim::{Claim, Run};
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

/// All claims, topic by topic, in the order of `docs/KERNEL.md`.
const TOPICS: &[(&str, &[Claim])] = &[
    ("seals", sealing::CLAIMS),
    ("seals", backing::CLAIMS),
    ("mappings", mapping::CLAIMS),
    ("mappings", backing::OF_MAPPINGS),
    ("mappings", advice::OF_MAPPINGS),
    ("fork", forking::CLAIMS),
    ("fork", pouring::CLAIMS),
    ("fork", advice::OF_FORK),
    ("copies", copying::CLAIMS),
    ("page tables", pagemap::CLAIMS),
    ("userfaultfd", uffd::CLAIMS),
    ("writers", writers::CLAIMS),
    ("writers", frames::CLAIMS),
    ("holes", holes::CLAIMS),
    ("holes", io_ring::CLAIMS),
    ("huge pages", huge::CLAIMS),
    ("swap", swapping::CLAIMS),
    ("processes", processes::CLAIMS),
    ("processes", threads::CLAIMS),
    ("processes", keeper::CLAIMS),
    ("processes", sharing::CLAIMS),
    ("processes", sharers_end::CLAIMS),
    ("processes", ending::CLAIMS),
    ("processes", taskstats::CLAIMS),
    ("processes", serving::CLAIMS),
    ("shared memory", robust::CLAIMS),
    ("tracees", tracing::CLAIMS),
    ("tracees", remote::CLAIMS),
    ("tracees", remote_ends::CLAIMS),
    ("tracees", stores::CLAIMS),
    ("changes", changes::CLAIMS),
    ("changes", change_events::CLAIMS),
    ("settling", settling::CLAIMS),
    ("tracer", tool::CLAIMS),
    ("tracer", launching::CLAIMS),
    ("tracer", lending::CLAIMS),
    ("page faults", perf::CLAIMS),
    ("page faults", perf_rights::CLAIMS),
    ("page faults", perf_lives::CLAIMS),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases change machine-wide settings, and a fork wants one thread.
    arguments.test_threads = Some(1);
    case::adopt_orphans();
    let mut trials = vec![Trial::test("every_claim_has_its_row", || docs::check(TOPICS))];
    for (topic, claims) in TOPICS {
        for claim in *claims {
            trials.extend(trials_of(topic, claim));
        }
    }
    #[cfg(feature = "userfaultfd")]
    trials.extend(through_the_crate());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// All claims once more that can be made through the userfaultfd crate as well as through our own door.
#[cfg(feature = "userfaultfd")]
fn through_the_crate() -> Vec<Trial> {
    if let Some(why) = theirs::cannot_open() {
        let skipped = move || Ok(libtest_mimic::Completion::ignored_with(why));
        return vec![Trial::ignorable_test("claims_through_the_userfaultfd_crate", skipped)];
    }
    let mut trials = Vec::new();
    for (topic, claims) in TOPICS {
        for claim in claims.iter().filter(|claim| theirs::can_make(topic, claim)) {
            let kinds = match claim.run {
                Run::Once(_) => vec![None],
                Run::On(kinds, _) => kinds.iter().copied().map(Some).collect(),
            };
            trials.extend(kinds.into_iter().map(|kind| {
                let on = kind.map_or_else(String::new, |kind| format!(" ({kind})"));
                let name = format!("{}{on} through the userfaultfd crate", claim.name);
                Trial::ignorable_test(name, move || theirs::choose(|| case::run(claim, kind))).with_kind(*topic)
            }));
        }
    }
    trials
}

fn trials_of(topic: &str, claim: &'static Claim) -> Vec<Trial> {
    match claim.run {
        Run::Once(_) => vec![Trial::ignorable_test(claim.name, move || case::run(claim, None)).with_kind(topic)],
        Run::On(kinds, _) => kinds
            .iter()
            .map(|&kind| {
                let name = format!("{} ({kind})", claim.name);
                Trial::ignorable_test(name, move || case::run(claim, Some(kind))).with_kind(topic)
            })
            .collect(),
    }
}
