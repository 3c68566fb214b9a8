//! The command's answers; the times themselves do not matter here.

use cowbell_bench::{Arming, Forks, Memory, Peer, Pool, PoolMemory, Work, Writes};
use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cowbell-bench")).args(args).output().expect("the command starts")
}

/// The part of a successful run's JSON that is called `part`.
fn json<T: serde::de::DeserializeOwned>(args: &[&str], part: &str) -> T {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    serde_json::from_value(all[part].take()).expect("the library's own type")
}

#[test]
fn writes_measure_every_watch_or_say_why_not() {
    let writes: Writes = json(&["writes", "--pages", "64", "--repeats", "2", "--json"], "writes");
    assert_eq!((writes.pages, writes.repeats, writes.watches.len()), (64, 2, 5));
    for watch in &writes.watches {
        assert_ne!(watch.error.is_some(), watch.untouched.is_some() && watch.read_before.is_some(), "{watch:?}");
    }
    assert_eq!(writes.watches[0].error, None, "a census needs nothing");
}

#[test]
fn forks_are_measured_over_every_kind_of_memory() {
    let forks: Forks = json(&["forks", "--size", "8MiB", "--repeats", "2", "--json"], "forks");
    assert_eq!(forks.over.len(), 5);
    for memory in [Memory::Empty, Memory::Anonymous, Memory::Frozen] {
        let over = forks.over(memory).expect("each is there");
        assert!(over.error.is_none() && over.clone3_us.is_some() && over.spawn_ratio_to_empty.is_some(), "{over:?}");
    }
    let frozen = forks.over(Memory::Frozen).expect("each is there");
    assert!(frozen.populate_ms.is_some() && frozen.populated_read_ratio_to_anonymous.is_some(), "{frozen:?}");
    assert!(frozen.page_tables_kib < frozen.page_tables_after_read_kib, "a fork copies no page tables: {frozen:?}");
}

#[test]
fn arming_is_measured_for_the_watches_that_arm() {
    let arming: Arming = json(&["arming", "--size", "4MiB", "--repeats", "2", "--json"], "arming");
    assert!(arming.watches.iter().all(|cost| cost.error.is_some() || cost.spawn_us.is_some()));
    assert_eq!(arming.watches[0].arming_us_per_mib, None, "a census arms nothing");
}

#[test]
fn pools_do_every_work_or_say_why_not() {
    let pool: Pool = json(&["pool", "--quick", "--rounds", "1", "--json"], "pool");
    assert_eq!((pool.workers, pool.rounds, pool.races.len()), (2, 1, Work::ALL.len()));
    for race in &pool.races {
        for contender in &race.contenders {
            let python = contender.peer.name(race.work).starts_with("python");
            // A Python may be missing, which is this machine's business; everybody else is part of the command.
            let missing = contender.error.as_deref().is_some_and(|why| python && why.contains("not found"));
            assert_ne!(missing, contender.ns_per_job.is_some(), "{:?}: {contender:?}", race.work);
            assert_ne!(missing, contender.ratio_to_cowbell.is_some(), "{:?}: {contender:?}", race.work);
        }
        assert_eq!(race.contenders[0].peer, Peer::Cowbell);
        assert_eq!(race.goal.is_some(), race.work != Work::Lookup);
        assert!(race.goal.as_ref().is_none_or(|goal| goal.measured.is_some()), "{:?}", race.goal);
    }
}

#[test]
fn a_contender_that_cannot_be_started_is_a_row_with_a_reason() {
    // A PATH without python3.
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowbell-bench"));
    let output = command.args(["pool", "--quick", "--rounds", "1"]).env("PATH", "/nonexistent").output();
    let output = output.expect("the command starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["python3: not found on the PATH", "rayon par_iter", "at least 500,000 jobs/s", "at most 1.05 x rayon"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn what_workers_have_of_their_own_is_measured() {
    let args = ["pool-memory", "--workers", "2,3", "--size", "8MiB", "--json"];
    let memory: PoolMemory = json(&args, "pool_memory");
    let pools: Vec<_> = memory.costs.iter().map(|cost| (cost.workers, cost.huge_pages)).collect();
    assert_eq!(pools, [(2, false), (2, true), (3, false), (3, true)]);
    for cost in memory.costs.iter().filter(|cost| !cost.huge_pages || cost.error.is_none()) {
        assert!(cost.error.is_none() && cost.uss_bytes > 0 && cost.page_tables_bytes_max > 0, "{cost:?}");
        assert!(cost.uss_bytes_max <= cost.uss_bytes && cost.stack_bytes <= cost.uss_bytes, "{cost:?}");
    }
}

#[test]
fn tables_name_the_goals() {
    let output = run(&["all", "--pages", "16", "--size", "1MiB", "--repeats", "1"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["native", "monitor", "3.5x", "anonymous heap", "spawn and wait", "at most 1.5x", "us/MiB", "x ("] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn bad_input_is_refused_with_exit_code_2_and_a_reason() {
    let cases: [(&[&str], &str); 12] = [
        (&[], "Usage"),
        (&["writes", "--pages", "0"], "at least 1"),
        (&["writes", "--pages", "many"], "invalid value"),
        (&["writes", "--pages", "18446744073709551615"], "no arena's size"),
        (&["writes", "--repeats", "0"], "at least 1"),
        (&["forks", "--size", "4parsecs"], "no unit"),
        (&["forks", "--size", "1048576TiB"], "memory"),
        (&["arming", "--size", "0"], "at least 1"),
        (&["pool", "--rounds", "0"], "at least 1"),
        (&["pool", "--workers", "0"], "at least 1"),
        (&["pool-memory", "--size", "0"], "at least 1"),
        (&["pool-memory", "--size", "1048576TiB"], "memory"),
    ];
    for (args, why) in cases {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(why), "{args:?}: {stderr}");
    }
}
