//! The line of a PHP program that a process is in, read from outside.
//!
//! `executor_globals`, which php exports unless it is built for threads, leads to the call that runs, that to its instruction and its function.
//! Offsets differ between versions; each is found by what must agree: an instruction lies in its function's, and its line between the first
//! and the last one of the function, which stand behind the name of the file.
//!
//! php saves the instruction only before what may fail. While it runs its own loop the processor tells whether the instruction that was
//! saved is the one that runs: each begins with the address of the code that runs it. Where the two differ, the line is that of the next
//! instruction run by the code that the processor is in, if it is the same for all there are; else there is none.

use super::super::Language;
use super::super::held::StoppedMemory;
use super::super::main_thread::Structures;
use super::{COLLECT, Php};
use crate::record::Frame;
use crate::stacks::FRAMES_MAX;

/// The part of the globals in which the stack of calls is described.
const STACK_AMONG: std::ops::Range<u64> = 0x80..0x600;
/// Words behind that description, among which is the pointer to the call that runs.
const CALL_AMONG: std::ops::RangeInclusive<u64> = 3..=5;
/// Offsets in a call (zend_compile.h, since PHP 7.0).
const FUNCTION: u64 = 24;
const CALLER: u64 = 48;
/// Offsets in a function, and its two kinds.
const NAME: u64 = 8;
const CLASS: u64 = 16;
const INTERNAL: u32 = 1;
const USER: u32 = 2;
/// Where in a user's function the pointer to its instructions may lie, behind their number, and how far behind it the file's name.
const INSTRUCTIONS_AMONG: std::ops::Range<u64> = 64..120;
const FILE_WITHIN: u64 = 128;
/// An instruction, and the offset of its line.
const INSTRUCTION: u64 = 32;
const LINE: u64 = 24;
/// Offsets in a string and in a class.
const LENGTH: u64 = 16;
const TEXT: u64 = 24;
const CLASS_NAME: u64 = 8;
/// No name in use is longer.
const NAME_MAX: u64 = 4096;
/// No code that runs one instruction is longer.
const CODE_MAX: u64 = 4096;
/// A function of more instructions is not searched.
const INSTRUCTIONS_MAX: u64 = 1 << 16;

/// The place of one interpreter's globals.
#[derive(Clone, Copy)]
pub struct Interpreter {
    globals: u64,
}

impl Structures for Interpreter {
    const LANGUAGE: &'static dyn Language = &Php;
    // A php that is built for threads does not export them.
    const EXPORTED: &'static [&'static str] = &["executor_globals"];

    fn find(_pid: i32, addresses: &[Option<u64>]) -> Result<Option<Self>, String> {
        let &[Some(globals)] = addresses else { return Ok(None) };
        Ok(Some(Self { globals }))
    }

    fn frames(&self, held: StoppedMemory, pc: Option<u64>) -> Option<Vec<Frame>> {
        Calls { held, pc }.frames(self.globals)
    }
}

/// The interpreter's calls as they are read at one moment.
struct Calls {
    held: StoppedMemory,
    /// The instruction of the processor, where it is known.
    pc: Option<u64>,
}

/// The instruction that a call is at, and what its function says of itself.
struct At {
    instruction: u64,
    first: u64,
    number: u64,
    function: u64,
    file: String,
    lines: std::ops::RangeInclusive<u32>,
}

impl Calls {
    fn frames(&mut self, globals: u64) -> Option<Vec<Frame>> {
        let mut call = self.running(globals)?;
        let mut frames: Vec<Frame> = Vec::new();
        let mut asked = false;
        while call != 0 && frames.len() < FRAMES_MAX {
            let function = self.at(call, FUNCTION)?;
            let kind = if function == 0 { None } else { Some(self.held.half(function)? & 0xff) };
            match kind {
                Some(USER) => {
                    let at = self.user(call, function)?;
                    let line =
                        if frames.is_empty() && !asked { self.line(&at)? } else { self.line_of(at.instruction)? };
                    let line = i32::try_from(line).ok().filter(|_| at.lines.contains(&line))?;
                    let named = self.name(at.function).unwrap_or_else(|| "main program".to_owned());
                    if asked {
                        frames.push(Frame { function: COLLECT.to_owned(), file: at.file.clone(), line });
                        asked = false;
                    }
                    frames.push(Frame { function: named, file: at.file, line });
                }
                // A function of php's own is told at the line that called it, where its name says what is done.
                Some(INTERNAL) if frames.is_empty() => asked |= self.name(function).as_deref() == Some(COLLECT),
                Some(INTERNAL) | None => {}
                Some(_) => return None,
            }
            call = self.at(call, CALLER)?;
        }
        Some(frames)
    }

    fn at(&mut self, address: u64, offset: u64) -> Option<u64> {
        self.held.word(address.checked_add(offset)?)
    }

    /// The call that runs. The stack of calls is described by its next free place, its end and its first page, which says the same end.
    fn running(&mut self, globals: u64) -> Option<u64> {
        let described = STACK_AMONG.step_by(8).find(|&offset| {
            let mut look = || {
                let (top, end, page) =
                    (self.at(globals, offset)?, self.at(globals, offset + 8)?, self.at(globals, offset + 16)?);
                Some(page != 0 && page < top && top <= end && self.at(page, 8)? == end)
            };
            look() == Some(true)
        })?;
        let top = self.at(globals, described)?;
        CALL_AMONG.map(|nth| nth * 8).find_map(|behind| {
            let call = self.at(globals, described.checked_add(behind)?)?;
            // The number of bytes in a page stands there as well, since PHP 7.3.
            let is_pointer = call.is_multiple_of(8) && call > 1 << 24 && call >> 47 == 0 && call != top;
            let function = self.at(call, FUNCTION).filter(|_| is_pointer)?;
            let kind = if function == 0 { INTERNAL } else { self.held.half(function)? & 0xff };
            matches!(kind, INTERNAL | USER).then_some(call)
        })
    }

    /// The instruction of a call of a user's function.
    fn user(&mut self, call: u64, function: u64) -> Option<At> {
        let instruction = self.at(call, 0)?;
        for offset in INSTRUCTIONS_AMONG.step_by(8) {
            let Some(first) = self.at(function, offset).filter(|first| *first != 0) else { continue };
            let number = u64::from(self.held.half(function.checked_add(offset - 8)?)?);
            let behind = instruction.wrapping_sub(first);
            if !behind.is_multiple_of(INSTRUCTION) || behind / INSTRUCTION >= number {
                continue;
            }
            for place in (offset + 8..offset + FILE_WITHIN).step_by(8) {
                let lines = (self.held.half(function.checked_add(place + 8)?)?, self.held.half(function + place + 12)?);
                let lines = lines.0..=lines.1;
                let Some(line) = self.line_of(instruction).filter(|line| *line > 0 && lines.contains(line)) else {
                    continue;
                };
                let _ = line;
                let Some(file) = self.at(function, place).and_then(|file| self.string(file)) else { continue };
                return Some(At { instruction, first, number, function, file, lines });
            }
        }
        None
    }

    fn line_of(&mut self, instruction: u64) -> Option<u32> {
        self.held.half(instruction.checked_add(LINE)?)
    }

    /// The line of the instruction that the processor runs: the one that was saved, or one behind it.
    fn line(&mut self, at: &At) -> Option<u32> {
        let saved = self.line_of(at.instruction)?;
        let Some(pc) = self.pc.filter(|_| at.number <= INSTRUCTIONS_MAX) else { return Some(saved) };
        let all = (0..at.number).filter_map(|nth| {
            let instruction = at.first.checked_add(nth * INSTRUCTION)?;
            Some((instruction, self.held.word(instruction)?))
        });
        let all: Vec<(u64, u64)> = all.collect();
        // The nearest code before the processor's place that runs any of the function's instructions.
        let code = all.iter().map(|&(_, code)| code).filter(|&code| code <= pc && pc - code < CODE_MAX).max();
        // Elsewhere it runs a function that an instruction calls, before which that one was saved.
        let Some(code) = code else { return Some(saved) };
        if all.iter().any(|&(instruction, by)| instruction == at.instruction && by == code) {
            return Some(saved);
        }
        let mut lines = all.iter().filter(|&&(_, by)| by == code).filter_map(|&(of, _)| self.line_of(of));
        let first = lines.next()?;
        lines.all(|line| line == first).then_some(first)
    }

    /// The name of a function, with that of its class; `None` for the main program of a file.
    fn name(&mut self, function: u64) -> Option<String> {
        let name = self.at(function, NAME).filter(|name| *name != 0)?;
        let name = self.string(name)?;
        let class = self.at(function, CLASS).filter(|class| *class != 0);
        let class = class.and_then(|class| self.at(class, CLASS_NAME)).and_then(|class| self.string(class));
        Some(class.map_or(name.clone(), |class| format!("{class}::{name}")))
    }

    fn string(&mut self, string: u64) -> Option<String> {
        let length = self.at(string, LENGTH).filter(|length| (1..=NAME_MAX).contains(length))?;
        self.held.text(string.checked_add(TEXT)?, length as usize)
    }
}
