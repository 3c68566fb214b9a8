//! The detail that a summary is too short for: every copied page with its likely cause, and the stacks that copies were made by.
//! Kept only where a view asks for it, because it grows with the pages.

use super::Profile;
use super::cause::Cause;
use super::copied::Copied;
use super::syscalls;
use super::timeline::timelines;
pub use super::timeline::{Point, Timeline};
use crate::record::Stack;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Detail {
    /// The frames that `stacks` refer to.
    pub frames: Vec<Frame>,
    /// Copies by stack, in the order of intervals and then of time.
    pub stacks: Vec<Weighted>,
    /// The copied pages of each interval, in the order of the summary's.
    pub maps: Vec<Vec<CauseRun>>,
    /// The change of the memory of each process that was watched.
    pub timelines: Vec<Timeline>,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Frame {
    pub function: String,
    /// The source file where that is known, else the file that the code lies in; may be empty.
    pub file: String,
    /// 0 where not known.
    pub line: u32,
    /// The language's id; `None` for native code.
    pub language: Option<String>,
}

/// Copies that one stack stands for.
#[derive(Clone, Debug)]
pub struct Weighted {
    /// The number of the interval in the summary.
    pub interval: usize,
    /// Outermost frame first, by number.
    pub frames: Vec<u32>,
    pub pages: u64,
    pub cause: Cause,
    /// When the first of them was made; 0 where not known.
    pub time_ns: u64,
}

/// Neighbouring copied pages of one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseRun {
    pub start: u64,
    pub pages: u64,
    pub cause: Cause,
}

/// Neighbouring copied pages of which the same is known.
#[derive(Clone, Copy, Debug)]
pub struct Trail {
    pub start: u64,
    pub pages: u64,
    pub copied: Copied,
    /// The stack that was sampled with it.
    pub stack: Option<u32>,
    /// When it was written first; 0 where not known.
    pub time_ns: u64,
    /// True if it was a page of a file, and so none that was shared by fork.
    pub of_file: bool,
}

/// The cause of the copies of each kind in one interval.
pub type CauseByKind = HashMap<Copied, Cause>;

/// The detail of a profile. `judged`: what the summary says of each interval's copies.
pub fn detail(profile: &Profile, judged: &[CauseByKind]) -> Detail {
    let mut names = Names::default();
    let (mut stacks, mut maps) = (Vec::new(), Vec::new());
    for (at, (interval, judged)) in profile.intervals.iter().zip(judged).enumerate() {
        let cause = |one: &Trail| judged.get(&one.copied).copied().unwrap_or(Cause::Unknown);
        let trail: Vec<(Trail, Cause)> = interval.sums.trail.iter().map(|one| (*one, cause(one))).collect();
        maps.push(runs(&trail, profile.page_size()));
        stacks.extend(weighted(profile, at, &trail, &mut names));
    }
    Detail { frames: names.frames, stacks, maps, timelines: timelines(profile) }
}

fn runs(trail: &[(Trail, Cause)], page_size: u64) -> Vec<CauseRun> {
    let mut pages: Vec<CauseRun> =
        trail.iter().map(|(one, cause)| CauseRun { start: one.start, pages: one.pages, cause: *cause }).collect();
    pages.sort_by_key(|run| run.start);
    let mut runs: Vec<CauseRun> = Vec::new();
    for run in pages {
        match runs.last_mut() {
            Some(last) if last.cause == run.cause && last.start + last.pages * page_size == run.start => {
                last.pages += run.pages;
            }
            _ => runs.push(run),
        }
    }
    runs
}

/// The stacks of an interval. As for lines, a sample stands for the copies of its place since the one before it, and the last one
/// for those after it, too; copies of one stack and cause in a row are one.
fn weighted(profile: &Profile, interval: usize, trail: &[(Trail, Cause)], names: &mut Names) -> Vec<Weighted> {
    let mut sorted: Vec<&(Trail, Cause)> = trail.iter().collect();
    sorted.sort_by_key(|(one, _)| (one.copied.code, one.copied.syscall, one.time_ns));
    let mut stacks = Vec::new();
    for of_place in
        sorted.chunk_by(|(a, _), (b, _)| (a.copied.code, a.copied.syscall) == (b.copied.code, b.copied.syscall))
    {
        let samples: Vec<usize> =
            of_place.iter().enumerate().filter(|(_, (one, _))| one.stack.is_some()).map(|(nth, _)| nth).collect();
        let mut by_stack: BTreeMap<(Option<u32>, Cause, u32), (u64, u64)> = BTreeMap::new();
        for (nth, (one, cause)) in of_place.iter().enumerate() {
            let next = samples.partition_point(|&sample| sample < nth);
            let sample = samples.get(next).or(samples.last());
            let stack = sample.and_then(|&sample| of_place.get(sample)?.0.stack);
            // A page of its own caller, where no stack tells more.
            let caller = if stack.is_none() { one.copied.caller } else { 0 };
            let (pages, since) = by_stack.entry((stack, *cause, caller)).or_insert((0, u64::MAX));
            *pages += one.pages;
            *since = (*since).min(one.time_ns);
        }
        let Some((first, _)) = of_place.first() else { continue };
        for ((stack, cause, caller), (pages, time_ns)) in by_stack {
            let stack = stack.and_then(|stack| profile.full_stacks.get(&stack));
            let frames = names.stack(profile, &Copied { caller, ..first.copied }, stack);
            stacks.push(Weighted { interval, frames, pages, cause, time_ns });
        }
    }
    stacks.sort_by_key(|stack| stack.time_ns);
    stacks
}

/// Frames by number.
#[derive(Default)]
struct Names {
    frames: Vec<Frame>,
    numbers: HashMap<Frame, u32>,
}

impl Names {
    fn number(&mut self, frame: Frame) -> u32 {
        let next = self.frames.len() as u32;
        *self.numbers.entry(frame).or_insert_with_key(|frame| {
            self.frames.push(frame.clone());
            next
        })
    }

    /// A stack, outermost first: the script's frames where there are some, for they say more than the interpreter's, and then the
    /// code that wrote; else the native ones.
    fn stack(&mut self, profile: &Profile, copied: &Copied, stack: Option<&Stack>) -> Vec<u32> {
        let mut frames = Vec::new();
        if let Some(stack) = stack {
            frames.extend(stack.frames.iter().rev().map(|frame| Frame {
                function: frame.function.clone(),
                file: frame.file.clone(),
                line: u32::try_from(frame.line).unwrap_or(0),
                language: stack.language.clone(),
            }));
            if frames.is_empty() {
                frames.extend(stack.native.iter().skip(1).rev().flat_map(|code| native(profile, *code)));
            }
        }
        if copied.caller != 0 {
            frames.extend(native(profile, copied.caller));
        }
        let plain = |function: String| Frame { function, file: String::new(), line: 0, language: None };
        match (copied.code, copied.syscall) {
            (0, None) => frames.push(plain("code that was not seen".to_owned())),
            (0, Some(_)) => {}
            (code, _) => frames.extend(native(profile, code)),
        }
        frames.extend(copied.syscall.map(|number| {
            plain(format!("system call {}", syscalls::name(number).map_or(number.to_string(), str::to_owned)))
        }));
        frames.into_iter().map(|frame| self.number(frame)).collect()
    }
}

/// The frames of a place, outermost first.
fn native(profile: &Profile, code: u32) -> Vec<Frame> {
    let file = profile.codes.file(code, None).unwrap_or_default();
    let frames = profile.codes.of(code).map_or(&[][..], |code| &code.frames);
    if frames.is_empty() {
        let function = profile.codes.bare(code, None);
        return vec![Frame { function, file: file.to_owned(), line: 0, language: None }];
    }
    let one = |frame: &crate::record::NativeFrame| Frame {
        function: frame.function.clone(),
        file: frame.file.clone().unwrap_or_else(|| file.to_owned()),
        line: frame.line.unwrap_or(0),
        language: None,
    };
    frames.iter().rev().map(one).collect()
}
