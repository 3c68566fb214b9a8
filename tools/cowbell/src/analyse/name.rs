//! What instructions of an interval are called and what they are there for: by their own names, and where those are
//! missing or say nothing, by the functions that called them in sampled stacks.

use super::code::{self, Place, Purpose};
use super::codes::Codes;
use super::interval::Interval;
use super::{Sampled, Stacks};
use crate::record::NativeFrame;
use std::collections::HashMap;

/// So many callers are looked at for what code without a name is there for: its purpose is not its callers' callers'.
const CALLERS_MAX: usize = 3;
/// And so many for who had code run that says nothing of itself.
const NEAR_MAX: usize = 8;

/// An instruction, named.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    /// Where it is; `None` without a name.
    pub place: Option<Place<'a>>,
    /// The file mapped there.
    pub file: Option<&'a str>,
    /// What it is called without a name.
    pub bare: String,
    /// The function that had it run, where it has no name or merely copies or sets bytes for others.
    pub caller: Option<String>,
    /// What it is there for; `None` where neither its name nor its callers' tell.
    pub purpose: Option<Purpose>,
}

/// The names of an interval's copying places.
pub fn all<'a>(interval: &'a Interval, stacks: &'a Stacks, codes: &'a Codes) -> HashMap<u32, Named<'a>> {
    let copying = interval.sums.copies.keys().map(|copied| copied.code).filter(|code| *code != 0);
    copying.map(|code| (code, one(interval, stacks, codes, code))).collect()
}

fn one<'a>(interval: &'a Interval, stacks: &'a Stacks, codes: &'a Codes, number: u32) -> Named<'a> {
    let frames = codes.of(number).map_or(&[][..], |code| &code.frames);
    let place = code::place(frames);
    let executable = interval.executable.as_ref();
    let says_little = place.as_ref().is_none_or(|place| code::moves_bytes(place.function));
    let called = if says_little { callers(interval, stacks, codes, number) } else { Vec::new() };
    let caller = called.iter().flat_map(|frames| frames.last()).map(|frame| frame.function.clone());
    let caller = caller.into_iter().find(|function| !code::moves_bytes(function));
    // Only code without a name is its callers' own: a copy of bytes is made for the data, whoever asks for it.
    let theirs = || called.iter().take(CALLERS_MAX).filter_map(|frames| code::purpose(frames));
    let theirs = || theirs().find(|purpose| matches!(purpose, Purpose::Collector | Purpose::Allocator));
    let purpose = code::purpose(frames).or_else(theirs);
    Named { place, file: codes.file(number, executable), bare: codes.bare(number, executable), caller, purpose }
}

/// The named callers of a place, the nearest first, in the stack that was sampled most often with it.
fn callers<'a>(interval: &Interval, stacks: &Stacks, codes: &'a Codes, code: u32) -> Vec<&'a [NativeFrame]> {
    let sampled = interval.sums.stacks.get(&code).and_then(super::sum::most);
    let callers = sampled.and_then(|stack| stacks.get(&stack)).map_or(&[][..], |Sampled { callers, .. }| callers);
    callers.iter().take(NEAR_MAX).filter_map(|&code| caller(codes, code)).collect()
}

/// The functions of a place, if they have names.
pub fn caller(codes: &Codes, code: u32) -> Option<&[NativeFrame]> {
    codes.of(code).map(|code| code.frames.as_slice()).filter(|frames| !frames.is_empty())
}
