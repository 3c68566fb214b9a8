//! Allocation sites: which type was put where, by which line.

use std::collections::{BTreeMap, HashMap};
use std::panic::Location;

/// Where allocations come from: a type and the line that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// `std::any::type_name` of what was allocated.
    pub type_name: &'static str,
    /// The line that called.
    pub location: &'static Location<'static>,
}

/// An allocation of a frozen arena, in bytes from the arena's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The first byte.
    pub offset: usize,
    /// How many bytes.
    pub len: usize,
    /// Where it came from; `None` for allocations made without a site.
    pub site: Option<Site>,
}

/// A site's number within its arena; 0 means none was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct SiteId(u32);

/// What is recorded while an arena grows. Lives outside the arena.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    sites: Vec<Site>,
    ids: HashMap<Site, SiteId>,
    live: BTreeMap<usize, (usize, SiteId)>,
}

impl Recorder {
    pub(super) fn id_of(&mut self, site: Site) -> SiteId {
        *self.ids.entry(site).or_insert_with(|| {
            self.sites.push(site);
            SiteId(self.sites.len() as u32)
        })
    }

    pub(super) fn add(&mut self, offset: usize, len: usize, site: SiteId) {
        self.live.insert(offset, (len, site));
    }

    pub(super) fn remove(&mut self, offset: usize) {
        self.live.remove(&offset);
    }

    pub(super) fn resize(&mut self, offset: usize, len: usize) {
        if let Some(entry) = self.live.get_mut(&offset) {
            entry.0 = len;
        }
    }

    /// All live allocations, by offset.
    pub(super) fn into_allocations(self) -> Vec<Allocation> {
        let site = |SiteId(id): SiteId| (id as usize).checked_sub(1).and_then(|at| self.sites.get(at)).copied();
        self.live.iter().map(|(&offset, &(len, id))| Allocation { offset, len, site: site(id) }).collect()
    }
}

/// The allocations that overlap `start..end`, in a list sorted by offset without overlaps.
pub(crate) fn overlapping(allocations: &[Allocation], start: usize, end: usize) -> &[Allocation] {
    let first = allocations.partition_point(|a| a.offset + a.len <= start);
    let behind = allocations.partition_point(|a| a.offset < end);
    allocations.get(first..behind).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_finds_the_allocations_that_touch_it() {
        let make = |offset, len| Allocation { offset, len, site: None };
        let list = [make(0, 10), make(16, 100), make(4090, 16), make(9000, 8)];
        let at = |start, end| overlapping(&list, start, end).iter().map(|a| a.offset).collect::<Vec<_>>();
        assert_eq!(at(0, 4096), [0, 16, 4090]);
        assert_eq!(at(4096, 8192), [4090]);
        assert_eq!(at(8192, 9000), [] as [usize; 0]);
        assert_eq!(at(8192, 9001), [9000]);
    }
}
