//! Generations: the images that freezes of the heap made.
//!
//! # Safety
//! A pour is begun by the only thread, with its signals blocked.
#![expect(unsafe_code, reason = "memory is moved")]

use super::freeze;
use super::handle::{Heap, not_in_use};
use super::hot::{self, KindGuard, ORDINARY};
use super::metadata::{self, ChunkState};
use super::plan::{self, ChunkRun};
use super::{reclaim, sites, trailer};
use crate::arena::{self, Image, Pieces};
use crate::error::{Error, Result};
use crate::fork::{self, Reshared};
use crate::page::{PageCount, PageSet};
use crate::sys::Errno;
use crate::sys::map::Range;
use crate::sys::pagemap::Pagemap;
use crate::sys::signal;
use crate::watch::census;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The number of times that the plan is made again because making it took memory.
const PLANS: u32 = 8;

/// The memory that one freeze made an image of: everything that was allocated since the one before, or in one [`arena`](super::arena()).
///
/// A generation knows of pages and nothing of objects: who drops it gives back no memory. Each of its [images](Self::images) is unmapped when the last object in it is
/// freed by the process that froze it; the file behind it goes with the last of those who have it: this, children's reports, and children that
/// are still alive.
#[derive(Debug)]
pub struct Generation {
    images: Vec<Arc<Image>>,
}

impl Heap {
    /// Freezes everything that was allocated so far and is not [`hot`](super::hot()): its pages are poured into sealed memfds and mapped back at the same
    /// addresses, privately. From then on
    ///
    /// - forked children share them, a fork copies no page table of them, and reports of children count and name the pages that a child
    ///   copied, as arena `heap`;
    /// - what is allocated lies on fresh pages; no hole of a frozen page is filled;
    /// - freeing what is frozen writes nothing to its page, in this process and in children; its bytes are [dead](Generation::dead_bytes), and an image with
    ///   nothing but dead ones goes;
    /// - this process may go on writing to what is frozen: it gets copies of these pages, its children inherit them, and forks copy the page
    ///   tables of the 64 MiB around each.
    ///
    /// Free memory on a frozen page is zero; but for free blocks of threads that lived in this process's parent when it was forked.
    ///
    /// While it pours, 16 MiB are in memory twice. It takes about 0.3 s per GiB.
    ///
    /// # Errors
    /// [`Error::threads`] when there are other threads, as of [`fork::spawn`]. Invalid when `Heap` is not the global allocator. ENOSPC, ENOMEM when there
    /// is no memory to pour into, EBUSY when pages are pinned for I/O: the heap works on, and may be frozen again; free blocks that it had are not used
    /// again before their neighbours are free, too.
    ///
    /// ```no_run
    /// use cowbell::heap::Heap;
    /// use std::collections::HashMap;
    ///
    /// #[global_allocator]
    /// static HEAP: Heap = Heap;
    ///
    /// let names: HashMap<u32, String> = (0..1_000_000).map(|n| (n, n.to_string())).collect();
    /// let generation = Heap::freeze()?;
    /// let mut worker = cowbell::fork::spawn(&Default::default(), |_| println!("{}", names[&7]))?;
    /// assert_eq!(worker.wait()?.report.copied_pages().0, 0);
    /// # Ok::<(), cowbell::Error>(())
    /// ```
    pub fn freeze() -> Result<Generation> {
        hot::warm();
        freeze(ORDINARY, "heap")
    }
}

/// Freezes all of a kind, as images of this name.
pub(super) fn freeze(kind: u8, name: &str) -> Result<Generation> {
    fork::wait_until_alone(fork::PATIENCE)?;
    // The generation's own record is written at forks, and is not to be frozen.
    let _kind = KindGuard::hot();
    if !Heap::is_in_use() {
        return Err(not_in_use());
    }
    let pagemap = Pagemap::open_self().map_err(|e| Error::os("open(/proc/self/pagemap)", e))?;
    reclaim::use_again();
    for _ in 0..PLANS {
        let runs = plan::plan(kind)?;
        let images = enter(&runs, name)?;
        match pour(&runs, kind, &pagemap) {
            Ok(true) => {
                images.iter().for_each(|image| sites::forget_all(image.range()));
                runs.iter().zip(&images).for_each(|(run, image)| reclaim::remember(run.first, image));
                return Ok(Generation { images });
            }
            Ok(false) => images.iter().for_each(|image| arena::leave_poured(image)),
            Err(e) => {
                images.iter().for_each(|image| arena::leave_poured(image));
                return Err(e);
            }
        }
    }
    Err(Error::invalid("the heap grew while it was about to be frozen"))
}

/// Enters the images that the runs will be.
fn enter(runs: &[ChunkRun], name: &str) -> Result<Vec<Arc<Image>>> {
    let pieces = Pieces { len: metadata::CHUNK, stride: plan::stride() };
    let mut images: Vec<Arc<Image>> = Vec::with_capacity(runs.len());
    for run in runs {
        let file =
            run.file.as_fd().try_clone_to_owned().map_err(|e| {
                Error::os("dup(heap image)", e.raw_os_error().map_or(Errno::MFILE, Errno::from_raw_os_error))
            });
        let poured =
            |file| arena::enter_poured(name, run.range, file, pieces, freeze::block_at, sites::table(run.range)?);
        let described = |image: Arc<Image>| match trailer::write(run, &image) {
            Ok(()) => Ok(image),
            Err(e) => {
                arena::leave_poured(&image);
                Err(e)
            }
        };
        match file.and_then(poured).and_then(described) {
            Ok(image) => images.push(image),
            Err(e) => {
                images.iter().for_each(|image| arena::leave_poured(image));
                return Err(e);
            }
        }
    }
    Ok(images)
}

/// Pours, if the runs are still what there is.
fn pour(runs: &[ChunkRun], kind: u8, pagemap: &Pagemap) -> Result<bool> {
    let mask = signal::block_all();
    // From here to the mask's return nothing allocates.
    let alone = fork::is_alone();
    let valid = plan::is_valid(runs, kind);
    // SAFETY: there is one thread, its signals are blocked, and the runs are valid.
    let poured = if alone && valid { unsafe { freeze::pour(runs, kind, pagemap) } } else { Ok(()) };
    signal::restore(&mask);
    if !alone {
        return Err(Error::invalid(
            "a thread was started by a signal handler or a logger while the heap was about to be frozen",
        ));
    }
    poured.map_err(freeze::error).map(|()| valid)
}

impl Generation {
    /// The frozen images, by address: one where the heap was one range.
    pub fn images(&self) -> &[Arc<Image>] {
        &self.images
    }

    /// The number of its pages, those that hold nothing too.
    pub fn pages(&self) -> PageCount {
        PageCount(self.images.iter().map(|image| image.pages().0).sum())
    }

    /// Does it hold this object?
    pub fn holds<T: ?Sized>(&self, object: &T) -> bool {
        self.images.iter().any(|image| image.range().contains(std::ptr::from_ref(object).addr()))
    }

    /// The number of pages that this process has copied, because it wrote to what is frozen: each costs its children nothing, and makes its forks copy the page
    /// tables of the 64 MiB around it.
    ///
    /// # Errors
    /// The errno of reading the page tables.
    pub fn copied_here(&self) -> Result<PageCount> {
        let pagemap = Pagemap::open_self().map_err(|e| Error::os("open(/proc/self/pagemap)", e))?;
        let mut count = 0;
        for image in &self.images {
            let mut pages = PageSet::new();
            census::scan(&pagemap, image.range(), false, |run| {
                census::pages_of(image.range(), run).for_each(|page| {
                    pages.insert(page);
                });
            })
            .map_err(|e| Error::os("ioctl(PAGEMAP_SCAN)", e))?;
            count += pages.count().0;
        }
        Ok(PageCount(count))
    }

    /// In a child made by [`fork::spawn`]: gives back the pages that this process copied and whose content is the original again, as
    /// [`arena::Frozen::reshare`] does.
    ///
    /// # Errors
    /// Those of [`arena::Frozen::reshare`].
    pub fn reshare(&self) -> Result<Reshared> {
        // The list of pages that were given back must never be frozen, now or later.
        let _kind = KindGuard::hot();
        let mut all = Reshared::default();
        for image in &self.images {
            let Reshared { looked_at, reshared, kept } = fork::reshare_image(image)?;
            all.looked_at.0 += looked_at.0;
            all.reshared.0 += reshared.0;
            all.kept.0 += kept.0;
        }
        Ok(all)
    }

    /// Bytes of frozen blocks that were freed since, by this process and those that it was forked from.
    pub fn dead_bytes(&self) -> usize {
        self.chunks().map(|chunk| metadata::chunk(chunk).dead_bytes.load(Ordering::Relaxed)).sum()
    }

    /// Blocks that were not freed yet.
    pub fn live_blocks(&self) -> usize {
        self.chunks().map(|chunk| metadata::chunk(chunk).live.load(Ordering::Relaxed)).sum()
    }

    /// The number of its images that are gone, because all of their objects were freed.
    pub fn gone(&self) -> usize {
        let is_gone =
            |image: &&Arc<Image>| metadata::chunk(metadata::chunk_of(image.range().start)).state() == ChunkState::Gone;
        self.images.iter().filter(is_gone).count()
    }

    fn chunks(&self) -> impl Iterator<Item = u32> + '_ {
        let of =
            |Range { start, len }: Range| metadata::chunk_of(start)..metadata::chunk_of(start + len.max(1) - 1) + 1;
        self.images.iter().flat_map(move |image| of(image.range()))
    }
}
