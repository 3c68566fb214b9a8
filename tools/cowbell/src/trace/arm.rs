//! Opening an interval: which mappings of an address space are armed, and how.

use super::address_space::AddressSpace;
use super::baseline::{Baseline, Was};
use super::codes::Codes;
use super::entries;
use super::faults_armed::Sampling;
use super::maps::{self, BackedMapping, Backing};
use super::moves::Collected;
use super::ranges::Ranges;
use super::tables::PageTables;
use super::threads::Threads;
use super::watch::{Doors, OpenInterval, UnreadMessages};
use crate::record::{Begin, HeldPages, Mapping, Mode, WatchReason, Watched};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::Entry;
use cowbell::sys::procfs;
use cowbell::sys::remote::{RemoteMemory, RemoteUffd};
use cowbell::sys::{Errno, process};
use std::collections::HashMap;

/// The parts that a watch is opened with.
pub struct Opening {
    /// The interval's number.
    pub interval: u32,
    /// The reason why it is watched.
    pub role: WatchReason,
    /// The way in which pages are observed.
    pub mode: Mode,
    /// The process whose memory is watched.
    pub pid: i32,
    /// True if page frames are readable.
    pub frames: bool,
    /// A stack for every so many pages; 0 for none.
    pub stacks_every: u32,
    /// The time, since the header.
    pub now_ns: u64,
    /// The page faults that the process had before, where counted: they bound its copies.
    pub faults_before: Option<u64>,
    /// The numbers of code.
    pub codes: Codes,
}

/// A larger mapping of a memfd has events only for the pages that are private already.
const WHOLE_MAX: u64 = 16 << 30;

impl OpenInterval {
    /// Arms the private mappings of a process that stands still, or at least its one thread that could fork. `relative`:
    /// what a process held that had the very same pages when this one was made. `before`: the address space of an earlier
    /// interval, or of the process that forked this one.
    ///
    /// # Errors
    /// Its page tables cannot be read.
    pub fn arm(
        opening: &Opening,
        doors: Doors,
        relative: Option<&Baseline>,
        before: Option<&AddressSpace>,
    ) -> Result<(Self, Begin), Errno> {
        let started = cowbell::sys::monotonic_ns();
        let living = procfs::living(opening.pid);
        let pagemap = PageTables::open(living)?;
        let maps = maps::of(living)?;
        let base = match relative {
            Some(parent) => {
                let private = maps.iter().filter(|map| map.backing != Backing::Shared);
                let private = private.map(|map| (map.mapping.start, map.mapping.end));
                Baseline::inherited(parent, private, &pagemap)?
            }
            None => Baseline::scan(&pagemap)?,
        };
        let pages = base.count(0, u64::MAX, Was::Private);
        let sampling = Sampling::new(opening.stacks_every, pages);
        let mut watch = Self {
            interval: opening.interval,
            role: opening.role,
            mode: opening.mode,
            pid: opening.pid,
            begun_ns: opening.now_ns,
            pagemap,
            space: AddressSpace::new(opening.pid, opening.interval, opening.codes.clone()),
            base,
            written: HashMap::new(),
            moved: HashMap::new(),
            stacks: HashMap::new(),
            sampling,
            events: Vec::new(),
            untold: None,
            uncounted: 0,
            dropped: Ranges::default(),
            callers: opening.stacks_every > 0,
            collected: Collected::default(),
            faults_before: opening.faults_before,
            told: UnreadMessages::default(),
            memory: RemoteMemory::open(living)?,
            frames: opening.frames,
            // Where nobody waits for an answer, nobody is looked for.
            threads: if doors.events.is_none() && doors.asynchronous.is_none() {
                Threads::default()
            } else {
                Threads::of(opening.pid)
            },
            doors,
        };
        let (mut framed, ran) = (Vec::new(), cowbell::sys::ran_ns());
        for mut map in maps {
            if matches!(map.backing, Backing::Memory | Backing::File) {
                // Markers that an earlier interval of this process has left look like pages in swap.
                watch.base.drop_swapped(map.mapping.start, map.mapping.end);
            }
            map.mapping.watched = watch.arm_mapping(&map);
            if matches!(map.mapping.watched, Watched::Async | Watched::Faults) && opening.frames {
                framed.push((map.mapping.start, map.mapping.end));
            }
            map.told = matches!(map.mapping.watched, Watched::Events | Watched::Async);
            watch.space.maps.push(map);
        }
        watch.sampling.arming_ran_ns = cowbell::sys::ran_ns() - ran;
        watch.base.read_frames(&watch.pagemap, framed.into_iter())?;
        if let Some(before) = before {
            watch.space.inherit(before);
        }
        watch.space.announce(&watch.doors);
        let held = watch.held()?;
        let begin = Begin {
            interval: opening.interval,
            pid: opening.pid,
            role: opening.role,
            time_ns: opening.now_ns,
            mode: opening.mode,
            mappings: watch.space.maps.iter().map(|map| map.mapping.clone()).collect(),
            held,
            exact_stacks: opening.mode == Mode::Faults && watch.doors.events.is_some() && opening.stacks_every > 0,
            arm_ns: cowbell::sys::monotonic_ns() - started,
        };
        Ok((watch, begin))
    }

    fn arm_mapping(&mut self, map: &BackedMapping) -> Watched {
        let Mapping { start, end, .. } = map.mapping;
        let inherited = self.base.any(start, end);
        let door = match (map.backing, self.mode) {
            (Backing::Shared, _) => return Watched::No,
            (Backing::HugePages, _) => return Watched::Refused("huge pages of hugetlbfs are not watched".to_owned()),
            (backing, Mode::Faults) => {
                if backing == Backing::Anonymous && inherited {
                    self.arm_some(start, end);
                }
                return Watched::Faults;
            }
            // A file's page that is copied is an event only where the kernel allows it: not for ordinary files.
            (Backing::Memory, Mode::Trace) => (self.doors.events.as_deref(), Watched::Events),
            (Backing::Anonymous, Mode::Trace) if inherited => (self.doors.events.as_deref(), Watched::Events),
            (Backing::File, Mode::Trace) if inherited => (self.doors.asynchronous.as_ref(), Watched::Async),
            (_, Mode::Count) if inherited => (self.doors.asynchronous.as_ref(), Watched::Async),
            // Not armed, but so that it is told when it is unmapped.
            (Backing::File, _) | (Backing::Memory, Mode::Count) if map.mapping.permissions.contains('w') => {
                (self.doors.asynchronous.as_ref(), Watched::Async)
            }
            // Nothing to copy, or nothing that page tables do not tell afterwards.
            _ => return Watched::Census,
        };
        let (Some(uffd), watched) = door else {
            return Watched::Refused("the kernel cannot write-protect this kind of mapping".to_owned());
        };
        let range = Range { start: start as usize, len: (end - start) as usize };
        let armed = uffd.register(range).and_then(|()| match watched {
            // Only ranges that have pages are armed: that makes no markers, and is three times as fast as userfaultfd's own call.
            Watched::Async => self.base.ranges(start, end).try_for_each(|pages| self.pagemap.arm(pages)),
            // The kernel leaves a marker for each page that is not there: too many in a huge reservation, where new
            // private pages are then found when the interval closes.
            _ if map.backing == Backing::Memory && end - start > WHOLE_MAX => {
                self.base.ranges(start, end).try_for_each(|pages| protect(uffd, pages, &self.doors, &mut self.told))
            }
            _ => protect(uffd, range, &self.doors, &mut self.told),
        });
        match armed {
            Ok(()) => watched,
            Err(Errno::BUSY) => Watched::Refused("another userfaultfd watches it".to_owned()),
            Err(e) => Watched::Refused(format!("userfaultfd refused it: {e}")),
        }
    }

    /// The private pages that the process had in mappings that are not watched.
    pub fn held_unwatched(&self) -> u64 {
        let refused = |map: &&BackedMapping| {
            matches!(map.mapping.watched, Watched::Refused(_)) && map.backing != Backing::HugePages
        };
        let maps = self.space.maps.iter().filter(refused).map(|map| &map.mapping);
        maps.map(|mapping| self.base.count(mapping.start, mapping.end, Was::Private)).sum()
    }

    fn held(&self) -> Result<HeldPages, Errno> {
        let mut held = HeldPages::default();
        for Mapping { start, end, .. } in self.space.maps.iter().filter(|map| is_watched(map)).map(|map| &map.mapping) {
            held.zero += self.base.count(*start, *end, Was::Zero);
            held.swapped += self.base.count(*start, *end, Was::Swapped);
            held.shared += self.base.count(*start, *end, Was::Private);
        }
        if self.role != WatchReason::Attached {
            // Just forked: what is private is also the other's.
            return Ok(held);
        }
        held.shared = 0;
        for map in self.space.maps.iter().filter(|map| is_watched(map)) {
            for page in self.base.held_in(map.mapping.start, map.mapping.end) {
                let exclusive = entries::entry(&self.pagemap, page)?.contains(Entry::EXCLUSIVE);
                *(if exclusive { &mut held.exclusive } else { &mut held.shared }) += 1;
            }
        }
        Ok(held)
    }
}

/// Tells whether this mapping's private pages are of interest.
fn is_watched(map: &BackedMapping) -> bool {
    !matches!(map.mapping.watched, Watched::No | Watched::Refused(_))
}

/// Arms a range.
pub fn protect(uffd: &RemoteUffd, range: Range, doors: &Doors, told: &mut UnreadMessages) -> Result<(), Errno> {
    loop {
        match uffd.write_protect(range, true) {
            // A thread changes mappings meanwhile and waits to tell. Others may wait for a page by now: all are served
            // once the interval is open.
            Err(Errno::AGAIN) => {
                if !told.hear(doors)? {
                    process::yield_now();
                }
            }
            done => return done,
        }
    }
}
