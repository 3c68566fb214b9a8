//! Arena images: saved, loaded, opened in place, and refused for every reason there is.
#![expect(unsafe_code, reason = "images are opened in place and released")]

use crate::apart::apart;
use crate::case::{Outcome, passed, skipped};
use crate::look::{anonymous_pages, descriptors, mapped_files, maps, usable, wait};
use crate::watching::watches_that;
use bytemuck::{Pod, Zeroable};
use cowbell::arena::{Arena, FreezeOptions, Frozen, ImageOptions, OnWrite, PlainArena, Span};
use cowbell::fork::{self, ForkOptions};
use cowbell::sys::procfs::smaps;
use cowbell::sys::{self, process};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The ends of the header, and the beginnings of the data.
pub const HEADER: usize = 1280;
pub const DATA: usize = 65536;

#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Graph {
    pub nodes: Span<Node>,
    pub names: Span<u8>,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Node {
    pub edges: Span<u32>,
    pub weight: f64,
}

const NODES: u32 = 2000;

pub fn plain(name: &str) -> cowbell::Result<PlainArena> {
    Arena::builder(name).capacity(4 << 20).plain()
}

pub fn graph(name: &str) -> cowbell::Result<Frozen<Graph>> {
    let arena = plain(name)?;
    let mut nodes = Vec::new();
    for n in 0..NODES {
        nodes.push(Node { edges: arena.alloc_span_iter(n..n + n % 7)?, weight: f64::from(n) / 2.0 });
    }
    let nodes = arena.alloc_span(&nodes)?;
    let names = arena.alloc_span("all of them".as_bytes())?;
    arena.freeze(Graph { nodes, names, count: NODES.into() })
}

pub fn check(graph: &Frozen<Graph>) -> Result<(), Failed> {
    let nodes = graph.slice(graph.nodes)?;
    assert_eq!((nodes.len() as u64, graph.slice(graph.names)?), (graph.count, "all of them".as_bytes()));
    for (node, n) in nodes.iter().zip(0..NODES) {
        assert_eq!(node.weight, f64::from(n) / 2.0);
        assert!(graph.slice(node.edges)?.iter().copied().eq(n..n + n % 7));
    }
    Ok(())
}

/// A folder of a test's own, on a disk where there is one; removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Result<Self, Failed> {
        let path = std::env::temp_dir().join(format!("cowbell-images-{}", process::pid()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub fn image(&self) -> PathBuf {
        self.0.join("graph.image")
    }

    /// The names in it.
    pub fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).expect("ours").map(|entry| entry.expect("an entry").file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    pub fn is_in_memory(&self) -> bool {
        const TMPFS: u64 = 0x0102_1994;
        rustix::fs::statfs(&self.0).is_ok_and(|statfs| statfs.f_type as u64 == TMPFS)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left = fs::remove_dir_all(&self.0);
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// Opens an image that nobody writes.
pub fn open<T: Pod>(path: impl AsRef<Path>) -> cowbell::Result<Frozen<T>> {
    // SAFETY: the files of these tests are their own; what a test changes it changes before or never reads again.
    unsafe { Frozen::open(path) }
}

pub fn release<T>(frozen: Frozen<T>) -> cowbell::Result<()> {
    // SAFETY: nothing in the arena is used any more.
    unsafe { frozen.release() }
}

fn an_image_is_loaded_as_it_was_saved() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    let saved = graph("a graph")?;
    check(&saved)?;
    saved.save(&path)?;
    assert_eq!(folder.names(), ["graph.image"], "and nothing else");
    let file = fs::metadata(&path)?;
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    release(saved)?;

    let loaded = Frozen::<Graph>::load(&path)?;
    fs::remove_file(&path)?;
    check(&loaded)?;
    assert_eq!((loaded.image().name(), loaded.image().is_in_place()), ("a graph", false));
    // An arena like any other, and it can be saved again, to the same bytes.
    let mut worker = fork::spawn(&ForkOptions::new(), |_| check(&loaded).expect("whole"))?;
    let exit = wait(&mut worker)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(exit.report.copied_pages().0, 0);
    loaded.save(&path)?;
    assert_eq!(fs::read(&path)?.len() as u64, file.len());
    check(&Frozen::load(&path)?)?;
    passed()
}

fn an_image_is_opened_in_place_and_forked_over() -> Outcome {
    let folder = Folder::new()?;
    graph("in place")?.save(folder.image())?;
    let opened = open::<Graph>(folder.image())?;
    assert!(opened.image().is_in_place());
    let line = maps().into_iter().find(|line| line.contains("graph.image")).ok_or("it is mapped")?;
    assert!(line.contains("r--p") && line.contains(&format!("{DATA:08x}")), "{line}");
    check(&opened)?;
    let range = opened.image().range();
    assert_eq!(anonymous_pages(process::pid(), range)?, 0);
    let handle = opened.handle(&opened.slice(opened.nodes)?[17])?;
    let page = sys::page_size().bytes();
    let mut worker = fork::spawn(&ForkOptions::new(), |_| {
        check(&opened).expect("whole");
        assert_eq!(handle.get().expect("a node").weight, 8.5);
        let byte = std::ptr::with_exposed_provenance_mut::<u8>(range.start + page + 9);
        // SAFETY: a copy of this process's own, of which nothing is read as plain data any more.
        let old = unsafe { byte.read_volatile() };
        // SAFETY: as above.
        unsafe { byte.write_volatile(!old) };
    })?;
    let exit = wait(&mut worker)?;
    assert!(exit.success(), "{:?}", exit.panic);
    let arena = exit.report.arenas.last().ok_or("the one that was opened last")?;
    assert_eq!(exit.report.copied_pages().0, 1, "the census is as of any arena");
    let copied: Vec<_> = arena.copied.iter().map(|pages| (pages.start.0, pages.count.0)).collect();
    assert_eq!((copied, arena.bytes_changed), (vec![(1, 1)], Some(1)), "compared with the file");
    check(&opened)?;
    // The process holds the images it was forked over.
    drop(worker);
    let before = (descriptors(), mapped_files().len());
    release(opened)?;
    assert_eq!((descriptors(), mapped_files().len()), (before.0 - 1, before.1 - 1));
    passed()
}

/// The originals are the data's, and not what stands at the same place of the file: zeroes, behind the header.
fn copies_of_an_image_in_place_are_given_back_when_they_are_its_data_again() -> Outcome {
    let folder = Folder::new()?;
    let page = sys::page_size().bytes();
    let arena = plain("given back")?;
    let span = arena.alloc_span(&vec![0xffu8; 4 * page])?;
    arena.freeze(span)?.save(folder.image())?;
    let opened = open::<Span<u8>>(folder.image())?;
    let start = opened.image().range().start + page;
    let mut worker = fork::spawn(&ForkOptions::new(), |_| {
        let fill = |byte: u8| {
            let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
            // SAFETY: a page of this process's own copy, to which there is no reference.
            unsafe { place.write_bytes(byte, page) };
        };
        for (byte, reshared) in [(0, 0), (0xff, 1)] {
            fill(byte);
            let counts = opened.reshare().expect("one thread");
            assert_eq!((counts.looked_at.0, counts.reshared.0), (1, reshared), "{byte}");
        }
        assert!(opened.slice(*opened).expect("whole").iter().all(|&byte| byte == 0xff));
    })?;
    let exit = wait(&mut worker)?;
    assert!(exit.success(), "{:?}", exit.panic);
    passed()
}

fn what_cannot_be_done_in_place_is_an_error_that_says_so() -> Outcome {
    let folder = Folder::new()?;
    graph("in place")?.save(folder.image())?;
    let opened = open::<Graph>(folder.image())?;
    assert!(opened.export().is_err_and(|e| e.hint().is_some_and(|hint| hint.contains("load"))));
    let collapse = ImageOptions::new().freeze(FreezeOptions::new().huge_pages(cowbell::arena::HugePages::Collapse));
    // SAFETY: as in `open`.
    assert!(unsafe { Frozen::<Graph>::open_with(folder.image(), &collapse) }.is_err_and(|e| e.is_invalid()));
    if folder.is_in_memory() {
        return skipped("there is no disk to put an image on");
    }
    let needs_nothing_of_the_file = |watch| matches!(watch, Watch::Async | Watch::Faults);
    // The census asks nothing of a mapping: all other tests of images have it.
    for watch in watches_that(|watch| watch != Watch::Census) {
        match fork::spawn(&ForkOptions::new().watch(watch), |_| check(&opened).expect("whole")) {
            Ok(mut child) => {
                assert!(needs_nothing_of_the_file(watch) && wait(&mut child)?.success(), "{watch}");
            }
            Err(e) if e.is_permission() || e.is_unsupported() => {}
            Err(e) => assert!(!needs_nothing_of_the_file(watch) && e.to_string().contains("load it"), "{watch}: {e}"),
        }
    }
    release(opened)?;
    let loaded = Frozen::<Graph>::load(folder.image())?;
    if usable(Watch::Trap)?.is_ok() {
        let options = ForkOptions::new().watch(Watch::Trap);
        assert!(wait(&mut fork::spawn(&options, |_| check(&loaded).expect("whole"))?)?.success());
    }
    passed()
}

fn an_image_that_is_there_is_replaced_only_when_asked() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    graph("first")?.save(&path)?;
    let opened = open::<Graph>(&path)?;
    let inode = fs::metadata(&path)?.ino();
    let second = graph("second")?;
    let e = second.save(&path).err().ok_or("there is one")?;
    assert_eq!(e.errno(), Some(libc::EEXIST), "{e}");
    assert!(e.to_string().contains("graph.image"), "{e}");
    assert_eq!((fs::metadata(&path)?.ino(), folder.names().len()), (inode, 1));
    second.save_with(&path, &ImageOptions::new().replace(true))?;
    assert_eq!((fs::metadata(&path)?.ino() == inode, folder.names().len()), (false, 1));
    assert_eq!(Frozen::<Graph>::load(&path)?.image().name(), "second");
    check(&opened)?;
    assert_eq!(opened.image().name(), "first", "what was open stays what it was");
    passed()
}

fn a_save_that_fails_leaves_nothing_behind() -> Outcome {
    let folder = Folder::new()?;
    let saved = graph("unsaved")?;
    let e = saved.save(folder.join("missing").join("image")).err().ok_or("no such folder")?;
    assert_eq!(e.errno(), Some(libc::ENOENT), "{e}");
    let replace = ImageOptions::new().replace(true);
    assert!(saved.save_with(&*folder, &replace).is_err(), "a folder is there");
    assert!(saved.save(folder.join("..")).is_err_and(|e| e.is_invalid()));
    assert!(saved.save("/").is_err_and(|e| e.is_invalid()));
    let left = apart(|| {
        setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 16), ..getrlimit(Resource::Fsize) })?;
        let e = saved.save(folder.join("long")).err().ok_or("more than 64 KiB in a file")?;
        assert!(e.is_invalid() && e.to_string().contains("file size"), "{e}");
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    let left = apart(|| {
        if rustix::process::geteuid().is_root() {
            // SAFETY: this process has one thread and gives its rights up.
            assert_eq!(unsafe { libc::setuid(65534) }, 0);
        } else {
            fs::set_permissions(&*folder, fs::Permissions::from_mode(0o500))?;
        }
        let e = saved.save(folder.join("forbidden")).err().ok_or("the folder is not ours to write")?;
        assert!(e.is_permission(), "{e}");
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    fs::set_permissions(&*folder, fs::Permissions::from_mode(0o700))?;
    assert_eq!(folder.names(), [] as [&str; 0]);
    passed()
}

fn a_full_disk_is_an_error_and_the_old_image_stays() -> Outcome {
    let folder = Folder::new()?;
    let disk = folder.join("disk");
    fs::create_dir(&disk)?;
    // A filesystem of 128 KiB, in a mount namespace of this process's own.
    // SAFETY: unshare takes a number.
    let mut own = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if own != 0 {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        // SAFETY: as above; this process has one thread.
        own = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) };
        for (file, text) in
            [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1")), ("gid_map", format!("0 {group} 1"))]
        {
            let _refused = fs::write(Path::new("/proc/self").join(file), text);
        }
    }
    let path = std::ffi::CString::new(disk.as_os_str().as_encoded_bytes())?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings that end with 0, and none where none is needed.
    let mut made =
        own == 0 && unsafe { libc::mount(c"".as_ptr(), c"/".as_ptr(), c"".as_ptr(), private, std::ptr::null()) } == 0;
    let options = c"size=256k".as_ptr().cast();
    // SAFETY: as above.
    made = made && unsafe { libc::mount(c"t".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options) } == 0;
    if !made {
        return skipped(format!("no filesystem of one's own can be mounted: {}", std::io::Error::last_os_error()));
    }
    let path = disk.join("image");
    let small = plain("small")?.freeze(7u64)?;
    small.save(&path)?;
    let arena = plain("large")?;
    arena.alloc_span(&vec![1u8; 1 << 20])?;
    let large = arena.freeze(8u64)?;
    for options in [ImageOptions::new(), ImageOptions::new().replace(true)] {
        let e = large.save_with(&path, &options).err().ok_or("1 MiB in 256 KiB")?;
        assert_eq!(e.errno(), Some(libc::ENOSPC), "{e}");
        assert_eq!(fs::read_dir(&disk)?.count(), 1, "nothing is left of the attempt");
    }
    assert_eq!(*Frozen::<u64>::load(&path)?, 7);
    // SAFETY: a string that ends with 0.
    unsafe { libc::umount2(std::ffi::CString::new(disk.as_os_str().as_encoded_bytes())?.as_ptr(), libc::MNT_DETACH) };
    passed()
}

fn roots_of_every_size_are_saved() -> Outcome {
    let folder = Folder::new()?;
    plain("nothing")?.freeze(())?.save(folder.join("0"))?;
    Frozen::<()>::load(folder.join("0"))?;
    open::<()>(folder.join("0"))?;
    let page = sys::page_size().bytes();
    for (n, len) in [1, page - 1, page, page + 1, DATA, DATA + 1, (1 << 20) + 1].into_iter().enumerate() {
        let arena = plain("bytes")?;
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let span = arena.alloc_span(&bytes)?;
        let path = folder.join(format!("bytes {n}"));
        arena.freeze(span)?.save(&path)?;
        for image in [Frozen::<Span<u8>>::load(&path)?, open(&path)?] {
            assert!(image.slice(*image)? == bytes, "{len} bytes");
            release(image)?;
        }
    }
    // Zeroes take no place on the disk.
    let arena = Arena::builder("zeroes").capacity(64 << 20).plain()?;
    let span = arena.alloc_span(&vec![0u8; 32 << 20])?;
    arena.freeze(span)?.save(folder.join("zeroes"))?;
    let file = fs::metadata(folder.join("zeroes"))?;
    assert!(file.len() > 32 << 20 && file.blocks() * 512 < 4 << 20, "{} blocks", file.blocks());
    passed()
}

fn an_image_is_frozen_as_asked() -> Outcome {
    let folder = Folder::new()?;
    graph("denied")?.save(folder.image())?;
    let options = ImageOptions::new().freeze(FreezeOptions::new().on_write(OnWrite::Deny).dump(false));
    // SAFETY: as in `open`.
    let opened = unsafe { Frozen::<Graph>::open_with(folder.image(), &options) }?;
    for image in [Frozen::load_with(folder.image(), &options)?, opened] {
        check(&image)?;
        assert_eq!(image.image().on_write(), OnWrite::Deny);
        let mappings = smaps::mappings(process::pid(), image.image().range())?;
        assert!(mappings.iter().all(|mapping| mapping.flags.iter().any(|flag| flag == "dd")), "{mappings:?}");
        let start = image.image().range().start;
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            // SAFETY: it is refused.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(start).write_volatile(1) }
        })?;
        assert_eq!(wait(&mut child)?.ended, fork::Ended::Signaled(libc::SIGSEGV));
    }
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        an_image_is_loaded_as_it_was_saved,
        an_image_is_opened_in_place_and_forked_over,
        copies_of_an_image_in_place_are_given_back_when_they_are_its_data_again,
        what_cannot_be_done_in_place_is_an_error_that_says_so,
        an_image_that_is_there_is_replaced_only_when_asked,
        a_save_that_fails_leaves_nothing_behind,
        a_full_disk_is_an_error_and_the_old_image_stays,
        roots_of_every_size_are_saved,
        an_image_is_frozen_as_asked,
    ]
}
