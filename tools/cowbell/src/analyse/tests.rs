//! Profiles of made-up captures, against sums taken another way.

use super::*;
use crate::record::Reader;
use crate::record::*;
use crate::views;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeMap;

pub const PAGE: u64 = 4096;
pub const HEAP: u64 = 0x1000_0000;
/// Pages of each mapping, of which there are three without a gap and a gap after them.
pub const PAGES: u64 = 16;

pub fn header() -> Record {
    Record::Header(Header {
        format: FORMAT.into(),
        version: VERSION,
        cowbell: "0".into(),
        kernel: "6.18".into(),
        page_size: PAGE,
        command: vec!["python3".into(), "job.py".into()],
        started_unix_ms: 0,
        mode: Mode::Trace,
        mode_reason: String::new(),
        who: Who::Both,
        stacks_every: 4,
        frames: true,
    })
}

pub fn mapping(nth: u64, name: &str) -> Mapping {
    let start = HEAP + nth * PAGES * PAGE;
    // A file's is code as well.
    let permissions = if name.starts_with('/') { "rwxp" } else { "rw-p" }.into();
    Mapping { start, end: start + PAGES * PAGE, permissions, offset: 0, name: name.into(), watched: Watched::Events }
}

pub fn begin(interval: u32) -> Record {
    Record::Begin(Begin {
        interval,
        pid: 100 + interval as i32,
        role: WatchReason::Child,
        time_ns: 50,
        mode: Mode::Trace,
        exact_stacks: false,
        mappings: vec![mapping(0, "[heap]"), mapping(1, "/usr/bin/python3.13"), mapping(2, "[anon:x]")],
        held: HeldPages { shared: 100, ..HeldPages::default() },
        arm_ns: 10,
    })
}

pub fn end(interval: u32, pages: Vec<PageRun>, contents: Vec<Content>) -> Record {
    Record::End(End {
        interval,
        time_ns: 9000,
        closed: Closed::Exit,
        pages,
        contents,
        gone: vec![],
        unmapped_uncounted: 0,
        collector_new: None,
        kinds: None,
    })
}

pub fn event(page: u64, class: WriteClass, pc: u64) -> Event {
    // Places of no file, each by its own address.
    Event { time_ns: 100, page, tid: 7, pc, code: pc as u32, class, syscall: None, stack: None, caller: 0, byte: None }
}

/// A file with code in it, and places in it whose offsets are their numbers.
pub fn module(path: &str, places: &[u32]) -> Vec<Record> {
    let module = Module { module: 1, path: path.into(), device: "fe:00".into(), inode: 9, build_id: None };
    let place = |&code: &u32| Record::Place(Place { code, module: Some(1), offset: u64::from(code), pid: 0 });
    [Record::Module(module)].into_iter().chain(places.iter().map(place)).collect()
}

pub fn named(code: u32, frames: Vec<NativeFrame>) -> Code {
    Code { code, frames, address: u64::from(code), nameless: None, atomic: false }
}

pub fn profile(records: Vec<Record>) -> Summary {
    let mut profile = Profile::default();
    for record in records {
        profile.add(record);
    }
    profile.finish().0
}

/// A page of a made-up interval: the verdict, and what else is known.
#[derive(Clone, Debug)]
struct Page {
    class: WriteClass,
    event: Option<Event>,
    content: Option<Content>,
}

fn class() -> impl Strategy<Value = WriteClass> {
    prop_oneof![
        4 => Just(WriteClass::Copy),
        1 => Just(WriteClass::Reuse),
        1 => Just(WriteClass::CopyOrReuse),
        1 => Just(WriteClass::FirstTouch),
        1 => Just(WriteClass::ZeroPage),
        1 => Just(WriteClass::PrivateFile),
    ]
}

fn page() -> impl Strategy<Value = Page> {
    let syscall = option::weighted(0.2, 0..3i32);
    let event = (class(), 50..9000u64, 0..4u64, syscall, option::weighted(0.3, 1..4u32)).prop_map(
        |(class, time_ns, pc, syscall, stack)| Event {
            time_ns,
            page: 0,
            tid: 7,
            pc,
            code: pc as u32,
            class,
            syscall,
            stack,
            caller: 0,
            byte: None,
        },
    );
    let content = (0..600u32, 0..512u32, 0..512u32).prop_map(|(bytes, words, counts)| Content {
        page: 0,
        bytes: bytes.saturating_sub(300),
        words,
        counts,
        objects: counts > 0,
        hashes: 0,
        immortal: 0,
        ends: None,
        numbers: 0,
        marks: 0,
        made: 0,
        texts: 0,
        remembered: 0,
        iterators: 0,
        copies: 0,
    });
    (class(), option::of(event), option::of(content)).prop_map(|(class, event, content)| Page { class, event, content })
}

/// Pages by number, some beyond the last mapping.
fn interval() -> impl Strategy<Value = BTreeMap<u64, Page>> {
    btree_map(0..4 * PAGES, page(), 0..40)
}

/// The records of an interval, its pages in runs as long as they go.
fn records(interval: u32, pages: &BTreeMap<u64, Page>, closes: bool) -> Vec<Record> {
    let address = |nth: &u64| HEAP + nth * PAGE;
    let mut runs: Vec<PageRun> = Vec::new();
    for (nth, page) in pages {
        match runs.last_mut() {
            Some(run) if run.class == page.class && run.start + run.pages * PAGE == address(nth) => run.pages += 1,
            _ => runs.push(PageRun { start: address(nth), pages: 1, class: page.class }),
        }
    }
    let mut events: Vec<Event> =
        pages.iter().filter_map(|(nth, page)| Some(Event { page: address(nth), ..page.event? })).collect();
    events.sort_by_key(|event| event.time_ns);
    let contents = pages.iter().filter_map(|(nth, page)| Some(Content { page: address(nth), ..page.content? }));
    let closing = end(interval, runs, contents.collect());
    let mut records = vec![begin(interval), Record::Events { interval, events }];
    records.extend(closes.then_some(closing));
    records
}

fn copied(class: WriteClass) -> bool {
    matches!(class, WriteClass::Copy | WriteClass::CopyOrReuse | WriteClass::PrivateFile)
}

proptest! {
    #[test]
    fn every_table_adds_up_to_an_independent_sum(intervals in vec(interval(), 0..5)) {
        let mut all = vec![header()];
        for (nth, pages) in intervals.iter().enumerate() {
            all.extend(records(nth as u32, pages, true));
        }
        let summary = profile(all);
        let pages: Vec<&Page> = intervals.iter().flat_map(|interval| interval.values()).collect();
        let number = |is: &dyn Fn(&Page) -> bool| pages.iter().filter(|page| is(page)).count() as u64;
        let by_class = &summary.totals.pages;
        for (class, counted) in [
            (WriteClass::Copy, by_class.copy),
            (WriteClass::Reuse, by_class.reuse),
            (WriteClass::CopyOrReuse, by_class.copy_or_reuse),
            (WriteClass::FirstTouch, by_class.first_touch),
            (WriteClass::ZeroPage, by_class.zero_page),
            (WriteClass::PrivateFile, by_class.private_file),
        ] {
            prop_assert_eq!(counted, number(&|page| page.class == class), "{:?}", class);
        }
        let copies = number(&|page| copied(page.class));
        prop_assert_eq!(summary.totals.copied_pages, copies);
        prop_assert_eq!(summary.totals.copied_bytes, copies * PAGE);
        prop_assert_eq!(summary.intervals.iter().map(|a| a.copied_pages).sum::<u64>(), copies);
        prop_assert_eq!(summary.mappings.iter().map(|m| m.copied_pages).sum::<u64>(), copies);
        prop_assert_eq!(summary.mappings.iter().map(|m| m.pages.written()).sum::<u64>(), pages.len() as u64);
        prop_assert_eq!(summary.causes.iter().map(|c| c.copied_pages).sum::<u64>(), copies);
        let coded = number(&|page| copied(page.class) && page.event.is_some_and(|event| event.pc != 0));
        prop_assert_eq!(summary.functions.iter().map(|f| f.copied_pages).sum::<u64>(), coded);
        let by_kernel = number(&|page| copied(page.class) && page.event.is_some_and(|e| e.syscall.is_some()));
        prop_assert_eq!(summary.syscalls.iter().map(|s| s.copied_pages).sum::<u64>(), by_kernel);
        let compared = number(&|page| copied(page.class) && page.content.is_some());
        prop_assert_eq!(summary.contents.compared_pages, compared);
        let identical = number(&|page| copied(page.class) && page.content.is_some_and(|content| content.bytes == 0));
        prop_assert_eq!(summary.contents.identical_pages, identical);
        let bytes = pages.iter().filter(|p| copied(p.class)).filter_map(|p| Some(u64::from(p.content?.bytes)));
        prop_assert_eq!(summary.contents.changed_bytes, bytes.sum::<u64>());
        for (interval, pages) in summary.intervals.iter().zip(&intervals) {
            let mut times: Vec<u64> =
                pages.values().filter(|p| copied(p.class)).filter_map(|p| Some(p.event?.time_ns - 50)).collect();
            times.sort_unstable();
            prop_assert_eq!(interval.when.map(|when| when.first_ns), times.first().copied());
            prop_assert_eq!(interval.when.map(|when| when.last_ns), times.last().copied());
            let half = interval.when.map_or(0, |when| times.iter().filter(|time| **time <= when.half_ns).count());
            prop_assert!(half * 2 >= times.len());
        }
    }

    #[test]
    fn an_interval_without_an_end_counts_its_events(pages in interval()) {
        let mut all = vec![header()];
        all.extend(records(0, &pages, false));
        let summary = profile(all);
        let events: Vec<Event> = pages.values().filter_map(|page| page.event).collect();
        let copies = events.iter().filter(|event| copied(event.class)).count() as u64;
        prop_assert_eq!(summary.totals.copied_pages, copies);
        prop_assert_eq!(summary.totals.pages.written(), events.len() as u64);
        prop_assert!(summary.gaps.iter().any(|gap| gap.details.iter().any(|d| d.starts_with("cut off"))));
    }

    #[test]
    fn a_capture_read_back_gives_the_same_report(intervals in vec(interval(), 0..3)) {
        let mut all = vec![header()];
        for (nth, pages) in intervals.iter().enumerate() {
            all.extend(records(nth as u32, pages, true));
        }
        let lines: Vec<String> = all.iter().map(|record| serde_json::to_string(record).expect("JSON")).collect();
        let capture = lines.join("\n");
        let read = Reader::new(capture.as_bytes()).expect("a capture").map(|record| record.expect("a record"));
        let (read, live) = (profile(read.collect()), profile(all));
        let verbosity = views::Verbosity { top: 10, quiet: false, verbose: true };
        prop_assert_eq!(views::text(&read, &verbosity), views::text(&live, &verbosity));
        let json = |summary: &Summary| serde_json::to_value(summary).expect("JSON");
        prop_assert_eq!(json(&read), json(&live));
    }
}

#[test]
fn the_verdict_decides_where_an_event_contradicts_it() {
    let (copy, reuse) = (WriteClass::Copy, WriteClass::Reuse);
    let events = vec![
        event(HEAP, copy, 1),
        event(HEAP + PAGE, reuse, 2),
        event(HEAP + PAGE, copy, 4),
        event(HEAP + 9 * PAGE, copy, 3),
    ];
    let runs =
        vec![PageRun { start: HEAP, pages: 1, class: reuse }, PageRun { start: HEAP + PAGE, pages: 1, class: copy }];
    let summary = profile(vec![header(), begin(0), Record::Events { interval: 0, events }, end(0, runs, vec![])]);
    assert_eq!((summary.totals.pages.copy, summary.totals.pages.reuse), (1, 1));
    let functions: Vec<_> = summary.functions.iter().map(|f| (f.function.as_str(), f.copied_pages)).collect();
    assert_eq!(functions, [("unknown", 1)], "what was reused, and what is not in the verdict, has no copy to explain");
}

#[test]
fn a_list_that_is_only_read_is_reference_counting_by_the_line_that_reads_it() {
    let frame = |function: &str, line| NativeFrame {
        function: function.into(),
        file: Some("Objects/listobject.c".into()),
        line: Some(line),
    };
    let loop_line = Frame { function: "work".into(), file: "/home/me/job.py".into(), line: 12 };
    let stack = Stack {
        stack: 5,
        interval: 0,
        native: vec![8],
        language: Some("python".into()),
        frames: vec![loop_line],
        wrote: Wrote::ReferenceCount,
    };
    let events =
        (0..8).map(|nth| Event { stack: (nth % 4 == 0).then_some(5), ..event(HEAP + nth * PAGE, WriteClass::Copy, 8) });
    let runs = vec![PageRun { start: HEAP, pages: 8, class: WriteClass::Copy }];
    let contents = (0..8).map(|nth| Content { page: HEAP + nth * PAGE, bytes: 0, words: 0, ..Content::default() });
    let codes = vec![named(8, vec![frame("listiter_next", 3273)])];
    let source = Source { file: "/home/me/job.py".into(), line: 12, text: "for x in data:".into() };
    let mut records = module("/usr/bin/python3.13", &[8]);
    records.extend([
        Record::Stack(stack),
        Record::Source(source),
        Record::Events { interval: 0, events: events.collect() },
        end(0, runs, contents.collect()),
        Record::Symbols { codes },
    ]);
    let summary = profile([header(), begin(0)].into_iter().chain(records).collect());
    let line = &summary.script.lines[0];
    assert_eq!((line.file.as_str(), line.line, line.copied_pages_estimated), ("/home/me/job.py", 12, 8));
    assert_eq!((line.samples, summary.script.samples), (2, 2));
    assert_eq!(line.cause, Cause::ReferenceCount);
    assert_eq!(summary.functions[0].function, "listiter_next");
    assert_eq!(summary.functions[0].lines[0].line, 3273);
    let cause = &summary.causes[0];
    assert_eq!((cause.cause, cause.copied_pages), (Cause::ReferenceCount, 8));
    assert!(cause.remedy.is_some_and(|remedy| remedy.contains("numpy")));
    let verbosity = views::Verbosity { top: 10, quiet: false, verbose: true };
    let shown = anstream::adapter::strip_str(&views::text(&summary, &verbosity)).to_string();
    for part in
        ["8 pages (32.0 KiB) copied by 1 child", "/home/me/job.py:12", "for x in data:", "nothing written there lasted"]
    {
        assert!(shown.contains(part), "{part:?} in\n{shown}");
    }
}

#[test]
fn a_file_of_data_is_no_interpreter_whatever_it_is_called() {
    let data = |permissions: &str| {
        let Record::Begin(begun) = begin(0) else { panic!("it begins") };
        let map = Mapping { permissions: permissions.into(), ..mapping(1, "/srv/node.db") };
        let content = Content { page: HEAP, bytes: 1, words: 1, ..Content::default() };
        let summary = profile(vec![
            header(),
            Record::Begin(Begin { mappings: vec![mapping(0, "[heap]"), map], ..begun }),
            end(0, vec![PageRun { start: HEAP, pages: 1, class: WriteClass::Copy }], vec![content]),
        ]);
        summary.causes[0].cause
    };
    assert_eq!((data("rw-p"), data("r-xp")), (Cause::RealWrite, Cause::Unknown));
}

#[test]
fn absurd_numbers_neither_hang_nor_panic() {
    let (all, class) = (u64::MAX, WriteClass::Copy);
    let runs = vec![
        PageRun { start: 0, pages: all, class },
        PageRun { start: all, pages: all, class },
        PageRun { start: 3, pages: 7, class },
    ];
    let odd = Mapping { start: all, end: 0, ..mapping(0, "") };
    let events = vec![event(all, class, all), event(3, class, 1)];
    let content = Content {
        page: 1,
        bytes: u32::MAX,
        words: u32::MAX,
        counts: u32::MAX,
        objects: true,
        hashes: 0,
        immortal: 0,
        ends: None,
        numbers: 0,
        marks: 0,
        made: 0,
        texts: 0,
        remembered: 0,
        iterators: 0,
        copies: 0,
    };
    let summary = profile(vec![
        header(),
        begin(0),
        Record::Mapped { interval: 0, mappings: vec![odd, Mapping { start: 1, end: all, ..mapping(0, "") }] },
        Record::Events { interval: 0, events },
        end(0, runs, vec![content]),
        Record::Events { interval: 8, events: vec![] },
    ]);
    assert_eq!(summary.totals.copied_pages, all);
    assert!(summary.gaps.iter().any(|gap| gap.details.iter().any(|d| d.contains("belong to no interval"))));
    let verbosity = views::Verbosity { top: 1, quiet: false, verbose: true };
    assert!(views::text(&summary, &verbosity).contains("copied by 1 child"));
}

#[test]
fn a_process_id_used_again_is_another_process() {
    let process = |origin, command: &str, time_ns| {
        Record::Process(Process {
            pid: 9,
            parent: 1,
            time_ns,
            origin,
            command: vec![command.into()],
            executable: None,
            page_tables: None,
        })
    };
    let ended = |code| Record::Exit { pid: 9, time_ns: 5, ended: cowbell::fork::Ended::Exited(code) };
    let summary = profile(vec![
        header(),
        process(Origin::Forked, "a", 1),
        process(Origin::Executed, "b", 2),
        ended(1),
        process(Origin::Forked, "c", 6),
        ended(2),
    ]);
    let [first, second] = &summary.processes[..] else { panic!("{:?}", summary.processes) };
    assert_eq!((&first.command[0][..], &first.executed[0][0][..], &second.command[0][..]), ("a", "b", "c"));
    assert_ne!(first.ended, second.ended);
}
