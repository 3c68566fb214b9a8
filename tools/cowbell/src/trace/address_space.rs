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
use super::layout::stack_words;
use super::link::TracerMessage;
use super::maps::{self, BackedMapping, Backing};
use super::watch::Doors;
use crate::record::{Mapping, Record, Watched};
use crate::stacks::languages::{self, Language, ObjectReader, PointerBudget};
use crate::stacks::native::{UnwindRegisters, Unwinder, Unwound};
use cowbell::sys::map::Range;
use cowbell::sys::remote::RemoteMemory;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// The most addresses that lead out of stacks and are looked for: beyond, stacks end as they did before.
const NOWHERE_MAX: usize = 4000;

/// The address space of one process while an interval of it is open.
pub struct AddressSpace {
    pid: i32,
    interval: u32,
    /// Ascending, each with how its pages are observed. Of what was unmapped only code is taken out: what was armed stays
    /// until the interval closes, because its pages are still to be accounted for.
    pub maps: Vec<BackedMapping>,
    codes: Codes,
    /// Something that code may have stood in was removed.
    stale: bool,
    known: Rc<RefCell<Known>>,
    /// Addresses that are no code, as of the last reading.
    nowhere: HashSet<u64>,
}

/// The knowledge about code, as long as none is mapped or removed: shared by the intervals of a process and of those that it
/// forks, which begin with the very same code. So what a module is, and how it is unwound, is found out once.
#[derive(Default)]
struct Known {
    /// The numbers of addresses in modules.
    places: HashMap<u64, u32>,
    /// The modules of mappings with code, by where these start.
    modules: HashMap<u64, Option<u32>>,
    /// Made at the first stack.
    unwinder: Option<Unwinder>,
    /// The language of an interpreter among the code; unknown until it is asked for.
    language: Option<Option<&'static dyn Language>>,
    /// True for an instruction that says little of itself, in a function that keeps the address it returns to at the stack pointer.
    frameless: HashMap<u64, bool>,
    /// For how long pointers are followed to find objects.
    patience: PointerBudget,
}

/// The parts of the process that resolving needs.
#[derive(Clone, Copy)]
pub struct ProcessAccess<'a> {
    pub memory: &'a RemoteMemory,
    pub doors: &'a Doors,
}

impl AddressSpace {
    /// The address space of a process whose mappings are added by whoever arms them.
    pub fn new(pid: i32, interval: u32, codes: Codes) -> Self {
        Self { pid, interval, maps: Vec::new(), codes, stale: false, known: Rc::default(), nowhere: HashSet::new() }
    }

    /// Takes over what is known of the code of an earlier interval of this process, or of one of the process that forked it.
    /// Only if every mapping of code is the same: a removal is told, and one that replaced another since is another file.
    pub fn inherit(&mut self, before: &Self) {
        let is_same = |(ours, theirs): (&BackedMapping, &BackedMapping)| {
            let place = |map: &BackedMapping| (map.mapping.start, map.mapping.end, map.mapping.offset);
            place(ours) == place(theirs) && ours.is_same_as(theirs)
        };
        let (ours, theirs) = (self.code_maps(), before.code_maps());
        if !before.stale && ours.clone().count() == theirs.clone().count() && ours.zip(theirs).all(is_same) {
            self.known = Rc::clone(&before.known);
        }
    }

    /// The reader of the objects in the process' memory.
    pub fn objects(&self) -> Box<dyn ObjectReader> {
        languages::objects(self.language(), self.known.borrow().patience.clone())
    }

    fn code_maps(&self) -> impl Iterator<Item = &BackedMapping> + Clone {
        self.maps.iter().filter(|map| map.is_code())
    }

    /// The language of the interpreter that the process maps, as far as its code is known.
    pub fn language(&self) -> Option<&'static dyn Language> {
        let find = || {
            let files = self.code_maps().map(|map| map.mapping.name.as_str());
            languages::of_files(files.filter(|name| name.starts_with('/')))
        };
        *self.known.borrow_mut().language.get_or_insert_with(find)
    }

    /// The mapping that an address lies in.
    pub fn find(&self, address: u64) -> Option<&BackedMapping> {
        maps::find(&self.maps, address)
    }

    /// The number of the place that an instruction's address means now; 0 where it is not known.
    pub fn code(&mut self, pc: u64, access: ProcessAccess<'_>) -> u32 {
        if pc == 0 {
            return 0;
        }
        self.refresh(access);
        if let Some(&code) = self.known.borrow().places.get(&pc) {
            return code;
        }
        if !self.find(pc).is_some_and(BackedMapping::is_code) {
            self.read_again(access);
        }
        self.resolve(pc, access.memory)
    }

    /// The stack of a thread that stands still, as places, the innermost first; `None` if it takes a frame pointer that is not known.
    pub fn stack(&mut self, registers: UnwindRegisters, access: ProcessAccess<'_>) -> Option<Vec<u32>> {
        self.refresh(access);
        let mut unwound = self.unwind(registers, access.memory)?;
        // A library loaded since, unless this address was looked for already.
        let is_new = |beyond: &u64| self.nowhere.len() < NOWHERE_MAX && !self.nowhere.contains(beyond);
        if let Some(beyond) = unwound.beyond.filter(is_new) {
            self.read_again(access);
            if self.find(beyond).is_some_and(BackedMapping::is_code) {
                unwound = self.unwind(registers, access.memory)?;
            }
            self.nowhere.extend(unwound.beyond);
        }
        Some(unwound.frames.into_iter().map(|pc| self.code(pc, access)).collect())
    }

    /// The place of the call by which the function at `pc` was run, for code that says little of itself: what merely moves
    /// bytes, or has no name. Only of functions without a frame, as copies of bytes are: there one word tells, which the call
    /// itself has just written. Else 0.
    pub fn caller(&mut self, pc: u64, sp: u64, access: ProcessAccess<'_>) -> u32 {
        let known = self.known.borrow().frameless.get(&pc).copied();
        let is_frameless = known.unwrap_or_else(|| {
            let is_frameless = self.is_frameless(pc, access.memory) == Some(true);
            self.known.borrow_mut().frameless.insert(pc, is_frameless);
            is_frameless
        });
        let mut word = [0; 8];
        if !is_frameless || access.memory.read(sp, &mut word) != Ok(word.len()) {
            return 0;
        }
        // An address within the call: the one that it returns to may be the next line's or function's.
        let Some(within) = u64::from_ne_bytes(word).checked_sub(1) else { return 0 };
        if !self.find(within).is_some_and(BackedMapping::is_code) {
            if self.nowhere.contains(&within) || self.nowhere.len() >= NOWHERE_MAX {
                return 0;
            }
            self.read_again(access);
            if !self.find(within).is_some_and(BackedMapping::is_code) {
                self.nowhere.insert(within);
                return 0;
            }
        }
        self.code(within, access)
    }

    fn is_frameless(&mut self, pc: u64, memory: &RemoteMemory) -> Option<bool> {
        let map = self.find(pc)?;
        let (start, offset) = (map.mapping.start, map.mapping.offset);
        let module = self.module(start, memory)?;
        if self.codes.speaks_for_itself(module, (pc - start).saturating_add(offset)) {
            return None;
        }
        self.with_unwinder(memory, |unwinder| unwinder.return_slot(pc)).map(|slot| slot == 0)
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
        let is_touched = |map: &BackedMapping| {
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

    /// Addresses no longer mean what they meant.
    fn forget(&mut self) {
        self.known = Rc::default();
        self.nowhere.clear();
    }

    /// Code was mapped, as a ring of perf events tells it: later addresses there mean this, earlier ones were resolved before.
    pub fn replace(&mut self, map: BackedMapping) {
        let (start, end) = (map.mapping.start, map.mapping.end);
        let is_it = |old: &&BackedMapping| old.is_code() && old.is_same_as(&map) && end <= old.mapping.end;
        if self.find(start).filter(is_it).is_some() {
            return;
        }
        // Other parts of the file say which build it is. If it is gone already, its path must do.
        let now = maps::read(self.pid).unwrap_or_default();
        let is_there = maps::find(&now, start).is_some_and(|now| now.is_same_as(&map));
        let is_part = |now: &BackedMapping| now.file == map.file && now.file.1 != 0;
        let mut fresh: Vec<BackedMapping> =
            if is_there { now.into_iter().filter(|now| is_part(now)).collect() } else { Vec::new() };
        if fresh.is_empty() {
            fresh.push(BackedMapping { gone: !is_there && map.file.1 != 0, ..map });
        }
        for map in &mut fresh {
            map.mapping.watched = if map.backing == Backing::Shared { Watched::No } else { Watched::Faults };
        }
        let mappings = fresh.iter().map(|map| map.mapping.clone()).collect();
        fresh.into_iter().for_each(|map| self.put(map));
        self.forget();
        self.codes.tell(TracerMessage::Record(Record::Mapped { interval: self.interval, mappings }));
    }

    /// Puts a mapping in the place of what was there; what it covers in part keeps the rest.
    fn put(&mut self, map: BackedMapping) {
        let (start, end) = (map.mapping.start, map.mapping.end);
        let mut rests = Vec::new();
        self.maps.retain(|old| {
            let apart = old.mapping.end <= start || end <= old.mapping.start;
            if !apart {
                rests
                    .extend([old.part(old.mapping.start, start), old.part(end, old.mapping.end)].into_iter().flatten());
            }
            apart
        });
        self.maps.extend(rests);
        self.maps.push(map);
        self.maps.sort_by_key(|map| map.mapping.start);
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
        let Some(uffd) = doors.asynchronous.as_ref().filter(|_| doors.events.is_some()) else { return };
        let told: HashSet<_> = self.maps.iter().filter(|map| map.told).map(|map| map.file.clone()).collect();
        let untold: HashSet<_> = self
            .maps
            .iter()
            .filter(|map| map.is_code() && map.backing == Backing::File && !told.contains(&map.file))
            .map(|map| map.file.clone())
            .collect();
        let register = |map: &mut BackedMapping| {
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

    fn refresh(&mut self, access: ProcessAccess<'_>) {
        if self.stale {
            self.read_again(access);
        }
    }

    fn read_again(&mut self, access: ProcessAccess<'_>) {
        self.stale = false;
        let Ok(now) = maps::read(self.pid) else { return };
        let is_there = |old: &BackedMapping| maps::find(&now, old.mapping.start).is_some_and(|new| new.is_same_as(old));
        let before = self.maps.len();
        // The present mappings are the future of code that a ring tells of: faults that came before are still to be resolved.
        let is_told = |old: &BackedMapping| old.mapping.watched == Watched::Faults;
        self.maps.retain(|old| !old.is_code() || is_told(old) || is_there(old));
        let mut changed = self.maps.len() != before;
        let mut new_maps = Vec::new();
        for mut new in now {
            if new.backing != Backing::Shared {
                new.mapping.watched = Watched::Census;
            }
            let known = self.find(new.mapping.start).is_some_and(|old| old.is_same_as(&new));
            // Memory that was mapped anonymously later is told apart by nothing, and needs no name.
            let is_later = self.find(new.mapping.start).is_some_and(|old| old.is_code() && is_told(old));
            if known
                || is_later
                || !(new.is_code() || new.backing == Backing::File || new.mapping.name.starts_with('['))
            {
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
            self.codes.tell(TracerMessage::Record(Record::Mapped { interval: self.interval, mappings: new_maps }));
        }
    }

    /// Tells of mappings that nobody knew of yet in which pages, ascending, were found written. `now`: all that there is.
    pub fn tell_of(&self, now: &[BackedMapping], pages: impl Iterator<Item = u64>) {
        let mut new: Vec<Mapping> = Vec::new();
        for page in pages {
            let is_told = new.last().is_some_and(|last| page < last.end);
            if !is_told && self.find(page).is_none() {
                new.extend(
                    maps::find(now, page).map(|map| Mapping { watched: Watched::Census, ..map.mapping.clone() }),
                );
            }
        }
        if !new.is_empty() {
            self.codes.tell(TracerMessage::Record(Record::Mapped { interval: self.interval, mappings: new }));
        }
    }

    fn resolve(&mut self, pc: u64, memory: &RemoteMemory) -> u32 {
        let Some(map) = self.find(pc) else { return self.codes.place(None, pc, self.pid) };
        let (start, offset) = (map.mapping.start, map.mapping.offset);
        match self.module(start, memory) {
            Some(module) => {
                let code = self.codes.place(Some(module), (pc - start).saturating_add(offset), self.pid);
                self.known.borrow_mut().places.insert(pc, code);
                code
            }
            // Another process has other code there.
            None => self.codes.place(None, pc, self.pid),
        }
    }

    /// Every mapping of code that a module is known of: start, end, offset, and the module's number.
    pub fn code_modules(&mut self, memory: &RemoteMemory) -> Vec<(u64, u64, u64, u32)> {
        let code: Vec<_> = self.code_maps().map(|map| map.mapping.clone()).collect();
        let with_module = |map: Mapping| Some((map.start, map.end, map.offset, self.module(map.start, memory)?));
        code.into_iter().filter_map(with_module).collect()
    }

    /// The module of the mapping that starts there.
    fn module(&mut self, start: u64, memory: &RemoteMemory) -> Option<u32> {
        if let Some(&module) = self.known.borrow().modules.get(&start) {
            return module;
        }
        let module = self.find(start).and_then(|map| self.codes.module(self.pid, memory, map, &self.maps));
        self.known.borrow_mut().modules.insert(start, module);
        module
    }

    fn unwind(&mut self, registers: UnwindRegisters, memory: &RemoteMemory) -> Option<Unwound> {
        self.with_unwinder(memory, |unwinder| unwinder.stack(registers, &mut stack_words(memory)))
    }

    fn with_unwinder<T>(&mut self, memory: &RemoteMemory, unwind: impl FnOnce(&mut Unwinder) -> T) -> T {
        let made = self.known.borrow_mut().unwinder.take();
        let mut unwinder = made.unwrap_or_else(|| self.make_unwinder(memory));
        let unwound = unwind(&mut unwinder);
        self.known.borrow_mut().unwinder = Some(unwinder);
        unwound
    }

    fn make_unwinder(&mut self, memory: &RemoteMemory) -> Unwinder {
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
