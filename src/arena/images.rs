//! Arena images: a frozen plain arena in a file, mapped or loaded by another run of the program.
//!
//! | | copies | other processes may change the file | cost |
//! |---|---|---|---|
//! | [`Frozen::load`] | the file into a sealed memfd | harmless | reads all of it, once |
//! | [`Frozen::open`] | nothing | undefined behaviour, so it is `unsafe` | the same for any size |
//!
//! # Safety
//! An image holds plain old data and offsets: a damaged one gives other values, or errors where spans are
//! resolved, and never undefined behaviour. What is trusted of its header is checked first: that the data lies in
//! the file and the root in the data.
#![expect(unsafe_code, reason = "bytes of a file become a value")]

use super::builder::Arena;
use super::collapse::Collapsed;
use super::frozen::{FreezeOptions, Frozen};
use super::growing::Reserved;
use super::image::Image;
use super::image::OriginalsLocation;
use super::image_file::{HEADER, ImageHeader, RootLayout};
use super::options::HugePages;
use super::prepare::prepare;
use super::registry;
use super::site::SiteId;
use crate::error::{Error, Result};
use crate::sys::map::{self, Access, Range};
use crate::sys::{self, file, memfd, process};
use bytemuck::Pod;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes read or written at once.
const CHUNK: usize = 1 << 20;

/// Settings of [`Frozen::save_with`], [`Frozen::load_with`] and [`Frozen::open_with`].
#[must_use]
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    verify: Option<bool>,
    replace: bool,
    version: u64,
    freeze: FreezeOptions,
}

impl ImageOptions {
    /// Load verifies, open does not, save replaces nothing, version 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the data's checksum is compared (CRC-32: against damage, not against malice). By default it is when an image is
    /// loaded, where all of it is read anyway, and not when it is opened, where that would read all of it.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = Some(verify);
        self
    }

    /// True: an image takes the place of what has its name, in one step. False: that is an error.
    pub fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// A version of the data's layout, which must be the same when it is read. Raise it when the meaning of a type
    /// changes, or a type that only spans lead to: the image knows the root's name, size and alignment and
    /// this number.
    pub fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    /// Sets how an image that is loaded or opened is frozen. Huge pages cannot be collapsed in place.
    pub fn freeze(mut self, options: FreezeOptions) -> Self {
        self.freeze = options;
        self
    }
}

impl<T: Pod> Frozen<T> {
    /// Writes the arena to a new file that only this user may read and write.
    ///
    /// # Errors
    /// Those of [`Self::save_with`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &ImageOptions::new())
    }

    /// Writes the arena to a file. It is written beside `path` under another name, and gets its own when it is whole
    /// and on the disk: whatever happens, there is no half image under that name.
    ///
    /// # Errors
    /// Invalid: the arena is not [plain](super::ArenaBuilder::plain), or larger than the limit on file size; EEXIST:
    /// there is such a file, and it is not to be replaced; ENOSPC: the disk is full; EACCES, ENOENT and what else
    /// files can have. Nothing is left behind.
    pub fn save_with(&self, path: impl AsRef<Path>, options: &ImageOptions) -> Result<()> {
        let path = path.as_ref();
        in_file(path, self.write(path, options))
    }

    fn write(&self, path: &Path, options: &ImageOptions) -> Result<()> {
        let image = self.image();
        if !image.is_plain() {
            return Err(Error::invalid(format!("arena `{}` may hold more than plain data", image.name()))
                .with_hint("build it with `plain`"));
        }
        let (folder, beside) = beside(path)?;
        let made = file::create_new(&beside)?;
        let named = fill(image, self.root_offset(), &made, RootLayout::of::<T>(options.version))
            .and_then(|()| file::sync(made.as_fd()))
            .and_then(|()| file::rename(&beside, path, options.replace));
        if named.is_err() {
            let _left = file::remove(&beside);
        }
        named?;
        file::sync_directory(&folder)
    }

    fn root_offset(&self) -> u64 {
        match size_of::<T>() {
            0 => 0,
            _ => (std::ptr::from_ref(self.root()).addr() - self.image().range().start) as u64,
        }
    }

    /// Reads an image into an arena of this process's own: whatever happens to the file then, the arena is
    /// frozen like any other.
    ///
    /// ```no_run
    /// use cowbell::arena::Frozen;
    ///
    /// let primes = Frozen::<[u64; 1024]>::load("/var/cache/app/primes.image")?;
    /// assert_eq!(primes[1], 3);
    /// # Ok::<(), cowbell::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Self::load_with`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(path, &ImageOptions::new())
    }

    /// [`Self::load`] with options.
    ///
    /// # Errors
    /// Invalid, with the reason: no image, a damaged, truncated or newer one, one of another type, version or machine;
    /// ENOENT, EACCES, EIO and what else files can have; those of [`super::ArenaBuilder::build`] and
    /// [`Arena::freeze_unchecked_with`].
    pub fn load_with(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Self> {
        let path = path.as_ref();
        in_file(path, Found::at(path, &RootLayout::of::<T>(options.version)).and_then(|found| found.load(options)))
    }

    /// Maps an image in place: nothing is read until it is touched, and processes that open the same image share its
    /// pages. The arena can be forked over like any other; it cannot be [exported](Self::export), nor be under
    /// [`Watch::Trap`](crate::watch::Watch::Trap) or [`Watch::Monitor`](crate::watch::Watch::Monitor) (unless the
    /// file is on a tmpfs).
    ///
    /// # Safety
    /// Nobody may write to the file, or make it shorter, while it is open, in this process or any other: what references
    /// into it show would change (undefined behaviour), and what was cut off would be a SIGBUS. Replacing it by
    /// [`Self::save_with`] is fine: that makes another file.
    ///
    /// # Errors
    /// Those of [`Self::open_with`].
    pub unsafe fn open(path: impl AsRef<Path>) -> Result<Self> {
        // SAFETY: passed on to the caller.
        unsafe { Self::open_with(path, &ImageOptions::new()) }
    }

    /// [`Self::open`] with options.
    ///
    /// # Safety
    /// As [`Self::open`].
    ///
    /// # Errors
    /// Those of [`Self::load_with`]; ENODEV where the filesystem cannot map files.
    pub unsafe fn open_with(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Self> {
        let path = path.as_ref();
        in_file(path, Found::at(path, &RootLayout::of::<T>(options.version)).and_then(|found| found.open(options)))
    }
}

/// Adds to an error which file it is about.
fn in_file<R>(path: &Path, result: Result<R>) -> Result<R> {
    result.map_err(|e| {
        let hint = e.hint().map_or_else(String::new, |hint| format!("{hint}; "));
        e.with_hint(format!("{hint}image {}", path.display()))
    })
}

/// The folder of a file, and a new name in it.
fn beside(path: &Path) -> Result<(PathBuf, PathBuf)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| Error::invalid("the path names no file"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut other = OsString::from(".");
    // A name may have 255 bytes, so the whole of it might leave no room.
    other.push(name.to_string_lossy().chars().take(40).collect::<String>());
    other.push(format!(".{}-{}.part", process::pid(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    Ok((folder.to_owned(), folder.join(other)))
}

/// Writes header and data of an image.
fn fill(image: &Image, root: u64, file: &OwnedFd, layout: RootLayout) -> Result<()> {
    let mut header = ImageHeader::new(image.name(), image.used(), root, layout, 0);
    let len = header.file_len().ok_or_else(|| Error::invalid("no file is that long"))?;
    memfd::set_len(file.as_fd(), len)?;
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < image.used() {
        let chunk = &mut buffer[..CHUNK.min(image.used() - done)];
        let read = image.read_original(done, chunk).map_err(|e| Error::os("pread(arena)", e))?;
        if read < chunk.len() {
            return Err(Error::invalid("the arena's own file was made shorter"));
        }
        sum.update(chunk);
        // A piece of zeros is a hole in the file.
        if chunk.iter().any(|&byte| byte != 0) {
            file::write_at(file.as_fd(), chunk, header.begin + done as u64)?;
        }
        done += chunk.len();
    }
    header.data_sum = sum.finalize();
    file::write_at(file.as_fd(), &header.to_bytes(), 0)
}

/// A file that is an image of the right layout, by its header.
struct Found {
    file: OwnedFd,
    header: ImageHeader,
    used: usize,
    root: usize,
}

impl Found {
    fn at(path: &Path, layout: &RootLayout) -> Result<Self> {
        let file = file::open(path)?;
        let len = file::regular_len(file.as_fd())?;
        let mut bytes = [0; HEADER];
        let read = memfd::read_at(&file, &mut bytes, 0).map_err(|e| Error::os("pread", e))?;
        let header = ImageHeader::parse(&bytes[..read], len)?;
        header.check(layout)?;
        let size = |n: u64| usize::try_from(n).map_err(|_| Error::invalid("the image is larger than addresses are"));
        Ok(Self { used: size(header.used)?, root: size(header.root)?, file, header })
    }

    /// The root in data that begins at `start`.
    ///
    /// # Safety
    /// The data is mapped there for good, with the length that the header says, and nobody changes it.
    unsafe fn root<T: Pod>(&self, start: usize) -> Result<&'static T> {
        let place = match size_of::<T>() {
            0 => std::ptr::NonNull::dangling().as_ptr(),
            _ => std::ptr::with_exposed_provenance::<T>(start + self.root).cast_mut(),
        };
        if !place.is_aligned() {
            return Err(Error::invalid("the image's root is misaligned"));
        }
        // SAFETY: the header was checked: the root and its size lie in the data. Any bytes are a T.
        Ok(unsafe { &*place })
    }

    fn check_sum(&self, sum: u32) -> Result<()> {
        if sum == self.header.data_sum {
            return Ok(());
        }
        Err(Error::invalid("the image's data is damaged: its checksum is another"))
    }

    fn load<T: Pod>(&self, options: &ImageOptions) -> Result<Frozen<T>> {
        let room = self.used.max(1);
        let arena = Arena::builder(self.header.name.as_str()).capacity(room).plain()?.into_arena();
        let loaded = self.load_into(&arena, options);
        if loaded.is_err() {
            // SAFETY: the arena is this function's own, and nothing of it was given away.
            let _released = unsafe { arena.release() };
        }
        loaded
    }

    fn load_into<T: Pod>(&self, arena: &Arena, options: &ImageOptions) -> Result<Frozen<T>> {
        let inner = arena.known()?;
        if let Ok(layout) = std::alloc::Layout::from_size_align(self.used, 1)
            && self.used > 0
        {
            let place = inner.take(layout, SiteId::default())?;
            if place.addr().get() != inner.range.start {
                return Err(Error::invalid("a new arena's first allocation is not its first byte"));
            }
            // SAFETY: `take` gave so many bytes, which are zeroes and nobody else's.
            let data = unsafe { std::slice::from_raw_parts_mut(place.as_ptr(), self.used) };
            let read = memfd::read_at(&self.file, data, self.header.begin).map_err(|e| Error::os("pread", e))?;
            if read < data.len() {
                return Err(Error::invalid("the image was truncated while it was read"));
            }
            // The bytes that are compared are those that are kept, whatever the file holds by now.
            if options.verify.unwrap_or(true) {
                self.check_sum(crc32fast::hash(data))?;
            }
        }
        // SAFETY: the data was read to the start of the arena, whole; it is written no more.
        let root = unsafe { self.root(inner.range.start) }?;
        arena.freeze_at(root, options.freeze.clone())
    }

    fn open<T: Pod>(self, options: &ImageOptions) -> Result<Frozen<T>> {
        if options.verify == Some(true) {
            self.check_file()?;
        }
        let marks = options.freeze.marks(HugePages::Never);
        if marks.huge_pages == HugePages::Collapse {
            return Err(Error::invalid("huge pages cannot be collapsed in place").with_hint("load the image"));
        }
        prepare()?;
        let page = sys::page_size();
        let too_large = || Error::invalid("the image is larger than addresses are");
        let len = page.round_up(self.used.max(1)).ok_or_else(too_large)?;
        let reserved = Reserved::new(registry::next_addresses()?, len, map::huge_page_size().unwrap_or(page.bytes()))?;
        let range: Range = reserved.range();
        let begin = self.header.begin;
        // SAFETY: the range was just reserved and nobody was given an address in it.
        let mapped = unsafe { map::map_private_at(range, Access::Read, self.file.as_fd(), begin) };
        mapped.map_err(|e| Error::os("mmap(image)", e))?;
        marks.put_on(range)?;
        // SAFETY: it is mapped there, whole; the caller of `open` answers for the file.
        let root = unsafe { self.root(range.start) }?;
        let inner = registry::enter(|slot, generation| {
            let image = Image {
                name: self.header.name.as_str().into(),
                slot,
                generation,
                range,
                used: self.used,
                plain: true,
                for_good: marks.deny_for_good(range),
                marks,
                collapsed: Collapsed::NotAsked,
                allocations: Default::default(),
                file: self.file,
                origin: OriginalsLocation::InPlace(begin),
                given_back: Mutex::default(),
            };
            registry::entry(image)
        })?;
        reserved.keep();
        Frozen::of(root, inner, false)
    }

    /// Compares the checksum by reading the file.
    fn check_file(&self) -> Result<()> {
        let mut sum = crc32fast::Hasher::new();
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        while done < self.used {
            let chunk = &mut buffer[..CHUNK.min(self.used - done)];
            let at = self.header.begin + done as u64;
            if memfd::read_at(&self.file, chunk, at).map_err(|e| Error::os("pread", e))? < chunk.len() {
                return Err(Error::invalid("the image was truncated while it was read"));
            }
            sum.update(chunk);
            done += chunk.len();
        }
        self.check_sum(sum.finalize())
    }
}
