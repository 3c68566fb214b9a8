//! The objects that lie on copied pages.

use crate::arena::{self, Image};
use crate::page::{PageCount, PageIndex};
use crate::sys::map::Range;
use crate::watch::Changed;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The number of copied pages of an image that are told one by one.
pub(super) const TOLD_MAX: usize = 5000;

/// An allocation site and the copied pages its objects lie on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SiteReport {
    /// The type allocated; empty for allocations made without a site. Of a frozen heap the length of the block.
    pub type_name: String,
    /// The line that allocated, as `file:line`.
    pub location: String,
    /// The number of copied pages that have such an object where bytes changed (or at all, where no byte differs).
    pub pages: PageCount,
}

/// A copied page and what lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageReport {
    /// The page, from the arena's start.
    pub page: PageIndex,
    /// The difference from the original; `None` where that is unknown.
    pub changed: Option<Changed>,
    /// The objects that hold the first byte written, where a watch saw that, and the first and the last byte that differ.
    pub objects: Vec<ObjectReport>,
    /// All other objects there, by where they were allocated.
    pub beside: Vec<Beside>,
}

/// An object: an allocation of an arena, or a block of a frozen heap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ObjectReport {
    /// The object's first address.
    pub start: u64,
    /// The object's length in bytes; a heap's block may be a little longer than what was asked for.
    pub len: u64,
    /// The object's type, in an arena that records sites; in a frozen heap the length of the block.
    pub type_name: String,
    /// The line that allocated it, as `file:line`, of an arena that records sites; else empty.
    pub location: String,
    /// Of a frozen heap the calls that led to the allocation, by their place in [`ArenaReport::stacks`](super::ArenaReport::stacks). `None`
    /// where that was not recorded.
    pub stack: Option<usize>,
}

/// Objects on a page that were allocated at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Beside {
    /// Of a frozen heap the calls that led to the allocation, by their place in [`ArenaReport::stacks`](super::ArenaReport::stacks). `None` where that was not
    /// recorded, and of blocks that nobody had.
    pub stack: Option<usize>,
    /// The line that allocated them, of an arena that records sites; else empty.
    pub location: String,
    /// How many there are.
    pub objects: u64,
}

impl PageReport {
    /// A page of which nothing but its difference is known yet.
    pub(super) fn bare(page: PageIndex, changed: Option<Changed>) -> Self {
        Self { page, changed, objects: Vec::new(), beside: Vec::new() }
    }
}

/// Tells what lies on pages, and the stacks that it refers to. `written`: for pages the addresses that a watch saw being written first.
pub(super) fn tell(
    image: &Image,
    pages: &[PageReport],
    written: Vec<(PageIndex, usize)>,
) -> (Vec<PageReport>, Vec<Vec<u64>>) {
    if !image.is_written_by_parents() && image.table().is_empty() {
        return (Vec::new(), Vec::new());
    }
    let mut first: HashMap<PageIndex, usize> = HashMap::new();
    // An epoch may have begun in between: the earliest event of a page counts.
    written.into_iter().for_each(|(page, address)| {
        first.entry(page).or_insert(address);
    });
    let mut stacks = Stacks { image, known: HashMap::new(), stacks: Vec::new() };
    let told = pages.iter().map(|page| on_page(image, page, first.get(&page.page).copied(), &mut stacks)).collect();
    (told, stacks.stacks)
}

/// The stacks of an image that were needed so far, in the order in which they were.
struct Stacks<'a> {
    image: &'a Image,
    known: HashMap<usize, usize>,
    stacks: Vec<Vec<u64>>,
}

impl Stacks<'_> {
    /// The stack that allocated the object which begins at this address.
    fn of(&mut self, start: usize) -> Option<usize> {
        let number = self.image.table().stack_at(start - self.image.range().start)?;
        if let Some(&place) = self.known.get(&number) {
            return Some(place);
        }
        self.stacks.push(self.image.table().stacks().get(number)?.clone());
        self.known.insert(number, self.stacks.len() - 1);
        Some(self.stacks.len() - 1)
    }
}

fn on_page(image: &Image, page: &PageReport, written: Option<usize>, stacks: &mut Stacks<'_>) -> PageReport {
    let page_bytes = page_bytes(image);
    let start = image.range().start + page.page.0 as usize * page_bytes;
    let changed = page.changed.filter(|changed| changed.bytes > 0);
    let ends = changed.map(|changed| [start + changed.first as usize, start + changed.last as usize]);
    let marked: Vec<usize> = written.into_iter().chain(ends.into_iter().flatten()).collect();
    let (mut objects, mut beside) = (Vec::new(), BTreeMap::new());
    for (range, site) in objects_in(image, start, start + page_bytes) {
        let location = site.map_or_else(String::new, location);
        let stack = stacks.of(range.start);
        if marked.iter().any(|&address| range.contains(address)) {
            let type_name = site.map_or_else(|| block_name(range.len), |site| site.type_name.to_owned());
            let (start, len) = (range.start as u64, range.len as u64);
            objects.push(ObjectReport { start, len, type_name, location, stack });
        } else {
            *beside.entry((stack, location)).or_insert(0) += 1;
        }
    }
    // The one that was written first is first.
    objects.sort_by_key(|object| {
        written.is_none_or(|at| !(object.start..object.start + object.len).contains(&(at as u64)))
    });
    let beside = beside.into_iter().map(|((stack, location), objects)| Beside { stack, location, objects }).collect();
    PageReport { objects, beside, ..page.clone() }
}

/// The objects that overlap some addresses of an image.
fn objects_in(image: &Image, from: usize, to: usize) -> Vec<(Range, Option<arena::Site>)> {
    if !image.is_written_by_parents() {
        let base = image.range().start;
        let known = image.table().overlapping(from - base, to - base);
        return known.map(|a| (Range { start: base + a.offset, len: a.len }, a.site)).collect();
    }
    let mut found = Vec::new();
    let mut at = from;
    while let Some(block) = image.block_at(at).filter(|block| at < to && block.end() > at) {
        found.push((block, None));
        at = block.end();
    }
    found
}

fn location(site: arena::Site) -> String {
    format!("{}:{}", site.location.file(), site.location.line())
}

fn page_bytes(image: &Image) -> usize {
    (image.range().len as u64 / image.pages().0.max(1)) as usize
}

/// The sites that have objects where copied pages changed.
pub(super) fn sites(image: &Image, changes: &[(PageIndex, Option<Changed>)]) -> Vec<SiteReport> {
    let allocations = image.table();
    if image.is_written_by_parents() {
        return blocks(image, changes);
    }
    if allocations.is_empty() {
        return Vec::new();
    }
    let page_bytes = page_bytes(image);
    let mut pages: HashMap<Option<arena::Site>, u64> = HashMap::new();
    for (page, changed) in changes {
        let start = page.0 as usize * page_bytes;
        let (from, to) = match changed {
            Some(changed) if changed.bytes > 0 => (start + changed.first as usize, start + changed.last as usize + 1),
            _ => (start, start + page_bytes),
        };
        let mut here: Vec<_> = allocations.overlapping(from, to).map(|allocation| allocation.site).collect();
        here.sort_by_key(|site| site.map(|site| (site.type_name, site.location.file(), site.location.line())));
        here.dedup();
        for site in here {
            *pages.entry(site).or_default() += 1;
        }
    }
    let mut sites: Vec<SiteReport> = pages
        .into_iter()
        .map(|(site, pages)| SiteReport {
            type_name: site.map_or_else(String::new, |site| site.type_name.to_owned()),
            location: site.map_or_else(String::new, location),
            pages: PageCount(pages),
        })
        .collect();
    sites.sort_by(|a, b| b.pages.cmp(&a.pages).then_with(|| a.type_name.cmp(&b.type_name)));
    sites
}

/// The name of a heap's block of which nothing but its length is known.
pub(super) fn block_name(len: usize) -> String {
    format!("a block of {len} bytes")
}

/// The lengths of blocks that have bytes that changed: a heap knows no more of its objects.
fn blocks(image: &Image, changes: &[(PageIndex, Option<Changed>)]) -> Vec<SiteReport> {
    let page_bytes = page_bytes(image);
    let mut pages: BTreeMap<usize, u64> = BTreeMap::new();
    for (page, changed) in changes {
        let start = image.range().start + page.0 as usize * page_bytes;
        let (mut at, end) = match changed {
            Some(changed) if changed.bytes > 0 => (start + changed.first as usize, start + changed.last as usize + 1),
            _ => (start, start + page_bytes),
        };
        let mut here = BTreeSet::new();
        while let Some(block) = image.block_at(at).filter(|block| at < end && block.end() > at) {
            here.insert(block.len);
            at = block.end();
        }
        here.into_iter().for_each(|len| *pages.entry(len).or_default() += 1);
    }
    let mut sites: Vec<SiteReport> = pages
        .into_iter()
        .map(|(len, pages)| SiteReport { type_name: block_name(len), location: String::new(), pages: PageCount(pages) })
        .collect();
    sites.sort_by_key(|site| std::cmp::Reverse(site.pages));
    sites
}
