//! Causes of made-up captures: where the code has no name, and on the way out.

use crate::analyse::tests::{HEAP, PAGE, begin, end, event, header, module, named, profile};
use crate::analyse::{Cause, Summary};
use crate::record::*;
use crate::views;

#[test]
fn where_the_code_has_no_name_the_layout_tells_counting_from_collecting() {
    let code = 8;
    let of = |wrote: Wrote, frames: Vec<NativeFrame>| {
        let runs = vec![PageRun { start: HEAP, pages: 2, class: WriteClass::Copy }];
        let content = |nth| Content { page: HEAP + nth * PAGE, objects: true, ..Content::default() };
        let stack =
            Record::Stack(Stack { stack: 4, interval: 0, native: vec![8], language: None, frames: vec![], wrote });
        // One page is sampled, and tells of the other.
        let events = vec![
            Event { stack: Some(4), ..event(HEAP, WriteClass::Copy, code) },
            event(HEAP + PAGE, WriteClass::Copy, code),
        ];
        let mut records = vec![header(), begin(0)];
        records.extend(module("/usr/bin/python3.13", &[8]));
        records.extend([
            stack,
            Record::Events { interval: 0, events },
            end(0, runs, vec![content(0), content(1)]),
            Record::Symbols { codes: vec![named(8, frames)] },
        ]);
        profile(records)
    };
    let causes = |summary: &Summary| summary.causes.iter().map(|c| (c.cause, c.copied_pages)).collect::<Vec<_>>();
    let shown = |summary: &Summary| {
        let verbosity = views::Verbosity { top: 10, quiet: false, verbose: true };
        let text = anstream::adapter::strip_str(&views::text(summary, &verbosity)).to_string();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let counted = of(Wrote::ReferenceCount, vec![]);
    assert_eq!(causes(&counted), [(Cause::ReferenceCount, 2)]);
    assert!(shown(&counted).contains("not of dtype=object") && !shown(&counted).contains("gc.freeze"));
    let collected = of(Wrote::CollectorHeader, vec![]);
    assert_eq!(causes(&collected), [(Cause::GarbageCollector, 2)]);
    assert!(shown(&collected).contains("gc.freeze()") && shown(&collected).contains("gc.enable() in the child"));
    let unseen = of(Wrote::Unknown, vec![]);
    assert_eq!(causes(&unseen), [(Cause::CountOrCollector, 2)]);
    let text = shown(&unseen);
    assert!(text.contains("symbols of /usr/bin/python3.13 would tell (Debian: python3.13-dbg)"), "{text}");
    let frame = |function: &str| NativeFrame { function: function.into(), file: None, line: None };
    assert_eq!(causes(&of(Wrote::Unknown, vec![frame("update_refs")])), [(Cause::GarbageCollector, 2)]);
}

#[test]
fn what_is_written_on_the_way_out_is_told_apart() {
    let named =
        |code, function: &str| named(code, vec![NativeFrame { function: function.into(), file: None, line: None }]);
    let stack = |stack, native: Vec<u32>| {
        Record::Stack(Stack {
            stack,
            interval: 0,
            native,
            language: None,
            frames: vec![],
            wrote: Wrote::ReferenceCount,
        })
    };
    // 1 counts references: before the end, called by 60; at the end, called by 60 and far above it by 70. 2 only then.
    let deep: Vec<u32> = [1].into_iter().chain([60; 20]).chain([70]).collect();
    let events = [(0, 1, 1), (1, 1, 2), (2, 1, 2), (3, 1, 2), (4, 2, 3)];
    let events = events.map(|(nth, pc, stack)| Event {
        stack: Some(stack),
        time_ns: 100 + nth,
        ..event(HEAP + nth * PAGE, WriteClass::Copy, pc)
    });
    let summary = profile(vec![
        header(),
        begin(0),
        stack(1, vec![1, 60]),
        stack(2, deep),
        stack(3, vec![2, 70]),
        Record::Events { interval: 0, events: events.to_vec() },
        end(0, vec![PageRun { start: HEAP, pages: 5, class: WriteClass::Copy }], vec![]),
        Record::Symbols { codes: vec![named(60, "list_dealloc"), named(70, "Py_FinalizeEx")] },
    ]);
    let causes: Vec<_> = summary.causes.iter().map(|c| (c.cause, c.copied_pages)).collect();
    assert_eq!(causes, [(Cause::Exit, 4), (Cause::ReferenceCount, 1)]);
    assert!(summary.causes[0].remedy.is_some_and(|remedy| remedy.contains("os._exit()")));
}

#[test]
fn what_the_program_does_on_its_way_out_is_not_advised_away() {
    let named =
        |code, function: &str| named(code, vec![NativeFrame { function: function.into(), file: None, line: None }]);
    let of = |native: Vec<u32>, frames: Vec<Frame>| {
        let language = (!frames.is_empty()).then(|| "python".to_owned());
        let stack = Stack { stack: 1, interval: 0, native, language, frames, wrote: Wrote::Other };
        // One stack of its work comes first: else it was forked by a program that was shutting down.
        let works =
            Stack { stack: 2, interval: 0, native: vec![1], language: None, frames: vec![], wrote: Wrote::Other };
        let events = (0..5).map(|nth| Event {
            stack: Some(if nth == 0 { 2 } else { 1 }),
            time_ns: 100 + nth,
            ..event(HEAP + nth * PAGE, WriteClass::Copy, 1)
        });
        let contents = (0..5).map(|nth| Content { page: HEAP + nth * PAGE, bytes: 8, words: 1, ..Content::default() });
        let summary = profile(vec![
            header(),
            begin(0),
            Record::Stack(works),
            Record::Stack(stack),
            Record::Events { interval: 0, events: events.collect() },
            end(0, vec![PageRun { start: HEAP, pages: 5, class: WriteClass::Copy }], contents.collect()),
            Record::Symbols {
                codes: vec![named(60, "_PyEval_EvalFrameDefault"), named(70, "Py_FinalizeEx"), named(80, "Py_RunMain")],
            },
        ]);
        assert_eq!(summary.causes[0].cause, Cause::Exit);
        summary.causes[0].remedy
    };
    assert!(of(vec![1, 70], vec![]).is_some_and(|remedy| remedy.contains("os._exit()")));
    // A function that atexit runs: by the script's frames, and where they could not be read, by the interpreter's own.
    let last = Frame { function: "last".into(), file: "/srv/job.py".into(), line: 9 };
    assert_eq!(of(vec![1, 70], vec![last]), None);
    assert_eq!(of(vec![1, 60, 70], vec![]), None);
    // Since CPython 3.13 no function that takes it down is exported: only the one that runs the program before.
    assert!(of(vec![1, 80], vec![]).is_some_and(|remedy| remedy.contains("os._exit()")));
}

#[test]
fn an_interpreter_that_is_loaded_and_never_runs_says_nothing_of_the_program() {
    let opens = |library: &str| {
        let Record::Begin(mut begin) = begin(0) else { panic!("an interval opens") };
        begin.mappings[1].name = library.to_owned();
        Record::Begin(begin)
    };
    let of = |library: &str, code: u32, objects: bool| {
        let content = Content { page: HEAP, bytes: 8, words: 1, objects, ..Content::default() };
        let mut records = vec![header(), opens(library)];
        // One place in the library, and one elsewhere.
        records.extend(module(library, &[8]));
        records.extend([
            Record::Events { interval: 0, events: vec![event(HEAP, WriteClass::Copy, u64::from(code))] },
            end(0, vec![PageRun { start: HEAP, pages: 1, class: WriteClass::Copy }], vec![content]),
        ]);
        let summary = profile(records);
        (summary.causes[0].cause, summary.intervals[0].language)
    };
    let (lua, python) = ("/usr/lib/liblua5.4.so.0", "/usr/lib/libpython3.11.so.1.0");
    assert_eq!(of(lua, 9, false), (Cause::RealWrite, None));
    assert_eq!(of(lua, 8, false), (Cause::Unknown, Some("other")), "its code wrote");
    assert_eq!(of(python, 9, false), (Cause::RealWrite, None));
    assert_eq!(of(python, 9, true).1, Some("python"), "its objects are there");
    assert_eq!(of("/usr/bin/lua5.4", 9, false), (Cause::Unknown, Some("other")), "its own program runs it");
}
