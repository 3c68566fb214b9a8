//! The line of a Perl program that a process is in, read from outside.
//!
//! `PL_op` is the operation that runs now. Statements are operations, too, and each says its file and line; the statement of an operation
//! is the nearest one before it in the tree of operations. That is more exact than `PL_curcop`, which in a loop's condition still says the
//! last line of the loop's body. Callers are told by the stack of contexts.
//!
//! Where things lie depends on the version and how it was built. What is read is believed only if it agrees with itself: a statement is what
//! is run by `pp_nextstate`, whose address the interpreter's file exports, and its file's name is a text.

use super::super::Language;
use super::super::held::StoppedMemory;
use super::super::main_thread::Structures;
use super::Perl;
use crate::record::Frame;
use crate::stacks::FRAMES_MAX;
use cowbell::sys::procfs::maps;

/// The operation that runs, in the interpreter (intrpvar.h).
const OPERATION: u64 = 8;
/// Pointers to what the stack of contexts is described by lie among these words of the interpreter.
const CONTEXTS_AMONG: std::ops::Range<u64> = 0x80..0x200;
/// Offsets in an operation (op.h), since Perl 5.22.
const SIBLING: u64 = 8;
const RUN_BY: u64 = 16;
const TARGET: u64 = 24;
const BITS: u64 = 32;
const FIRST: u64 = 40;
/// In the bits: the number of the operation, and that another one follows at the same level.
const KIND: u64 = 0x1ff;
const HAS_SIBLING: u64 = 1 << 14;
/// The flag of operations that have others below.
const HAS_KIDS: u64 = 4 << 16;
/// Offsets in a statement (cop.h), of builds with threads.
const LINE: u64 = 36;
const FILE: u64 = 48;
/// The most operations that are looked at for one statement.
const STEPS_MAX: usize = 20_000;
/// Offsets in the description of a stack of contexts (`PERL_SI`), and in a context, since Perl 5.24.
const CONTEXTS: u64 = 8;
const BEFORE: u64 = 16;
const LAST: u64 = 32;
const CONTEXT: u64 = 104;
const CALLED_AT: u64 = 16;
const CODE: u64 = 72;
const CONTEXT_KIND: u32 = 0xf;
const CALL: u32 = 9;
const EVAL: u32 = 11;
/// Offsets in the body of code, of a glob, and in a name.
const CODE_GLOB: u64 = 56;
const CODE_FLAGS: u64 = 92;
const HAS_NAME: u32 = 0x8000;
const GLOB_NAME: u64 = 32;
const NAME_LENGTH: u64 = 4;
const NAME_TEXT: u64 = 8;
/// The name for what is in no function.
pub const MAIN: &str = "main program";
/// No name of a function is longer.
const NAME_MAX: u32 = 1 << 10;

/// The addresses and numbers that are known of one interpreter.
#[derive(Clone, Copy)]
pub struct Interpreter {
    /// Where the pointer to it lies.
    pointer: u64,
    /// The functions that run statements, the one that runs operations which do nothing, and the one that ends the program.
    statements: [u64; 2],
    nothing: u64,
    exit: u64,
}

impl Structures for Interpreter {
    const LANGUAGE: &'static dyn Language = &Perl;
    const EXPORTED: &'static [&'static str] =
        &["PL_curinterp", "Perl_pp_nextstate", "Perl_pp_dbstate", "Perl_pp_null", "Perl_pp_exit"];

    fn find(pid: i32, addresses: &[Option<u64>]) -> Result<Option<Self>, String> {
        let &[Some(pointer), Some(next), Some(debug), Some(nothing), Some(exit)] = addresses else { return Ok(None) };
        // Each thread of Perl's has an interpreter of its own, and the pointer leads to the first.
        let maps = maps::read(pid).map_err(|e| format!("cannot read the mappings of process {pid}: {e}"))?;
        if maps.iter().any(|map| map.name.ends_with("/threads/threads.so")) {
            return Err("the program loads Perl's threads, each of which has an interpreter of its own".into());
        }
        Ok(Some(Self { pointer, statements: [next, debug], nothing, exit }))
    }

    fn frames(&self, held: StoppedMemory, _pc: Option<u64>) -> Option<Vec<Frame>> {
        Stack { held, interpreter: *self }.frames()
    }
}

/// The interpreter's stack as it is read at one moment.
struct Stack {
    held: StoppedMemory,
    interpreter: Interpreter,
}

/// A call, or code that is evaluated.
struct Call {
    /// The code that is called; `None` of what is evaluated.
    code: Option<u64>,
    /// The statement that runs it.
    at: u64,
}

/// The place of a statement.
struct Place {
    file: String,
    line: i32,
}

impl Stack {
    fn frames(&mut self) -> Option<Vec<Frame>> {
        let interpreter = self.held.word(self.interpreter.pointer)?;
        let operation = self.held.word(interpreter.checked_add(OPERATION)?)?;
        // All that a program has is freed below its `exit`. Blocks that run at the end, and destructors, have operations of their own.
        // None runs while a file is compiled, once a constant was computed: the line is then that of the call which has it compiled.
        let mut place = None;
        if operation != 0 {
            if self.at(operation, RUN_BY)? == self.interpreter.exit {
                return None;
            }
            place = Some(self.statement_of(operation)?);
        }
        let mut frames = Vec::new();
        for call in self.calls(interpreter)?.into_iter().take(FRAMES_MAX - 1) {
            let outer = self.place(call.at);
            let function = match (call.code, &place, &outer) {
                (Some(code), ..) => self.name(code).unwrap_or_else(|| "sub".to_owned()),
                // A file or a text of its own that is compiled or run; a block is of the function that it stands in.
                (None, Some(inner), Some(outer)) if inner.file != outer.file => MAIN.to_owned(),
                (None, Some(_), _) => continue,
                (None, None, _) => String::new(),
            };
            // The block of a module that is being compiled is called by no statement: what loads the module is told by the next call.
            if let Some(Place { file, line }) = place {
                frames.push(Frame { function, file, line });
            }
            place = outer;
        }
        frames.extend(place.map(|Place { file, line }| Frame { function: MAIN.to_owned(), file, line }));
        Some(frames)
    }

    fn at(&mut self, address: u64, offset: u64) -> Option<u64> {
        self.held.word(address.checked_add(offset)?)
    }

    /// Tells whether an operation is a statement.
    fn is_statement(&mut self, operation: u64) -> bool {
        let run_by = self.at(operation, RUN_BY);
        run_by.is_some_and(|run_by| self.interpreter.statements.contains(&run_by))
    }

    /// The place that a statement says of itself.
    fn place(&mut self, statement: u64) -> Option<Place> {
        if !self.is_statement(statement) {
            return None;
        }
        let line = self.held.half(statement.checked_add(LINE)?)?;
        let name = self.at(statement, FILE)?;
        let file = self.held.text_to_zero(name)?;
        // A line of a program that a thread is in has a number, and no file has as many lines as there are numbers.
        let line = i32::try_from(line).ok().filter(|line| (1..1 << 24).contains(line))?;
        Some(Place { file, line })
    }

    /// The line of a statement that was taken out because nothing depends on it (`ex-nextstate`): it has its line still, and no file.
    fn line_of_former(&mut self, operation: u64, kind: u64) -> Option<i32> {
        let is_former = self.at(operation, TARGET)? == kind;
        let line = self.held.half(operation.checked_add(LINE)?).filter(|_| is_former)?;
        i32::try_from(line).ok().filter(|line| (1..1 << 24).contains(line))
    }

    /// The place of the statement that an operation belongs to.
    fn statement_of(&mut self, mut operation: u64) -> Option<Place> {
        let mut steps = STEPS_MAX;
        // Operations that do nothing, the nearest first: some are former statements.
        let mut idle = Vec::new();
        while operation != 0 {
            if self.is_statement(operation) {
                return self.with_line(operation, &idle);
            }
            let above = self.above(operation, &mut steps)?;
            let (mut kid, mut nearest, mut idle_here) = (self.at(above, FIRST)?, None, Vec::new());
            while kid != operation {
                if self.is_statement(kid) {
                    nearest = Some(kid);
                    idle_here.clear();
                } else if self.at(kid, RUN_BY)? == self.interpreter.nothing {
                    idle_here.push(kid);
                }
                // The operation must be among the kids, else this is no tree.
                kid = self.next(kid, &mut steps)??;
            }
            idle.extend(idle_here.into_iter().rev());
            if let Some(nearest) = nearest {
                return self.with_line(nearest, &idle);
            }
            operation = above;
        }
        None
    }

    /// The operation that follows at the same level, if one does; `None` if this is no operation.
    fn next(&mut self, operation: u64, steps: &mut usize) -> Option<Option<u64>> {
        *steps = steps.checked_sub(1)?;
        let has_next = self.at(operation, BITS)? & HAS_SIBLING != 0;
        let next = self.at(operation, SIBLING)?;
        Some(has_next.then_some(next))
    }

    /// The operation above another one: the last of a level has it in the place of the next.
    fn above(&mut self, operation: u64, steps: &mut usize) -> Option<u64> {
        let mut last = operation;
        while let Some(next) = self.next(last, steps)? {
            last = next;
        }
        let above = self.at(last, SIBLING).filter(|above| *above != 0)?;
        (self.at(above, BITS)? & HAS_KIDS != 0).then_some(above)
    }

    /// The place of a statement, with the line of the nearest former one inside it.
    fn with_line(&mut self, statement: u64, idle: &[u64]) -> Option<Place> {
        let mut place = self.place(statement)?;
        let kind = self.at(statement, BITS)? & KIND;
        if let Some(line) = idle.iter().find_map(|former| self.line_of_former(*former, kind)) {
            place.line = line;
        }
        Some(place)
    }

    /// The calls that the interpreter is in, the innermost first: what is called, and the statement that calls. `None` if it runs nothing: the
    /// operation that ran last is named still while values are freed at the end.
    fn calls(&mut self, interpreter: u64) -> Option<Vec<Call>> {
        let mut calls = Vec::new();
        let candidates = CONTEXTS_AMONG.step_by(8).map(|offset| interpreter.wrapping_add(offset));
        let found = candidates.filter_map(|at| self.held.word(at)).collect::<Vec<_>>();
        let innermost = found.into_iter().find(|stack| self.is_stack(*stack))?;
        // The main program is a context of its own, and each function that the interpreter calls by itself has a stack.
        let runs = self.held.half(innermost.checked_add(LAST)?)? as i32 >= 0;
        let mut stack = Some(innermost).filter(|_| runs);
        while let Some(description) = stack.filter(|_| calls.len() < FRAMES_MAX) {
            self.calls_of(description, &mut calls);
            stack = self.at(description, BEFORE).filter(|before| self.is_stack(*before));
        }
        runs.then_some(calls)
    }

    /// Tells whether this describes a stack of contexts: its first word is an array, and it has room for more contexts than it holds.
    fn is_stack(&mut self, description: u64) -> bool {
        let mut look = || {
            let array = self.at(description, 0).filter(|array| *array != 0)?;
            let flags = self.held.half(array.checked_add(12)?)?;
            let last = self.held.half(description.checked_add(LAST)?)? as i32;
            let most = self.held.half(description.checked_add(LAST + 4)?)? as i32;
            let contexts = self.at(description, CONTEXTS)?;
            Some(flags & 0xff == 11 && last >= -1 && last <= most && most > 0 && contexts != 0)
        };
        description.is_multiple_of(8) && description >> 47 == 0 && look() == Some(true)
    }

    fn calls_of(&mut self, description: u64, calls: &mut Vec<Call>) -> Option<()> {
        let contexts = self.at(description, CONTEXTS)?;
        let last = self.held.half(description.checked_add(LAST)?)? as i32;
        for nth in (0..=last).rev() {
            let context = contexts.checked_add(u64::try_from(nth).ok()? * CONTEXT)?;
            let kind = self.held.half(context)? & CONTEXT_KIND;
            let at = self.at(context, CALLED_AT)?;
            match kind {
                CALL => calls.push(Call { code: Some(self.at(context, CODE)?), at }),
                EVAL => calls.push(Call { code: None, at }),
                _ => {}
            }
            if calls.len() >= FRAMES_MAX {
                break;
            }
        }
        Some(())
    }

    /// The name of code.
    fn name(&mut self, code: u64) -> Option<String> {
        let body = self.at(code, 0)?;
        let flags = self.held.half(body.checked_add(CODE_FLAGS)?)?;
        let named = self.at(body, CODE_GLOB)?;
        let name = if flags & HAS_NAME != 0 {
            named
        } else {
            let glob = self.at(named, 0)?;
            self.at(glob, GLOB_NAME)?
        };
        let length = self.held.half(name.checked_add(NAME_LENGTH)?).filter(|length| (1..NAME_MAX).contains(length))?;
        self.held.text(name.checked_add(NAME_TEXT)?, length as usize)
    }
}
