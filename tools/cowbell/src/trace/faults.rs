//! Page faults of all that is followed, from a ring of perf events.
//!
//! ```text
//!  kernel ──rings──> a thread of the tracer ──Told──> the tracer
//!   a record a fault   woken when a ring is a quarter     sorted by time, each address resolved in the address
//!                      full, and every few ms             space of that time, kept by interval and page
//! ```
//!
//! The tracer itself may be busy for longer than a ring lasts, with comparing pages for example; so a thread moves records from
//! the rings to memory. Of each page the first and the last fault are kept: which of them wrote it is known when the
//! page tables are read at the interval's end ([`super::faults_settle`]).

use super::Tracer;
use super::faults_sample::Pace;
use super::faults_settle::{FaultEvidence, settle};
use super::faults_told::FaultCounts;
use super::maps::{BackedMapping, Backing};
use super::settle::Close;
use super::touched::{FaultedPages, PageFault, Touched};
use super::watch::{OpenInterval, Written};
use crate::record::{Closed, End, GapKind, Mapping, Record, Watched, Who, WriteClass};
use cowbell::sys::perf::record as perf;
use cowbell::sys::perf::rings::{Rings, Waiter, Woken};
use cowbell::sys::procfs::status::Status;
use cowbell::sys::{Errno, eventfd, limits, monotonic_ns, pidfd, process};
use std::cell::LazyCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A ring for each CPU, if this user may lock so much: 26,000 faults.
const RING_BYTES: usize = 1 << 20;
/// The time between looks at the rings while there are faults; a shorter one for so many looks after an interval opened.
const BUSY: Duration = Duration::from_millis(5);
const QUICK: Duration = Duration::from_millis(1);
const QUICK_TICKS: u32 = 50;
/// After so many looks in vain a full ring, or an interval that opens, must come first.
const QUIET_MAX: u32 = 40;

/// A thing that a ring told.
enum Told {
    Fault(perf::FaultRecord),
    Code { pid: i32, time_ns: u64, map: Box<BackedMapping> },
}

impl Told {
    fn time_ns(&self) -> u64 {
        match self {
            Self::Fault(fault) => fault.time_ns,
            Self::Code { time_ns, .. } => *time_ns,
        }
    }
}

/// The state that the thread and the tracer share.
struct Shared {
    rings: Mutex<Rings>,
    told: Mutex<Vec<Told>>,
    /// The tracer is about to go.
    ends: AtomicBool,
    /// Nobody needs the faults before a ring is full: no interval is open, or nothing happened for a while.
    rests: AtomicBool,
}

impl Shared {
    /// Moves records from the rings to memory; how many.
    fn drain(&self) -> usize {
        let mut rings = lock(&self.rings);
        let mut found = Vec::new();
        rings.drain(|record| match record {
            perf::RingRecord::Fault(fault) => found.push(Told::Fault(fault)),
            perf::RingRecord::Mapped(code) => {
                let map = Box::new(map_of(&code));
                found.push(Told::Code { pid: code.pid, time_ns: code.time_ns, map });
            }
            // The events count what is lost, and exactly.
            perf::RingRecord::Lost(_) | perf::RingRecord::Other | perf::RingRecord::Broken => {}
        });
        let count = found.len();
        lock(&self.told).append(&mut found);
        count
    }
}

/// Locks: a thread that panicked while it held the lock left whole records behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The faults of everybody who is followed.
pub struct Faults {
    shared: Arc<Shared>,
    /// Readable while there are records that the tracer has not taken.
    news: Arc<OwnedFd>,
    /// Wakes the thread.
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    /// By the number of the interval.
    touched: HashMap<u32, FaultedPages>,
    /// True if faults are told that the kernel takes for a thread.
    pub tell_kernel: bool,
    /// By process: its last fault, and when its next stack is due.
    pub pace: HashMap<i32, Pace>,
    /// By process: how many there were.
    pub counts: FaultCounts,
}

impl Faults {
    /// The faults of the thread `tid` and all that come from it.
    ///
    /// # Errors
    /// Why not, and what would help.
    pub fn open(tid: i32) -> Result<Self, String> {
        let rings = Rings::open(tid, RING_BYTES).map_err(|e| e.to_string())?;
        let tell_kernel = rings.tell_kernel();
        let waiter = rings.waiter().map_err(|e| e.to_string())?;
        let event = || eventfd::new().map(Arc::new).map_err(|e| e.to_string());
        let (news, wake) = (event()?, event()?);
        let (ends, rests) = (AtomicBool::new(false), AtomicBool::new(true));
        let shared = Arc::new(Shared { rings: Mutex::new(rings), told: Mutex::default(), ends, rests });
        let (theirs, woken, tell) = (Arc::clone(&shared), Arc::clone(&wake), Arc::clone(&news));
        let thread = std::thread::Builder::new()
            .name("cowbell-faults".to_owned())
            .spawn(move || keep_draining(&theirs, waiter, &woken, &tell))
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        let (touched, pace, counts) = (HashMap::new(), HashMap::new(), FaultCounts::default());
        Ok(Self { shared, news, wake, thread: Some(thread), touched, tell_kernel, pace, counts })
    }

    /// Those of one more thread, and of all that come from it.
    ///
    /// # Errors
    /// `EMFILE`, or what opening an event meets.
    pub fn add(&self, tid: i32) -> Result<(), Errno> {
        lock(&self.shared.rings).add(tid)
    }

    /// Readable while there are records to take.
    pub fn news(&self) -> &OwnedFd {
        &self.news
    }

    /// The pages with faults of an interval that closes, of this process.
    pub fn close(&mut self, interval: u32, pid: i32) -> FaultedPages {
        self.pace.remove(&pid);
        self.touched.remove(&interval).unwrap_or_default()
    }

    /// The faults of a page in an open interval.
    pub fn of(&mut self, interval: u32, page: u64) -> Option<&mut Touched> {
        self.touched.get_mut(&interval)?.get_mut(&page)
    }

    /// An interval opened: its faults are wanted soon.
    pub fn hurry(&self) {
        if self.shared.rests.swap(false, Ordering::Relaxed) {
            eventfd::notify(&self.wake);
        }
    }

    /// The number of faults that had no place in a ring; `None` where the kernel does not tell.
    pub fn lost(&self) -> Option<u64> {
        lock(&self.shared.rings).lost()
    }

    /// All that was told up to now, by time.
    ///
    /// The rings are read one after another: a fault that is found in the last may come of a mapping that was told in the first
    /// once that had been read. What is told of times after the reading began is kept for the next time.
    fn take(&self) -> Vec<Told> {
        let began_ns = monotonic_ns();
        self.shared.drain();
        let mut all = lock(&self.shared.told);
        let (mut told, later): (Vec<_>, _) =
            std::mem::take(&mut *all).into_iter().partition(|told| told.time_ns() <= began_ns);
        *all = later;
        told.sort_by_key(Told::time_ns);
        told
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        eventfd::notify(&self.wake);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Moves records to memory until the tracer goes: when a ring is a quarter full, and while there are faults every few
/// milliseconds, at first more often: that is when stacks are taken.
fn keep_draining(shared: &Shared, mut waiter: Waiter, wake: &OwnedFd, news: &OwnedFd) {
    process::go_first();
    let mut ticks = 0u32;
    let mut quiet = 0u32;
    loop {
        let patience = (quiet < QUIET_MAX).then_some(if ticks < QUICK_TICKS { QUICK } else { BUSY });
        shared.rests.store(patience.is_none(), Ordering::Relaxed);
        match waiter.wait(wake.as_fd(), patience) {
            Ok(Woken::Stop) => {
                eventfd::take_notice(wake);
                (ticks, quiet) = (0, 0);
            }
            Ok(Woken::Records | Woken::Timeout) => ticks = ticks.saturating_add(1),
            Err(_) => return,
        }
        if shared.ends.load(Ordering::Relaxed) {
            return;
        }
        quiet = quiet.saturating_add(1);
        if shared.drain() > 0 {
            quiet = 0;
            eventfd::notify(news);
        }
    }
}

/// A mapping of code as `/proc/PID/maps` would have it.
fn map_of(code: &perf::MappedCode<'_>) -> BackedMapping {
    let name = if code.inode == 0 && code.name == b"//anon" { &[][..] } else { code.name };
    let mapping = Mapping {
        start: code.start,
        end: code.start.saturating_add(code.len),
        permissions: "r-xp".to_owned(),
        offset: code.offset,
        name: String::from_utf8_lossy(name).into_owned(),
        watched: Watched::Faults,
    };
    let file = (format!("{:02x}:{:02x}", code.device.0, code.device.1), code.inode);
    let backing = if code.inode == 0 { Backing::Anonymous } else { Backing::File };
    BackedMapping { mapping, backing, file, told: false, gone: false }
}

impl Tracer {
    /// Takes over what the rings hold: each fault goes to the interval that is open for its process.
    pub(super) fn take_faults(&mut self) {
        let Some(faults) = &mut self.faults else { return };
        for told in faults.take() {
            let pid = match &told {
                Told::Fault(fault) => {
                    faults.counts.tell(fault.pid);
                    fault.pid
                }
                Told::Code { pid, .. } => *pid,
            };
            // A child of vfork writes to its maker's memory until it executes a program.
            let pid = self.tree.holder(pid);
            let watch = self.tree.processes.get_mut(&pid).and_then(|process| process.watch.as_mut());
            let Some(watch) = watch else { continue };
            let time_ns = told.time_ns().saturating_sub(self.started_ns);
            if time_ns < watch.begun_ns {
                continue;
            }
            match told {
                Told::Fault(fault) => {
                    let pages = faults.touched.entry(watch.interval).or_default();
                    let fault = note(watch, pages, fault, time_ns);
                    faults.pace.entry(pid).or_default().last = Some(fault);
                }
                Told::Code { map, .. } => watch.space.replace(*map),
            }
        }
    }

    /// The rings have records.
    pub(super) fn serve_faults(&mut self) {
        self.hear_news();
        self.sample_faults();
    }

    /// Takes over what the rings hold, once that is told.
    pub(super) fn hear_news(&mut self) {
        // The notice may have been taken meanwhile: taking it twice would wait for the next one.
        let news = self.faults.as_ref().map(Faults::news);
        let news = news.filter(|news| pidfd::readable(news.as_fd(), Some(Duration::ZERO)) == Ok(true));
        if let Some(news) = news {
            eventfd::take_notice(news);
        }
        self.take_faults();
    }

    /// Hears the faults of one more thread, of which the events told nothing up to now.
    pub(super) fn hear_more_faults(&mut self, pid: i32, tid: i32) {
        let refused = self.faults.as_ref().and_then(|faults| faults.add(tid).err());
        // One that is gone takes no more faults.
        if let Some(e) = refused.filter(|&e| e != Errno::SRCH) {
            self.gap(pid, GapKind::Other, format!("the page faults of thread {tid} cannot be watched ({e})"));
        }
    }

    /// A process executed a program. Of one with privileges, or one that its user may not read, the kernel has removed the events.
    pub(super) fn hear_again(&mut self, pid: i32) {
        if self.faults.is_some() && has_lost_its_events(pid) {
            self.hear_more_faults(pid, pid);
        }
    }

    /// Closes an interval by its page tables and the faults of its pages.
    pub(super) fn settle_faults(&mut self, watch: &OpenInterval, close: Close) -> End {
        let mut touched =
            self.faults.as_mut().map(|faults| faults.close(watch.interval, watch.pid)).unwrap_or_default();
        for (page, sampled) in &watch.stacks {
            let first = touched.get_mut(page).map(|touched| &mut touched.first);
            // A page that the kernel wrote while a thread was about to go on (a signal's frame, say) is no line's.
            let its =
                first.filter(|first| first.tid == sampled.tid && first.time_ns <= sampled.time_ns && !first.by_kernel);
            if let Some(first) = its {
                first.stack = Some(sampled.stack);
            }
        }
        let donor = if close.is_there { self.donor(watch.pid) } else { None };
        // A kernel that does not tell is asked by the records of what was lost; these come late, and so it is not trusted.
        let lost = self.faults.as_ref().is_none_or(|faults| faults.lost() != Some(0));
        let evidence = FaultEvidence {
            watch,
            touched: &touched,
            complete: !lost && self.faults.as_ref().is_some_and(|faults| faults.tell_kernel),
            lost,
            untold: watch.untold,
            swaps: LazyCell::new(limits::has_swap),
            // A fork of a child closes nothing where only children are watched.
            shared_anew: close.closed == Closed::Forked || self.options.who == Who::Child,
            donor: donor.as_ref(),
        };
        let (end, rows) = settle(&evidence, &self.originals, close);
        if !rows.is_empty() {
            self.say(Record::Faults { interval: watch.interval, rows });
        }
        end
    }

    /// Faults that had no place in a ring, or were not told at all.
    pub(super) fn tell_what_was_lost(&mut self) {
        let Some(faults) = &self.faults else { return };
        let (lost, tell_kernel) = (faults.lost(), faults.tell_kernel);
        if !tell_kernel {
            let detail = "copies made by the kernel in system calls (read, recv) are told to root, or after `sysctl \
                          kernel.perf_event_paranoid=1`; others may be missing here";
            self.gap(0, GapKind::Other, detail);
        }
        match lost {
            Some(0) => {}
            Some(lost) => self.gap(0, GapKind::EventsDropped, format!("{lost} page faults had no place in a ring")),
            None => self.gap(
                0,
                GapKind::Other,
                "this kernel does not tell how many page faults were lost (it takes Linux 6.0)",
            ),
        }
    }
}

/// Tells whether the kernel ended the events of a process that has just executed a program. It does where the process may not be
/// dumped afterwards: its files in /proc (not their folder) belong to root then, or its user is not the one who called.
fn has_lost_its_events(pid: i32) -> bool {
    let Ok(status) = Status::of(pid) else { return false };
    let changed = |name| {
        let ids = status.numbers(name);
        ids.first() != ids.get(1)
    };
    let owner = std::fs::metadata(format!("/proc/{pid}/maps")).map(|found| u64::from(found.uid())).ok();
    let user = status.numbers("Uid").get(1).and_then(|&id| u64::try_from(id).ok());
    changed("Uid") || changed("Gid") || owner != user
}

/// Notes a fault of an interval's process.
fn note(watch: &mut OpenInterval, pages: &mut FaultedPages, fault: perf::FaultRecord, time_ns: u64) -> PageFault {
    let page = fault.address / super::baseline::page_bytes() * super::baseline::page_bytes();
    let code = if fault.by_kernel { 0 } else { watch.code(fault.ip) };
    let perf::FaultRecord { address, ip, tid, by_kernel, frame: found, .. } = fault;
    let fault = PageFault { time_ns, address, ip, tid, code, by_kernel, found, stack: None };
    pages.entry(page).and_modify(|touched| touched.add(fault)).or_insert_with(|| Touched::new(fault));
    // A child's copy is compared with what its parent has, as long as that has not written there.
    if watch.base.at(page).is_some() {
        let written = Written { class: WriteClass::CopyOrReuse, frame: 0, time_ns };
        watch.written.entry(page).and_modify(|known| known.time_ns = time_ns).or_insert(written);
    }
    fault
}
