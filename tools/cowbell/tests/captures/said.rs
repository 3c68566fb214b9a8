//! First sentences that must not be false, each of a made-up job that shows it.

use crate::kit::{Child, HEAP, PAGE, Scratch, capture, child, shown, with_records};
use serde_json::{Value, json};

/// The report of a capture, on one line.
fn report(capture: &str) -> String {
    let scratch = Scratch::new();
    let said = shown(&["report", &scratch.file("capture", capture)]);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same job, with a process that was a child as one that forked.
fn as_parent(capture: &str, pid: i32) -> String {
    let role = |role: &str| format!("\"pid\":{pid},\"role\":\"{role}\"");
    assert!(capture.contains(&role("child")));
    capture.replace(&role("child"), &role("parent"))
}

#[test]
fn what_children_copied_is_no_place_where_the_parent_pays() {
    let theirs = Child { line: 7, source: "for x in data:".to_owned(), ..child(101, 12_000) };
    let parents = Child { line: 9, source: "buf[i] = 1".to_owned(), ..child(102, 18_000) };
    let said = report(&as_parent(&capture(&[theirs.clone(), parents.clone()]), 102));
    assert!(said.starts_with("THE PARENT PAYS: who forked copied 70.3 MiB while its children lived"), "{said}");
    assert!(said.contains("job.py:9") && !said.contains("job.py:7"), "{said}");
    // And the other way round.
    let (more, less) = (Child { copied: 20_000, ..theirs }, parents);
    let said = report(&as_parent(&capture(&[more, less]), 102));
    assert!(said.starts_with("COPIED: 1 child") && said.contains("job.py:7") && !said.contains("job.py:9"), "{said}");
}

#[test]
fn where_the_parent_paid_is_said_not_to_be_known_and_why() {
    let unseen = |child: Child| Child { traced: false, ..child };
    let said = report(&as_parent(&capture(&[unseen(child(101, 100)), unseen(child(102, 18_000))]), 102));
    assert!(said.starts_with("THE PARENT PAYS") && !said.contains("job.py:"), "{said}");
    assert!(said.contains("Where not known: by code that count mode does not see"), "{said}");
}

#[test]
fn much_is_not_well_because_there_was_more() {
    let of = |pid, copied| Child { traced: false, ..child(pid, copied) };
    let said = |copied: &[u64]| report(&capture(&(101..).zip(copied).map(|(pid, &n)| of(pid, n)).collect::<Vec<_>>()));
    // Each shared 4 GiB. So much of one, or of all, is told of.
    assert!(said(&[100_000]).starts_with("COPIED: 1 child copied 390.6 MiB of the 4.0 GiB"), "{}", said(&[100_000]));
    assert!(said(&[10_000]).starts_with("SHARED: all is well: 1 child copied 39.1 MiB of the 4.0 GiB"), "little");
    let nine = [8_000; 9];
    assert!(said(&nine).starts_with("COPIED: 9 children copied 281.2 MiB of the 36.0 GiB"), "{}", said(&nine));
    assert!(said(&nine[..4]).starts_with("SHARED: all is well: 4 children copied 125.0 MiB"), "little");
    // And where it may be so much it is not well for certain.
    let uncounted = Child { uncounted: 100_000, ..of(101, 10) };
    let said = report(&capture(&[uncounted]));
    assert!(said.starts_with("UNCERTAIN: 1 child copied 40.0 KiB to 390.7 MiB of the 4.0 GiB"), "{said}");
}

#[test]
fn children_of_several_processes_have_parents() {
    let of = |pid, parent| Child { parent, traced: false, ..child(pid, 110_000) };
    let said = |parent| report(&capture(&[of(101, 100), of(102, parent)]));
    assert!(said(100).contains("that they shared with their parent."), "{}", said(100));
    assert!(said(101).contains("that they shared with their parents."), "{}", said(101));
}

/// A process that was found running, with so many pages of its own and so many that others have, and its end.
fn found(number: u32, pid: i32, parent: i32, exclusive: u64, shared: u64) -> Vec<Value> {
    let mapping = json!({"start": HEAP, "end": HEAP + 512 * PAGE, "permissions": "rw-p", "offset": 0, "name": "[heap]",
        "watched": "events"});
    vec![
        json!({"process": {"pid": pid, "parent": parent, "time_ns": 1, "origin": "attached", "command": ["sh"],
            "executable": null}}),
        json!({"begin": {"interval": number, "pid": pid, "role": "attached", "time_ns": 5, "mode": "count", "arm_ns": 1,
            "mappings": [mapping],
            "held": {"shared": shared, "exclusive": exclusive, "zero": 0, "file": 0, "swapped": 0}}}),
        json!({"end": {"interval": number, "time_ns": 90, "closed": "detached", "pages": [], "contents": [],
            "unmapped_uncounted": 0}}),
    ]
}

/// The report of processes that were found running.
fn attached(processes: &[Vec<Value>]) -> String {
    let all = with_records(&[], &processes.concat());
    let started = "\"origin\":\"started\"";
    assert!(all.contains(started));
    // Nobody was started.
    report(&all.lines().filter(|line| !line.contains(started)).map(|line| format!("{line}\n")).collect::<String>())
}

#[test]
fn who_is_found_without_a_parent_does_not_differ_from_one() {
    let alone = attached(&[found(1, 100, 0, 512, 0)]);
    let due =
        "NOTHING TO SHARE: 1 process shared no private memory with others when cowbell attached, and forked nothing";
    assert!(alone.starts_with(due), "{alone}");
    let not_known = "Whether it had copied any of that is not known: its parent was not watched.";
    assert!(alone.contains(not_known) && !alone.contains("the parent's"), "{alone}");
    // It shares with somebody, who is not watched.
    let orphan = attached(&[found(1, 100, 0, 512, 300)]);
    assert!(orphan.starts_with("BEFORE: the process had 2.0 MiB of its own when cowbell attached"), "{orphan}");
    assert!(orphan.contains(not_known) && !orphan.contains("the parent's"), "{orphan}");
    // A parent and its child, which have memory in common.
    let both = attached(&[found(1, 100, 0, 512, 300), found(2, 101, 100, 512, 300)]);
    assert!(both.starts_with("BEFORE: the processes had 4.0 MiB of their own when cowbell attached"), "{both}");
    assert!(both.contains("tells what of it differs from the parent's") && !both.contains(not_known), "{both}");
    // And one that runs another program.
    let afresh = attached(&[found(1, 100, 0, 512, 0), found(2, 101, 100, 512, 0)]);
    assert!(afresh.starts_with("NOTHING TO SHARE: 2 processes shared no private memory with others"), "{afresh}");
}
