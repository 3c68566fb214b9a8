//! The mappings of one process over time, and what an address in them means when it is seen.
//!
//! /proc/PID/maps is read when an interval opens. It is read again, at the earliest when an address is to be resolved,
//! after one of these: the address lies in no code that is known; a mapping that code may have stood in was removed. No
//! page costs a reading, and nobody is stopped for one.
//!
//! ```text
//!  dlopen   ──> an unknown address ───────────────────────> read again; every new file is put under a userfaultfd
//!  dlclose  ──> munmap of a mapping under a userfaultfd ──> told before munmap returns ──> stale
//! ```
//!
//! A removal is told only of mappings that some userfaultfd has. A library's writable part is armed for its own sake; of
//! those that are loaded later, or have none, other parts are registered and nothing in them is protected. The kernel
//! lets `munmap` return when the message was read, so nothing can be mapped in that place before.

use super::codes::Codes;
use super::link::Said;
use super::maps::{self, Backing, Map};
use super::watch::Doors;
use crate::record::{Record, Watched};
use crate::stacks::native::{Registers, Unwinder, Unwound};
use cowbell::sys::map::Range;
use cowbell::sys::remote::Memory;
use std::collections::{HashMap, HashSet};

/// So many addresses that lead out of stacks are looked for: beyond, stacks end as they did before.
const NOWHERE_MAX: usize = 4000;

/// The address space of one process while an interval of it is open.
pub struct AddressSpace {
    pid: i32,
    interval: u32,
    /// Ascending, each with how its pages are observed. Of what was unmapped only code is taken out: what was armed stays
    /// until the interval closes, because its pages are still to be accounted for.
    pub maps: Vec<Map>,
    codes: Codes,
    /// Something that code may have stood in was removed.
    stale: bool,
    /// The numbers of addresses, as long as no code is removed.
    places: HashMap<u64, u32>,
    /// The modules of mappings with code, by where these start.
    modules: HashMap<u64, Option<u32>>,
    /// Addresses that are no code, as of the last reading.
    nowhere: HashSet<u64>,
    /// Made at the first stack after the code changed.
    unwinder: Option<Unwinder>,
}

/// What resolving needs of the process.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    pub memory: &'a Memory,
    pub doors: &'a Doors,
}

impl AddressSpace {
    /// Of a process whose mappings are added by whoever arms them.
    pub fn new(pid: i32, interval: u32, codes: Codes) -> Self {
        Self {
            pid,
            interval,
            maps: Vec::new(),
            codes,
            stale: false,
            places: HashMap::new(),
            modules: HashMap::new(),
            nowhere: HashSet::new(),
            unwinder: None,
        }
    }

    /// The mapping that an address lies in.
    pub fn find(&self, address: u64) -> Option<&Map> {
        maps::find(&self.maps, address)
    }

    /// The number of the place that an instruction's address means now; 0 where it is not known.
    pub fn code(&mut self, pc: u64, access: Access<'_>) -> u32 {
        if pc == 0 {
            return 0;
        }
        self.refresh(access);
        if let Some(&code) = self.places.get(&pc) {
            return code;
        }
        if !self.find(pc).is_some_and(Map::is_code) {
            self.read_again(access);
        }
        let code = self.resolve(pc, access.memory);
        self.places.insert(pc, code);
        code
    }

    /// The stack of a thread of the process that stands still, as places, the innermost frame first.
    pub fn stack(&mut self, registers: Registers, access: Access<'_>) -> Vec<u32> {
        self.refresh(access);
        let mut unwound = self.unwind(registers, access.memory);
        // A library loaded since, unless this address was looked for already.
        let is_new = |beyond: &u64| self.nowhere.len() < NOWHERE_MAX && !self.nowhere.contains(beyond);
        if let Some(beyond) = unwound.beyond.filter(is_new) {
            self.read_again(access);
            if self.find(beyond).is_some_and(Map::is_code) {
                unwound = self.unwind(registers, access.memory);
            }
            self.nowhere.extend(unwound.beyond);
        }
        unwound.frames.into_iter().map(|pc| self.code(pc, access)).collect()
    }

    /// Something may have been removed that nobody has looked at yet.
    pub fn doubt(&mut self) {
        self.stale = true;
    }

    /// A range is no longer mapped, or something else now. The file that was there, or its inode's next, is looked at anew.
    pub fn removed(&mut self, start: u64, end: u64) {
        let first = self.maps.partition_point(|map| map.mapping.end <= start);
        let touched = self.maps.iter().skip(first).take_while(|map| map.mapping.start < end);
        let touched: Vec<_> = touched.filter(|map| map.is_code() || map.backing == Backing::File).collect();
        if touched.is_empty() {
            return;
        }
        let files: HashSet<_> = touched.iter().map(|map| map.file.clone()).collect();
        let is_touched = |map: &Map| {
            if map.backing == Backing::File {
                files.contains(&map.file)
            } else {
                map.mapping.start < end && start < map.mapping.end
            }
        };
        self.maps.retain(|map| !(map.is_code() && is_touched(map)));
        for map in self.maps.iter_mut().filter(|map| is_touched(map)) {
            map.told = false;
        }
        self.stale = true;
        self.forget();
    }

    /// What addresses meant, they mean no more.
    fn forget(&mut self) {
        self.places.clear();
        self.modules.clear();
        self.nowhere.clear();
        self.unwinder = None;
    }

    /// A mapping was moved.
    pub fn moved(&mut self, from: u64, to: u64, len: u64) {
        self.removed(from, from.saturating_add(len));
        self.removed(to, to.saturating_add(len));
        let Some(mut map) = self.find(from).cloned() else { return };
        map.mapping.offset += from - map.mapping.start;
        (map.mapping.start, map.mapping.end) = (to, to + len);
        self.maps.retain(|other| other.mapping.end <= to || to + len <= other.mapping.start);
        self.maps.push(map);
        self.maps.sort_by_key(|map| map.mapping.start);
    }

    /// Sees to it that the removal of every file with code is told.
    pub fn announce(&mut self, doors: &Doors) {
        let Some(uffd) = doors.bits.as_ref().filter(|_| doors.events.is_some()) else { return };
        let told: HashSet<_> = self.maps.iter().filter(|map| map.told).map(|map| map.file.clone()).collect();
        let untold: HashSet<_> = self
            .maps
            .iter()
            .filter(|map| map.is_code() && map.backing == Backing::File && !told.contains(&map.file))
            .map(|map| map.file.clone())
            .collect();
        let register = |map: &mut Map| {
            let (start, end) = (map.mapping.start as usize, map.mapping.end as usize);
            map.told = uffd.register(Range { start, len: end - start }).is_ok();
            map.told
        };
        for file in untold {
            let mut parts: Vec<_> = self.maps.iter_mut().filter(|map| map.file == file).collect();
            // The code itself last: what is registered is mapped page by page.
            parts.sort_by_key(|map| map.is_code());
            let _told = parts.into_iter().any(register);
        }
    }

    fn refresh(&mut self, access: Access<'_>) {
        if self.stale {
            self.read_again(access);
        }
    }

    fn read_again(&mut self, access: Access<'_>) {
        self.stale = false;
        let Ok(now) = maps::read(self.pid) else { return };
        let is_there = |old: &Map| maps::find(&now, old.mapping.start).is_some_and(|new| new.is_same_as(old));
        let before = self.maps.len();
        self.maps.retain(|old| !old.is_code() || is_there(old));
        let mut changed = self.maps.len() != before;
        let mut new_maps = Vec::new();
        for mut new in now {
            if new.backing != Backing::Shared {
                new.mapping.watched = Watched::Census;
            }
            let known = self.find(new.mapping.start).is_some_and(|old| old.is_same_as(&new));
            // What was mapped anonymously later is told apart by nothing, and needs no name.
            if known || !(new.is_code() || new.backing == Backing::File || new.mapping.name.starts_with('[')) {
                continue;
            }
            let (start, end) = (new.mapping.start, new.mapping.end);
            self.maps.retain(|old| old.mapping.end <= start || end <= old.mapping.start);
            new_maps.push(new.mapping.clone());
            self.maps.push(new);
            self.maps.sort_by_key(|map| map.mapping.start);
            changed = true;
        }
        if !changed {
            return;
        }
        self.forget();
        self.announce(access.doors);
        if !new_maps.is_empty() {
            self.codes.tell(Said::Record(Record::Mapped { interval: self.interval, mappings: new_maps }));
        }
    }

    fn resolve(&mut self, pc: u64, memory: &Memory) -> u32 {
        let Some(map) = self.find(pc) else { return self.codes.place(None, pc, self.pid) };
        let (start, offset) = (map.mapping.start, map.mapping.offset);
        match self.module(start, memory) {
            Some(module) => self.codes.place(Some(module), (pc - start).saturating_add(offset), self.pid),
            None => self.codes.place(None, pc, self.pid),
        }
    }

    /// The module of the mapping that starts there.
    fn module(&mut self, start: u64, memory: &Memory) -> Option<u32> {
        if let Some(&module) = self.modules.get(&start) {
            return module;
        }
        let module = self.find(start).and_then(|map| self.codes.module(self.pid, memory, map, &self.maps));
        self.modules.insert(start, module);
        module
    }

    fn unwind(&mut self, registers: Registers, memory: &Memory) -> Unwound {
        if self.unwinder.is_none() {
            self.unwinder = Some(self.make_unwinder(memory));
        }
        let Some(unwinder) = &mut self.unwinder else { return Unwound::default() };
        unwinder.stack(registers, &mut |address| {
            let mut word = [0; 8];
            (memory.read(address, &mut word) == Ok(word.len())).then(|| u64::from_ne_bytes(word))
        })
    }

    fn make_unwinder(&mut self, memory: &Memory) -> Unwinder {
        let mut unwinder = Unwinder::default();
        let code: Vec<_> = self.maps.iter().filter(|map| map.is_code()).map(|map| map.mapping.clone()).collect();
        for mapping in code {
            let module = self.module(mapping.start, memory);
            let unwinding = module.and_then(|module| self.codes.unwinding(module));
            unwinder.add(mapping.start..mapping.end, mapping.offset, &mapping.name, unwinding.as_deref());
        }
        unwinder
    }
}
