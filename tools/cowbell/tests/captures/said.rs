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
    assert!(said.starts_with("THE PARENT PAYS: the parent copied 70.3 MiB while its children lived"), "{said}");
    assert!(said.contains("job.py:9") && !said.contains("job.py:7"), "{said}");
    // And the other way round.
    let (more, less) = (Child { copied: 20_000, ..theirs }, parents);
    let said = report(&as_parent(&capture(&[more, less]), 102));
    assert!(said.starts_with("COPIED: 1 child") && said.contains("job.py:7") && !said.contains("job.py:9"), "{said}");
}

#[test]
fn of_children_that_nobody_watched_nothing_is_told() {
    let parents = child(102, 18_000);
    let lived = "while its children lived";
    let alone = report(&as_parent(&capture(std::slice::from_ref(&parents)), 102));
    assert!(alone.starts_with("THE PARENT PAYS") && alone.contains(&format!("{lived}. ")), "{alone}");
    let children = [child(101, 100), parents];
    let all = report(&as_parent(&capture(&children), 102));
    assert!(all.contains(&format!("{lived}, the children copied 400.0 KiB. ")), "{all}");
    let gap = json!({"gap": {"pid": 103, "time_ns": 5, "what": "too_many_children", "detail": "no more than 1"}});
    let some = report(&as_parent(&with_records(&children, &[gap]), 102));
    assert!(some.contains(&format!("{lived}, the children that were watched copied 400.0 KiB. ")), "{some}");
}

#[test]
fn forks_that_copied_large_page_tables_are_told() {
    let of = |bytes: u64, children: i32| {
        let plain =
            capture(&(101..101 + children).map(|pid| Child { traced: false, ..child(pid, 9) }).collect::<Vec<_>>());
        let forked = "\"origin\":\"forked\",";
        assert!(plain.contains(forked));
        report(&plain.replace(forked, &format!("{forked}\"page_tables\":{bytes},")))
    };
    let due = "Forks copied 6.0 MiB of page tables for 3 children, at most 2.0 MiB for one.";
    assert!(of(2 << 20, 3).contains(due), "{}", of(2 << 20, 3));
    assert!(of(2 << 20, 1).contains("Forks copied 2.0 MiB of page tables for 1 child."), "{}", of(2 << 20, 1));
    // Little of each may be much in all.
    assert!(
        of(512 << 10, 32).contains("Forks copied 16.0 MiB of page tables for 32 children, at most 512.0 KiB for one.")
    );
    assert!(!of(512 << 10, 31).contains("Forks copied"));
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
    // Others that copy nothing make it no better for the one that copies half of what it shared: here 4 MiB each.
    let small = |copied: &[u64]| {
        let children = (101..).zip(copied).map(|(pid, &n)| of(pid, n)).collect::<Vec<_>>();
        report(&capture(&children).replace("\"shared\":1048576", "\"shared\":1024"))
    };
    let one = small(&[0, 0, 512, 0, 0]);
    assert!(one.starts_with("COPIED: 5 children copied 2.0 MiB of the 20.0 MiB"), "{one}");
    assert!(small(&[0, 0, 511, 0, 0]).starts_with("SHARED: all is well"), "less than half");
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
    // The process shares with somebody, who is not watched.
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

/// A page run of an interval as another class.
fn as_class(capture: &str, class: &str) -> String {
    assert!(capture.contains("\"copy\""));
    capture.replace("\"copy\"", &format!("\"{class}\""))
}

/// All the memory of a process, of which looks found so many private pages first and at most, and so many of files at most.
fn memory(pid: i32, first: u64, most: u64, files: u64, resident_max: u64) -> Value {
    json!({"memory": {"pid": pid, "time_ns": 5_000_050, "name": "job", "command": ["job"], "pages": null, "kernel": null,
        "page_tables": 0, "resident_max": resident_max * PAGE, "looks": {"first": first, "most": most, "files_most": files}}})
}

/// The record that a process executed a program.
fn executed(pid: i32, time_ns: u64, program: &str) -> Value {
    json!({"process": {"pid": pid, "parent": 1, "time_ns": time_ns, "origin": "executed", "command": [program], "executable": null}})
}

#[test]
fn who_was_found_running_counts_beside_a_child_that_came_later() {
    let mut server = found(8, 103, 1, 10, 20_000);
    server[2]["end"]["pages"] = json!([[HEAP, 18_000, "copy"]]);
    let later = Child { traced: false, ..child(101, 9) };
    let all = with_records(std::slice::from_ref(&later), &server);
    let said = report(&all);
    // The child shared 4 GiB, the server 78 MiB, of which it copied 70 MiB.
    assert!(
        said.starts_with("COPIED: the processes copied 70.3 MiB of the 4.1 GiB that they shared with others"),
        "{said}"
    );
    assert!(said.contains("Memory in MiB: shared at first;"), "{said}");
    // Where it is little, it is the sum as well.
    server[2]["end"]["pages"] = json!([[HEAP, 20, "copy"]]);
    let said = report(&with_records(&[later], &server));
    assert!(said.starts_with("SHARED: all is well: the processes copied 116.0 KiB of the 4.1 GiB"), "{said}");
}

#[test]
fn who_worked_before_executing_a_program_is_told() {
    let job = |copied| {
        let child = Child { traced: false, ..child(101, copied) };
        let all = with_records(&[child], &[executed(101, 5_000_050, "true"), memory(101, 1 << 20, 3 << 20, 0, 0)]);
        report(&all.replace("\"closed\":\"exit\"", "\"closed\":\"exec\""))
    };
    let said = job(100_000);
    // Memory that the program took after that is not the worker's.
    assert!(
        said.starts_with("COPIED: 1 child copied 390.6 MiB of the 4.0 GiB that it shared with its parent."),
        "{said}"
    );
    assert!(said.contains("1 process executed a program, which shares nothing with its starter"), "{said}");
    // On the way there some pages are copied in any case.
    let said = job(200);
    assert!(said.starts_with("NOTHING TO SHARE: ") && said.contains("1 program was started afresh by exec"), "{said}");
}

#[test]
fn who_ran_programs_in_turn_is_no_wrapper() {
    let job = |copied, more: &[Value]| {
        let child = Child { traced: false, ..child(101, copied) };
        report(&with_records(&[child], &[more, &[executed(100, 6_000_000, "ls")]].concat()))
    };
    let said = job(100_000, &[]);
    assert!(said.starts_with("COPIED: 1 child copied 390.6 MiB") && !said.contains("Left out"), "{said}");
    let said = job(9, &[memory(101, 1 << 20, 2 << 20, 0, 0)]);
    assert!(said.starts_with("NEW: 1 child grew by at least 4.0 GiB") && !said.contains("Left out"), "{said}");
    // A shell that asked others where the program is.
    let said = job(9, &[memory(100, 1, 1, 0, 9)]);
    assert!(said.starts_with("NOTHING TO SHARE: nothing forked under python3 /srv/job.py once it ran ls."), "{said}");
    assert!(said.contains("Left out: 1 process of a wrapper"), "{said}");
}

#[test]
fn what_nobody_watched_is_not_said_to_be_well() {
    let little = [Child { traced: false, ..child(101, 9) }];
    let whole = capture(&little);
    assert!(report(&whole).starts_with("SHARED: all is well: 1 child copied 36.0 KiB"), "{}", report(&whole));
    let unwatched = json!({"gap": {"pid": 102, "time_ns": 9, "what": "too_many_children", "detail": ""}});
    let refused = whole.replacen("\"watched\":\"events\"", "\"watched\":{\"refused\":\"huge\"}", 1);
    let cut: String =
        whole.lines().filter(|line| !line.contains("\"finish\"")).map(|line| format!("{line}\n")).collect();
    let one_side = whole.replace("\"who\":\"both\"", "\"who\":\"child\"");
    for capture in [with_records(&little, &[unwatched]), refused, cut, one_side] {
        let said = report(&capture);
        assert!(said.contains("SHARED, of what was seen: 1 child copied 36.0 KiB of the 4.0 GiB"), "{said}");
    }
    // The program may have forked after the end of a capture that was cut off.
    let begun: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
    let said = report(&begun);
    assert!(said.contains("UNKNOWN: no process was watched under python3 /srv/job.py. Watched"), "{said}");
}

#[test]
fn pages_of_files_are_no_part_of_what_was_shared() {
    let job = Child { traced: false, ..child(101, 100_000) };
    let files = as_class(&capture(std::slice::from_ref(&job)), "private_file");
    let said = report(&files);
    let due =
        "COPIED: 1 child copied 390.6 MiB, of which 390.6 MiB are pages of files; it shared 4.0 GiB with its parent.";
    assert!(said.starts_with(due), "{said}");
    // But those of frozen arenas, which were there at the fork.
    let arenas = files.replace("\"file\":0", "\"file\":262144");
    let due = "COPIED: 1 child copied 390.6 MiB of the 5.0 GiB that it shared with its parent.";
    assert!(report(&arenas).starts_with(due), "{}", report(&arenas));
    // And a page of a library here and there is no word.
    let few = capture(&[job]).replace("100000,\"copy\"]", "99000,\"copy\"],[1342000000000,1000,\"private_file\"]");
    assert!(report(&few).starts_with("COPIED: 1 child copied 390.6 MiB of the 4.0 GiB"), "{}", report(&few));
}

#[test]
fn a_file_that_was_mapped_for_a_moment_is_no_new_memory() {
    let job = |most: u64| {
        let little = Child { traced: false, ..child(101, 9) };
        report(&with_records(&[little], &[memory(101, 1000, most, 50, 51_562)]))
    };
    let said = job(1000);
    // No look saw what was resident at the peak: 50,512 pages less 2 MiB for what the kernel counts late.
    assert!(said.starts_with("SHARED, of what was seen: 1 child copied 36.0 KiB"), "{said}");
    assert!(
        said.contains("At least 195.3 MiB more were in the memory of a child for a moment than cowbell saw"),
        "{said}"
    );
    let said = job(51_000);
    assert!(said.starts_with("NEW: 1 child grew by at least 195.3 MiB") && !said.contains("for a moment"), "{said}");
}

#[test]
fn no_remedy_saves_more_than_it_is_said_to() {
    // Looks found 40 MiB of 400 at a line that unpickles: the rest may have grown there, too.
    let stack = json!({"stack": {"stack": 9, "interval": 1, "native": [], "language": "python", "frames":
        [{"function": "loads", "file": "/usr/lib/python3.13/multiprocessing/reduction.py", "line": 51}]}});
    let grew = json!({"grew": {"pid": 101, "time_ns": 400, "pages": 10_240, "stack": 9}});
    let more = [stack, grew, memory(101, 1000, 103_400, 0, 0)];
    let said = report(&with_records(&[child(101, 9)], &more));
    assert!(said.starts_with("NEW: 1 child grew by at least 400.0 MiB"), "{said}");
    assert!(said.contains("is not pickled (saves up to 400.0 MiB)"), "{said}");
}

#[test]
fn bounds_that_read_alike_are_one_figure() {
    let said = report(&capture(&[Child { doubtful: 3, traced: false, ..child(101, 100_000) }]));
    assert!(said.starts_with("COPIED: 1 child copied 390.6 MiB of the 4.0 GiB"), "{said}");
}

#[test]
fn tracing_is_no_remedy_for_who_traces() {
    let uncounted = capture(&[Child { uncounted: 100_000, ..child(101, 10) }]);
    let said = report(&uncounted);
    assert!(said.starts_with("UNCERTAIN: ") && !said.contains("--mode trace sees"), "{said}");
    // Stacks were not asked for, or this process could be counted only.
    let freed = "If the interpreter freed its objects as it ended, those copies are included";
    let all = capture(&[child(101, 100_000)]);
    let said = report(&all.replace("\"stacks_every\":10", "\"stacks_every\":0"));
    assert!(said.contains(&format!("{freed}: --stacks 1/64 tells.")), "{said}");
    let counted = |line: &str| match line.starts_with("{\"begin\"") {
        true => line.replace("\"mode\":\"trace\"", "\"mode\":\"count\""),
        false => line.to_owned(),
    };
    let said = report(&all.lines().map(|line| counted(line) + "\n").collect::<String>());
    assert!(said.contains(&format!("{freed}.")), "{said}");
}

#[test]
fn a_line_from_few_samples_says_by_how_much_it_can_be_off() {
    let few = capture(&[child(101, 20)]).replace("\"shared\":1048576", "\"shared\":20");
    // One of the two samples stands for nearly all pages: they say as much as 1.1 would.
    let said = report(&few);
    assert!(said.starts_with("COPIED: ") && said.contains("Where 100 ±91 % /srv/job.py:14 for x in data:"), "{said}");
}

#[test]
fn who_did_not_grow_is_not_said_to() {
    let job = |new: &[u64]| {
        let pids = || (101..).zip(new);
        let more: Vec<Value> = pids().map(|(pid, &new)| memory(pid, 1000, 1000 + new, 0, 0)).collect();
        report(&with_records(&pids().map(|(pid, _)| child(pid, 9)).collect::<Vec<_>>(), &more))
    };
    for (new, said) in [
        (&[0, 51_200][..], "NEW: one of 2 children grew by at least 200.0 MiB, and"),
        (&[51_200, 1, 51_000], "NEW: 2 of 3 children grew by at least 199.2 MiB each, and"),
        (&[51_200, 51_200], "NEW: 2 children grew by at least 200.0 MiB each, and"),
        (&[51_200, 5_120], "NEW: 2 children grew by at least 220.0 MiB in all, one by 200.0 MiB, and"),
    ] {
        assert!(job(new).starts_with(said), "{new:?}: {}", job(new));
    }
}

#[test]
fn a_remedy_that_nobody_would_find_is_not_told() {
    let job = |copied: u64| report(&capture(&[child(101, copied)]).replace("\"shared\":1048576", "\"shared\":40"));
    let (little, more) = (job(20), job(40));
    assert!(little.starts_with("COPIED: 1 child copied 80.0 KiB of the 160.0 KiB"), "{little}");
    assert!(more.contains("What helps") && !little.contains("What helps"), "{little}\n{more}");
}

#[test]
fn names_of_wide_characters_make_no_line_wider() {
    let job = Child {
        script: format!("/srv/{}.py", "数据".repeat(20)),
        source: "数据列表 ".repeat(20),
        function: "读取".repeat(30),
        ..child(101, 100_000)
    };
    let scratch = Scratch::new();
    let file = scratch.file("capture", capture(&[job]));
    let is_wide = |c: &char| ('\u{2e80}'..='\u{9fff}').contains(c);
    for line in shown(&["report", &file]).lines() {
        let width = line.chars().count() + line.chars().filter(is_wide).count();
        assert!(width <= 80, "{width}: {line}");
    }
}

#[test]
fn what_nobody_shared_was_not_copied_though_frames_do_not_tell() {
    let mut alone = found(8, 100, 1, 500, 0);
    alone[2]["end"]["pages"] = json!([[HEAP, 3, "copy_or_reuse"]]);
    let header = with_records(&[], &[]).lines().next().unwrap_or_default().to_owned();
    let finish = with_records(&[], &[]).lines().last().unwrap_or_default().to_owned();
    let lines = std::iter::once(header).chain(alone.iter().map(Value::to_string)).chain([finish]);
    let said = report(&lines.map(|line| line + "\n").collect::<String>());
    assert!(said.starts_with("NOTHING TO SHARE: 1 process shared no private memory with others"), "{said}");
}
