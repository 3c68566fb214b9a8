//! What instructions of an interval are called and what they are there for: by their own names, and where those are
//! missing or say nothing, by the functions that called them in sampled stacks.

use super::code::{self, Place, Purpose};
use super::interval::Interval;
use super::mapping::Kind;
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

/// The names of an interval's copying instructions.
pub fn all<'a>(interval: &'a Interval, stacks: &'a Stacks) -> HashMap<u64, Named<'a>> {
    let pcs = interval.sums.copies.keys().map(|copied| copied.pc).filter(|pc| *pc != 0);
    pcs.map(|pc| (pc, one(interval, stacks, pc))).collect()
}

fn one<'a>(interval: &'a Interval, stacks: &'a Stacks, pc: u64) -> Named<'a> {
    let code = interval.codes.get(&pc);
    let frames = code.map_or(&[][..], |code| &code.frames);
    let place = code::place(frames);
    let bare = match code.map(|code| code.module.as_str()).filter(|module| !module.is_empty()) {
        Some(module) => module.to_owned(),
        None => format!("{pc:#x}"),
    };
    let says_little = place.as_ref().is_none_or(|place| code::moves_bytes(place.function));
    let called = if says_little { callers(interval, stacks, pc) } else { Vec::new() };
    let caller = called.iter().flat_map(|frames| frames.last()).map(|frame| frame.function.clone());
    let caller = caller.into_iter().find(|function| !code::moves_bytes(function));
    // Only code without a name is its callers' own: a copy of bytes is made for the data, whoever asks for it.
    let theirs = || called.iter().take(CALLERS_MAX).filter_map(|frames| code::purpose(frames));
    let theirs = || theirs().find(|purpose| matches!(purpose, Purpose::Collector | Purpose::Allocator));
    let purpose = code::purpose(frames).or_else(theirs);
    Named { place, file: file_of(interval, pc), bare, caller, purpose }
}

/// The named callers of an instruction, the nearest first, in the stack that was sampled most often with it.
fn callers<'a>(interval: &'a Interval, stacks: &'a Stacks, pc: u64) -> Vec<&'a [NativeFrame]> {
    let sampled = interval.sums.stacks.get(&pc).and_then(super::sum::most);
    let callers = sampled.and_then(|stack| stacks.get(&stack)).map_or(&[][..], |Sampled { callers, .. }| callers);
    let named = callers.iter().take(NEAR_MAX).filter_map(|address| caller(interval, *address));
    named.collect()
}

/// The functions of a return address, if they have names.
pub fn caller(interval: &Interval, address: u64) -> Option<&[NativeFrame]> {
    // It is one past the call, which may be the first instruction of another function.
    let code = interval.codes.get(&address.wrapping_sub(1)).or_else(|| interval.codes.get(&address))?;
    Some(code.frames.as_slice()).filter(|frames| !frames.is_empty())
}

/// The file that an instruction is in.
fn file_of(interval: &Interval, pc: u64) -> Option<&str> {
    let area = interval.areas.from(pc).filter(|area| area.start <= pc)?;
    matches!(area.group.kind, Kind::File | Kind::Memfd).then_some(area.group.name.as_str())
}
