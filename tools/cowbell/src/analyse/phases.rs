//! The phases of a worker: it starts, works, and ends.
//!
//! A sampled stack says in which phase it was taken. A phase is never left for one before it, so an interval has one moment at which
//! work begins and one at which it ends: those that the fewest stacks contradict. What was copied between two stacks is of the phase
//! of the earlier one; but between the start and another phase that is so only for instructions of which a stack was seen at the start:
//! each has one with its first page, unless that could not be read. And where stacks are far apart, as in faults mode, all is work there.

use super::codes::Codes;
use super::interval::Interval;
use super::name;
use super::{Stacks, code};
use crate::record::{Mode, WatchReason};
use crate::stacks::languages::Work;
use std::collections::HashSet;

/// A phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From the fork up to the worker's own work: what the libraries and the interpreter set up.
    Start,
    /// The worker's own work, and what is not known to be another phase.
    Work,
    /// From where the program or its interpreter began to shut down.
    End,
}

/// In how many of an interval's sampled stacks the worker had not begun to work, and in how many it had not begun to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phases {
    started: u32,
    worked: u32,
    all: u32,
    /// True for each stack of an interpreter that takes itself down, and not of the program's code that it runs then.
    torn_down: Vec<bool>,
    /// The places of the instructions of which stacks were seen at the start. None where stacks are far apart.
    start_codes: HashSet<u32>,
}

impl Phases {
    /// The phases of an interval. `is_first`: it is its process' first, which alone has a start.
    pub fn of(interval: &Interval, is_first: bool, stacks: &Stacks, codes: &Codes) -> Self {
        let samples = &interval.sums.samples;
        let (has_start, mut has_end) = (is_first && interval.begin.role == WatchReason::Child, true);
        // A process that was forked by a program that was shutting down has that in all its stacks.
        let is_early = interval.sums.copies.keys().all(|copied| copied.after != Some(0) || copied.syscall.is_some());
        let first = samples.first().filter(|_| is_early && interval.begin.role == WatchReason::Child);
        if first.is_some_and(|&first| is_within(first, stacks, codes, &code::shuts_down)) {
            has_end = false;
        }
        let phase = |&stack: &u32| match stacks.get(&stack).and_then(|stack| stack.phase) {
            Some(Work::Start) if has_start => Phase::Start,
            Some(Work::Exit) if has_end => Phase::End,
            _ if has_start && is_within(stack, stacks, codes, &code::starts) => Phase::Start,
            _ if has_end
                && (is_within(stack, stacks, codes, &code::shuts_down) || is_torn_down(stack, stacks, codes)) =>
            {
                Phase::End
            }
            _ => Phase::Work,
        };
        let phases: Vec<Phase> = samples.iter().map(phase).collect();
        let (started, worked) = cuts(&phases);
        let torn_down = samples.iter().map(|&stack| is_torn_down(stack, stacks, codes)).collect();
        let is_sparse = interval.begin.mode == Mode::Faults;
        let of_start = samples.iter().take(if is_sparse { 0 } else { started as usize });
        let start_codes = of_start.filter_map(|stack| stacks.get(stack)?.innermost).collect();
        Self { started, worked, all: samples.len() as u32, torn_down, start_codes }
    }

    /// Tells whether an interpreter was taking itself down when so many stacks had been sampled. Else the program's own code ran: a
    /// function that it registered for its end, say.
    pub fn is_torn_down(&self, after: Option<u32>) -> bool {
        let last = after.and_then(|after| self.torn_down.get((after as usize).checked_sub(1)?));
        self.at(after, 0) == Phase::End && last == Some(&true)
    }

    /// Tells whether an interpreter took itself down: that gives back what was only read before.
    pub fn has_teardown(&self) -> bool {
        self.torn_down.iter().skip(self.worked as usize).any(|&torn_down| torn_down)
    }

    /// Tells whether a copy before which so many stacks had been sampled came after the last of them, and none was on the way out:
    /// whether it was made there is not known.
    pub fn may_be_end(&self, after: Option<u32>) -> bool {
        !self.has_end() && after == Some(self.all)
    }

    /// Tells whether any stack was sampled on the way out.
    pub fn has_end(&self) -> bool {
        self.worked < self.all
    }

    /// The phase of a copy before which so many stacks had been sampled, `None` if it is not known when it was made, by the instruction
    /// at this place, 0 where that is not known.
    pub fn at(&self, after: Option<u32>, code: u32) -> Phase {
        match after {
            None => Phase::Work,
            // A copy that comes before the first stack is in its phase at the latest.
            Some(0) if self.started > 0 => Phase::Start,
            Some(after) if after > self.worked => Phase::End,
            Some(after) if after == self.started && !self.start_codes.contains(&code) => Phase::Work,
            Some(after) if after <= self.started && after > 0 => Phase::Start,
            Some(_) => Phase::Work,
        }
    }
}

/// Tells whether a stack is within the end of an interpreter, and not within code of the program's that this runs.
fn is_torn_down(stack: u32, stacks: &Stacks, codes: &Codes) -> bool {
    let Some(sampled) = stacks.get(&stack).filter(|sampled| sampled.script.is_none()) else { return false };
    let places = sampled.innermost.iter().chain(&sampled.callers);
    places.filter_map(|&place| name::caller(codes, place)).find_map(code::teardown) == Some(true)
}

/// Tells whether any function of a stack, the innermost too, is one of these.
fn is_within(
    stack: u32,
    stacks: &Stacks,
    codes: &Codes,
    is_one: &dyn Fn(&[crate::record::NativeFrame]) -> bool,
) -> bool {
    let Some(stack) = stacks.get(&stack) else { return false };
    let places = stack.innermost.iter().chain(&stack.callers);
    places.filter_map(|&place| name::caller(codes, place)).any(is_one)
}

/// After how many stacks work begins, and after how many it ends, so that the fewest of them contradict. Of equals it is the
/// shortest start and the latest end: what is not told apart is work.
fn cuts(phases: &[Phase]) -> (u32, u32) {
    let mut start = Best::default();
    let (mut work, mut end) = (Best::default(), Best::default());
    for (nth, phase) in (1..).zip(phases) {
        let wrong = |is: Phase| u32::from(*phase != is);
        work = if start.wrong < work.wrong || nth == 1 { Best { started: nth - 1, ..start } } else { work };
        end = if work.wrong <= end.wrong || nth == 1 { Best { worked: nth - 1, ..work } } else { end };
        start.wrong += wrong(Phase::Start);
        work.wrong += wrong(Phase::Work);
        end.wrong += wrong(Phase::End);
    }
    let all = phases.len() as u32;
    let of_start = Best { started: all, worked: all, ..start };
    let of_work = Best { worked: all, ..work };
    let best = [of_work, end, of_start].into_iter().min_by_key(|best| best.wrong).unwrap_or_default();
    (best.started, best.worked)
}

/// The cuts found so far, and how many stacks contradict them.
#[derive(Clone, Copy, Default)]
struct Best {
    wrong: u32,
    started: u32,
    worked: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(letters: &str) -> Vec<Phase> {
        let phase = |letter| match letter {
            's' => Phase::Start,
            'w' => Phase::Work,
            _ => Phase::End,
        };
        letters.chars().map(phase).collect()
    }

    #[test]
    fn the_cuts_are_where_the_fewest_stacks_contradict() {
        for (letters, cuts_due) in [
            ("", (0, 0)),
            ("www", (0, 3)),
            ("sswwee", (2, 4)),
            ("sse", (2, 2)),
            ("eee", (0, 0)),
            ("sss", (3, 3)),
            // Shut down in the middle, and went on: a part of the program that was an interpreter.
            ("wweewwwww", (0, 9)),
            // A stack that was too deep to be read to its end, and a handler that ran first.
            ("wswweeweee", (0, 4)),
            ("wsssww", (4, 6)),
            ("we", (0, 1)),
        ] {
            assert_eq!(cuts(&parse(letters)), cuts_due, "{letters}");
        }
    }

    #[test]
    fn a_copy_is_of_the_phase_of_the_stack_before_it() {
        let phases = Phases {
            started: 1,
            worked: 3,
            all: 4,
            torn_down: vec![false, true, false, true],
            start_codes: [7].into(),
        };
        let told = [None, Some(0), Some(1), Some(2), Some(3), Some(4)].map(|after| phases.at(after, 7));
        use Phase::*;
        assert_eq!(told, [Work, Start, Start, Work, Work, End]);
        assert!(phases.has_teardown(), "the last one");
        let without_end = Phases { worked: 4, ..phases.clone() };
        assert!(!without_end.has_teardown(), "a function of that name at work is none");
        let may_be_end = [None, Some(0), Some(3), Some(4)].map(|after| without_end.may_be_end(after));
        assert_eq!(may_be_end, [false, false, false, true], "no stack tells what came after the last one");
        assert!(!phases.may_be_end(Some(4)), "that is the end");
        let told = [None, Some(0), Some(1), Some(2), Some(3), Some(4)].map(|after| phases.is_torn_down(after));
        assert_eq!(told, [false, false, false, false, false, true], "before the end nothing is");
        assert_eq!(
            Phases { started: 0, worked: 0, all: 1, torn_down: vec![true], start_codes: [7].into() }.at(Some(0), 7),
            Phase::Work,
            "the first stack was taken at the end"
        );
        assert_eq!(phases.at(Some(1), 8), Phase::Work, "the first stack of another instruction could not be read");
        let (torn_down, start_codes) = (vec![false, false, true], HashSet::new());
        let sparse = Phases { started: 2, worked: 2, all: 3, torn_down, start_codes };
        let told = [Some(0), Some(1), Some(2), Some(3)].map(|after| sparse.at(after, 7));
        assert_eq!(told, [Start, Start, Work, End], "between the start and the end anything may have been done");
    }

    proptest! {
        #[test]
        fn no_other_cuts_are_contradicted_less(letters in "[swe]{0,12}") {
            let phases = parse(&letters);
            let wrong = |(started, worked): (usize, usize)| {
                let due = |nth| match nth {
                    nth if nth < started => Phase::Start,
                    nth if nth < worked => Phase::Work,
                    _ => Phase::End,
                };
                phases.iter().enumerate().filter(|(nth, phase)| **phase != due(*nth)).count()
            };
            let (started, worked) = cuts(&phases);
            let n = phases.len();
            let least = (0..=n).flat_map(|a| (a..=n).map(move |b| (a, b))).map(wrong).min().unwrap_or(0);
            prop_assert_eq!(wrong((started as usize, worked as usize)), least);
        }
    }
}
