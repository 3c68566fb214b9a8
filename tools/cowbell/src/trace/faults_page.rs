//! Questions that are asked of single pages when page faults are settled ([`super::faults_settle`]).

use super::baseline::page_bytes;
use super::maps::{self, BackedMapping, Backing};
use super::tables::PageTables;
use super::touched::Touched;
use super::watch::OpenInterval;
use crate::record::WriteClass;
use cowbell::sys::pagemap::Categories;
use std::collections::BTreeMap;

/// The class of a private page where there was none.
pub fn class_of_new(backing: Option<Backing>, present: bool) -> Option<WriteClass> {
    match backing? {
        Backing::Anonymous => Some(WriteClass::FirstTouch),
        // Only a copy of a file's page can be in swap; a marker of the program's own userfaultfd looks so, too.
        Backing::Memory | Backing::File => present.then_some(WriteClass::PrivateFile),
        Backing::Shared | Backing::HugePages => None,
    }
}

/// The class of a private page where the page of zeroes had been. If it was given back, what a single fault finds is the same: nothing.
/// But a thread that reads before it writes finds nothing twice only if there was nothing.
pub fn class_of_zero(touched: Option<&Touched>) -> WriteClass {
    if touched.is_some_and(Touched::was_read_before) { WriteClass::FirstTouch } else { WriteClass::ZeroPage }
}

/// Tells whether a page that was found where there had been none may have been moved there. A file's page comes by itself to where
/// its mapping has been all the time.
pub fn may_be_moved(watch: &OpenInterval, page: u64, now: &[BackedMapping]) -> bool {
    let is_same = |was: &BackedMapping| maps::find(now, page).is_none_or(|now| now.is_same_as(was));
    !(is_of_file(watch, page) && watch.space.find(page).is_some_and(is_same))
}

/// Tells whether what is mapped there came after the beginning. What could not be written then was a reservation.
pub fn came_later(watch: &OpenInterval, page: u64) -> bool {
    let is_reserved = |map: &BackedMapping| map.backing == Backing::Anonymous && !map.mapping.permissions.contains('w');
    watch.space.find(page).is_none_or(is_reserved)
}

/// Tells whether a page of the mapping `now` may have been moved there from where `before` was: then it is of the same file's same page.
pub fn may_come_from(watch: &OpenInterval, before: u64, now: &BackedMapping, page: u64) -> bool {
    let offset = |map: &BackedMapping, page: u64| page.wrapping_sub(map.mapping.start).wrapping_add(map.mapping.offset);
    watch.space.find(before).is_some_and(|was| {
        was.backing == now.backing
            && was.file == now.file
            && (was.file.1 == 0 || offset(was, before) == offset(now, page))
    })
}

/// A fault for reading a file's page maps its neighbours, too: those that lie less than so far away.
const AROUND_BYTES: u64 = 64 << 10;

/// Tells whether a file's page that is there may have been written, given back and mapped once more: by a fault of its own, or by one
/// beside it. One that was only read took one fault, which found nothing.
pub fn may_have_come_back(all: &BTreeMap<u64, &Touched>, page: u64, touched: &Touched) -> bool {
    let is_later = |(_, other): (&u64, &&Touched)| other.last.time_ns > touched.last.time_ns;
    touched.first.time_ns != touched.last.time_ns
        || touched.last.found.is_some_and(|found| found != 0)
        || all.range(page.saturating_sub(AROUND_BYTES - 1)..page.saturating_add(AROUND_BYTES)).any(is_later)
}

/// The number of pages of files in mappings that were there at the beginning, where they could be written, and are not any more.
pub fn file_pages_that_left(watch: &OpenInterval, now: &[BackedMapping]) -> u64 {
    let files = watch.space.maps.iter().filter(|map| is_writable_file(map));
    let left = |map: &BackedMapping| {
        let (start, end) = (map.mapping.start, map.mapping.end);
        let reaching = now.iter().filter(|now| now.mapping.start < end && start < now.mapping.end);
        let still = reaching.filter(|now| now.is_same_as(map));
        let still: u64 = still.map(|now| now.mapping.end.min(end) - now.mapping.start.max(start)).sum();
        (end - start - still) / page_bytes()
    };
    files.map(left).sum()
}

fn is_writable_file(map: &BackedMapping) -> bool {
    matches!(map.backing, Backing::Memory | Backing::File) && map.mapping.permissions.contains('w')
}

/// Tells whether a write to this page could have copied one of a file.
pub fn is_of_writable_file(watch: &OpenInterval, page: u64) -> bool {
    watch.space.find(page).is_some_and(is_writable_file)
}

/// The same, also where the mapping can be written by now only.
pub fn is_of_file_writable_now(watch: &OpenInterval, page: u64, now: &[BackedMapping]) -> bool {
    is_of_writable_file(watch, page) || is_of_file(watch, page) && maps::find(now, page).is_some_and(is_writable_file)
}

/// The memory behind the mapping that was there at the beginning.
pub fn backing_at(watch: &OpenInterval, page: u64) -> Option<Backing> {
    watch.space.find(page).map(|map| map.backing)
}

/// Tells whether that is a file, or a memfd.
pub fn is_of_file(watch: &OpenInterval, page: u64) -> bool {
    matches!(backing_at(watch, page), Some(Backing::Memory | Backing::File))
}

/// Tells whether this is still the page of zeroes.
pub fn is_zero(watch: &OpenInterval, page: u64) -> bool {
    watch.pagemap.is(page, Categories::PFN_ZERO).unwrap_or(false)
}

/// Tells whether this page is mapped as a part of a huge one.
pub fn is_in_huge(pagemap: &PageTables, page: u64) -> bool {
    pagemap.is(page, Categories::HUGE).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::touched::PageFault;
    use super::*;

    /// Faults of a page, at these times, that found these frames.
    fn touched(faults: &[(u64, u64)]) -> Touched {
        let fault = |&(time_ns, found): &(u64, u64)| {
            let found = Some(found);
            PageFault { time_ns, address: 0, ip: 0x4000, tid: 7, code: 1, by_kernel: false, found, stack: None }
        };
        let mut faults = faults.iter().map(fault);
        let mut touched = Touched::new(faults.next().expect("one at least"));
        faults.for_each(|fault| touched.add(fault));
        touched
    }

    #[test]
    fn a_page_of_zeroes_is_gone_where_a_thread_read_first() {
        assert_eq!(class_of_zero(Some(&touched(&[(1, 0)]))), WriteClass::ZeroPage);
        assert_eq!(class_of_zero(Some(&touched(&[(1, 0), (2, 0)]))), WriteClass::FirstTouch);
        assert_eq!(class_of_zero(None), WriteClass::ZeroPage);
    }

    #[test]
    fn a_files_page_may_be_there_once_more_by_a_later_fault_near_it() {
        const PAGE: u64 = 0x70_0000;
        let of = |faults: &[(u64, u64)], other: u64, at: u64| {
            let (page, beside) = (touched(faults), touched(&[(at, 0)]));
            may_have_come_back(&BTreeMap::from([(PAGE, &page), (other, &beside)]), PAGE, &page)
        };
        let (near, far) = (PAGE + AROUND_BYTES - page_bytes(), PAGE + AROUND_BYTES);
        assert!(!of(&[(5, 0)], far, 9), "read, and the next pages after it");
        assert!(!of(&[(5, 0)], near, 3), "what was there before did not bring it back");
        assert!(of(&[(5, 0)], near, 9) && of(&[(5, 0)], PAGE - AROUND_BYTES + page_bytes(), 9));
        assert!(of(&[(5, 0), (6, 0)], far, 9), "it took two faults");
        assert!(of(&[(5, 8)], far, 9), "it was there: the fault was for writing");
    }
}
