//! The calls that an R process is in, read from outside.
//!
//! `R_GlobalContext`, which libR exports, leads to the innermost context, and each context to the one around it. That of a function has the call, and
//! the call has the function's name. What is read is believed only if the types agree: a context of a function leads to a closure, to a call and to
//! an environment.

use super::super::Language;
use super::super::held::StoppedMemory;
use super::super::main_thread::Structures;
use super::{BASE, R};
use crate::record::Frame;
use crate::stacks::FRAMES_MAX;

/// Offsets in a context (Defn.h), whose third field is a `sigjmp_buf` of the C library.
const AROUND: u64 = 0;
const KIND: u64 = 8;
const JUMP: u64 = 16;
const JUMP_BYTES: u64 = if cfg!(target_arch = "aarch64") { 312 } else { 200 };
const CLOSURE: u64 = JUMP + JUMP_BYTES + 16;
const CALL: u64 = CLOSURE + 16;
const ENVIRONMENT: u64 = CLOSURE + 24;
/// The bit of the kind that contexts of functions have.
const OF_FUNCTION: u32 = 4;
/// The most contexts that are looked at: loops and promises have contexts, too.
const STEPS_MAX: usize = 10_000;
/// The types of objects, which the lowest bits of their first word tell.
const TYPE: u64 = 0x1f;
const SYMBOL: u64 = 1;
const CLOSURE_TYPE: u64 = 3;
const ENVIRONMENT_TYPE: u64 = 4;
const CALL_TYPE: u64 = 6;
const TEXT_TYPE: u64 = 9;
/// Offsets in objects: the first element of a call, and the rest; the environment that a closure was made in; a symbol's name.
const FIRST: u64 = 32;
const REST: u64 = 40;
const MADE_IN: u64 = 48;
const NAME: u64 = 32;
/// Offsets in a text: its length, and its bytes.
const LENGTH: u64 = 32;
const BYTES: u64 = 48;

/// The places of one interpreter's pointers to its innermost context and to the environment of its own functions.
#[derive(Clone, Copy)]
pub struct Interpreter {
    context: u64,
    base: u64,
}

impl Structures for Interpreter {
    const LANGUAGE: &'static dyn Language = &R;
    const EXPORTED: &'static [&'static str] = &["R_GlobalContext", "R_BaseNamespace"];

    fn find(_pid: i32, addresses: &[Option<u64>]) -> Result<Option<Self>, String> {
        let &[Some(context), Some(base)] = addresses else { return Ok(None) };
        Ok(Some(Self { context, base }))
    }

    fn frames(&self, held: StoppedMemory, _pc: Option<u64>) -> Option<Vec<Frame>> {
        Calls { held }.frames(self)
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

    fn is(&mut self, object: u64, kind: u64) -> bool {
        self.held.word(object).is_some_and(|bits| bits & TYPE == kind)
    }

    fn frames(&mut self, interpreter: &Interpreter) -> Option<Vec<Frame>> {
        let base = self.held.word(interpreter.base)?;
        let mut context = self.held.word(interpreter.context)?;
        let mut frames = Vec::new();
        for _ in 0..STEPS_MAX {
            let kind = self.held.half(context.checked_add(KIND)?)?;
            if kind & OF_FUNCTION != 0 {
                let closure = self.at(context, CLOSURE)?;
                let (call, environment) = (self.at(context, CALL)?, self.at(context, ENVIRONMENT)?);
                let agrees = self.is(closure, CLOSURE_TYPE)
                    && self.is(call, CALL_TYPE)
                    && self.is(environment, ENVIRONMENT_TYPE);
                if !agrees {
                    return None;
                }
                let file = if self.at(closure, MADE_IN)? == base { BASE } else { "<R>" };
                let function = self.name(call).unwrap_or_else(|| "function".to_owned());
                frames.push(Frame { function, file: file.to_owned(), line: 0 });
            }
            context = self.at(context, AROUND)?;
            if context == 0 || frames.len() + 1 >= FRAMES_MAX {
                break;
            }
        }
        frames.push(Frame { function: "main program".to_owned(), file: "<R>".to_owned(), line: 0 });
        Some(frames)
    }

    /// The name of the function that is called; `None` if it has none. `base::gc` is a call, too, whose second argument is the name.
    fn name(&mut self, call: u64) -> Option<String> {
        let mut function = self.at(call, FIRST)?;
        if self.is(function, CALL_TYPE) {
            let (package, rest) = (self.at(function, FIRST)?, self.at(function, REST)?);
            let named = self.at(rest, REST)?;
            function =
                self.at(named, FIRST).filter(|_| self.symbol(package).is_some_and(|name| name.starts_with("::")))?;
        }
        self.symbol(function)
    }

    /// The name of a symbol; `None` if this is none.
    fn symbol(&mut self, symbol: u64) -> Option<String> {
        let name = self.at(symbol, NAME).filter(|_| self.is(symbol, SYMBOL))?;
        let length = self.at(name, LENGTH).filter(|_| self.is(name, TEXT_TYPE))?;
        self.held.text(name.checked_add(BYTES)?, usize::try_from(length).ok()?)
    }
}
