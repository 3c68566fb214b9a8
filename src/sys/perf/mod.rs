//! Page faults as they happen: `perf_event_open(2)` with `PERF_COUNT_SW_PAGE_FAULTS`, one record a fault in a ring.
//!
//! The kernel writes a record when a fault begins: its address, the instruction, the thread and the time. It needs no
//! hardware counter, so it works in virtual machines; `kernel.perf_event_paranoid`
//! decides who may, and a container's seccomp filter may refuse it. A fault is not a copy: reading an untouched page
//! faults as well.
//!
//! ```text
//!  user page (header)   ring: a power of two of pages
//!  +-------------+      +---------------------------------------------+
//!  | data_head --|----->|  ... [record][record][record][reco   rd] ... |
//!  | data_tail --|----->|      ^ tail                      ^ head      |
//!  +-------------+      +---------------------------------------------+
//!  the kernel moves head and never goes beyond tail; we read [tail, head) and move tail
//! ```
//!
//! # Safety
//! A ring's mapping is made here and lent to nobody: records are copied out of it before they are read. The kernel writes only
//! outside of `[tail, head)`, because the mapping is writable (without `PROT_WRITE` it would overwrite).
#![expect(unsafe_code, reason = "perf_event_open has no safe wrapper, and its ring is memory that the kernel writes")]

pub mod record;
pub mod rings;

use super::map::{self, Range, last_errno};
use super::wipe_on_fork::OwnPage;
use super::{Errno, page_size};
use record::{RingRecord, word};
use rustix::io::retry_on_intr;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `struct perf_event_attr` of linux/perf_event.h as of its third version (Linux 4.1), the first with a choice of clocks.
#[repr(C)]
struct Attributes {
    /* in */ kind: u32,
    /* in */ size: u32,
    /* in */ config: u64,
    /* in */ sample_period: u64,
    /* in */ sample_type: u64,
    /* in */ read_format: u64,
    /* in */ flags: u64,
    /* in */ wakeup_watermark: u32,
    /* in */ bp_type: u32,
    /* in */ config1: u64,
    /* in */ config2: u64,
    /* in */ branch_sample_type: u64,
    /* in */ sample_regs_user: u64,
    /* in */ sample_stack_user: u32,
    /* in */ clockid: i32,
}

const _: () = assert!(size_of::<Attributes>() == 96, "PERF_ATTR_SIZE_VER3");

const TYPE_SOFTWARE: u32 = 1;
const COUNT_SW_PAGE_FAULTS: u64 = 2;
/// `PERF_SAMPLE_IP | PERF_SAMPLE_TID | PERF_SAMPLE_TIME | PERF_SAMPLE_ADDR`; records hold them in this order.
const SAMPLE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3;
/// `PERF_SAMPLE_REGS_USER` (since Linux 3.7), behind those.
const SAMPLE_REGISTERS: u64 = 1 << 12;
/// `PERF_SAMPLE_PHYS_ADDR` (since Linux 4.14), behind those.
const SAMPLE_FRAME: u64 = 1 << 19;
/// `PERF_FORMAT_LOST` (since Linux 6.0).
const FORMAT_LOST: u64 = 1 << 4;
const INHERIT: u64 = 1 << 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HYPERVISOR: u64 = 1 << 6;
/// Mappings of code, with the file's inode.
const CODE: u64 = 1 << 8 | 1 << 23;
const WATERMARK: u64 = 1 << 14;
/// Records that are no samples end with thread and time.
const SAMPLE_ID_ALL: u64 = 1 << 18;
const USE_CLOCK: u64 = 1 << 25;
/// `inherit_thread` and `remove_on_exec` (both since Linux 5.13).
const INHERIT_THREAD: u64 = 1 << 35;
const REMOVE_ON_EXEC: u64 = 1 << 36;
const FLAG_CLOSE_ON_EXEC: u64 = 1 << 3;
/// `_IO('$', 5)`.
const SET_OUTPUT: u64 = 0x2405;

/// The offsets of `data_head` and `data_tail` in `struct perf_event_mmap_page`.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

/// The threads that are counted besides the one that an event is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// None.
    Thread,
    /// The threads of its process that it makes from now on, and theirs, until the process executes another program. Since Linux 5.13.
    Process,
    /// All threads and processes that it makes from now on, and theirs.
    Tree,
}

/// The choice of what an event counts, and on which CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The one CPU it counts on; `None`: all, which goes together with a ring only for [`Follow::Thread`].
    pub cpu: Option<u32>,
    /// The threads whose faults it counts.
    pub follow: Follow,
    /// Faults that the kernel takes on the thread's behalf as well, in a `read(2)` into its buffer for example. Needs
    /// CAP_PERFMON, or `kernel.perf_event_paranoid` at most 1.
    pub kernel: bool,
    /// The page frame that was mapped at the address before the fault ([`record::FaultRecord::frame`]). Needs the same, and Linux 4.14.
    pub frames: bool,
    /// Some registers of the program ([`record::FaultRecord::registers`]). Not together with `frames`.
    pub registers: bool,
    /// Mappings of code are told as well.
    pub code: bool,
    /// Waiting for the event's descriptor ends when so many bytes are in its ring.
    pub wakeup_bytes: u32,
}

/// The counts of an event, over all threads that inherited it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Faults.
    pub faults: u64,
    /// Faults without a record because the ring was full; `None` before Linux 6.0, which does not tell.
    pub lost: Option<u64>,
}

/// One event: the faults of a thread, and as [`Options::follow`] says of those that come from it.
#[derive(Debug)]
pub struct PerfEvent {
    fd: OwnedFd,
    tells_lost: bool,
}

impl PerfEvent {
    /// `perf_event_open(attr, tid, cpu, -1, PERF_FLAG_FD_CLOEXEC)`, counting at once; 0 is the caller. *Async-signal-safe.*
    ///
    /// # Errors
    /// `EACCES`, `EPERM`: `kernel.perf_event_paranoid`, seccomp, or not ours to trace; `ESRCH`: no such thread; `ENODEV`: no
    /// such CPU; `EMFILE`; `ENOSYS`: a kernel without perf events; `EINVAL`: one before 5.13 does not know [`Follow::Process`].
    pub fn open(tid: i32, options: Options) -> Result<Self, Errno> {
        match Self::open_format(tid, options, true) {
            // A kernel before 6.0 does not know PERF_FORMAT_LOST.
            Err(Errno::INVAL) => Self::open_format(tid, options, false),
            opened => opened,
        }
    }

    fn open_format(tid: i32, options: Options, tells_lost: bool) -> Result<Self, Errno> {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        if options.frames && options.registers {
            return Err(Errno::INVAL);
        }
        let attributes = Attributes {
            kind: TYPE_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: COUNT_SW_PAGE_FAULTS,
            sample_period: 1,
            sample_type: SAMPLE | flag(options.frames, SAMPLE_FRAME) | flag(options.registers, SAMPLE_REGISTERS),
            read_format: flag(tells_lost, FORMAT_LOST),
            flags: flag(options.follow != Follow::Thread, INHERIT)
                | flag(options.follow == Follow::Process, INHERIT_THREAD | REMOVE_ON_EXEC)
                | flag(!options.kernel, EXCLUDE_KERNEL)
                | flag(options.code, CODE)
                | EXCLUDE_HYPERVISOR
                | SAMPLE_ID_ALL
                | WATERMARK
                | USE_CLOCK,
            wakeup_watermark: options.wakeup_bytes,
            bp_type: 0,
            config1: 0,
            config2: 0,
            branch_sample_type: 0,
            sample_regs_user: flag(options.registers, record::REGISTERS),
            sample_stack_user: 0,
            clockid: libc::CLOCK_MONOTONIC,
        };
        let cpu = options.cpu.map_or(-1, |cpu| cpu as i32);
        let at = &raw const attributes;
        // SAFETY: the kernel reads `size` bytes of `attributes`, which lives until the call returns.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, at, tid, cpu, -1, FLAG_CLOSE_ON_EXEC) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the call made this descriptor just now, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { fd, tells_lost })
    }

    /// Puts this event's records into the ring of another of the same CPU (`PERF_EVENT_IOC_SET_OUTPUT`). *Async-signal-safe.*
    ///
    /// # Errors
    /// `EINVAL`: of another CPU.
    pub fn output_to(&self, ring: &Ring) -> Result<(), Errno> {
        // SAFETY: the request takes a descriptor's number, and both descriptors are open.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), SET_OUTPUT, ring.event.fd.as_raw_fd()) };
        if done < 0 { Err(last_errno()) } else { Ok(()) }
    }

    /// The event's counts until now. *Async-signal-safe.*
    ///
    /// # Errors
    /// None that an event of a thread meets.
    pub fn counts(&self) -> Result<Counts, Errno> {
        let mut values = [0u8; 16];
        retry_on_intr(|| rustix::io::read(&self.fd, &mut values))?;
        Ok(Counts { faults: word(&values, 0), lost: self.tells_lost.then(|| word(&values, 8)) })
    }
}

impl AsFd for PerfEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An event with its ring.
///
/// The mapping is not inherited: a ring that came over a fork is empty for good. Who shares the memory of whoever made
/// it (a thread, a `CLONE_VM` process) has it as well.
#[derive(Debug)]
pub struct Ring {
    event: PerfEvent,
    /// The header's page, then the records.
    mapping: Range,
    /// A page that fork wipes in the child: it is this process's while `mapping` is.
    here: OwnPage,
}

impl Ring {
    /// `mmap` of a ring of `bytes` bytes, rounded up to a power of two of pages. *Async-signal-safe.*
    ///
    /// # Errors
    /// `EPERM`: more than this user may lock (`kernel.perf_event_mlock_kb` a CPU, and `RLIMIT_MEMLOCK`); `ENOMEM`; `EINVAL`: the
    /// event is inherited and of no single CPU.
    pub fn new(event: PerfEvent, bytes: usize) -> Result<Self, (PerfEvent, Errno)> {
        match Self::map(&event, bytes) {
            Ok((mapping, here)) => Ok(Self { event, mapping, here }),
            Err(e) => Err((event, e)),
        }
    }

    fn map(event: &PerfEvent, bytes: usize) -> Result<(Range, OwnPage), Errno> {
        let page = page_size().bytes();
        let pages = bytes.div_ceil(page).checked_next_power_of_two().ok_or(Errno::NOMEM)?;
        let len = pages.checked_mul(page).and_then(|len| len.checked_add(page)).ok_or(Errno::NOMEM)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses addresses nobody uses (mmap(2)).
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &event.fd, 0) }?;
        let mapping = Range { start: at.expose_provenance(), len };
        let here = OwnPage::new().inspect_err(|_| unmap(mapping))?;
        Ok((mapping, here))
    }

    /// The event.
    pub fn event(&self) -> &PerfEvent {
        &self.event
    }

    /// The number of bytes of records that fit.
    pub fn bytes(&self) -> usize {
        self.mapping.len - page_size().bytes()
    }

    /// Hands over what the ring holds, oldest first, and makes room. Records of one CPU come in the order of their
    /// times. *Async-signal-safe.*
    pub fn drain(&mut self, mut seen: impl FnMut(RingRecord)) {
        if !self.is_here() {
            return;
        }
        let (head, tail) = (self.position(HEAD), self.position(TAIL));
        // Acquire, so that the records are seen that the kernel wrote before it moved the head.
        let end = head.load(Ordering::Acquire);
        let begin = tail.load(Ordering::Relaxed);
        record::each(begin, end, self.bytes() as u64, |at, into| self.copy(at, into), &mut seen);
        // Release, so that the kernel does not write over records that were not copied yet.
        tail.store(end, Ordering::Release);
    }

    /// Tells whether the mapping is this process' own: made here, or by a process that shares this memory.
    fn is_here(&self) -> bool {
        self.here.is_own()
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        word_at(self.mapping.start + offset)
    }

    /// Copies bytes at a position of the stream, over the ring's end if they lie so.
    fn copy(&self, at: u64, into: &mut [u8]) {
        let (len, data) = (self.bytes(), self.mapping.start + page_size().bytes());
        let from = (at % len as u64) as usize;
        let first = into.len().min(len - from);
        let (head, rest) = into.split_at_mut(first);
        for (start, part) in [(data + from, head), (data, rest)] {
            let source = std::ptr::with_exposed_provenance::<u8>(start);
            // SAFETY: both pieces lie within the mapping; the kernel leaves them alone until the tail has passed them.
            unsafe { std::ptr::copy_nonoverlapping(source, part.as_mut_ptr(), part.len()) };
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // In a forked child there is no such mapping, and something else may have come to its place.
        if self.is_here() {
            unmap(self.mapping);
        }
    }
}

/// A word of a mapping of this module's that is there as long as the caller lends the reference.
fn word_at<'a>(address: usize) -> &'a AtomicU64 {
    let at = std::ptr::with_exposed_provenance::<AtomicU64>(address);
    // SAFETY: callers pass an aligned address in a mapping of theirs, which they unmap when dropped; kernel and process
    // access it by atomic instructions only.
    unsafe { &*at }
}

fn unmap(range: Range) {
    // SAFETY: the range was mapped in this module by the caller, and nobody refers into it any more.
    let unmapped = unsafe { map::unmap(range) };
    debug_assert!(unmapped.is_ok());
}
