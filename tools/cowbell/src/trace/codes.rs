//! Modules and places in code, numbered once for all processes that are watched.
//!
//! A number is given when an address is seen, because what it means is known then only: the library may be unloaded, its
//! file replaced or removed a moment later. So the file is opened here, and stays open: for unwinding, and for the front,
//! which finds the names by this very file.

use super::link::TracerMessage;
use super::maps::{self, BackedMapping};
use crate::record::{Module, Place, Record, Watched};
use crate::stacks::elf;
use crate::stacks::native::Unwinding;
use crate::stacks::own_name::OwnNames;
use cowbell::sys::procfs;
use cowbell::sys::remote::RemoteMemory;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;

/// The most files that are held open; of further ones the front opens what is under their path then.
const FILES_MAX: usize = 512;

/// All numbers that were given. A handle: every address space has one of the same table.
#[derive(Clone, Default)]
pub struct Codes(Rc<RefCell<Table>>);

#[derive(Default)]
struct Table {
    modules: Vec<Known>,
    numbers: HashMap<Identity, u32>,
    places: HashMap<(Option<u32>, u64, i32), u32>,
    /// News that the front has not been told yet.
    news: Vec<TracerMessage>,
}

/// The properties by which two mapped files are one module. Inodes are used again, and a file may be written anew: builds differ.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    path: String,
    file: (String, u64),
    build_id: Option<String>,
}

struct Known {
    path: String,
    /// The very file that is mapped; `None` if it could not be opened any more, or is no file.
    file: Option<File>,
    unwinding: OnceCell<Option<Rc<Unwinding>>>,
    own_names: OnceCell<Option<OwnNames>>,
}

impl Codes {
    /// The number of the module that a mapping of process `pid` shows; `None` for what is no file's. `maps`: the others of
    /// the process.
    pub fn module(&self, pid: i32, memory: &RemoteMemory, map: &BackedMapping, maps: &[BackedMapping]) -> Option<u32> {
        let path = map.mapping.name.clone();
        if map.file.1 == 0 && path != "[vdso]" {
            return None;
        }
        let mut build_id = if map.gone { None } else { build_id(memory, map, maps) };
        // Nobody waits in this mode: what was read may be of the mapping that came to its place meanwhile.
        if map.gone || map.mapping.watched == Watched::Faults && !is_there(pid, map) {
            build_id = build_id_of_file(pid, map);
        }
        let identity = Identity { path: path.clone(), file: map.file.clone(), build_id: build_id.clone() };
        let mut table = self.0.borrow_mut();
        if let Some(&module) = table.numbers.get(&identity) {
            return Some(module);
        }
        let file = open(pid, map, build_id.as_deref());
        let file = file.filter(|_| table.modules.len() < FILES_MAX);
        let module = table.modules.len() as u32 + 1;
        let descriptor = file.as_ref().map(AsRawFd::as_raw_fd);
        let (device, inode) = map.file.clone();
        let record = Module { module, path: path.clone(), device, inode, build_id };
        // Before the module: the front opens it while the file is still there.
        table.news.extend(descriptor.map(|descriptor| TracerMessage::Opened { opened: module, descriptor }));
        table.news.push(TracerMessage::Record(Record::Module(record)));
        table.modules.push(Known { path, file, unwinding: OnceCell::new(), own_names: OnceCell::new() });
        table.numbers.insert(identity, module);
        Some(module)
    }

    /// The number of a place: an offset in a module, or the address of code of no file in a process.
    pub fn place(&self, module: Option<u32>, offset: u64, pid: i32) -> u32 {
        let pid = if module.is_some() { 0 } else { pid };
        let mut table = self.0.borrow_mut();
        let next = table.places.len() as u32 + 1;
        let code = *table.places.entry((module, offset, pid)).or_insert(next);
        if code == next {
            table.news.push(TracerMessage::Record(Record::Place(Place { code, module, offset, pid })));
        }
        code
    }

    /// The way in which code of a module is unwound.
    pub fn unwinding(&self, module: u32) -> Option<Rc<Unwinding>> {
        let table = self.0.borrow();
        let known = table.modules.get((module as usize).checked_sub(1)?)?;
        let read = || Unwinding::read(&known.path, known.file.as_ref()).map(Rc::new);
        known.unwinding.get_or_init(read).clone()
    }

    /// Tells whether the code at an offset of a module says by its own name what it is, as far as the module's file knows.
    pub fn speaks_for_itself(&self, module: u32, offset: u64) -> bool {
        let table = self.0.borrow();
        let Some(known) = (module as usize).checked_sub(1).and_then(|at| table.modules.get(at)) else { return false };
        let names = known.own_names.get_or_init(|| OwnNames::read(known.file.as_ref()?));
        names.as_ref().is_some_and(|names| names.covers(offset))
    }

    /// Adds what the front is to be told before anything that refers to it.
    pub fn tell(&self, news: TracerMessage) {
        self.0.borrow_mut().news.push(news);
    }

    /// Takes the news that the front has not been told yet.
    pub fn take_news(&self) -> Vec<TracerMessage> {
        std::mem::take(&mut self.0.borrow_mut().news)
    }
}

/// Tells whether a mapping is there now.
fn is_there(pid: i32, map: &BackedMapping) -> bool {
    let now = maps::read(pid).unwrap_or_default();
    maps::find(&now, map.mapping.start).is_some_and(|now| now.is_same_as(map))
}

/// The build that is mapped, from memory: the file under that name may be another's by now.
fn build_id(memory: &RemoteMemory, map: &BackedMapping, maps: &[BackedMapping]) -> Option<String> {
    let is_first = |other: &&BackedMapping| other.mapping.offset == 0 && other.file == map.file;
    let below = |other: &&BackedMapping| other.mapping.start <= map.mapping.start;
    let first = if map.mapping.offset == 0 { Some(map) } else { maps.iter().filter(is_first).rfind(below) }?;
    let start = first.mapping.start;
    let id = elf::build_id_of(&mut |offset, buffer| memory.read(start.checked_add(offset)?, buffer).ok())?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The build that was mapped, from the file that its path leads to, if that is the same one still.
fn build_id_of_file(pid: i32, map: &BackedMapping) -> Option<String> {
    let file = elf::open(format!("/proc/{}/root{}", procfs::living(pid), map.mapping.name).as_ref())?;
    let same = file.metadata().is_ok_and(|metadata| metadata.ino() == map.file.1);
    let id = elf::with_file(&file, |image| image.build_id()).filter(|_| same)?;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Opens the very file that is mapped. `None` where that is not certain.
fn open(pid: i32, map: &BackedMapping, build_id: Option<&str>) -> Option<File> {
    let mapping = &map.mapping;
    if !mapping.name.starts_with('/') {
        return None;
    }
    let pid = procfs::living(pid);
    // The first leads to the mapped file itself, whatever its path means now; it takes privileges.
    let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    let named = format!("/proc/{pid}/root{}", mapping.name);
    [exact, named].iter().find_map(|path| {
        let file = elf::open(path.as_ref())?;
        let id = elf::with_file(&file, |image| image.build_id());
        let id: Option<String> = id.map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect());
        // The inode must do for a file that does not say which build it is.
        let is_it = build_id.is_some() || file.metadata().is_ok_and(|metadata| metadata.ino() == map.file.1);
        (id.as_deref() == build_id && is_it).then_some(file)
    })
}
