//! The blocks of a frozen heap on copied pages: which of them were written, by whom, why, and where each was allocated.

use super::evidence::between;
use super::{Profile, summary};
use crate::record::{
    Begin, Beside, Block, Changed, Content, Event, FirstWrite, Mode, NativeFrame, Objects, OnPage, PageRun,
};
use cowbell::arena::OnWrite;
use cowbell::page::{PageCount, PageIndex};
use cowbell::report::{
    self, ArenaReport, Census, EventReport, Executable, Explained, ObjectReport, PageReport, Report,
};
use cowbell::watch::{self, Outside, Watch};
use std::collections::BTreeMap;

/// The first writes to the pages of an interval, as far as they were seen.
#[derive(Debug)]
pub struct FirstWrites {
    /// Ascending, one for each page.
    pub events: Vec<Event>,
    /// True if stacks are those of the writes themselves.
    pub exact_stacks: bool,
    pub page_size: u64,
}

impl FirstWrites {
    /// Those among an interval's events, whose verdict is `runs`.
    pub fn of(mut all: Vec<Event>, begin: &Begin, runs: &[PageRun], page_size: u64) -> Self {
        let exact_stacks = begin.exact_stacks || begin.mode == Mode::Trace;
        all.iter_mut().for_each(|event| event.page &= !(page_size - 1));
        // Stable: events of one page stay in order of time.
        all.sort_by_key(|event| event.page);
        let class_of = |page: u64| {
            let run = runs.get(runs.partition_point(|run| run.start <= page).checked_sub(1)?)?;
            (page < run.start.saturating_add(run.pages.saturating_mul(page_size))).then_some(run.class)
        };
        // The first that did what the verdict says; an earlier one may be of a mapping that is gone.
        let first = |same: &[Event]| {
            let class = class_of(same.first()?.page);
            same.iter().find(|event| Some(event.class) == class).or(same.first()).copied()
        };
        let events = all.chunk_by(|a, b| a.page == b.page).filter_map(first).collect();
        Self { events, exact_stacks, page_size }
    }
}

/// All that is known of the pages of an interval.
pub struct ImageEvidence<'a> {
    /// The differences of copies from their originals, ascending.
    pub contents: &'a [Content],
    pub written: &'a FirstWrites,
}

/// Tells what lies on a page: `blocks`, ascending, are those that it lies in.
pub fn on_page(page: u64, blocks: &[Block], evidence: &ImageEvidence<'_>) -> OnPage {
    let content = between(evidence.contents, page, page + 1, |content| content.page).first();
    let event = between(&evidence.written.events, page, page + 1, |event| event.page).first();
    let changed = content.and_then(|content| match (content.bytes, content.ends) {
        (0, _) => Some(Changed { bytes: 0, first: 0, last: 0 }),
        (bytes, Some((first, last))) => Some(Changed { bytes, first, last }),
        _ => None,
    });
    let written = event.map(|event| FirstWrite {
        tid: event.tid,
        code: event.code,
        byte: event.byte,
        stack: event.stack.filter(|_| evidence.written.exact_stacks),
        caller: event.caller,
    });
    let first = written.and_then(|written| written.byte).map(|byte| page + u64::from(byte));
    let marked: Vec<u64> = marked(changed, written).map(|byte| page + u64::from(byte)).collect();
    let (mut pointed, mut beside): (Vec<Block>, BTreeMap<Option<u32>, u64>) = Default::default();
    for block in blocks {
        let holds = |address: &u64| (block.start..block.start + block.len).contains(address);
        if marked.iter().any(holds) {
            pointed.push(*block);
        } else {
            *beside.entry(block.stack).or_default() += 1;
        }
    }
    // The one that was written first is first.
    pointed.sort_by_key(|block| first.is_none_or(|at| !(block.start..block.start + block.len).contains(&at)));
    let beside = beside.into_iter().map(|(stack, blocks)| Beside { stack, blocks }).collect();
    OnPage { page, changed, written, blocks: pointed, beside, fields: Vec::new() }
}

/// The bytes of a page that are told one by one: the first that was written, and the ends of what differs.
pub fn marked(changed: Option<Changed>, written: Option<FirstWrite>) -> impl Iterator<Item = u32> {
    let ends = changed.filter(|changed| changed.bytes > 0).map(|changed| [changed.first, changed.last]);
    written.and_then(|written| written.byte).into_iter().chain(ends.into_iter().flatten())
}

/// Explains what lies on the copied pages of all intervals.
pub fn all(profile: &Profile) -> Vec<summary::Objects> {
    profile.objects.iter().map(|objects| explained(profile, objects)).collect()
}

fn explained(profile: &Profile, objects: &Objects) -> summary::Objects {
    let interval = profile.interval_by_number.get(&objects.interval).and_then(|&at| profile.intervals.get(at));
    let page_size = profile.page_size();
    let name = |code: u64| {
        let frames =
            u32::try_from(code).ok().and_then(|code| profile.codes.of(code)).map_or(&[][..], |code| &code.frames);
        let frame = |frame: &NativeFrame| report::Frame {
            function: frame.function.clone(),
            file: frame.file.clone(),
            line: frame.line,
        };
        frames.iter().map(frame).collect()
    };
    let told = as_report(profile, objects, page_size).explain(name);
    summary::Objects {
        interval: objects.interval,
        pid: interval.map_or(0, |interval| interval.begin.pid),
        arena: objects.arena.clone(),
        generation: objects.generation,
        start: objects.start,
        bytes: objects.len,
        recorded_every: objects.recorded,
        pages: told.iter().zip(&objects.pages).map(|(told, page)| page_of(told, page, &objects.types)).collect(),
        untold_pages: objects.untold,
    }
}

/// The same as a report of the library, which explains its own in the same way. Instructions are the numbers of their places.
fn as_report(profile: &Profile, objects: &Objects, page_size: u64) -> Report {
    let index = |page: u64| PageIndex(page.saturating_sub(objects.start) / page_size);
    let block = |block: &Block| ObjectReport {
        start: block.start,
        len: block.len,
        type_name: String::new(),
        location: String::new(),
        stack: block.stack.map(|stack| stack as usize),
    };
    let beside = |beside: &Beside| report::Beside {
        stack: beside.stack.map(|stack| stack as usize),
        location: String::new(),
        objects: beside.blocks,
    };
    let page = |page: &OnPage| PageReport {
        page: index(page.page),
        changed: page.changed.map(|Changed { bytes, first, last }| watch::Changed { bytes, first, last }),
        objects: page.blocks.iter().map(block).collect(),
        beside: page.beside.iter().map(beside).collect(),
    };
    let event = |page: &OnPage| {
        let written = page.written?;
        let stack = written.stack.and_then(|stack| profile.stacks.get(&stack));
        let stack = stack.filter(|stack| stack.innermost == Some(written.code));
        let callers = stack.map_or(std::slice::from_ref(&written.caller), |stack| &stack.callers);
        Some(EventReport {
            arena: 0,
            page: index(page.page),
            address: page.page + u64::from(written.byte.unwrap_or(0)),
            time_ns: 0,
            tid: written.tid,
            pc: u64::from(written.code),
            object: None,
            callers: callers.iter().filter(|code| **code != 0).map(|code| u64::from(*code)).collect(),
        })
    };
    let events: Vec<EventReport> = objects.pages.iter().filter_map(event).collect();
    let arena = ArenaReport {
        name: objects.arena.clone(),
        generation: objects.generation,
        start: objects.start,
        pages: PageCount(objects.len / page_size),
        on_write: OnWrite::Copy,
        copied_pages: PageCount(objects.pages.len() as u64 + objects.untold),
        copied: Vec::new(),
        inherited_pages: PageCount(0),
        bytes_changed: None,
        identical_pages: PageCount(0),
        observed: None,
        copied_unobserved: PageCount(0),
        sites: Vec::new(),
        told: objects.pages.iter().map(page).collect(),
        stacks: objects.stacks.iter().map(|stack| stack.iter().map(|code| u64::from(*code)).collect()).collect(),
    };
    Report {
        version: report::VERSION,
        pid: 0,
        watch: Watch::Census,
        door: None,
        ended: None,
        census: Census::Living,
        page_size,
        arenas: vec![arena],
        events,
        events_lost: 0,
        page_faults: None,
        trap_lost: false,
        reshared_pages: PageCount(0),
        outside: Outside::NotAsked,
        executable: Executable { start: 0, len: 0 },
    }
}

fn page_of(page: &Explained, recorded: &OnPage, types: &[String]) -> summary::ObjectsPage {
    let field = |byte: u32| recorded.fields.iter().find(|(of, _)| *of == byte).map(|(_, field)| field.clone());
    let changed = page.changed.filter(|changed| changed.bytes > 0);
    let type_name = |of: &Block| types.get(of.of? as usize).cloned();
    let function = |frames: &[report::Frame], line: &Option<String>| {
        let place = |frame: &report::Frame| Some(format!("{}:{}", frame.file.as_ref()?, frame.line?));
        let own = line.as_ref().and_then(|line| frames.iter().find(|frame| place(frame).as_ref() == Some(line)));
        own.map(|frame| frame.function.clone())
    };
    summary::ObjectsPage {
        address: page.address,
        changed_bytes: page.changed.map(|changed| changed.bytes),
        first_byte: changed.map(|changed| changed.first),
        last_byte: changed.map(|changed| changed.last),
        first_field: changed.and_then(|changed| field(changed.first)),
        last_field: changed.and_then(|changed| field(changed.last)),
        objects: page
            .objects
            .iter()
            .zip(&recorded.blocks)
            .map(|(allocated, block)| summary::Object {
                start: allocated.object.start,
                bytes: allocated.object.len,
                type_name: type_name(block),
                allocated_at: allocated.line.clone(),
                allocated_in: function(&allocated.frames, &allocated.line),
            })
            .collect(),
        other_objects: recorded.beside.iter().map(|beside| beside.blocks).sum(),
        writer: page.writer.as_ref().map(|writer| summary::Writer {
            tid: writer.tid,
            address: writer.address,
            field: recorded.written.and_then(|written| field(written.byte?)),
            line: writer.line.clone(),
            function: function(&writer.frames, &writer.line),
        }),
        cause: page.cause,
        cause_name: page.cause.to_string(),
        advice: page.cause.advice(),
    }
}
