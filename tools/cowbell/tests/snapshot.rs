//! `cowbell snapshot` on trees whose every page is known: a C program follows a script, a model of copy-on-write
//! follows the same one, and the tool must agree with the model to the page.

#[path = "snapshot/model.rs"]
mod model;
#[path = "snapshot/place.rs"]
mod place;
#[path = "snapshot/refused.rs"]
mod refused;

use cowbell::sys::procfs::smaps;
use cowbell::sys::{page_size, process};
use model::{COUNTS, Models, NAMES, random_script};
use place::{Place, Tree, text};
use refused::refused;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn counts(pages: &Value) -> BTreeMap<&'static str, u64> {
    let count = |name: &str| name.split('.').fold(pages, |at, part| &at[part]).as_u64().unwrap_or(0);
    COUNTS.iter().map(|&name| (name, count(name))).collect()
}

fn process_of(snapshot: &Value, pid: i32) -> &Value {
    let mut processes = snapshot["processes"].as_array().expect("processes").iter();
    processes.find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("{pid} is not in {snapshot}"))
}

fn group<'a>(process: &'a Value, name: &str) -> &'a Value {
    let mut groups = process["memory"]["mappings"].as_array().expect("mappings").iter();
    groups.find(|group| group["name"] == name).map_or(&Value::Null, |group| &group["pages"])
}

/// Runs a script and demands that the tool agrees with the model on every process.
fn agrees_with_the_model(place: &Place, script: &str) {
    let (tree, models) = (Tree::start(place, script), Models::follow(script));
    let snapshot = place.json(tree.pids[0]);
    let frames = snapshot["evidence"]["frames"].as_bool().expect("a truth");
    assert_eq!(tree.pids.len(), models.processes.len(), "{script}");
    for (nth, (&pid, model)) in tree.pids.iter().zip(&models.processes).enumerate() {
        let process = process_of(&snapshot, pid);
        match model.left {
            Some('x') => assert_eq!(process["state"], "zombie", "{script}: {process}"),
            Some(_) => assert_eq!(process["memory"]["relation"], "unrelated", "{script}: {process}"),
            None => {
                // The first one's parent is these tests: another program, which nobody may not read.
                let readable = nth > 0 || place.user.is_empty();
                let relation = match (nth, readable) {
                    (0, true) => "unrelated",
                    (0, false) => "parent_unreadable",
                    _ => "forked",
                };
                assert_eq!(process["memory"]["relation"], relation, "{script}: {process}");
                for (mapping, name) in NAMES.iter().enumerate() {
                    let (found, expected) =
                        (counts(group(process, name)), models.expected(nth, mapping, frames, readable));
                    assert_eq!(found, expected, "{script}: process {nth}, {name}, frames {frames}, {:?}", place.user);
                }
            }
        }
    }
}

#[test]
fn each_page_is_told_as_a_model_of_copy_on_write_tells_it() {
    let place = &Place::with_users("model");
    for script in [
        "w0-99",
        "w0-99 (w0-9)(w5-24 w100-103)",
        "w0-99 f0-9 (f5-14 w3-3) w50-59",
        "w0-99 (w0-9 (w0-4 w200-200) w20-29) (d0-19)",
        "w0-9 (x) w0-9 (e) w0-4",
        "z0-19 w10-29 (z30-39 w0-4 w30-31)",
        "w0-9 ((((w0-0)w1-1)w2-2)w3-3)",
    ] {
        place.iter().for_each(|place| agrees_with_the_model(place, script));
    }
}

#[test]
fn forty_random_trees_agree_with_the_model() {
    let place = &Place::with_users("random");
    for seed in 0..40 {
        let script = random_script(seed);
        place.iter().for_each(|place| agrees_with_the_model(place, &script));
    }
}

/// Private, resident and anonymous bytes of a process by the name of the mapping.
type Sums = BTreeMap<String, (u64, u64, u64)>;

/// The sums of a process as smaps has them.
fn sums_of_smaps(pid: i32) -> Sums {
    let everything = cowbell::sys::map::Range { start: 0, len: usize::MAX };
    let mut sums = Sums::new();
    for mapping in smaps::mappings(pid, everything).expect("smaps").into_iter().filter(|mapping| mapping.rss > 0) {
        let name = mapping.mapping.name;
        let sum = sums.entry(if name.is_empty() { "[anonymous]".to_owned() } else { name }).or_default();
        *sum = (sum.0 + mapping.private, sum.1 + mapping.rss, sum.2 + mapping.anonymous);
    }
    sums
}

/// The sums of smaps for the processes of a tree that waits, and a snapshot of the same. A page of the C library's file is private
/// as long as nobody else on the machine has it mapped, so smaps must say the same before and after the snapshot.
fn beside_smaps(place: &Place, tree: &Tree) -> (BTreeMap<i32, Sums>, Value) {
    let of_tree = || tree.pids.iter().map(|&pid| (pid, sums_of_smaps(pid))).collect::<BTreeMap<_, _>>();
    for _ in 0..100 {
        let before = of_tree();
        let snapshot = place.json(tree.pids[0]);
        if before == of_tree() {
            return (before, snapshot);
        }
    }
    panic!("other processes map and unmap the C library all the time");
}

/// The private, resident and anonymous bytes of a process by mapping, as a snapshot has them.
fn sums_of_snapshot(process: &Value) -> Sums {
    let bytes = page_size().bytes() as u64;
    let mut found = BTreeMap::new();
    for group in process["memory"]["mappings"].as_array().expect("mappings") {
        let pages = &group["pages"];
        let count = |name: &str| pages[name].as_u64().expect("a count");
        let all = |name: &str| pages[name]["pages"].as_u64().expect("a count");
        let anonymous = counts(pages).values().sum::<u64>();
        let own = all("own") + count("file_exclusive");
        let sums = (own * bytes, (anonymous + count("file")) * bytes, anonymous * bytes);
        if sums.1 > 0 {
            found.insert(group["name"].as_str().expect("a name").to_owned(), sums);
        }
    }
    found
}

#[test]
fn private_pages_are_those_of_smaps_in_every_mapping() {
    for place in Place::with_users("smaps") {
        // All wait in read(2), so that nothing changes between the two readers.
        let tree = Tree::start(&place, "w0-299 f0-19 (w0-49 f10-29 (w40-59)) (z300-320 w310-330 d0-9)");
        // A program that starts and ends beside the snapshot may have pages of the C library for a moment that smaps did
        // not meet. What is wrong always is wrong in each of these.
        let mut differences = Vec::new();
        let is_right = (0..5).any(|_| {
            let (kernel, snapshot) = beside_smaps(&place, &tree);
            let told = |pid: &i32| {
                let process = process_of(&snapshot, *pid);
                let (found, kernel) = (sums_of_snapshot(process), &kernel[pid]);
                let uss: u64 = kernel.values().map(|sums| sums.0).sum();
                let is_right = found == *kernel && process["memory"]["uss_bytes"] == uss;
                (!is_right).then(|| format!("{pid}: {found:?}, by smaps {kernel:?}"))
            };
            differences = tree.pids.iter().filter_map(told).collect();
            differences.is_empty()
        });
        assert!(is_right, "private, resident and anonymous bytes: {differences:#?}");
    }
}

/// Text without its line breaks.
fn words(bytes: &[u8]) -> String {
    text(bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn memory_that_parent_and_child_each_mapped_after_the_fork_is_not_called_a_copy() {
    for place in Place::with_users("both") {
        // The same call after the same history: the kernel gives both the same addresses.
        let tree = Tree::start(&place, "w0-399 (n w0-9) n");
        let snapshot = place.json(tree.pids[0]);
        let child = process_of(&snapshot, tree.pids[1]);
        let mapped = &group(child, "[anonymous]")["own"];
        let count = |name: &str| mapped[name].as_u64().expect("a count");
        assert!(count("copied_or_new") >= 64, "{mapped}");
        // The heap is older than the fork, which its other pages show.
        let heap = &group(child, "[heap]")["own"];
        assert_eq!((&heap["differs"], &heap["copied_or_new"]), (&10.into(), &0.into()), "{heap}");
        let shown = words(&place.snapshot(&[&tree.pids[0].to_string()]).stdout);
        let says = "copied, or mapped by each since the fork";
        assert!(shown.contains(says) && !shown.contains("one of the two copied it"), "{shown}");
    }
}

#[test]
fn the_sums_are_those_of_the_processes() {
    for place in Place::with_users("sums") {
        let tree = Tree::start(&place, "w0-399 (w0-99)(w0-49 (w200-209))");
        let snapshot = place.json(tree.pids[0]);
        let total = &snapshot["total"];
        let number = |value: &Value| value.as_u64().expect("a number");
        let bytes = page_size().bytes() as u64;
        assert_eq!(total["processes"], 4);
        let saved = number(&total["unshared_bytes"]) - number(&total["takes_bytes"]);
        assert_eq!(total["saved_bytes"], saved);
        // The four heaps have 1600 pages, of which 560 are different ones; other mappings are shared as well.
        assert!(saved >= (1600 - 560) * bytes, "{total}");
        let rss: u64 = tree.pids.iter().map(|&pid| number(&process_of(&snapshot, pid)["memory"]["rss_bytes"])).sum();
        assert_eq!(number(&total["unshared_bytes"]), rss, "nothing of huge page pools is here");
        // PSS is the lower where frames are not readable: by what the C library's other users share.
        assert!(number(&total["pss_bytes"]) <= number(&total["takes_bytes"]), "{total}");
        let children = &total["children"];
        let mut groups = children["mappings"].as_array().expect("mappings").iter();
        let heap = &groups.find(|group| group["name"] == "[heap]").expect("the heap")["pages"];
        // The second child shares the pages it wrote first with its own child: together they added these once.
        assert_eq!((&heap["own"]["pages"], &heap["own"]["differs"]), (&110.into(), &110.into()), "{heap}");
        assert!(number(&children["own_bytes"]) >= 110 * bytes);
        let added = &children["added_bytes"];
        if snapshot["evidence"]["frames"] == true {
            assert!((160 * bytes..200 * bytes).contains(&number(added)), "{children}");
        } else {
            assert!(added.is_null(), "{children}");
        }
    }
}

#[test]
fn a_process_in_the_same_memory_has_nothing_of_its_own_and_adds_nothing() {
    for place in Place::with_users("same") {
        let alone = Tree::start(&place, "w0-99");
        let tree = Tree::start(&place, "w0-99 v");
        let snapshot = place.json(tree.pids[0]);
        let process = process_of(&snapshot, tree.pids[1]);
        assert_eq!(process["memory"]["relation"]["same_memory"]["of"], tree.pids[0], "{process}");
        assert_eq!(process["memory"]["pages"]["own"]["pages"], 0);
        assert_eq!((&snapshot["total"]["processes"], &snapshot["total"]["memories"]), (&2.into(), &1.into()));
        assert_eq!(snapshot["total"]["children"]["own_bytes"], 0);
        assert_eq!(place.json(alone.pids[0])["total"]["processes"], 1);
        let shown = text(&place.snapshot(&["-q", &tree.pids[0].to_string()]).stdout);
        assert!(shown.starts_with("2 processes in 1 memory: ") && !shown.contains("children's own"), "{shown}");
    }
}

#[test]
fn a_memory_of_which_others_have_pages_is_known_to_be_one_too() {
    for place in Place::with_users("one") {
        // Pages that the forked child has not written are nobody's alone.
        let tree = Tree::start(&place, "w0-99 (w0-9) v");
        let snapshot = place.json(tree.pids[0]);
        assert_eq!(process_of(&snapshot, tree.pids[1])["memory"]["relation"], "forked", "{:?}", place.user);
        let same = &process_of(&snapshot, tree.pids[2])["memory"]["relation"]["same_memory"]["of"];
        assert_eq!(*same, tree.pids[0], "{:?}", place.user);
    }
}

#[test]
fn where_the_kernel_does_not_say_who_runs_in_one_memory_a_frame_does_or_it_is_a_perhaps() {
    for place in Place::with_users("unsaid") {
        let filtered = place.compile("filtered", include_str!("targets/filtered.c"));
        let tree = Tree::start(&place, "w0-99 v");
        let snapshot = |arguments: &[&str]| {
            let mut command = place.command(&filtered);
            command.arg("kcmp").arg(place.tool()).arg("snapshot").args(arguments).arg(tree.pids[0].to_string());
            let output = command.output().expect("the tool can be started");
            assert!(output.status.success(), "{}", text(&output.stderr));
            output.stdout
        };
        let json: Value = serde_json::from_slice(&snapshot(&["--json"])).expect("JSON");
        let relation = &process_of(&json, tree.pids[1])["memory"]["relation"];
        let shown = words(&snapshot(&[]));
        if json["evidence"]["frames"] == true {
            assert_eq!(relation["same_memory"]["of"], tree.pids[0], "{relation}");
            assert!(shown.contains("2 processes in 1 memory: "), "{shown}");
        } else {
            assert_eq!(relation, "forked_or_same_memory");
            let says = format!("perhaps runs in the memory of {}, and nothing is its own", tree.pids[0]);
            assert!(shown.contains(&says), "{shown}");
        }
    }
}

#[test]
fn pages_of_a_siblings_memory_are_not_told_as_the_parents() {
    for place in Place::with_users("sibling") {
        let tree = Tree::start(&place, "w0-99 (w0-9 p)");
        let snapshot = place.json(tree.pids[0]);
        let sibling = process_of(&snapshot, tree.pids[2]);
        assert_eq!(sibling["parent"], tree.pids[0]);
        let memory = &sibling["memory"];
        assert_eq!(memory["relation"]["same_memory"]["of"], tree.pids[1], "{:?}: {sibling}", place.user);
        assert_eq!((&memory["pages"]["shared_with_parent"], &memory["pages"]["file"]), (&0.into(), &0.into()));
        let shown = words(&place.snapshot(&[&tree.pids[0].to_string()]).stdout);
        let says = format!("runs in the memory of {}, where its pages are counted", tree.pids[1]);
        assert!(shown.contains(&says) && shown.contains("3 processes in 2 memories: "), "{shown}");
    }
}

#[test]
fn a_process_whose_main_thread_has_ended_is_read_through_another() {
    let place = Place::new("thread");
    let tree = Tree::start(&place, "w0-9 t");
    let snapshot = place.json(tree.pids[0]);
    let process = process_of(&snapshot, tree.pids[0]);
    assert_eq!(process["state"], "read", "{process}");
    assert!(group(process, "[heap]")["own"]["new"].as_u64() >= Some(10), "{process}");
}

#[test]
fn a_thread_stands_for_its_process() {
    let place = Place::new("tid");
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(process::tid()).expect("a receiver");
        let _closed = ended.recv();
    });
    let tid = told.recv().expect("a thread");
    let snapshot = place.json(tid);
    drop(end);
    thread.join().expect("the thread");
    assert_eq!(snapshot["pid"], process::pid());
    let note = format!("{tid} is a thread of process {}", process::pid());
    assert_eq!(snapshot["notes"][0], note);
}

#[test]
fn the_text_shows_the_tree_within_eighty_columns() {
    for place in Place::with_users("text") {
        let tree = Tree::start(&place, "w0-299 f0-9 (w0-99 (w0-9 f0-9)(x)) (e) (d0-9)");
        let output = place.snapshot(&[&tree.pids[0].to_string()]);
        let shown = text(&output.stdout);
        for (pid, indent) in tree.pids.iter().zip(["", "  ", "    ", "    ", "  ", "  "]) {
            assert!(shown.lines().any(|line| line.starts_with(&format!("{indent}{pid} "))), "{pid} in {shown}");
        }
        let words = words(&output.stdout);
        for part in [
            "if nothing were shared",
            "children's own",
            "is ending or has ended: no memory to read",
            "not a fork of what",
            "[heap]",
        ] {
            assert!(words.contains(part), "{part:?} in {shown}");
        }
        let too_long = |line: &&str| line.chars().count() > 80;
        assert_eq!(shown.lines().find(too_long), None);
        assert_eq!(words.contains("is known, but not with whom"), words.contains("the sum of PSS"), "{shown}");
    }
}

#[test]
fn how_much_is_said_is_asked_for() {
    let place = Place::new("look");
    let tree = Tree::start(&place, "w0-299 (w0-99)");
    let [top, child] = [tree.pids[0].to_string(), tree.pids[1].to_string()];
    let shown = |arguments: &[&str]| {
        let output = place.snapshot(&[arguments, &[&top]].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let quiet = shown(&["-q"]);
    assert!(quiet.starts_with("2 processes: ") && !quiet.contains(&child), "{quiet}");
    let verbose = shown(&["-v"]);
    for part in ["the children's mappings", &format!("mappings of {top}"), &format!("mappings of {child}")] {
        assert!(verbose.contains(part), "{part} in {verbose}");
    }
    let short = shown(&["--top", "1"]);
    assert!(short.contains("[heap]") && !short.contains("[stack]") && short.contains(" more\n"), "{short}");
    let file = place.folder.join("report");
    let name = file.to_str().expect("text");
    assert_eq!(shown(&["-q", "-o", name]), "");
    assert!(std::fs::read_to_string(&file).expect("the report").starts_with("2 processes: "));
    refused(&place, &["-o", name, &top], 1, "--force replaces it");
}

#[test]
fn two_tebibytes_of_reserved_addresses_cost_no_time_and_hide_no_page() {
    let place = Place::new("reserve");
    let new_pages = |script: &str| {
        let tree = Tree::start(&place, script);
        let started = std::time::Instant::now();
        let snapshot = place.json(tree.pids[0]);
        // Word by word it would be gigabytes to read.
        assert!(started.elapsed().as_secs() < 5 || snapshot["evidence"]["zero_pages"] == false, "{script:?}");
        group(process_of(&snapshot, tree.pids[0]), "[anonymous]")["own"]["new"].as_u64().expect("a count")
    };
    assert_eq!(new_pages("r"), new_pages("w0-0") + 2);
}

#[test]
fn processes_that_come_and_go_are_no_error() {
    let place = Place::new("storm");
    let script = "echo ready; while :; do /bin/true & /bin/true; (:); wait; done";
    let mut storm = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh");
    let mut line = String::new();
    BufReader::new(storm.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let mut states = BTreeSet::new();
    for _ in 0..60 {
        let snapshot = place.json(storm.id() as i32);
        for process in snapshot["processes"].as_array().expect("processes") {
            states.insert(process["state"].as_str().expect("a state").to_owned());
        }
    }
    storm.kill().expect("the storm ends");
    let _status = storm.wait();
    println!("states seen: {states:?}");
    assert!(states.contains("read") && !states.contains("failed"), "{states:?}");
}
