//! Looking at processes from outside, and the frozen data most tests write into.

use cowbell::arena::{Arena, FreezeOptions, Frozen};
use cowbell::fork::{Child, ForkOptions};
use cowbell::page::{PageIndex, PageSet};
use cowbell::sys::{self, procfs::smaps};
use cowbell::watch::Watch;
use libtest_mimic::Failed;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// A bound for waits that are over in milliseconds when all is well.
pub const SOON: Duration = Duration::from_secs(20);

/// Frozen bytes that children may write: page `n` begins at byte `n * page size`.
pub type Bytes = &'static [AtomicU8];

/// An arena named `name`, frozen, with `pages` pages of bytes that are none of them 0, and one page more for its root.
pub fn frozen_pages(name: &str, pages: usize) -> cowbell::Result<Frozen<Bytes>> {
    frozen_pages_with(name, pages, FreezeOptions::new())
}

/// [`frozen_pages`] with options.
pub fn frozen_pages_with(name: &str, pages: usize, options: FreezeOptions) -> cowbell::Result<Frozen<Bytes>> {
    let len = pages * sys::page_size().bytes();
    let arena = Arena::builder(name).capacity(len + sys::page_size().bytes()).build()?;
    let data: Bytes = arena.alloc_iter((0..len).map(|n| AtomicU8::new(original(n))))?;
    arena.freeze_with(data, options)
}

/// The value that [`frozen_pages`] holds at a byte.
pub fn original(at: usize) -> u8 {
    (at % 251) as u8 | 1
}

/// Writes the first byte of a page; always another one than was there.
pub fn write(data: Bytes, page: u64) {
    first_byte(data, page).fetch_add(2, Ordering::SeqCst);
}

/// The first byte of a page.
pub fn first_byte(data: Bytes, page: u64) -> &'static AtomicU8 {
    &data[sys::page_size().offset_of(PageIndex(page))]
}

/// A set from page numbers.
pub fn set(pages: impl IntoIterator<Item = u64>) -> PageSet {
    pages.into_iter().map(PageIndex).collect()
}

/// May this user watch so, on this kernel? Why not, otherwise.
pub fn usable(watch: Watch) -> Result<Result<(), String>, Failed> {
    match cowbell::fork::spawn(&ForkOptions::new().watch(watch), |_| ()) {
        Ok(mut child) => {
            child.wait()?;
            Ok(Ok(()))
        }
        Err(e) if e.is_unsupported() || e.is_permission() => Ok(Err(format!("watch {watch}: {e}"))),
        Err(e) => Err(e.into()),
    }
}

/// The number of descriptors this process has open.
pub fn descriptors() -> usize {
    // The directory being read is one of them each time.
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// The lines of `/proc/self/maps`.
pub fn maps() -> Vec<String> {
    std::fs::read_to_string("/proc/self/maps").expect("/proc").lines().map(str::to_owned).collect()
}

/// The files that this process has mapped, each as often as it has: nothing that the ordinary allocator changes, nor a merge of
/// neighbours (a forked process' `[heap]` is two once it grows).
pub fn mapped_files() -> Vec<String> {
    let name = |line: &String| line.split_whitespace().nth(5).filter(|name| name.starts_with('/')).map(str::to_owned);
    let mut names: Vec<String> = maps().iter().filter_map(name).collect();
    names.sort();
    names
}

/// Tells whether a child of this process is left, of whatever kind, running or not.
pub fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions};
    let wall = WaitIdOptions::from_bits_retain(libc::__WALL as u32);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT | wall;
    !matches!(rustix::process::waitid(WaitId::All, options), Err(rustix::io::Errno::CHILD))
}

/// The kernel's own count of a process's copies in an arena, in pages.
pub fn anonymous_pages(pid: i32, range: sys::map::Range) -> Result<u64, sys::Errno> {
    let bytes: u64 = smaps::mappings(pid, range)?.iter().map(|mapping| mapping.anonymous).sum();
    Ok(bytes / sys::page_size().bytes() as u64)
}

/// The kernel's own count of a process's anonymous memory that no other process maps, but for a range, in pages.
pub fn anonymous_outside(pid: i32, range: sys::map::Range) -> Result<u64, sys::Errno> {
    let everything = sys::map::Range { start: 0, len: usize::MAX };
    let ours = |figures: &&smaps::MappingFigures| {
        let mapping = &figures.mapping;
        mapping.is_private() && mapping.inode == 0 && !mapping.range.overlaps(range) && !mapping.name.starts_with("[v")
    };
    let bytes: u64 = smaps::mappings(pid, everything)?.iter().filter(ours).map(|figures| figures.private).sum();
    Ok(bytes / sys::page_size().bytes() as u64)
}

/// Waits for a process's end; fails when it does not come.
pub fn ends_soon(pidfd: impl AsFd, who: &str) -> Result<(), Failed> {
    if sys::pidfd::wait_end(pidfd.as_fd(), Some(SOON))? {
        return Ok(());
    }
    Err(format!("{who} did not end within {SOON:?}").into())
}

/// Waits for a child's end, but not for ever.
pub fn wait(child: &mut Child) -> Result<cowbell::fork::Exit, Failed> {
    Ok(child.wait_timeout(SOON)?.ok_or("the child did not end")?)
}

/// Waits until `what` holds: for changes that no descriptor tells of.
pub fn until(what: &str, holds: impl Fn() -> bool) -> Result<(), Failed> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > SOON {
            return Err(format!("in vain: {what}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}
