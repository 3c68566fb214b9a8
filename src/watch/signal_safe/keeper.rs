//! The keeper: a process that shares the child's memory and so keeps its page tables alive.
//!
//! # Safety
//! The keeper runs on a stack of its own **with the thread-local storage of the child's main thread**, so
//! all of it is *async-signal-safe*: no allocation, no std I/O, no panic, no libc call that may fail while the child lives.
//! It uses `Evidence`, which the child never frees.
#![expect(unsafe_code, reason = "a process is started in shared memory")]

use super::census;
use super::faults::ChildFaults;
use super::outside;
use crate::arena::Image;
use crate::facts::Registers;
use crate::page::{PageIndex, differing_words};
use crate::sys::map::{self, Access, Range};
use crate::sys::pagemap::{Pagemap, Query, WRITTEN};
use crate::sys::perf::rings::Rings;
use crate::sys::uffd::{Uffd, UffdMessage};
use crate::sys::{self, Errno, clone, descriptor, eventfd, memfd, pidfd, pipe, prctl, process, procfs};
use crate::watch::evidence::{Bitmap, Evidence, STACK_BYTES, Word};
use crate::watch::failure::{At, FailedStep, Step};
use crate::watch::findings::Changed;
use crate::watch::request::KeeperRequest;
use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

/// The number of looks at a writer before it sleeps: some milliseconds, when others have its processor.
const SLEEP_TRIES_MAX: usize = 1000;

/// The values that a keeper begins with.
struct Beginning<'a> {
    evidence: &'static Evidence,
    rings: &'a Cell<Option<Rings>>,
}

/// Starts the keeper, from the child, and waits until it has begun.
pub(in crate::watch) fn start(
    evidence: &'static Evidence,
    command: BorrowedFd<'_>,
    rings: &Cell<Option<Rings>>,
) -> Result<(), FailedStep> {
    let (lifeline, held) = pipe::pair().at(Step::Lifeline)?;
    let (answer, begun) = pipe::pair().at(Step::Lifeline)?;
    let page = sys::page_size().bytes();
    let memory = map::anonymous(STACK_BYTES + page).at(Step::KeeperStack)?;
    // SAFETY: fresh memory; its first page becomes the guard below the stack.
    unsafe { map::protect(Range { start: memory.start, len: page }, Access::None) }.at(Step::KeeperStack)?;
    let stack = Range { start: memory.start + page, len: STACK_BYTES };
    evidence.set(Word::ChildPid, process::pid() as u64);
    evidence.set(Word::KeeperStack, stack.start as u64);
    for (word, number) in [
        (Word::CommandNumber, descriptor::number(&command)),
        (Word::BegunNumber, descriptor::number(&begun)),
        (Word::LifelineNumber, descriptor::number(&lifeline)),
    ] {
        evidence.set_number(word, number);
    }
    let beginning = Beginning { evidence, rings };
    let argument = (&raw const beginning).cast_mut().cast();
    // SAFETY: `run` is async-signal-safe; the stack is its own; it uses `beginning` until it has begun or ended, which is awaited below.
    let started = unsafe { clone::share_memory(run, argument, stack, evidence.word(Word::KeeperTid)) };
    prctl::allow_tracing_by(started.at(Step::StartKeeper)?);
    drop(begun);
    if !pipe::take_byte(&answer) {
        // The pipe's only other writer was the keeper, so the keeper has ended.
        let failure = FailedStep::unpack(evidence.get(Word::KeeperFailure));
        return Err(failure.unwrap_or(FailedStep(Step::StartKeeper, Errno::SRCH)));
    }
    // The keeper's end of the pipe reports a hang-up when this process executes another program.
    std::mem::forget(held);
    Ok(())
}

extern "C" fn run(argument: *mut c_void) -> c_int {
    // SAFETY: `start` passes what stays valid until this process has begun or ended.
    let beginning = unsafe { &*argument.cast::<Beginning<'_>>() };
    let evidence = beginning.evidence;
    match Keeper::new(evidence, beginning.rings) {
        Ok(keeper) => {
            keeper.serve();
            0
        }
        Err(failure) => {
            evidence.set(Word::KeeperFailure, failure.pack());
            1
        }
    }
}

struct Keeper {
    evidence: &'static Evidence,
    child: OwnedFd,
    child_pid: i32,
    lifeline: OwnedFd,
    command: OwnedFd,
    pagemap: Pagemap,
    /// This process's memory, which is the child's.
    memory: OwnedFd,
    uffd: Option<Uffd>,
    faults: RefCell<Option<ChildFaults>>,
    /// The writing thread seen last, and where its state is read: most writes come from one thread.
    writer: Cell<Option<(i32, OwnedFd)>>,
    /// The child's auxiliary vector, which tells whether it is still the same program.
    program: [u8; 512],
}

impl Keeper {
    fn new(evidence: &'static Evidence, rings: &Cell<Option<Rings>>) -> Result<Self, FailedStep> {
        prctl::set_name(c"cowbell-keeper");
        prctl::die_with_parent().at(Step::DieWithParent)?;
        if process::parent_pid() != evidence.parent_pid {
            process::exit(1);
        }
        let child_pid = evidence.get(Word::ChildPid) as i32;
        let child = pidfd::open(child_pid).at(Step::KeeperDescriptors)?;
        let pagemap = Pagemap::open_self().at(Step::KeeperPagemap)?;
        let mut program = [0; 512];
        procfs::signal_safe::auxiliary_vector(0, &mut program).at(Step::KeeperPagemap)?;
        let inherited = |word| evidence.number(word).ok_or(FailedStep(Step::KeeperDescriptors, Errno::BADF));
        let (command, lifeline) = (inherited(Word::CommandNumber)?, inherited(Word::LifelineNumber)?);
        // SAFETY: the number is the eventfd's; this process's table is its own copy.
        let command = unsafe { OwnedFd::from_raw_fd(command) };
        // SAFETY: the number is the pipe's; this process's table is its own copy.
        let lifeline = unsafe { OwnedFd::from_raw_fd(lifeline) };
        // SAFETY: the number is the userfaultfd's; this process's table is its own copy.
        let uffd = evidence.number(Word::UffdNumber).map(|uffd| unsafe { OwnedFd::from_raw_fd(uffd) });
        // SAFETY: the child stored the number of its userfaultfd.
        let uffd = uffd.map(|uffd| unsafe { Uffd::from_fd(uffd) });
        let begun = inherited(Word::BegunNumber)?;
        let memory = procfs::signal_safe::open_memory().at(Step::KeeperPagemap)?;
        let writer = Cell::new(None);
        let faults = RefCell::new(None);
        let keeper =
            Self { evidence, child, child_pid, lifeline, command, pagemap, memory, uffd, faults, writer, program };
        keeper.close_all_but(begun);
        if let Some(rings) = rings.take() {
            keeper.faults.replace(Some(ChildFaults::open(rings, evidence, child_pid)?));
        }
        // SAFETY: the number is the other pipe's; this process's table is its own copy.
        pipe::give_byte(unsafe { OwnedFd::from_raw_fd(begun) });
        Ok(keeper)
    }

    /// Closes what was inherited and is not needed, so that the program's own files close when it closes them.
    fn close_all_but(&self, begun: i32) {
        let uffd = self.uffd.as_ref().map_or(-1, descriptor::number);
        let mine = [
            descriptor::number(&self.child),
            descriptor::number(&self.lifeline),
            descriptor::number(&self.command),
            self.pagemap.number(),
            descriptor::number(&self.memory),
            uffd,
            begun,
        ];
        // SAFETY: this process's table is its own copy, and it uses no descriptor but these.
        // Before Linux 5.9 they stay open, which delays ends of file but breaks nothing else.
        let _kept_open = unsafe { descriptor::close_all_but(&[&mine, &self.evidence.files]) };
    }

    /// Until the child is gone; then the last census.
    fn serve(&self) {
        let monitor = self.uffd.as_ref().filter(|_| self.evidence.watch.is_answered_by_keeper());
        let mut same_program = true;
        loop {
            // A descriptor the poll does not need stands as the child's own.
            let uffd = monitor.map_or(self.child.as_fd(), |uffd| uffd.as_fd());
            let faults = self.faults.borrow();
            let news = faults.as_ref().map_or(self.child.as_fd(), |faults| faults.as_fd());
            let lifeline = if same_program { self.lifeline.as_fd() } else { self.child.as_fd() };
            let awaited = [self.child.as_fd(), lifeline, self.command.as_fd(), uffd, news];
            let Ok([child, lifeline, command, uffd, news]) = pidfd::wait_any(awaited) else {
                // Out of kernel memory: without the last census, which would be too early.
                return self.evidence.set(Word::KeeperFailure, FailedStep(Step::KeeperPoll, Errno::NOMEM).pack());
            };
            drop(faults);
            if let (true, Some(monitor)) = (uffd, monitor) {
                self.monitor(monitor);
            }
            if let (true, Some(faults)) = (news, self.faults.borrow_mut().as_mut()) {
                faults.take(self.evidence, &self.memory);
            }
            if command {
                eventfd::take_notice(&self.command);
                self.answer();
            }
            if child {
                break;
            }
            if lifeline && same_program {
                // The pipe's other end is gone: closed by exec, or by a program that closes everything.
                if self.executed() {
                    self.evidence.set(Word::Executed, 1);
                    break;
                }
                same_program = false;
            }
        }
        let last = self.look();
        match last {
            Ok(()) => self.evidence.set(Word::LastCensus, 1),
            Err(failure) => self.evidence.set(Word::KeeperFailure, failure.pack()),
        }
    }

    /// Tells whether the child has executed another program.
    fn executed(&self) -> bool {
        let mut now = [0; 512];
        match procfs::signal_safe::auxiliary_vector(self.child_pid, &mut now) {
            // A process that is exiting may have no memory any more (others find ESRCH then, below).
            Ok([]) => false,
            Ok(_) => now != self.program,
            // The program runs with rights we lack, so it is another one; unless it is just exiting.
            Err(Errno::ACCESS | Errno::PERM) => !procfs::signal_safe::is_exiting(self.child_pid),
            Err(_) => false,
        }
    }

    /// Notes every waiting write and lets it go on.
    fn monitor(&self, uffd: &Uffd) {
        let page = sys::page_size();
        let _readable = uffd.read(|event| {
            let UffdMessage::Fault(fault) = event else { return };
            let (sp, pc) = self.blocked_at(fault.tid).unwrap_or_default();
            self.evidence.saw(fault.address, || fault.tid, Registers { pc, sp, fp: 0 }, |_| ());
            let range = Range { start: page.round_down(fault.address), len: page.bytes() };
            // SAFETY: the page lies in an arena we armed. Fails only when the child is gone.
            let _gone = unsafe { uffd.write_protect(range, false) };
        });
    }

    /// The instruction and the stack pointer at which a thread waits.
    fn blocked_at(&self, tid: i32) -> Option<(u64, u64)> {
        let known = match self.writer.take() {
            Some((known, syscall)) if known == tid => syscall,
            other => {
                if let Some((_, old)) = other {
                    descriptor::close(old);
                }
                procfs::syscall::open(self.child_pid, tid).ok()?
            }
        };
        // The message is sent just before the writer sleeps; until then its state says that it runs.
        let at = (0..SLEEP_TRIES_MAX).find_map(|_| procfs::syscall::blocked_at(&known));
        self.writer.set(Some((tid, known)));
        at
    }

    fn answer(&self) {
        let request = self.evidence.get(Word::Request);
        if request == self.evidence.get(Word::Done) {
            return;
        }
        let done = match KeeperRequest::of(request) {
            KeeperRequest::Epoch => self.epoch(),
            KeeperRequest::Census => self.look(),
            KeeperRequest::Events => self.tell_faults(),
        };
        self.evidence.set(Word::RequestFailure, done.err().map_or(0, FailedStep::pack));
        self.evidence.set(Word::Done, request);
    }

    /// Takes over all that is to be known now.
    fn look(&self) -> Result<(), FailedStep> {
        self.observe_async(Bitmap::Seen, false)?;
        self.census()?;
        self.tell_faults()
    }

    /// Hands over what was seen since the last epoch and arms those pages again.
    ///
    /// Pages are taken from `seen` first and armed after: a page written in between is one that was
    /// already taken, so it belongs to the epoch that ends.
    fn epoch(&self) -> Result<(), FailedStep> {
        // The copies so far must not be forgotten when a swapped copy is armed again.
        self.census()?;
        if !self.evidence.watch.arms() {
            return self.tell_faults();
        }
        for image in 0..self.evidence.images.len() {
            let seen = self.evidence.bitmap(image, Bitmap::Seen);
            if seen.is_empty() && self.evidence.bitmap(image, Bitmap::Epoch).is_empty() {
                continue;
            }
            for (at, epoch) in self.evidence.bitmap_to_write(image, Bitmap::Epoch).iter().enumerate() {
                let taken = seen.get(at).map_or(0, |seen| seen.swap(0, Ordering::AcqRel));
                epoch.store(taken, Ordering::Release);
            }
        }
        self.observe_async(Bitmap::Epoch, true)?;
        if !self.evidence.watch.has_events() {
            return Ok(());
        }
        let page = sys::page_size();
        for (at, image) in self.evidence.images.iter().enumerate() {
            for (word_at, word) in self.evidence.bitmap(at, Bitmap::Epoch).iter().enumerate() {
                let mut bits = word.load(Ordering::Acquire);
                while bits != 0 {
                    let index = PageIndex(word_at as u64 * 64 + u64::from(bits.trailing_zeros()));
                    bits &= bits - 1;
                    let range = Range { start: image.range().start + page.offset_of(index), len: page.bytes() };
                    self.progress();
                    if let Some(uffd) = &self.uffd {
                        // SAFETY: the page lies in an arena we armed.
                        unsafe { uffd.write_protect(range, true) }.at(Step::WriteProtect)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Under faults: adds the events of the pages that are copies by now.
    fn tell_faults(&self) -> Result<(), FailedStep> {
        match self.faults.borrow_mut().as_mut() {
            Some(faults) => faults.tell(self.evidence, &self.pagemap, &self.memory, || self.progress()),
            None => Ok(()),
        }
    }

    /// Says that the work goes on.
    fn progress(&self) {
        self.evidence.word(Word::Progress).fetch_add(1, Ordering::Relaxed);
    }

    /// Under asynchronous watch: adds the pages written since they were armed, and arms them again if asked.
    fn observe_async(&self, into: Bitmap, rearm: bool) -> Result<(), FailedStep> {
        if !self.evidence.watch.leaves_marks() {
            return Ok(());
        }
        let query = Query { rearm, ..WRITTEN };
        for (at, image) in self.evidence.images.iter().enumerate() {
            let scanned = self.pagemap.scan(image.range(), &query, |run| {
                self.progress();
                for page in census::pages_of(image.range(), run) {
                    self.evidence.mark(at, into, page);
                }
            });
            scanned.at(Step::KeeperScan)?;
        }
        Ok(())
    }

    /// Reads which pages are copies and how they differ from the originals.
    fn census(&self) -> Result<(), FailedStep> {
        let armed = self.evidence.watch.arms();
        for (at, image) in self.evidence.images.iter().enumerate() {
            if !armed {
                // Without userfaultfd the page tables tell all, and a copy given back is no copy.
                for word in self.evidence.bitmap(at, Bitmap::Copied) {
                    word.store(0, Ordering::Release);
                }
            }
            let scanned = census::scan(&self.pagemap, image.range(), armed, |run| {
                for page in census::pages_of(image.range(), run) {
                    if self.evidence.is_marked(at, Bitmap::Inherited, page) {
                        continue;
                    }
                    self.evidence.mark(at, Bitmap::Copied, page);
                    let changed = self.compare(image, page);
                    self.evidence.set_changed(at, page, changed.ok());
                    self.progress();
                }
            });
            scanned.at(Step::KeeperScan)?;
        }
        // A failure here makes the report say that this is lost, and no more than this.
        let _lost = outside::take(self.evidence, &self.pagemap, || self.progress());
        Ok(())
    }

    /// Compares a copied page with the original.
    fn compare(&self, image: &Image, page: PageIndex) -> Result<Changed, Errno> {
        const CHUNK: usize = 4096;
        let size = sys::page_size();
        let start = size.offset_of(page);
        let (mut bytes, mut first, mut last) = (0, None, 0);
        let (mut mine, mut original) = ([0u8; CHUNK], [0u8; CHUNK]);
        for at in (0..size.bytes()).step_by(CHUNK) {
            memfd::read_at(&self.memory, &mut mine, (image.range().start + start + at) as u64)?;
            if image.read_original(start + at, &mut original)? < CHUNK {
                // A file that was opened in place, and cut since.
                return Err(Errno::IO);
            }
            if mine == original {
                continue;
            }
            for (word, was, is) in differing_words(&original, &mine) {
                for (within, _) in was.iter().zip(is).enumerate().filter(|(_, (was, is))| *was != is) {
                    bytes += 1;
                    last = (at + word + within) as u32;
                    first = first.or(Some(last));
                }
            }
        }
        Ok(Changed { bytes, first: first.unwrap_or(0), last })
    }
}
