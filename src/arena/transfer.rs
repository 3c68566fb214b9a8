//! A frozen arena for a process that was forked before it was built.
//!
//! A forked child has what was frozen before its fork. Processes that are forked from one server (a *zygote*)
//! all their lives would stay with the data of the beginning. So a frozen arena can be told in some bytes
//! ([`Frozen::export`]) and a descriptor, be sent through a socket, and be mapped at the very same addresses
//! there ([`Export::adopt`]).
//!
//! # Safety
//! Adopting gives a `&'static T` to bytes that another process wrote. The caller answers for that the value
//! means there what it meant here; that nobody changes the bytes is seen from the file's seals.
#![expect(unsafe_code, reason = "bytes of another process become a value")]

use super::collapse::Collapsed;
use super::frozen::Frozen;
use super::image::Image;
use super::image::{Marks, OriginalsLocation};
use super::options::{HugePages, OnWrite};
use super::prepare::prepare;
use super::registry;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::map::{self, Access, Range};
use crate::sys::{self, Errno, file, memfd};
use std::any::TypeId;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

/// All but the content of a frozen arena: what another process needs to know to adopt it, beside its file.
///
/// ```no_run
/// # fn main() -> cowbell::Result<()> {
/// use cowbell::arena::{Arena, Export, Vec};
/// use std::os::fd::OwnedFd;
/// # fn send(bytes: &[u8], file: std::os::fd::BorrowedFd<'_>) {}
/// # fn receive() -> (std::vec::Vec<u8>, OwnedFd) { unimplemented!() }
///
/// // In a parent, when a child waits at the other end of a Unix socket:
/// let arena = Arena::builder("squares").build()?;
/// let mut squares = Vec::new_in(*arena);
/// squares.extend((0..100u64).map(|n| n * n));
/// let squares = arena.freeze(squares)?;
/// squares.check_contained()?;
/// send(&squares.export()?.to_bytes(), squares.image().file());
///
/// // In the child:
/// let (bytes, file) = receive();
/// // SAFETY: both processes are one program, the vector is whole in its arena (`check_contained`), and the
/// // parent froze it as a `Vec<u64>`.
/// let squares = unsafe { Export::from_bytes(&bytes)?.adopt::<Vec<u64>>(file)? };
/// assert_eq!(squares[9], 81);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    name: String,
    slot: u16,
    generation: u16,
    range: Range,
    used: usize,
    plain: bool,
    root: usize,
    /// A digest of the root's type.
    kind: u64,
    marks: Marks,
}

/// Words before the name.
const WORDS: usize = 7;

impl<T: 'static> Frozen<T> {
    /// The facts that another process needs to adopt the arena, beside [`Image::file`].
    ///
    /// # Errors
    /// Invalid for an image that was [opened in place](Self::open): its file is not sealed.
    pub fn export(&self) -> Result<Export> {
        let image = self.image();
        if image.is_in_place() {
            return Err(Error::invalid(format!("image `{}` lies in a file that can be changed", image.name()))
                .with_hint("load it instead of opening it in place"));
        }
        Ok(Export {
            name: image.name().to_owned(),
            slot: image.slot,
            generation: image.generation,
            range: image.range,
            used: image.used,
            plain: image.plain,
            root: std::ptr::from_ref(self.root()).expose_provenance(),
            kind: kind::<T>(),
            marks: image.marks,
        })
    }
}

/// The same in all processes of one program.
fn kind<T: 'static>() -> u64 {
    let mut hasher = DefaultHasher::new();
    TypeId::of::<T>().hash(&mut hasher);
    hasher.finish()
}

impl Export {
    /// The arena's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The addresses that must be free where it is adopted.
    pub fn range(&self) -> Range {
        self.range
    }

    /// The export as bytes, for a pipe or a socket; at most 256.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Marks { huge_pages, on_write, dump, lock } = self.marks;
        let huge_pages = match huge_pages {
            HugePages::Never => 0,
            HugePages::Advise => 1,
            HugePages::Collapse => 2,
            HugePages::Auto => 3,
        };
        let marks = huge_pages
            | u64::from(on_write == OnWrite::Deny) << 8
            | u64::from(dump) << 9
            | u64::from(lock) << 10
            | u64::from(self.plain) << 11;
        let number = u64::from(self.slot) | u64::from(self.generation) << 16;
        let places = [self.range.start, self.range.len, self.used, self.root].map(|n| n as u64);
        let words = [number, self.kind, marks].into_iter().chain(places);
        words.flat_map(u64::to_le_bytes).chain(self.name.bytes()).collect()
    }

    /// From [`Self::to_bytes`].
    ///
    /// # Errors
    /// Invalid when the bytes are not such.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = || Error::invalid("these bytes describe no frozen arena");
        let (words, name) = bytes.split_at_checked(WORDS * 8).ok_or_else(invalid)?;
        let mut words = words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().ok_or_else(invalid);
        let (number, kind, marks) = (next()?, next()?, next()?);
        let mut place = || usize::try_from(next()?).map_err(|_| invalid());
        let (start, len, used, root) = (place()?, place()?, place()?, place()?);
        let huge_pages = match marks & 0xff {
            0 => HugePages::Never,
            1 => HugePages::Advise,
            2 => HugePages::Collapse,
            3 => HugePages::Auto,
            _ => return Err(invalid()),
        };
        let bit = |at: u32| marks >> at & 1 == 1;
        let on_write = if bit(8) { OnWrite::Deny } else { OnWrite::Copy };
        let export = Self {
            name: std::str::from_utf8(name).map_err(|_| invalid())?.to_owned(),
            slot: number as u16,
            generation: (number >> 16) as u16,
            range: Range { start, len },
            used,
            plain: bit(11),
            root,
            kind,
            marks: Marks { huge_pages, on_write, dump: bit(9), lock: bit(10) },
        };
        // One description has one form.
        if !super::options::is_name(&export.name) || export.to_bytes() != bytes {
            return Err(invalid());
        }
        Ok(export)
    }

    /// Maps the arena into this process, at its own addresses and under its own number: references in its data and
    /// [`super::Handle`]s made by the other process hold here. `file` is that process's
    /// [`Image::file`]; a page is copied here when this process, or one forked from it, writes it.
    ///
    /// The arena is marked as it was when it was frozen, but for `lock`: pages stay in memory by the other's lock. Recorded
    /// allocations do not travel. The other process may release the arena or end; this one keeps it.
    ///
    /// # Safety
    /// - The other process froze the arena with a root of type `T`, and both processes run the same program and
    ///   came from one by forks, after that one had built its first arena or [spawned](crate::fork::spawn) its first child
    ///   (so that code and statics lie at the same addresses, hash maps of both have the same seed, and no arena
    ///   of one has the number of another's).
    /// - Everything that is reached through the root lies in this arena, or is the same in both processes;
    ///   [`super::Contained`] types are, once [`Frozen::check_contained`] has said so there.
    /// - All of it may be used by this process: nothing in it belongs to the other process alone (a descriptor's
    ///   number, a lock that it holds).
    ///
    /// # Errors
    /// - Invalid: the root is of another type, the file is not the arena's or not sealed for good, or this process has
    ///   an arena of its own in the same place of its table.
    /// - EEXIST: the addresses are taken here (also those of an arena that was growing when this process was
    ///   forked: build it anew, after the fork).
    /// - ENOMEM.
    pub unsafe fn adopt<T: 'static>(&self, file: OwnedFd) -> Result<Frozen<T>> {
        self.check::<T>(&file)?;
        prepare()?;
        let Self { slot, generation, range, .. } = *self;
        map::map_private_new(range, Access::Read, file.as_fd(), 0).map_err(|e| self.taken(e))?;
        let marks = Marks { lock: false, ..self.marks };
        let entered = registry::enter_as(slot, generation, || {
            marks.put_on(range)?;
            let (for_good, name) = (marks.deny_for_good(range), self.name.as_str().into());
            let (collapsed, allocations) = (Collapsed::NotAsked, Default::default());
            let origin = OriginalsLocation::Sealed;
            let Self { used, plain, .. } = *self;
            let image = Image {
                name,
                slot,
                generation,
                range,
                used,
                plain,
                marks,
                for_good,
                collapsed,
                allocations,
                file,
                origin,
                given_back: Mutex::default(),
            };
            Ok(registry::entry(image))
        });
        let inner = match entered {
            Ok(inner) => inner,
            Err(e) => {
                // SAFETY: it was mapped just now, and nobody was given an address in it.
                let _unmapped = unsafe { map::unmap(range) };
                return Err(e);
            }
        };
        let root = std::ptr::with_exposed_provenance::<T>(self.root);
        // SAFETY: the caller says that a T lies there, `check` that it is in the mapping and aligned, and the mapping
        // stays until `release`.
        Frozen::of(unsafe { &*root }, inner, true)
    }

    fn check<T: 'static>(&self, file: &OwnedFd) -> Result<()> {
        let Range { start, len } = self.range;
        let page = sys::page_size().bytes();
        let size = size_of::<T>();
        let root = self.root.checked_sub(start).and_then(|root| root.checked_add(size));
        let fits = start > 0 && len > 0 && start.is_multiple_of(page) && len.is_multiple_of(page) && self.used <= len;
        let fits = fits && start.checked_add(len).is_some_and(|end| isize::try_from(end).is_ok());
        // An object without a size has no place, but an address all the same.
        let fits = fits && self.root != 0 && self.root.is_multiple_of(align_of::<T>());
        if !fits || (size > 0 && root.is_none_or(|end| end > self.used)) {
            return Err(Error::invalid(format!("no arena lies like `{}`, {start:#x} and {len} bytes", self.name)));
        }
        if self.kind != kind::<T>() {
            let name = std::any::type_name::<T>();
            return Err(Error::new(ErrorKind::Handle("the arena's root is of another type"))
                .with_hint(format!("it is adopted as `{name}`")));
        }
        if !memfd::seals(file.as_fd()).contains(memfd::SEALS_FINAL) {
            return Err(Error::invalid("the file is not sealed for good, so it is no frozen arena's"));
        }
        if file::regular_len(file.as_fd())? != len as u64 {
            return Err(Error::invalid(format!("the file has another length than arena `{}`", self.name)));
        }
        Ok(())
    }

    fn taken(&self, errno: Errno) -> Error {
        let error = Error::os("mmap(adopted arena)", errno);
        if errno != Errno::EXIST {
            return error;
        }
        let Range { start, len } = self.range;
        error.with_hint(format!("arena `{}` needs the addresses {start:#x} to {:#x}, where this process has something else; an arena that was growing when this process was forked is such: build a new one", self.name, start + len))
    }
}
