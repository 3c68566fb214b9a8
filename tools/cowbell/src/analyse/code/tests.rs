//! Tests of the code that is told, and of its names, in profiles of made-up captures.

use super::tests::{HEAP, PAGE, begin, end, event, header, mapping, module, named, profile};
use super::unknown::Unknown;
use super::*;
use crate::record::*;
use crate::views;

#[test]
fn a_library_line_names_the_users_line_that_led_there() {
    let frame = |file: &str, line| Frame { function: "f".into(), file: file.into(), line };
    let source = |file: &str, line, text: &str| Record::Source(Source { file: file.into(), line, text: text.into() });
    let frames = vec![
        frame("<frozen importlib>", 3),
        frame("/usr/lib/python3.13/json/decoder.py", 40),
        frame("/x/lib/python3.13/site-packages/y.py", 2),
        frame("/home/me/job.py", 7),
        frame("/home/me/main.py", 1),
    ];
    let stack =
        Stack { stack: 1, interval: 0, native: vec![], language: Some("python".into()), frames, wrote: Wrote::Unknown };
    let events = vec![Event { stack: Some(1), ..event(HEAP, WriteClass::Copy, 9) }];
    let summary = profile(vec![
        header(),
        begin(0),
        Record::Stack(stack),
        source("/usr/lib/python3.13/json/decoder.py", 40, "obj, end = self.scan_once(s, idx)"),
        source("/home/me/job.py", 7, "json.loads(text)"),
        Record::Events { interval: 0, events },
    ]);
    let line = &summary.script.lines[0];
    assert_eq!((line.file.as_str(), line.line), ("/usr/lib/python3.13/json/decoder.py", 40), "what stands in a file");
    assert_eq!(line.called_from, Some(frame("/home/me/job.py", 7)));
    assert_eq!(line.source.as_deref(), Some("obj, end = self.scan_once(s, idx)"), "its own source");
    let verbosity = views::Verbosity { top: 10, quiet: false, verbose: true };
    let shown = anstream::adapter::strip_str(&views::text(&summary, &verbosity)).to_string();
    assert!(shown.contains("decoder.py:40 < job.py:7") && shown.contains("obj, end = self.scan"), "{shown}");
    assert!(!shown.contains("json.loads(text)"), "the source of another line: {shown}");
}

#[test]
fn a_line_that_copied_once_on_the_way_is_not_told_a_share_of_all() {
    let stack = |stack, line| {
        let frames = vec![Frame { function: "f".into(), file: "/home/me/job.py".into(), line }];
        Record::Stack(Stack {
            stack,
            interval: 0,
            native: vec![],
            language: Some("python".into()),
            frames,
            wrote: Wrote::Unknown,
        })
    };
    // The first copy is sampled and is the fork's; of the loop's every 64th is.
    let event = |nth| {
        let stack = if nth == 0 { Some(1) } else { (nth % 64 == 63).then_some(2) };
        Event { stack, time_ns: 100 + nth, ..event(HEAP + nth * PAGE, WriteClass::Copy, 9) }
    };
    let events = (0..200).map(event).collect();
    let records = vec![header(), begin(0), stack(1, 10), stack(2, 5), Record::Events { interval: 0, events }];
    let summary = profile(records);
    let lines: Vec<_> = summary.script.lines.iter().map(|l| (l.line, l.copied_pages_estimated, l.samples)).collect();
    assert_eq!(lines, [(5, 199, 3), (10, 1, 1)]);
}

#[test]
fn lines_that_look_alike_are_one() {
    let frame = |function: &str| Frame { function: function.into(), file: "/home/me/job.py".into(), line: 7 };
    let stack = |stack, function| {
        let (language, frames) = (Some("python".into()), vec![frame(function)]);
        Record::Stack(Stack { stack, interval: 0, native: vec![], language, frames, wrote: Wrote::Unknown })
    };
    let events = [(0, 1), (1, 2), (2, 2)];
    let event = |(nth, stack)| Event { stack: Some(stack), ..event(HEAP + nth * PAGE, WriteClass::Copy, 9) };
    let events = events.map(event).to_vec();
    let records = vec![header(), begin(0), stack(1, "f"), stack(2, "<lambda>"), Record::Events { interval: 0, events }];
    let [line] = &profile(records).script.lines[..] else { panic!("one line") };
    assert_eq!((line.function.as_str(), line.samples, line.copied_pages_estimated), ("<lambda>", 3, 3));
}

#[test]
fn a_program_found_by_a_link_is_called_by_it() {
    let executable = Executable { path: "/usr/bin/check".into(), called: "/usr/bin/server".into() };
    let process = |pid, parent, origin, executable| {
        Record::Process(Process {
            pid,
            parent,
            time_ns: 1,
            origin,
            command: vec!["server".into()],
            executable,
            page_tables: None,
        })
    };
    let mut begin = begin(0);
    if let Record::Begin(begin) = &mut begin {
        begin.mappings = vec![mapping(0, "/usr/bin/check"), mapping(1, "/usr/lib/check")];
    }
    let mut records =
        vec![header(), process(1, 0, Origin::Started, Some(executable)), process(100, 1, Origin::Forked, None), begin];
    records.extend(module("/usr/bin/check", &[8]));
    records.push(Record::Events { interval: 0, events: vec![event(HEAP, WriteClass::Copy, 8)] });
    let summary = profile(records);
    assert_eq!(summary.functions[0].function, "server+0x8");
    assert_eq!(summary.mappings[0].name, "/usr/bin/server");
}

#[test]
fn code_without_a_name_is_told_by_its_caller() {
    let named =
        |code, function: &str| named(code, vec![NativeFrame { function: function.into(), file: None, line: None }]);
    let stack = |stack, pc, callers: [u32; 2]| {
        let native = [&[pc][..], &callers[..]].concat();
        Record::Stack(Stack { stack, interval: 0, native, language: None, frames: vec![], wrote: Wrote::Unknown })
    };
    let sampled = |nth, pc, stack| Event { stack, ..event(HEAP + nth * PAGE, WriteClass::Copy, pc) };
    // 1 is nameless code of malloc's, 2 copies bytes for `parse`.
    let events = vec![sampled(0, 1, Some(1)), sampled(1, 1, None), sampled(2, 2, Some(2)), sampled(3, 3, Some(3))];
    let runs = vec![PageRun { start: HEAP, pages: 4, class: WriteClass::Copy }];
    let codes =
        vec![named(50, "malloc"), named(60, "parse"), named(2, "__memmove_avx_unaligned_erms"), named(3, "own")];
    let mut records = vec![header(), begin(0)];
    records.extend(module("/usr/lib/libx.so", &[1, 2, 3, 9, 50, 60]));
    records.extend([
        stack(1, 1, [50, 60]),
        stack(2, 2, [9, 60]),
        stack(3, 3, [50, 60]),
        Record::Events { interval: 0, events },
        end(0, runs, vec![]),
        Record::Symbols { codes },
    ]);
    let summary = profile(records);
    let caller = |f: &summary::Function| {
        f.called_from.as_ref().map(|name| (name.clone(), f.called_indirectly, f.caller_estimated_pages))
    };
    let found: Vec<_> =
        summary.functions.iter().map(|f| (f.function.as_str(), caller(f), f.copied_pages, f.cause)).collect();
    let by = |name: &str, indirectly, estimated: u64| Some((name.to_owned(), indirectly, estimated));
    let expected = [
        ("libx.so+0x1", by("malloc", false, 1), 2, Cause::Allocator),
        ("__memmove_avx_unaligned_erms", by("parse", true, 0), 1, Cause::Unknown),
        ("own", None, 1, Cause::Unknown),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_page_is_told_of_its_own_caller_and_never_of_another_pages() {
    let named =
        |code, function: &str| named(code, vec![NativeFrame { function: function.into(), file: None, line: None }]);
    let stack = |stack, native: &[u32]| {
        let (native, wrote) = (native.to_vec(), Wrote::Unknown);
        Record::Stack(Stack { stack, interval: 0, native, language: None, frames: vec![], wrote })
    };
    let page = |nth, pc, stack, caller| Event { stack, caller, ..event(HEAP + nth * PAGE, WriteClass::Copy, pc) };
    // 2 copies bytes, called by 60 or 70, mostly by 60; 4 too, of which no caller can be read.
    let events = vec![
        page(0, 2, Some(1), 0),
        page(1, 2, None, 60),
        page(2, 2, None, 70),
        page(3, 2, None, 0),
        page(4, 4, Some(2), 0),
        page(5, 4, Some(3), 0),
        page(6, 4, None, 0),
        page(7, 2, None, 9),
    ];
    let mut records = vec![header(), begin(0)];
    records.extend(module("/usr/lib/libx.so", &[2, 4, 9, 60, 70]));
    records.extend([stack(1, &[2, 60]), stack(2, &[4, 60]), stack(3, &[4, 70])]);
    records.extend([
        Record::Events { interval: 0, events },
        end(0, vec![PageRun { start: HEAP, pages: 8, class: WriteClass::Copy }], vec![]),
        Record::Symbols { codes: vec![named(2, "memcpy"), named(4, "memset"), named(60, "load"), named(70, "parse")] },
    ]);
    let summary = profile(records);
    let mut found: Vec<_> = summary
        .functions
        .iter()
        .map(|f| (f.function.as_str(), f.called_from.as_deref(), f.caller_estimated_pages, f.copied_pages))
        .collect();
    found.sort_unstable();
    let expected = [
        ("memcpy", Some("libx.so+0x9"), 0, 1),
        ("memcpy", Some("load"), 1, 3),
        ("memcpy", Some("parse"), 0, 1),
        ("memset", None, 0, 1),
        ("memset", Some("load"), 0, 1),
        ("memset", Some("parse"), 0, 1),
    ];
    assert_eq!(found, expected);
    let without = &summary.totals.unknown.caller[..];
    assert_eq!(
        without.iter().map(|share| (share.reason, share.copied_pages)).collect::<Vec<_>>(),
        [(Unknown::NotSampled, 1)]
    );
}
