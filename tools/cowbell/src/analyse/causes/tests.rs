//! Causes of made-up captures: where the code has no name, and on the way out.

use crate::analyse::tests::{HEAP, PAGE, begin, end, event, header, module, named, profile};
use crate::analyse::{Cause, Summary};
use crate::record::*;
use crate::views;

#[test]
fn where_the_code_has_no_name_the_layout_tells_counting_from_collecting() {
    let code = 8;
    let of = |wrote: Wrote, frames: Vec<NativeFrame>| {
        let runs = vec![PageRun { start: HEAP, pages: 2, class: Class::Copy }];
        let content = |nth| Content { page: HEAP + nth * PAGE, objects: true, ..Content::default() };
        let stack =
            Record::Stack(Stack { stack: 4, interval: 0, native: vec![8], language: None, frames: vec![], wrote });
        // One page is sampled, and tells of the other.
        let events =
            vec![Event { stack: Some(4), ..event(HEAP, Class::Copy, code) }, event(HEAP + PAGE, Class::Copy, code)];
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
        let look = views::Look { top: 10, quiet: false, verbose: true };
        let text = anstream::adapter::strip_str(&views::text(summary, &look)).to_string();
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
        ..event(HEAP + nth * PAGE, Class::Copy, pc)
    });
    let summary = profile(vec![
        header(),
        begin(0),
        stack(1, vec![1, 60]),
        stack(2, deep),
        stack(3, vec![2, 70]),
        Record::Events { interval: 0, events: events.to_vec() },
        end(0, vec![PageRun { start: HEAP, pages: 5, class: Class::Copy }], vec![]),
        Record::Symbols { codes: vec![named(60, "list_dealloc"), named(70, "Py_FinalizeEx")] },
    ]);
    let causes: Vec<_> = summary.causes.iter().map(|c| (c.cause, c.copied_pages)).collect();
    assert_eq!(causes, [(Cause::Exit, 4), (Cause::ReferenceCount, 1)]);
    assert!(summary.causes[0].remedy.is_some_and(|remedy| remedy.contains("os._exit()")));
}
