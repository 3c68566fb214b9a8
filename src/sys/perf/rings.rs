//! The page faults of a whole tree of processes: an event and a ring for each CPU.
//!
//! The kernel gives no ring to an event that is inherited and counts on all CPUs, so there is one a CPU.

use super::record::RingRecord;
use super::{Follow, Options, PerfEvent, Ring};
use crate::error::{Error, Result};
use crate::sys::epoll::Poller;
use crate::sys::{Errno, page_size};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Events of one thread and of those that come from it, with a ring for each CPU.
#[derive(Debug)]
pub struct Rings {
    rings: Vec<Ring>,
    /// Events of threads that were added later; they write into the rings.
    added: Vec<PerfEvent>,
    /// The CPUs of this machine.
    present: Vec<u32>,
    /// The CPU of each ring.
    cpus: Vec<u32>,
    /// The options of each event but for its CPU and its watermark.
    options: Options,
}

/// The call that failed while rings were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingsRefused {
    /// Its name: `perf_event_open` as [`PerfEvent::open`], or `mmap`: `EPERM` where not even a page may be locked, `ENOMEM` where there is no
    /// room for one (memory, or addresses: `RLIMIT_AS`).
    pub call: &'static str,
    /// The errno of that call.
    pub errno: Errno,
}

const OPEN: &str = "perf_event_open";
const MAP: &str = "mmap(perf event)";

/// Why a wait for records ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// A ring is a quarter full.
    Records,
    /// The descriptor that ends the waiting became readable.
    Stop,
    /// The time is over, or a signal came.
    Timeout,
}

impl Rings {
    /// Opens an event on each CPU for the thread `tid` and all that come from it from now on, with faults that the kernel takes
    /// for them and the frames of pages if this user may see those. Each ring has `bytes_max` bytes, or as large a part of that as this
    /// user may lock for all of them.
    ///
    /// # Errors
    /// The call that failed: see [`RingsRefused`].
    pub fn open(tid: i32, bytes_max: usize) -> Result<Self> {
        let mut rings = Self::prepare(Follow::Tree);
        rings.open_prepared(tid, bytes_max).map_err(|refused| Error::os(refused.call, refused.errno))?;
        Ok(rings)
    }

    /// Makes room for an event on each CPU, and opens none. Events of a [`Follow::Process`] will tell registers, others frames and mappings of code.
    pub fn prepare(follow: Follow) -> Self {
        let present = cpus();
        let (rings, cpus) = (Vec::with_capacity(present.len()), Vec::with_capacity(present.len()));
        let of_process = follow == Follow::Process;
        let options = Options {
            cpu: None,
            follow,
            kernel: false,
            frames: !of_process,
            registers: of_process,
            code: !of_process,
            wakeup_bytes: 0,
        };
        Self { rings, added: Vec::new(), present, cpus, options }
    }

    /// The number of rings that there is room for.
    pub fn prepared(&self) -> usize {
        self.present.len()
    }

    /// Opens the events as [`Self::open`] does, in the room that was prepared. *Async-signal-safe.*
    ///
    /// # Errors
    /// See [`RingsRefused`].
    pub fn open_prepared(&mut self, tid: i32, bytes_max: usize) -> Result<(), RingsRefused> {
        match self.open_with(tid, bytes_max, true) {
            Err(RingsRefused { errno: Errno::ACCESS, .. }) => self.open_with(tid, bytes_max, false),
            opened => opened,
        }
    }

    /// Opens them as [`Self::open_prepared`] does; `kernel`: see [`Options::kernel`].
    fn open_with(&mut self, tid: i32, bytes_max: usize, kernel: bool) -> Result<(), RingsRefused> {
        self.options.kernel = kernel;
        self.options.frames &= kernel;
        let mut bytes = bytes_max.max(page_size().bytes());
        while let Some(errno) = self.open_sized(tid, bytes)? {
            if bytes == page_size().bytes() {
                return Err(RingsRefused { call: MAP, errno });
            }
            // The limit is one for all rings of a user, so all are made smaller.
            bytes = (bytes / 2).max(page_size().bytes());
        }
        Ok(())
    }

    /// Opens them with rings of `bytes` bytes; the errno where this user may not lock so much, or there is no room.
    fn open_sized(&mut self, tid: i32, bytes: usize) -> Result<Option<Errno>, RingsRefused> {
        self.rings.clear();
        self.cpus.clear();
        for &cpu in &self.present {
            let options = Options { cpu: Some(cpu), wakeup_bytes: (bytes / 4) as u32, ..self.options };
            let event = match PerfEvent::open(tid, options) {
                // The CPU went away.
                Err(Errno::NODEV) => continue,
                event => event.map_err(|errno| RingsRefused { call: OPEN, errno })?,
            };
            match Ring::new(event, bytes) {
                Ok(ring) => self.rings.push(ring),
                Err((_, errno @ (Errno::PERM | Errno::NOMEM))) => return Ok(Some(errno)),
                Err((_, errno)) => return Err(RingsRefused { call: MAP, errno }),
            }
            self.cpus.push(cpu);
        }
        if self.rings.is_empty() { Err(RingsRefused { call: OPEN, errno: Errno::NODEV }) } else { Ok(None) }
    }

    /// Lets the faults of one more thread, and of all that come from it from now on, go into these rings.
    ///
    /// # Errors
    /// Those of [`PerfEvent::open`].
    pub fn add(&mut self, tid: i32) -> Result<(), Errno> {
        let before = self.added.len();
        for (ring, &cpu) in self.rings.iter().zip(&self.cpus) {
            let options = Options { cpu: Some(cpu), ..self.options };
            let added = PerfEvent::open(tid, options).and_then(|event| event.output_to(ring).map(|()| event));
            match added {
                Ok(event) => self.added.push(event),
                Err(e) => {
                    // A thread on some CPUs only would be a half truth.
                    self.added.truncate(before);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Tells whether faults are told that the kernel takes for a thread, and [`frames`](super::record::FaultRecord::frame).
    pub fn tell_kernel(&self) -> bool {
        self.options.kernel
    }

    /// The number of bytes of records that fit, on all CPUs.
    pub fn bytes(&self) -> usize {
        self.rings.iter().map(Ring::bytes).sum()
    }

    /// Hands over what the rings hold: those of one CPU in the order of their times, then the next CPU's. *Async-signal-safe.*
    pub fn drain(&mut self, mut seen: impl FnMut(RingRecord)) {
        for ring in &mut self.rings {
            ring.drain(&mut seen);
        }
    }

    /// Descriptors to wait for the rings by, while another thread may drain them.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn waiter(&self) -> Result<Waiter, Errno> {
        let copies = self.rings.iter().map(|ring| rustix::io::fcntl_dupfd_cloexec(ring, 3));
        copies.collect::<Result<_, _>>().map(Waiter)
    }

    /// Adds the events to a set that is to be readable when a ring is a quarter full. *Async-signal-safe.*
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`.
    pub fn wake(&self, poller: &Poller) -> Result<(), Errno> {
        self.rings.iter().try_for_each(|ring| poller.add_for_news(ring))
    }

    /// The number of faults that had no place in a ring until now; `None` before Linux 6.0, which does not tell. *Async-signal-safe.*
    pub fn lost(&self) -> Option<u64> {
        let events = self.rings.iter().map(Ring::event).chain(&self.added);
        events.map(|event| event.counts().ok()?.lost).sum()
    }
}

/// Waits for [`Rings`].
#[derive(Debug)]
pub struct Waiter(Vec<OwnedFd>);

impl Waiter {
    /// Waits until a ring is a quarter full or `stop` is readable, at most so long.
    ///
    /// # Errors
    /// None that valid descriptors meet.
    pub fn wait(&mut self, stop: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<Woken, Errno> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        loop {
            let mut polled = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            polled.extend(self.0.iter().map(|ring| PollFd::new(ring, PollFlags::IN)));
            let found = match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Err(Errno::INTR) => 0,
                found => found?,
            };
            let revents: Vec<_> = polled.iter().map(PollFd::revents).collect();
            let stopped = revents.first().is_some_and(|revents| !revents.is_empty());
            let has_records = revents.iter().skip(1).any(|revents| revents.contains(PollFlags::IN));
            // A ring whose threads have all ended is ready for ever, and wakes for no more records.
            let mut told = revents.iter().skip(1);
            self.0.retain(|_| told.next().is_some_and(|revents| !revents.contains(PollFlags::HUP)));
            match (stopped, has_records, found) {
                (true, ..) => return Ok(Woken::Stop),
                (_, true, _) => return Ok(Woken::Records),
                (.., 0) => return Ok(Woken::Timeout),
                _ => {}
            }
        }
    }
}

/// The CPUs of this machine, those that are switched off as well.
fn cpus() -> Vec<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/present").unwrap_or_default();
    let found = parse_list(list.trim());
    if found.is_empty() { (0..allowed_cpus()).collect() } else { found }
}

/// The number of CPUs that this process may run on, which must do where `/sys` is not mounted.
fn allowed_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// `0-3,8` is 0, 1, 2, 3 and 8.
fn parse_list(list: &str) -> Vec<u32> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::parse_list;

    #[test]
    fn a_list_of_cpus_is_read_with_its_gaps() {
        assert_eq!(parse_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list("0"), [0]);
        assert_eq!(parse_list("none"), [0u32; 0]);
    }
}
