//! The end of an interval: the verdict over its pages, and how copies differ from their originals.

use super::baseline::{self, page_bytes};
use super::compare::{Compared, Donor, Originals};
use super::entries::Entries;
use super::maps::{self, Backing};
use super::verdict::{Page, Sight, verdict};
use super::watch::OpenInterval;
use crate::record::{Closed, End, Mode, PageRun, Watched, WriteClass};
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry};
use cowbell::sys::procfs;
use std::collections::BTreeMap;

/// The circumstances in which an interval closes.
#[derive(Clone, Copy, Debug)]
pub struct Close {
    /// The reason.
    pub closed: Closed,
    /// True if the address space can still be read.
    pub is_there: bool,
    /// The time.
    pub now_ns: u64,
}

/// Closes an interval.
pub fn settle(watch: &mut OpenInterval, originals: &Originals, donor: Option<&Donor<'_>>, close: Close) -> End {
    let Close { mut closed, is_there, now_ns } = close;
    let mut pages: BTreeMap<u64, WriteClass> = BTreeMap::new();
    if is_there && read_page_tables(watch, &mut pages, now_ns).is_err() {
        closed = Closed::Lost;
    }
    for (&page, written) in &watch.written {
        pages.entry(page).or_insert(written.class);
    }
    if is_there && closed != Closed::Lost {
        look_again(watch, &mut pages, closed == Closed::Forked);
    }
    if let Some(donor) = donor {
        let entries = donor.entries();
        let undecided = pages.iter_mut().filter(|(_, class)| **class == WriteClass::CopyOrReuse);
        undecided
            .filter(|(page, _)| donor.still_has(watch, &entries, **page))
            .for_each(|(_, class)| *class = WriteClass::Copy);
    }
    let Compared { contents, gone } =
        if is_there { originals.compare(watch, &pages, donor) } else { Compared::default() };
    // Without page tables nothing is known of mappings without events.
    let lost = watch.uncounted + if is_there { 0 } else { watch.unread() };
    let unmapped_uncounted = if lost == 0 { 0 } else { lost.min(faults_unexplained(watch, &pages)) };
    let (interval, pages, gone) = (watch.interval, runs(&pages), runs(&gone));
    End {
        interval,
        time_ns: now_ns,
        closed,
        pages,
        contents,
        gone,
        unmapped_uncounted,
        kinds: None,
        collector_new: None,
    }
}

/// The number of copies that the process can have made and that are not known: each takes a page fault, and so did each that is
/// known.
fn faults_unexplained(watch: &OpenInterval, pages: &BTreeMap<u64, WriteClass>) -> u64 {
    let faults = watch.faults_before.zip(procfs::signal_safe::page_faults(watch.pid));
    let Some((before, now)) = faults else { return u64::MAX };
    let copies = |class: &&WriteClass| !matches!(class, WriteClass::FirstTouch | WriteClass::ZeroPage);
    (now - before).saturating_sub(pages.values().filter(copies).count() as u64)
}

/// Reads the pages that events do not tell: those noted by the kernel, and private pages where there were none before.
fn read_page_tables(watch: &mut OpenInterval, pages: &mut BTreeMap<u64, WriteClass>, now_ns: u64) -> Result<(), Errno> {
    watch.collect(now_ns)?;
    let now = maps::read(watch.pid)?;
    let entries = Entries::new(&watch.pagemap);
    let mut found: Vec<(Range, Categories)> = Vec::new();
    let (without_held, _) = watch.base.apart(baseline::user_space());
    // All pages are looked at where one that was held may be another by now.
    let may_be_new = watch.mode == Mode::Trace && !watch.dropped.is_empty();
    let ranges = if may_be_new { vec![baseline::user_space()] } else { without_held };
    watch.pagemap.runs_of(&ranges, &baseline::PRIVATE, |range, categories| found.push((range, categories)))?;
    for (range, categories) in found {
        let present = categories.contains(Categories::PRESENT);
        let ranges = baseline::without_zeroes(&watch.pagemap, range, categories).into_iter();
        for page in ranges.flat_map(|range| (range.start as u64..range.end() as u64).step_by(page_bytes() as usize)) {
            if watch.is_known(page) || watch.base.at(page).is_some() && !is_new(watch, &entries, page) {
                continue;
            }
            let backing = maps::find(&now, page).map(|map| map.backing);
            // Markers look like pages in swap: userfaultfd's in what is armed, guards anywhere. Of the armed ones, those
            // that were written are known already.
            let armed = watch.space.find(page).is_some_and(|map| map.mapping.watched != Watched::Census);
            if !present && (armed || backing != Some(Backing::Anonymous) || is_guard(&entries, page)) {
                continue;
            }
            if matches!(backing, Some(Backing::Anonymous | Backing::Memory | Backing::File)) {
                let new = Page { was: None, backing, dropped: false };
                pages.extend(verdict(new, Sight::After { before: 0, now: 0 }).map(|class| (page, class)));
            }
        }
    }
    watch.space.tell_of(&now, pages.keys().copied());
    Ok(())
}

/// Tells whether this page is another than the process held, where pages may have been given back. A page that it held is still
/// protected. Pages without events are known by their own marks.
fn is_new(watch: &OpenInterval, entries: &Entries<'_>, page: u64) -> bool {
    watch.dropped.contains(page)
        && watch.space.find(page).is_some_and(|map| map.mapping.watched == Watched::Events)
        && !entries.at(page).is_ok_and(|entry| entry.contains(Entry::UFFD_WP))
}

fn is_guard(entries: &Entries<'_>, page: u64) -> bool {
    entries.at(page).is_ok_and(|entry| entry.contains(Entry::GUARD))
}

/// Looks again at what was thought of the pages when they were written.
fn look_again(watch: &OpenInterval, pages: &mut BTreeMap<u64, WriteClass>, forked: bool) {
    let entries = Entries::new(&watch.pagemap);
    let written: BTreeMap<_, _> = watch.written.iter().filter(|(_, written)| written.frame != 0).collect();
    for (&page, written) in written {
        let Ok(entry) = entries.at(page) else { continue };
        let closing = Sight::Closing { thought: written.class, before: written.frame, entry, forked };
        match verdict(watch.page(page), closing) {
            // The verdict stands, and so does what page tables have told since.
            Some(class) if class == written.class => {}
            Some(class) => drop(pages.insert(page, class)),
            None => drop(pages.remove(&page)),
        }
    }
}

/// Neighbouring pages of one class as one run.
pub fn runs(pages: &BTreeMap<u64, WriteClass>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for (&page, &class) in pages {
        match runs.last_mut() {
            Some(last) if last.class == class && last.start + last.pages * page_bytes() == page => last.pages += 1,
            _ => runs.push(PageRun { start: page, pages: 1, class }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_class_are_one_run() {
        let page = page_bytes();
        let pages = [(1, WriteClass::Copy), (2, WriteClass::Copy), (3, WriteClass::Reuse), (5, WriteClass::Reuse)];
        let pages: BTreeMap<u64, WriteClass> = pages.into_iter().map(|(at, class)| (at * page, class)).collect();
        let found: Vec<_> = runs(&pages).iter().map(|run| (run.start / page, run.pages, run.class)).collect();
        assert_eq!(found, [(1, 2, WriteClass::Copy), (3, 1, WriteClass::Reuse), (5, 1, WriteClass::Reuse)]);
    }
}
