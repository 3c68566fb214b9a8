//! The names of an interval's instructions and their purposes: by their own names, and where those are
//! missing or say nothing, by the functions that called them.
//!
//! A caller is told of a page by what was read with that page: its stack, or the address that its function returns to. Of
//! pages without either it is an estimate, and told only if the sampled stacks of the instruction agree.

use super::Stacks;
use super::code::{self, NamedPlace, Purpose};
use super::codes::Codes;
use super::copied::Copied;
use super::interval::Interval;
use super::unknown::Unknown;
use crate::record::NativeFrame;
use crate::stacks::languages::helps_caller;
use std::collections::HashMap;
use std::hash::Hash;

/// The most callers that are looked at for the purpose of code without a name: that is not the purpose of its callers' callers.
const CALLERS_MAX: usize = 3;
/// And so many for who had code run that says nothing of itself.
const NEAR_MAX: usize = 8;

/// An instruction, named.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    /// The place; `None` without a name.
    pub place: Option<NamedPlace<'a>>,
    /// The file mapped there.
    pub file: Option<&'a str>,
    /// The words for it without a name.
    pub bare: String,
    /// The function that had it run, where it has no name or merely copies or sets bytes for others.
    pub caller: Option<Caller>,
    /// True if there should be a caller, and there is none.
    pub lacks_caller: bool,
    /// The purpose; `None` where neither its name nor its callers' tell.
    pub purpose: Option<Purpose>,
    /// Why it has no name.
    pub nameless: Option<Unknown>,
    /// True if it counts, or sets or clears bits, atomically.
    pub is_atomic: bool,
}

/// The function that had code run which says little of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// The function.
    pub function: String,
    /// Others without names lie between.
    pub is_indirect: bool,
    /// Sampled stacks of the instruction agree on it; of these pages it was not read.
    pub is_estimated: bool,
}

/// An instruction and the place of the call by which it was run; 0 where that was not read.
pub type Called = (u32, u32);

/// By whom and where a copy was made.
pub fn called(copied: &Copied) -> Called {
    (copied.code, copied.caller)
}

/// The names of an interval's copying places.
pub fn all<'a>(interval: &'a Interval, stacks: &'a Stacks, codes: &'a Codes) -> HashMap<Called, Named<'a>> {
    let copying = interval.sums.copies.keys().filter(|copied| copied.code != 0).map(called);
    copying.map(|called| (called, Naming { interval, stacks, codes, called }.named())).collect()
}

/// The evidence from which an instruction is named.
struct Naming<'a> {
    interval: &'a Interval,
    stacks: &'a Stacks,
    codes: &'a Codes,
    called: Called,
}

impl<'a> Naming<'a> {
    fn named(&self) -> Named<'a> {
        let (number, _) = self.called;
        let code = self.codes.of(number);
        let frames = code.map_or(&[][..], |code| &code.frames);
        let place = code::place(frames);
        let executable = self.interval.executable.as_ref();
        let says_little = place.as_ref().is_none_or(|place| code::moves_bytes(place.function));
        let helps = place.as_ref().is_some_and(|place| helps_caller(place.function));
        let sampled = if says_little || helps { self.sampled() } else { Vec::new() };
        let caller = if says_little { self.caller(&sampled) } else { None };
        // Only code without a name is its callers' own: a copy of bytes is made for the data, whoever asks for it.
        let theirs = || agreed(sampled.iter().map(|&(callers, times)| (purpose_of(self.codes, callers), times)));
        let of_file = self.codes.file(number, executable).and_then(code::purpose_of_file);
        let own = match code::purpose(frames) {
            None | Some(Purpose::Other) => of_file.or(code::purpose(frames)),
            told => told,
        };
        let nameless = match code {
            Some(code) => code.nameless.map(Unknown::from),
            None => Some(Unknown::CutOff),
        };
        Named {
            file: self.codes.file(number, executable),
            bare: self.codes.bare(number, executable),
            lacks_caller: says_little && caller.is_none(),
            caller,
            purpose: if helps { theirs().flatten() } else { None }.or(own).or_else(|| theirs().flatten()),
            nameless: nameless.filter(|_| place.is_none()),
            is_atomic: code.is_some_and(|code| code.atomic),
            place,
        }
    }

    /// The callers in the stacks that were sampled with the instruction, called from where it was here; how often each.
    fn sampled(&self) -> Vec<(&'a [u32], u64)> {
        let (code, caller) = self.called;
        let sampled = self.interval.sums.stacks.get(&code).into_iter().flatten();
        let stacks = sampled.filter_map(|(number, times)| Some((self.stacks.get(number)?.callers.as_slice(), *times)));
        let mut found: Vec<_> = stacks.filter(|(callers, _)| caller == 0 || callers.first() == Some(&caller)).collect();
        if found.is_empty() && caller != 0 {
            // No stack from there, but the call itself is known.
            found.extend(self.codes.alone(caller).map(|alone| (alone, 1)));
        }
        found
    }

    fn caller(&self, sampled: &[(&'a [u32], u64)]) -> Option<Caller> {
        let (_, caller) = self.called;
        let near = agreed(sampled.iter().map(|&(callers, times)| (near(self.codes, callers), times)));
        let named = near.flatten().map(|(function, is_indirect)| {
            let function = function.to_owned();
            Caller { function, is_indirect, is_estimated: caller == 0 }
        });
        let bare = || {
            let function = self.codes.bare(caller, self.interval.executable.as_ref());
            Caller { function, is_indirect: false, is_estimated: false }
        };
        named.or_else(|| (caller != 0).then(bare))
    }
}

/// The nearest caller with a name that does more than to move bytes, and whether others without a name lie between.
fn near<'a>(codes: &'a Codes, callers: &[u32]) -> Option<(&'a str, bool)> {
    let mut is_indirect = false;
    for &code in callers.iter().take(NEAR_MAX) {
        match caller(codes, code).and_then(|frames| frames.last()) {
            Some(frame) if !code::moves_bytes(&frame.function) => return Some((&frame.function, is_indirect)),
            Some(_) => {}
            None => is_indirect = true,
        }
    }
    None
}

/// The purpose that the callers of code without a name tell of it.
fn purpose_of(codes: &Codes, callers: &[u32]) -> Option<Purpose> {
    let named = callers.iter().take(NEAR_MAX).filter_map(|&code| caller(codes, code)).take(CALLERS_MAX);
    named
        .filter_map(code::purpose)
        .find(|purpose| matches!(purpose, Purpose::Collector | Purpose::Allocator) || purpose.keeps())
}

/// The answer of nearly all samples, if there is one.
fn agreed<T: Eq + Hash>(samples: impl Iterator<Item = (T, u64)>) -> Option<T> {
    let (mut all, mut counts) = (0, HashMap::new());
    for (said, times) in samples {
        all += times;
        *counts.entry(said).or_insert(0u64) += times;
    }
    counts.into_iter().find(|(_, times)| times * 10 >= all * 9).map(|(said, _)| said)
}

/// The functions of a place, if they have names.
pub fn caller(codes: &Codes, code: u32) -> Option<&[NativeFrame]> {
    codes.of(code).map(|code| code.frames.as_slice()).filter(|frames| !frames.is_empty())
}
