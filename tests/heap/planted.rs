//! Writers that are planted: of each the report names page, object, cause and line.

use crate::cases;
use crate::writers::{Line, Writers, at, grow, line, plant};
use addr2line::Loader;
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::Heap;
use cowbell::report::{Cause, Explained, Frame, Report};
use cowbell::watch::Watch;
use std::mem::forget;

pub const CASES: &[crate::Case] = cases![
    fifty_planted_writers_are_each_explained,
    what_is_not_known_is_said_to_be_unknown,
    objects_are_named_by_the_line_that_allocated_them,
    what_is_recorded_beside_threads_is_what_is_in_use,
    one_in_so_many_is_recorded,
];

/// Reads this program's debug information.
struct Names(Loader);

impl Names {
    fn new() -> Self {
        Self(Loader::new(std::env::current_exe().expect("a path")).expect("this program's debug information"))
    }

    fn of(&self, address: u64, start: u64) -> Vec<Frame> {
        let mut found = Vec::new();
        let Some(Ok(mut frames)) = address.checked_sub(start).map(|at| self.0.find_frames(at)) else { return found };
        while let Ok(Some(frame)) = frames.next() {
            let location = frame.location.as_ref();
            let function = frame.function.as_ref().and_then(|name| name.demangle().ok()).map(|name| name.into_owned());
            let file = location.and_then(|location| location.file).map(str::to_owned);
            found.push(Frame {
                function: function.unwrap_or_default(),
                file,
                line: location.and_then(|location| location.line),
            });
        }
        found
    }
}

fn explain(report: &Report) -> Vec<Explained> {
    let names = Names::new();
    report.explain(|address| names.of(address, report.executable.start))
}

fn fifty_planted_writers_are_each_explained() {
    let (generation, writers) = plant();
    let Writers(writers, freeing) = writers;
    assert_eq!(writers.len() + freeing.len(), 50);
    let told: Vec<_> = writers.iter().map(|w| (w.cause, w.address, w.allocated, w.line, w.is_same)).collect();
    let options = ForkOptions::new().watch(Watch::Trap).callers(true);
    let mut child = fork::spawn(&options, move |_| {
        writers.into_iter().for_each(|writer| (writer.write)());
        freeing.into_iter().for_each(|free| free());
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    let explained = explain(&exit.report);
    let start = |arena: &Explained| {
        let image = generation.images().iter().find(|image| image.name() == arena.arena).expect("an image");
        image.range().start
    };
    let mut wrong = Vec::new();
    for (cause, address, allocated, line, is_same) in told {
        let page = exit.report.page_size as usize;
        let of_page = |each: &&Explained| address / page == start(each) / page + each.page.0 as usize;
        let Some(found) = explained.iter().find(of_page) else {
            wrong.push(format!("line {line}: its page is not told as copied"));
            continue;
        };
        let of_line = |told: &Option<String>, line: u32| {
            told.as_ref().is_some_and(|told| told.ends_with(&format!("writers.rs:{line}")))
        };
        let object = found.objects.first();
        let holds = object
            .is_some_and(|each| (each.object.start..each.object.start + each.object.len).contains(&(address as u64)));
        let is_right = found.cause == cause
            && holds
            && of_line(&object.and_then(|object| object.line.clone()), allocated)
            && found.writer.as_ref().is_some_and(|writer| of_line(&writer.line, line))
            && found.address / page as u64 == address as u64 / page as u64
            && found.changed.is_some_and(|changed| (changed.bytes == 0) == is_same);
        if !is_right {
            wrong.push(format!("line {line}, {cause}, object of line {allocated}, same {is_same}:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(explained.len(), 45, "{explained:?}");
    assert_eq!(exit.report.copied_pages().0, 45, "those that free copied nothing: {}", exit.report);
}

fn what_is_not_known_is_said_to_be_unknown() {
    let lines = grow(|| Box::new(line(1))).take(|each| at(&**each));
    let _generation = Heap::freeze().expect("one thread");
    for watch in [Watch::Census, Watch::Trap] {
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| lines.object[3].set(9)).expect("a child");
        let report = child.wait().expect("its end").report;
        // Without names, or without the first write, nobody knows.
        let explained = if watch == Watch::Census { explain(&report) } else { report.explain(|_| Vec::new()) };
        let [one] = explained.as_slice() else { panic!("{report}") };
        assert_eq!(one.cause, Cause::Unknown, "{one}");
        assert_eq!(one.changed.map(|changed| changed.bytes), Some(1));
        let [object] = one.objects.as_slice() else { panic!("{one}") };
        assert_eq!((object.object.type_name.as_str(), &object.line), ("a block of 64 bytes", &None), "not recorded");
        assert!(one.to_string().contains("allocated at an unknown line"), "{one}");
        // The fourth word.
        assert!(one.to_string().contains("changed  1 byte, byte 24 of the object\n"), "{one}");
        assert_eq!(one.to_string().contains("first byte 24 of the object"), watch == Watch::Trap, "{one}");
    }
    let refused = fork::spawn(&ForkOptions::new().callers(true), |_| ()).expect_err("a census sees no caller");
    assert!(refused.to_string().contains("census"), "{refused}");
}

/// Allocations that were moved, grown in place, freed, and made by a child.
fn objects_are_named_by_the_line_that_allocated_them() {
    assert!(Heap::record_sites(0).is_err());
    Heap::record_sites(1).expect("this heap");
    drop((0..3000).map(|_| Box::new(line(3))).collect::<Vec<_>>());
    let mut large: Vec<u8> = vec![1; 2 << 20];
    large.reserve_exact(100 << 20);
    let line_of_growth = line!() - 1;
    let mut zeroed = vec![0u8; 70_000];
    let line_of_zeroed = line!() - 1;
    let generation = Heap::freeze().expect("one thread");
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        // The child records nothing, and frees what is its parent's.
        let own: Vec<_> = (0..1000).map(|_| Box::new(line(4))).collect();
        drop(own);
        (large[5], zeroed[66_000]) = (9, 9);
        forget((large, zeroed));
    })
    .expect("a child");
    let report = child.wait().expect("its end").report;
    let mut lines: Vec<_> =
        explain(&report).iter().flat_map(|each| each.objects.clone()).map(|each| each.line).collect();
    lines.sort_unstable();
    let mut right = [line_of_growth, line_of_zeroed].map(|line| Some(format!("{}:{line}", file!())));
    right.sort_unstable();
    assert_eq!(lines.len(), 2, "{report}");
    assert!(
        lines
            .iter()
            .zip(&right)
            .all(|(is, right)| is.as_ref().zip(right.as_ref()).is_some_and(|(is, right)| is.ends_with(right))),
        "{lines:?} {right:?}"
    );
    let recorded: usize = generation.images().iter().map(|image| image.allocations().count()).sum();
    assert!(recorded < 500, "those that were freed are not there: {recorded}");
}

/// The allocations that are recorded in what a freeze makes now, and the blocks that are in use there.
fn recorded() -> (usize, usize) {
    let generation = Heap::freeze().expect("one thread");
    let recorded = generation.images().iter().map(|image| image.allocations().count()).sum();
    (recorded, generation.live_blocks())
}

fn what_is_recorded_beside_threads_is_what_is_in_use() {
    let before = {
        let generation = Heap::freeze().expect("one thread");
        generation.live_blocks()
    };
    Heap::record_sites(1).expect("this heap");
    let mut kept: Vec<Vec<u8>> = Vec::new();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
        for lane in 0..4 {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut numbers = crate::Numbers(lane + 1);
                let mut own: Vec<Vec<u8>> = Vec::new();
                for _ in 0..5000 {
                    let mut block = vec![1; 1 + numbers.below(3000)];
                    block.resize(1 + numbers.below(200_000), 2);
                    match numbers.below(3) {
                        0 => own.push(block),
                        1 => sender.send(block).expect("there is a receiver"),
                        _ => own.clear(),
                    }
                }
            });
        }
        drop(sender);
        // Others' blocks are freed here, but for some. Children that are forked meanwhile record nothing.
        for (nth, block) in receiver.into_iter().enumerate() {
            if nth % 10 == 0 {
                kept.push(block);
            }
            if nth % 500 == 0 {
                let ended = std::process::Command::new("true").status();
                assert!(ended.is_ok_and(|status| status.success()));
            }
        }
    });
    let (recorded, live) = recorded();
    // Blocks that threads and the library keep for themselves may be hot, or older than the record.
    assert!(recorded <= live && recorded + 50 > live, "{recorded} recorded, {live} in use, {before} before");
    assert!(recorded > kept.len());
}

fn one_in_so_many_is_recorded() {
    Heap::record_sites(10).expect("this heap");
    let lines: Vec<Box<Line>> = (0..20_000).map(|n| Box::new(line(n))).collect();
    let (recorded, live) = recorded();
    assert!(live > 20_000 && (1900..2200).contains(&recorded), "{recorded} of {live}");
    assert_eq!(lines[7][0].get(), 7);
}
