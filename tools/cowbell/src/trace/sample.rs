//! Stacks of threads that wait for a page.
//!
//! A thread that waits sleeps, and where it sleeps is told by /proc: instruction and stack pointer. Most stacks take no more, and are
//! read while it goes on waiting. For the others the thread is interrupted: it leaves the page fault, stands at the faulting
//! instruction, and all its registers can be read. Lifting the protection comes after, so the fault does not come again.

use super::Tracer;
use super::layout;
use super::threads;
use super::watch::OpenInterval;
use crate::record::{Event, Frame, Mode, Record, Stack, Wrote};
use crate::stacks::instruction;
use crate::stacks::languages::{InterpreterReader, Language};
use crate::stacks::native::UnwindRegisters;
use cowbell::sys::procfs;
use cowbell::sys::ptrace::{self, Stop, WaitStatus};
use cowbell::sys::registers as ptrace_registers;
use std::collections::HashMap;

/// The number of times that an interpreter that could not be read (not initialised yet, say) is looked for.
const TRIES_MAX: u32 = 5;
/// Instructions whose first page is sampled in any case, for each interval.
const FIRSTS_MAX: usize = 200;

/// The time that a thread may take to stand still.
const STAND_NS_MAX: u64 = 2_000_000;
/// But so often it is asked in any case: on a busy machine it must first be let run.
const STAND_LOOKS_MIN: u32 = 30;

/// The stacks that were sampled, and the interpreters that were found for them.
#[derive(Default)]
pub struct Sampler {
    /// Pages by interval and instruction.
    counts: HashMap<u32, HashMap<u64, u32>>,
    /// The number of each stack that was written down.
    stacks: HashMap<Key, u32>,
    /// The number of stacks that have a number. Numbers are never given again, though stacks are forgotten.
    told: u32,
    /// The interpreters found, by process.
    interpreters: HashMap<i32, Search>,
}

/// The properties by which a stack is known: interval, native frames, frames of a script, and what was written.
type Key = (u32, Vec<u32>, Vec<Frame>, Wrote);

/// The state of the search for an interpreter.
enum Search {
    Found(Box<dyn InterpreterReader>),
    /// The search failed so often, the last time for this reason.
    Failed(u32, String),
}

/// A thread that was interrupted for its stack, and how it stands.
pub struct Halted {
    /// The thread.
    pub tid: i32,
    /// The stop in which the tracer finds it.
    pub status: WaitStatus,
}

/// The outcome of taking a thread's stack.
pub enum StackTaken {
    /// The thread was not interrupted: it is gone.
    Never,
    /// The stack was read while the thread waits; it is here if it is new.
    Asleep(Option<Stack>),
    /// The thread was interrupted, and its stop comes later.
    Late,
    /// The thread stands; with its stack, if that is new.
    Stands(Halted, Option<Stack>),
}

impl Sampler {
    /// Tells whether this event's stack is wanted: every `every`th of its instruction is, and the first.
    pub fn wants(&mut self, watch: &OpenInterval, event: &Event, every: u32) -> bool {
        // A thread inside of a system call cannot be interrupted there.
        if every == 0 || event.syscall.is_some() || event.pc == 0 {
            return false;
        }
        let counts = self.counts.entry(watch.interval).or_default();
        let firsts = counts.len();
        let count = counts.entry(event.pc).or_insert(0);
        *count += 1;
        (*count == 1 && firsts < FIRSTS_MAX) || count.is_multiple_of(every)
    }

    /// Reads the stacks of an event's thread, which waits to write at `address`, and says whether this stack is new. If the thread had to be
    /// interrupted it is left as it stands: the caller lifts the protection, then handles the stop.
    pub fn take(&mut self, watch: &mut OpenInterval, event: &mut Event, address: u64, parent: i32) -> StackTaken {
        let tid = event.tid;
        if let Some((number, stack)) = self.read_asleep(watch, event, address, parent) {
            event.stack = Some(number);
            return StackTaken::Asleep(stack);
        }
        if ptrace::interrupt(tid).is_err() {
            return StackTaken::Never;
        }
        let Some(status) = stopped(tid, watch, event.time_ns) else { return StackTaken::Late };
        let halted = Halted { tid, status };
        let stands = matches!(status, WaitStatus::Stopped(Stop::Trap | Stop::Group(_) | Stop::Signal(_)));
        let Some(registers) = ptrace::registers(tid).ok().filter(|registers| stands && registers.pc() == event.pc)
        else {
            return StackTaken::Stands(halted, None);
        };
        let (number, stack) = self.read(watch, (tid, &registers), (event.pc, address), parent);
        event.stack = Some(number);
        StackTaken::Stands(halted, stack)
    }

    /// The same of a thread that sleeps in its page fault. `None` if its stack takes more registers than are known then, or if it ran
    /// meanwhile: a signal wakes it.
    fn read_asleep(
        &mut self,
        watch: &mut OpenInterval,
        event: &Event,
        address: u64,
        parent: i32,
    ) -> Option<(u32, Option<Stack>)> {
        // On aarch64 a function that calls nobody keeps the address to which it returns in a register. And whether the thread itself or
        // the kernel writes, as it delivers a signal, page faults tell; in the other modes that a thread can be stopped there does.
        if cfg!(not(target_arch = "x86_64")) || watch.mode != Mode::Faults {
            return None;
        }
        let turns = watch.threads.turns(event.tid)?;
        let at = watch.threads.blocked_now(event.tid)?;
        if at.syscall.is_some() || at.pc != event.pc {
            return None;
        }
        let native = watch.stack(UnwindRegisters { ip: at.pc, sp: at.sp, bp: None, lr: 0 })?;
        let wrote = wrote(watch, at.pc, address);
        let (language, frames) = self.script(watch, parent, event.tid, Some(at.pc));
        let slept = watch.threads.turns(event.tid) == Some(turns);
        slept.then(|| self.number((watch.interval, native, frames, wrote), language))
    }

    /// Reads the stacks of a thread that stands still, with its registers: the number, and the stack itself if it is new.
    /// `wrote`: the instruction whose write it is taken for, and the address.
    pub fn read(
        &mut self,
        watch: &mut OpenInterval,
        (tid, registers): (i32, &ptrace_registers::UserRegs),
        (pc, address): (u64, u64),
        parent: i32,
    ) -> (u32, Option<Stack>) {
        let wrote = wrote(watch, pc, address);
        let (language, frames) = self.script(watch, parent, tid, Some(registers.pc()));
        let native = watch.stack(all(registers)).unwrap_or_default();
        self.number((watch.interval, native, frames, wrote), language)
    }

    /// The number of different stacks up to now.
    pub fn told(&self) -> u32 {
        self.told
    }

    /// The number of a stack, and the stack if it is new.
    fn number(&mut self, key: Key, language: Option<&str>) -> (u32, Option<Stack>) {
        if let Some(&known) = self.stacks.get(&key) {
            return (known, None);
        }
        let stack = self.told;
        self.told += 1;
        let (interval, native, frames, wrote) = key.clone();
        self.stacks.insert(key, stack);
        (stack, Some(Stack { stack, interval, native, language: language.map(str::to_owned), frames, wrote }))
    }

    /// The stack of a thread that stands still, or of its script's frames only where it does not (`stands`); its number, and the stack if it is new. `None` where
    /// it could not be read.
    pub fn look(
        &mut self,
        watch: &mut OpenInterval,
        tid: i32,
        parent: i32,
        stands: bool,
    ) -> Option<(u32, Option<Stack>)> {
        let at = if stands { Some(ptrace::registers(tid).ok()?) } else { None };
        let (language, frames) = self.script(watch, parent, tid, at.as_ref().map(ptrace_registers::UserRegs::pc));
        let mut native = Vec::new();
        if let Some(at) = at {
            native = watch.stack(all(&at)).unwrap_or_default();
        } else if self.script(watch, parent, tid, None).1 != frames {
            // The frames of a thread that runs may be of two moments, unless they are the same when they are read again.
            return None;
        }
        let is_empty = frames.is_empty() && native.is_empty();
        (!is_empty).then(|| self.number((watch.interval, native, frames, Wrote::Unknown), language))
    }

    /// Why the stacks of an interpreter's process have no frames of its script; `None` where they may have some, or where none was asked for.
    pub fn no_lines(&self, pid: i32) -> Option<&str> {
        match self.interpreters.get(&pid)? {
            Search::Found(_) => None,
            Search::Failed(_, why) => Some(why),
        }
    }

    /// An interval closed.
    pub fn forget(&mut self, interval: u32) {
        self.counts.remove(&interval);
        self.stacks.retain(|(of, ..), _| *of != interval);
    }

    /// A process ended or executed another program.
    pub fn forget_process(&mut self, pid: i32) {
        self.interpreters.remove(&pid);
    }

    /// The language that a thread of a watched process runs, and its frames in it.
    fn script(
        &mut self,
        watch: &OpenInterval,
        parent: i32,
        tid: i32,
        pc: Option<u64>,
    ) -> (Option<&'static str>, Vec<Frame>) {
        let language = watch.space.language();
        language.map_or((None, Vec::new()), |language| self.frames(language, watch.pid, parent, (tid, pc)))
    }

    /// The same, of a language that may be found in its memory.
    fn frames(
        &mut self,
        language: &dyn Language,
        pid: i32,
        parent: i32,
        (tid, pc): (i32, Option<u64>),
    ) -> (Option<&'static str>, Vec<Frame>) {
        if !self.interpreters.contains_key(&pid) {
            let inherited = match self.interpreters.get(&parent) {
                Some(Search::Found(reader)) => Search::Found(reader.for_child(pid)),
                _ => search(language, pid, 0),
            };
            self.interpreters.insert(pid, inherited);
        }
        if let Some(&Search::Failed(tries, _)) = self.interpreters.get(&pid)
            && tries < TRIES_MAX
        {
            self.interpreters.insert(pid, search(language, pid, tries));
        }
        match self.interpreters.get_mut(&pid) {
            Some(Search::Found(reader)) => (Some(reader.language().id()), reader.frames(tid, pc)),
            _ => (None, Vec::new()),
        }
    }
}

impl Tracer {
    /// Takes the stack of an event's thread, if it is one of those wanted.
    pub(super) fn sample(&mut self, watch: &mut OpenInterval, event: &mut Event, address: u64) -> Option<Halted> {
        if self.leaving || !self.sampler.wants(watch, event, self.options.stacks_every) {
            return None;
        }
        let started = cowbell::sys::monotonic_ns();
        let parent = self.tree.processes.get(&watch.pid).map_or(0, |process| process.parent);
        let taken = self.sampler.take(watch, event, address, parent);
        self.spent.stacks_ns += cowbell::sys::monotonic_ns() - started;
        self.tell_taken(taken)
    }

    /// Writes down a stack that is new; returns the thread, if it was interrupted for it.
    pub(super) fn tell_taken(&mut self, taken: StackTaken) -> Option<Halted> {
        self.spent.stops += u64::from(matches!(taken, StackTaken::Late | StackTaken::Stands(..)));
        let (halted, stack) = match taken {
            StackTaken::Never => return None,
            StackTaken::Asleep(stack) => (None, stack),
            StackTaken::Late => (None, None),
            StackTaken::Stands(halted, stack) => (Some(halted), stack),
        };
        if let Some(stack) = stack {
            self.say(Record::Stack(stack));
        }
        halted
    }
}

/// The kind of data that the instruction at `pc` is about to write at an address.
fn wrote(watch: &OpenInterval, pc: u64, address: u64) -> Wrote {
    let mut objects = watch.space.objects();
    let by_layout = objects.wrote(address, &mut layout::words(watch));
    let mut bytes = [0; instruction::BYTES_MAX];
    let read = watch.memory.read(pc, &mut bytes).unwrap_or(0);
    let code = bytes.get(..read).unwrap_or_default();
    match by_layout {
        Wrote::Other if instruction::is_atomic(code) => Wrote::Atomic,
        Wrote::Other
            if instruction::adds_to_byte(code) && objects.counts_copies(address, &mut layout::words(watch)) =>
        {
            Wrote::TextCopies
        }
        by_layout => by_layout,
    }
}

/// The stop at which an interrupted thread stands. On its way there the kernel may write to other pages of the process, which are
/// answered. A thread that the kernel made fault at this very page (it writes a signal's frame, say) cannot stand still
/// before the page is there: `None`, and its stop comes later.
fn stopped(tid: i32, watch: &mut OpenInterval, time_ns: u64) -> Option<WaitStatus> {
    let started = cowbell::sys::monotonic_ns();
    let mut looks = 0;
    while cowbell::sys::monotonic_ns() - started < STAND_NS_MAX || looks < STAND_LOOKS_MIN {
        looks += 1;
        if let Some((_, status)) = ptrace::wait(Some(tid), false).ok()? {
            return Some(status);
        }
        watch.answer_meanwhile(time_ns);
        cowbell::sys::process::yield_now();
    }
    None
}

/// The activity of a thread at this moment, as far as it can make memory grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// The thread runs.
    Running,
    /// The thread waits in a system call that fills memory, or for a page.
    Reading,
    /// The thread sleeps.
    Sleeping,
}

/// The activity of a thread; `None` if it is gone.
pub fn doing(pid: i32, tid: i32) -> Option<Doing> {
    let text = procfs::text(pid, &format!("task/{tid}/syscall")).ok()?;
    let number = text.split_ascii_whitespace().next()?;
    let reading = [libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_recvfrom, libc::SYS_recvmsg];
    Some(match number.parse::<i64>() {
        Err(_) => Doing::Running,
        // -1: it waits in a page fault, at an instruction of its own.
        Ok(number) if number == -1 || reading.contains(&number) => Doing::Reading,
        Ok(_) => Doing::Sleeping,
    })
}

/// The time that a thread has run.
pub fn ran_ns(pid: i32, tid: i32) -> u64 {
    let text = procfs::text(pid, &format!("task/{tid}/schedstat")).unwrap_or_default();
    threads::schedule(&text).map_or(0, |[ran, ..]| ran)
}

/// The registers of a thread that stands still.
fn all(at: &ptrace_registers::UserRegs) -> UnwindRegisters {
    UnwindRegisters { ip: at.pc(), sp: at.sp(), bp: Some(at.bp()), lr: at.link() }
}

fn search(language: &dyn Language, pid: i32, tries: u32) -> Search {
    match language.reader(pid) {
        Ok(Some(reader)) => Search::Found(reader),
        Ok(None) => {
            let why = format!("no interpreter of {} that can be read was found in the process", language.name());
            Search::Failed(tries + 1, why)
        }
        Err(why) => Search::Failed(tries + 1, why),
    }
}
