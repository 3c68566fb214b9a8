//! Servers that fork: gunicorn's workers, and those of databases and of Ruby's.

use super::super::conclude::{Conclusion, bytes, own};
use super::super::needs::Need;
use super::super::way::{PlannedWay as WayPlan, WorkDir};
use super::{NUMPY, PYTHON, Scale, script};

pub(super) fn gunicorn(scale: &Scale, _: &WorkDir) -> Vec<WayPlan> {
    const FLASK: Need = Need::Module("flask", "flask");
    const GUNICORN: Need = Need::Module("gunicorn", "gunicorn");
    const SITE: &[Need] = &[FLASK, GUNICORN];
    const ARRAY: &[Need] = &[FLASK, GUNICORN, NUMPY];
    let way = |name, does, needs, kind: &str, how: &str, reads: &str, workers: u32| {
        script(name, does, needs, workers, "site.py", &[&how, &kind, &reads, &scale.numbers, &workers])
    };
    let mut ways = Vec::new();
    let most = scale.workers;
    ways.extend(
        scale
            .steps
            .iter()
            .map(|&step| way("each", "each worker loads the list for itself", SITE, "list", "each", "reads", step)),
    );
    ways.push(way("idle", "--preload, and nothing is read", SITE, "list", "preload", "idle", most));
    ways.extend(
        scale
            .steps
            .iter()
            .map(|&step| way("list", "--preload, each worker reads a list", SITE, "list", "preload", "reads", step)),
    );
    let array = |name, does, needs| way(name, does, needs, name, "preload", "reads", most);
    ways.push(array(
        "joblib",
        "the same, of an array that joblib maps",
        &[FLASK, GUNICORN, NUMPY, Need::Module("joblib", "joblib")],
    ));
    ways.push(array("numpy", "the same, of a numpy array", ARRAY));
    ways.push(array("mmap", "the same, of a mapped file", ARRAY));
    const FROZEN: &[Need] = &[FLASK, GUNICORN, Need::Python(3, 12), Need::Module("cowbell_fork", "cowbell-fork")];
    ways.extend(scale.steps.iter().map(|&step| {
        way("freeze", "the list, after cowbell_fork.freeze(data)", FROZEN, "freeze", "preload", "reads", step)
    }));
    ways.extend(scale.steps.iter().map(|&step| {
        way("cowbell", "a server in Rust over a frozen arena", PYTHON, "numbers", "cowbell", "reads", step)
    }));
    ways
}

pub(super) fn of_gunicorn(found: &mut Conclusion<'_>, scale: &Scale) {
    found.agree(&["each", "list", "joblib", "numpy", "mmap", "freeze", "cowbell"]);
    let data = scale.list_bytes();
    if let (Some(each), Some(list)) = (found.watched("each"), found.watched("list")) {
        found.say(format!(
            "Without --preload each worker loads a list of its own, {} of new memory. With it the list is inherited, and copied by each worker \
             that reads it: {}.",
            bytes(each.new_bytes),
            bytes(list.copied_bytes)
        ));
        found.expect(each.new_bytes >= data / 2, "a worker that loads the list for itself has it as new memory");
        found.expect(list.copied_bytes >= data / 2, "a worker that reads the inherited list copies it");
    }
    // An interpreter that ends frees what it has, and copies it: where that is not told apart, nothing can be said of the work.
    if let Some((idle, ending)) = found.watched("idle").and_then(|idle| Some((idle, idle.ending_bytes?))) {
        found.say(format!(
            "As long as nobody reads it, a worker copies {}; and {} more as it ends and frees it.",
            bytes(own(idle)),
            bytes(ending)
        ));
        found.expect(own(idle) < data / 4, "a worker that reads nothing copies little");
    }
    let mut others = Vec::new();
    for (name, what) in [
        ("joblib", "an array that joblib maps"),
        ("numpy", "a numpy array"),
        ("mmap", "a mapped file"),
        ("freeze", "the same list, made immortal"),
        ("cowbell", "a frozen arena, in Rust"),
    ] {
        if let Some(way) = found.watched(name).filter(|way| way.ending_bytes.is_some()) {
            others.push(format!("{} with {what}", bytes(own(way))));
            found.expect(own(way) < data / 4, &format!("{name}: each worker has little of its own"));
        }
    }
    if !others.is_empty() {
        found.say(format!("A worker that reads all of its data has of its own {}.", others.join(", ")));
    }
}

pub(super) fn servers(scale: &Scale, _: &WorkDir) -> Vec<WayPlan> {
    const REDIS: &[Need] = &[Need::Python(3, 8), Need::Program("redis-server", "redis-server")];
    const POSTGRES: &[Need] = &[Need::Python(3, 8), Need::Program("postgres", "postgresql")];
    const PUMA: &[Need] = &[Need::Python(3, 8), Need::Program("puma", "puma")];
    const WARMUP: &[Need] = &[Need::Python(3, 8), Need::Program("puma", "puma"), Need::Ruby(3, 3)];
    let redis = |name, does, how: &str| script(name, does, REDIS, 1, "redis.py", &[&how, &scale.keys]);
    let clients = 2 * scale.workers;
    let postgres = |name, does, how: &str| {
        script(name, does, POSTGRES, clients, "postgres.py", &[&how, &scale.table_rows, &clients])
    };
    let puma = |name, does, needs, how: &str| {
        script(name, does, needs, scale.workers, "puma.py", &[&how, &scale.strings, &scale.workers])
    };
    vec![
        redis("redis idle", "BGSAVE while nobody writes", "idle"),
        redis("redis writes", "BGSAVE while each key is overwritten", "writes"),
        postgres("postgres reads", "each client reads a table", "reads"),
        postgres("postgres sorts", "each client sorts it in memory", "sorts"),
        puma("puma", "each request collects garbage", PUMA, "plain"),
        puma("puma compact", "GC.start and GC.compact before the fork", PUMA, "compact"),
        puma("puma warmup", "Process.warmup before the fork", WARMUP, "warmup"),
    ]
}

pub(super) fn of_servers(found: &mut Conclusion<'_>, scale: &Scale) {
    if let (Some(idle), Some(writes)) = (found.watched("redis idle"), found.watched("redis writes")) {
        found.say(format!(
            "While Redis saves in a forked child, it is the parent that pays: {} if nobody writes, {} if each key is overwritten.",
            bytes(idle.parent_bytes),
            bytes(writes.parent_bytes)
        ));
        // A key has 400 bytes of a value.
        found.expect(writes.parent_bytes >= scale.keys * 200, "the parent copies what is overwritten");
        found.expect(idle.parent_bytes < writes.parent_bytes / 4, "the parent copies little if nobody writes");
    }
    if let (Some(reads), Some(sorts)) = (found.watched("postgres reads"), found.watched("postgres sorts")) {
        found.say(format!(
            "PostgreSQL's processes share their buffers as a mapping that fork does not copy: on average one has {} of its own when its client \
             reads a table, and {} when it sorts the table in memory.",
            bytes(own(reads)),
            bytes(own(sorts))
        ));
        // A row takes some 60 bytes in the table.
        found.expect(own(reads) < scale.table_rows * 15, "a process that reads a table has little of its own");
        found.expect(own(sorts) > 2 * own(reads), "a process that sorts in memory has new memory");
    }
    if let (Some(plain), Some(compact)) = (found.watched("puma"), found.watched("puma compact")) {
        let warmup = found.watched("puma warmup");
        let warmup = warmup.map_or(String::new(), |way| format!("; after Process.warmup {}", bytes(way.copied_bytes)));
        found.say(format!(
            "Ruby's collector marks objects where they lie: each of Puma's workers copied {}; after GC.start and GC.compact {}{warmup}.",
            bytes(plain.copied_bytes),
            bytes(compact.copied_bytes)
        ));
        found.expect(compact.copied_bytes < plain.copied_bytes, "compaction before the fork saves copies");
    }
}
