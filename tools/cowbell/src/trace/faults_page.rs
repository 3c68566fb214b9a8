//! Questions that are asked of single pages when page faults are settled ([`super::faults_settle`]).

use super::baseline::page_bytes;
use super::maps::{Backing, Map};
use super::watch::Watch;
use crate::record::Class;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Pagemap, Query};

/// The class of a private page where there was none.
pub fn class_of_new(backing: Option<Backing>, present: bool) -> Option<Class> {
    match backing? {
        Backing::Anonymous => Some(Class::FirstTouch),
        // Only a copy of a file's page can be in swap; a marker of the program's own userfaultfd looks so, too.
        Backing::Memory | Backing::File => present.then_some(Class::PrivateFile),
        Backing::Shared | Backing::HugePages => None,
    }
}

/// Tells whether a page that was found where there had been none may have been moved there. A file's page comes by itself to where
/// its mapping has been all the time.
pub fn may_be_moved(watch: &Watch, page: u64, now: Option<&Map>) -> bool {
    let was = watch.space.find(page);
    now.is_some_and(|now| now.backing == Backing::Anonymous || was.is_none_or(|was| !now.is_same_as(was)))
}

/// Tells whether a write to this page could have copied one of a file.
pub fn is_of_writable_file(watch: &Watch, page: u64) -> bool {
    watch.space.find(page).is_some_and(|map| {
        matches!(map.backing, Backing::Memory | Backing::File) && map.mapping.permissions.contains('w')
    })
}

/// The memory behind the mapping that was there at the beginning.
pub fn backing_at(watch: &Watch, page: u64) -> Option<Backing> {
    watch.space.find(page).map(|map| map.backing)
}

/// Tells whether that is a file, or a memfd.
pub fn is_of_file(watch: &Watch, page: u64) -> bool {
    matches!(backing_at(watch, page), Some(Backing::Memory | Backing::File))
}

/// Tells whether this is still the page of zeroes.
pub fn is_zero(watch: &Watch, page: u64) -> bool {
    is(&watch.pagemap, page, Categories::PFN_ZERO)
}

/// Tells whether this page is mapped as a part of a huge one.
pub fn is_in_huge(pagemap: &Pagemap, page: u64) -> bool {
    is(pagemap, page, Categories::HUGE)
}

fn is(pagemap: &Pagemap, page: u64, all: Categories) -> bool {
    let range = Range { start: page as usize, len: page_bytes() as usize };
    let query = Query { all, none: Categories::empty(), any: Categories::empty(), rearm: false };
    let mut found = false;
    pagemap.scan(range, &query, |_| found = true).is_ok() && found
}
