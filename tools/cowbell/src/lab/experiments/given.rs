//! Data that workers are given: sent, inherited, or where it lies.

use super::super::conclude::{Conclusion, bytes, own};
use super::super::needs::Need;
use super::super::way::{PlannedWay as WayPlan, Program, WorkDir};
use super::{FREEZE, NUMPY, PYTHON, Scale, script, shared};
use crate::failure::Failure;
use std::collections::BTreeSet;
use std::fmt::Write;

const NETWORKX: Need = Need::Module("networkx", "networkx");

pub(super) fn pool(scale: &Scale, _: &WorkDir) -> Vec<WayPlan> {
    let way = |name, does, needs| {
        script(name, does, needs, scale.workers, "pool.py", &[&name, &scale.numbers, &scale.workers])
    };
    vec![
        way("argument", "the list is an argument: pool.map(f, [(data, i), ...])", PYTHON),
        way("global", "the list is a global, made before the pool", PYTHON),
        way("numpy", "the same, as a numpy array", &[NUMPY]),
        way("freeze", "the same list, after cowbell_fork.freeze(data)", FREEZE),
    ]
}

pub(super) fn of_pool(found: &mut Conclusion<'_>, scale: &Scale) {
    found.agree(&["argument", "global", "numpy", "freeze"]);
    let data = scale.list_bytes();
    if let (Some(argument), Some(global)) = (found.watched("argument"), found.watched("global")) {
        found.say(format!(
            "Sent as an argument, the list is unpickled by each worker into {} of new memory. As a global it is not, and yet each worker copies \
             {} of it, because adding up counts references to each number.",
            bytes(argument.new_bytes),
            bytes(global.copied_bytes)
        ));
        found.expect(argument.new_bytes >= data / 2, "a worker that is sent the list has it as new memory");
        found.expect(global.new_bytes < data / 4, "a worker that inherits the list has little new memory");
        found.expect(global.copied_bytes >= data / 2, "a worker that reads the inherited list copies it");
    }
    shared(found, "numpy", "As a numpy array, which has no counts in it, each worker has", data);
    shared(found, "freeze", "Made immortal, the list is read without counting: each worker has", data);
}

/// Writes a random graph, the same each time: each edge in both directions, one a line.
pub(super) fn write_edges(scale: &Scale, place: &WorkDir) -> Result<(), Failure> {
    // SplitMix64.
    let mut state = 0x5EED_u64;
    let mut vertex = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % scale.vertices
    };
    let mut edges = BTreeSet::new();
    while (edges.len() as u64) < scale.edges {
        let (a, b) = (vertex(), vertex());
        if a != b {
            edges.insert((a.min(b), a.max(b)));
        }
    }
    let mut text = String::new();
    for (a, b) in edges {
        let _written = write!(text, "{a} {b}\n{b} {a}\n");
    }
    let file = place.file("edges");
    std::fs::write(&file, text).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
}

pub(super) fn executor(scale: &Scale, place: &WorkDir) -> Vec<WayPlan> {
    let edges = place.file("edges").display().to_string();
    let way =
        |name, does, needs| script(name, does, needs, scale.workers, "executor.py", &[&name, &edges, &scale.workers]);
    let own = Program::Own("lab-pool", vec![edges.clone(), scale.workers.to_string()]);
    vec![
        way("sent", "networkx's graph, an argument of each job", &[NETWORKX]),
        way("global", "networkx's graph, a global; jobs have an index", &[NETWORKX]),
        way("dict", "a dict of lists, a global", PYTHON),
        way("freeze", "the same dict, after cowbell_fork.freeze(graph)", FREEZE),
        WayPlan {
            name: "cowbell",
            does: "a frozen arena and cowbell::pool, in Rust",
            needs: &[],
            workers: scale.workers,
            program: own,
        },
    ]
}

pub(super) fn of_executor(found: &mut Conclusion<'_>, scale: &Scale) {
    found.agree(&["sent", "global", "dict", "freeze", "cowbell"]);
    // A list has 8 bytes for the end of each edge.
    let least = scale.edges * 16;
    if let (Some(sent), Some(global)) = (found.watched("sent"), found.watched("global")) {
        found.say(format!(
            "Sent with its job, the graph is unpickled by each worker into {} of new memory. Inherited it is copied as it is walked, {} by each.",
            bytes(sent.new_bytes),
            bytes(global.copied_bytes)
        ));
        found.expect(sent.new_bytes >= 2 * least, "a worker that is sent the graph has it as new memory");
        found.expect(global.new_bytes < sent.new_bytes / 4, "a worker that inherits the graph has little new memory");
    }
    if let Some(dict) = found.watched("dict") {
        found.say(format!("A plain dict of lists is copied, too: {} by each worker.", bytes(dict.copied_bytes)));
        found.expect(dict.copied_bytes >= least / 2, "a worker that walks the inherited dict copies it");
    }
    shared(found, "freeze", "Made immortal, the same dict leaves each worker with", least);
    shared(found, "cowbell", "In a frozen arena, with the same answers, each process of the pool has", least);
}

pub(super) fn collector(scale: &Scale, _: &WorkDir) -> Vec<WayPlan> {
    let way = |name, does| script(name, does, PYTHON, 1, "collector.py", &[&name, &scale.lists]);
    vec![
        way("neither", "the child collects garbage"),
        way("disable", "gc.disable() before the fork: it never does"),
        way("freeze", "gc.disable(), gc.freeze(), fork, gc.enable()"),
        way("object", "a worker is sent the lists"),
        way("handle", "a worker is sent their place in a table"),
    ]
}

pub(super) fn of_collector(found: &mut Conclusion<'_>, scale: &Scale) {
    found.agree(&["neither", "disable", "freeze", "object", "handle"]);
    let data = scale.lists_bytes();
    let all = ["neither", "disable", "freeze"].map(|name| found.watched(name));
    if let [Some(neither), Some(disable), Some(freeze)] = all {
        found.say(format!(
            "A collection in the child writes to each list that it visits, and copies {}. After gc.freeze it visits none of them: {}; without any \
             collection it is {}.",
            bytes(neither.copied_bytes),
            bytes(freeze.copied_bytes),
            bytes(disable.copied_bytes)
        ));
        found.expect(neither.copied_bytes >= data / 3, "a collection copies the lists");
        found.expect(freeze.copied_bytes < neither.copied_bytes / 4, "after gc.freeze a collection copies little");
    }
    if let (Some(object), Some(handle)) = (found.watched("object"), found.watched("handle")) {
        found.say(format!(
            "A worker that is sent the lists has {} of new memory; one that is sent where they are has {} of its own.",
            bytes(object.new_bytes),
            bytes(own(handle))
        ));
        found.expect(object.new_bytes >= data / 2, "a worker that is sent the lists has them as new memory");
        found.expect(own(handle) < own(object) / 4, "a worker that is sent a handle has little of its own");
    }
}
