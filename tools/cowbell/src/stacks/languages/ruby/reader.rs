//! The line of a Ruby program that a process is in, read from outside.
//!
//! `ruby_current_vm_ptr`, which libruby exports, leads to the main thread, that to its execution context, and that to the frames of its calls. A
//! frame has the instruction and the code it lies in; a table of the code tells the line. Offsets are those of Ruby 3.1; each step
//! is confirmed: the thread leads back to the machine, its context back to the thread, a file's name is a text.

use super::super::Language;
use super::super::held::StoppedMemory;
use super::super::main_thread::Structures;
use super::Ruby;
use crate::record::Frame;
use crate::stacks::FRAMES_MAX;

/// Words of the machine among which the pointer to the main thread is.
const THREAD_AMONG: std::ops::Range<u64> = 0..64;
/// Offsets in a thread (vm_core.h).
const MACHINE: u64 = 32;
const CONTEXT: u64 = 40;
/// Offsets in an execution context.
const STACK: u64 = 0;
const STACK_WORDS: u64 = 8;
const FRAME: u64 = 16;
const THREAD: u64 = 48;
/// Offsets in a frame, and its size.
const INSTRUCTION: u64 = 0;
const CODE: u64 = 16;
const FRAME_SIZE: u64 = 64;
/// Offsets in code, and in its body.
const BODY: u64 = 16;
const SIZE: u64 = 4;
const ENCODED: u64 = 8;
const PATH: u64 = 64;
const NAME: u64 = 72;
const LINES: u64 = 120;
const LINES_NUMBER: u64 = 136;
const LINES_INDEX: u64 = 144;
/// An entry of the table of lines.
const LINE_SIZE: u64 = 12;
/// The index of that table: how many places its words tell at once, and its blocks behind (iseq.c, `succ_index_table`).
const AT_ONCE: u64 = 54;
const BLOCKS: u64 = 48;
const BLOCK: u64 = 80;
/// Types of objects: a string, an array.
const TYPE: u64 = 0x1f;
const STRING: u64 = 5;
const ARRAY: u64 = 7;
/// The flags of a string or an array whose content lies elsewhere, and of an array whose content lies in it.
const STRING_ELSEWHERE: u64 = 1 << 13;
const ARRAY_INSIDE: u64 = 1 << 13;
/// No name in use is longer.
const NAME_MAX: u64 = 4096;

/// The place of one interpreter's pointer to its machine.
#[derive(Clone, Copy)]
pub struct Interpreter {
    pointer: u64,
}

impl Structures for Interpreter {
    const LANGUAGE: &'static dyn Language = &Ruby;
    const EXPORTED: &'static [&'static str] = &["ruby_current_vm_ptr", "ruby_version"];

    fn find(pid: i32, addresses: &[Option<u64>]) -> Result<Option<Self>, String> {
        let &[Some(pointer), Some(version)] = addresses else { return Ok(None) };
        let version = StoppedMemory::open(pid).and_then(|mut held| held.text_to_zero(version));
        match version {
            Some(version) if version.starts_with("3.1.") => Ok(Some(Self { pointer })),
            Some(version) => Err(format!("the structures of Ruby {version} are not known here")),
            None => Err(format!("cannot read the memory of process {pid}")),
        }
    }

    fn frames(&self, held: StoppedMemory, _pc: Option<u64>) -> Option<Vec<Frame>> {
        Calls { held }.frames(self.pointer)
    }
}

/// The interpreter's calls as they are read at one moment.
struct Calls {
    held: StoppedMemory,
}

impl Calls {
    fn at(&mut self, address: u64, offset: u64) -> Option<u64> {
        self.held.word(address.checked_add(offset)?)
    }

    fn frames(&mut self, pointer: u64) -> Option<Vec<Frame>> {
        let machine = self.held.word(pointer)?;
        let context = self.context(machine)?;
        let (stack, words) = (self.at(context, STACK)?, self.at(context, STACK_WORDS)?);
        let end = stack.checked_add(words.checked_mul(8)?)?;
        let mut frame = self.at(context, FRAME).filter(|frame| (stack..end).contains(frame))?;
        let mut frames = Vec::new();
        // Functions in C have no code, and no line of their own.
        while frame + FRAME_SIZE <= end && frames.len() < FRAMES_MAX {
            let (instruction, code) = (self.at(frame, INSTRUCTION)?, self.at(frame, CODE)?);
            if code != 0 && instruction != 0 {
                let body = self.at(code, BODY)?;
                match self.place(body, instruction) {
                    Some(place) => frames.push(place),
                    // The calls below may be told still, if this is not the innermost.
                    None if frames.is_empty() => return None,
                    None => return Some(frames),
                }
            }
            frame += FRAME_SIZE;
        }
        Some(frames)
    }

    /// The execution context of the main thread.
    fn context(&mut self, machine: u64) -> Option<u64> {
        THREAD_AMONG.map(|nth| nth * 8).find_map(|offset| {
            let thread = self.at(machine, offset).filter(|thread| thread.is_multiple_of(8) && thread >> 47 == 0)?;
            let is_of_machine = self.at(thread, MACHINE) == Some(machine);
            let context = self.at(thread, CONTEXT).filter(|_| is_of_machine)?;
            (self.at(context, THREAD)? == thread).then_some(context)
        })
    }

    /// The place of an instruction in code. Where the code is being run the instruction is the one that comes next.
    fn place(&mut self, body: u64, instruction: u64) -> Option<Frame> {
        let (encoded, size) = (self.at(body, ENCODED)?, self.held.half(body.checked_add(SIZE)?)?);
        let nth = instruction.checked_sub(encoded).filter(|behind| behind.is_multiple_of(8))? / 8;
        if nth > u64::from(size) {
            return None;
        }
        let line = self.line(body, nth.saturating_sub(1))?;
        let file = self.at(body, PATH).and_then(|path| self.path(path))?;
        let function = self.at(body, NAME).and_then(|name| self.string(name))?;
        Some(Frame { function, file, line })
    }

    /// The line of the instruction at a place in code.
    fn line(&mut self, body: u64, nth: u64) -> Option<i32> {
        let (lines, index) = (self.at(body, LINES)?, self.at(body, LINES_INDEX)?);
        let number = u64::from(self.held.half(body.checked_add(LINES_NUMBER)?)?);
        let entry = match number {
            0 => return None,
            1 => 1,
            _ => self.entry(index, nth)?,
        };
        let at = lines.checked_add((1..=number).contains(&entry).then(|| (entry - 1) * LINE_SIZE)?)?;
        i32::try_from(self.held.half(at)?).ok().filter(|line| *line > 0)
    }

    /// How many entries of the table of lines begin at this place or before.
    fn entry(&mut self, index: u64, nth: u64) -> Option<u64> {
        let Some(behind) = nth.checked_sub(AT_ONCE) else {
            return Some(self.at(index, nth / 9 * 8)? >> (nth % 9 * 7) & 0x7f);
        };
        let block = index.checked_add(BLOCKS)?.checked_add(behind / 512 * BLOCK)?;
        let (bit, word) = (behind % 64, behind % 512 / 64);
        let before = u64::from(self.held.half(block)?);
        let in_block = if word == 0 { 0 } else { self.at(block, 8)? >> ((word - 1) * 9) & 511 };
        let here = self.at(block, 16 + word * 8)? << (63 - bit);
        Some(before + in_block + u64::from(here.count_ones()))
    }

    /// The path of code: a string, or an array that begins with one.
    fn path(&mut self, object: u64) -> Option<String> {
        let flags = self.at(object, 0)?;
        match flags & TYPE {
            STRING => self.string(object),
            ARRAY if flags & ARRAY_INSIDE != 0 => {
                let first = self.at(object, 16)?;
                self.string(first)
            }
            ARRAY => {
                let content = self.at(object, 32)?;
                let first = self.held.word(content)?;
                self.string(first)
            }
            _ => None,
        }
    }

    fn string(&mut self, object: u64) -> Option<String> {
        let flags = self.at(object, 0).filter(|flags| flags & TYPE == STRING)?;
        if flags & STRING_ELSEWHERE != 0 {
            let length = self.at(object, 16).filter(|length| (1..=NAME_MAX).contains(length))?;
            let text = self.at(object, 24)?;
            self.held.text(text, length as usize)
        } else {
            // The length stands in the flags.
            let length = flags >> 14 & 0x1f;
            self.held.text(object.checked_add(16)?, length as usize)
        }
    }
}
