//! Pages that were moved (mremap), when page faults are settled ([`super::faults_settle`]).
//!
//! A page that was moved and not written has the frame that the process held elsewhere. One that was written has another, and is known
//! by its neighbours or by the fault that found what had been there; where not even one page of a mapping kept its frame, by their number.

use super::baseline::{self, Was, page_bytes};
use super::entries::Entries;
use super::faults_look::PageLook;
use super::faults_page::{class_of_zero, is_in_huge, may_be_moved, may_come_from};
use super::faults_settle::{FaultEvidence, SettledPages};
use super::maps::{self, BackedMapping, Backing};
use super::touched::Touched;
use crate::record::WriteClass;
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

impl SettledPages {
    /// A mapping whose pages were all written before it was moved has no frame by which it is known again. But where no fault is untold, a
    /// new page that took none was moved there; and if just as many neighbours as came went elsewhere, those are the ones.
    pub(super) fn follow_written(&mut self, evidence: &FaultEvidence<'_>, unexplained: &[u64]) -> Result<(), Errno> {
        let watch = evidence.watch;
        if !evidence.complete || evidence.untold.is_some() || self.went.is_empty() || unexplained.is_empty() {
            return Ok(());
        }
        let entries = Entries::new(&watch.pagemap);
        let mut new_and_gone = Vec::new();
        for &page in evidence.touched.keys().filter(|page| watch.base.at(**page).is_none()) {
            if !self.pages.contains_key(&page) && !entries.at(page)?.intersects(Entry::PRESENT | Entry::SWAPPED) {
                new_and_gone.push(page);
            }
        }
        new_and_gone.sort_unstable();
        let went: Vec<u64> = self.went.keys().copied().collect();
        let frames = watch.base.frames();
        for (before, here) in pairs(&went, unexplained, &new_and_gone) {
            let is_known = frames.contains_key(&entries.at(here)?.frame());
            let may_come = watch.space.find(before).map(|map| map.backing) == Some(Backing::Anonymous);
            if may_come && !is_known && !is_in_huge(&watch.pagemap, here) {
                let class = self.went.get(&before).copied();
                self.pages.extend(class.map(|class| (here, class)));
                self.moved.insert(here, before);
            }
        }
        Ok(())
    }

    /// New pages that nobody touched were moved there (mremap), or the kernel put them there unasked (huge pages,
    /// MAP_POPULATE). What was moved has the frame that it had before, or is shared still. `from`: where such pages lay before.
    pub(super) fn find_moved(
        &mut self,
        evidence: &FaultEvidence<'_>,
        unexplained: &[u64],
        from: &mut Vec<(u64, u64)>,
    ) -> Result<(), Errno> {
        let entries = Entries::new(&evidence.watch.pagemap);
        let mut frames = None;
        for &page in unexplained {
            let entry = entries.at(page)?;
            if entry.frame() == 0 && !evidence.complete && self.may_be_untold(evidence, page) {
                continue;
            }
            match entry.frame() {
                0 if entry.contains(Entry::EXCLUSIVE) || evidence.shared_anew => {}
                0 => {
                    self.pages.remove(&page);
                }
                frame => {
                    let before = frames.get_or_insert_with(|| evidence.watch.base.frames()).get(&frame);
                    from.extend(before.map(|&before| (page, before)));
                }
            }
        }
        Ok(())
    }

    /// Where one page of a mapping was moved to, the whole mapping was. `from`: the pages that have, or had, the frame of another place; a
    /// frame that was given up may have come back here, so most of them decide. What became of each page follows from where it was, and
    /// from the faults at both places.
    pub(super) fn follow_moves(
        &mut self,
        look: &PageLook<'_>,
        now: &[BackedMapping],
        from: &[(u64, u64)],
    ) -> Result<(), Errno> {
        let evidence = look.evidence;
        let (watch, entries) = (evidence.watch, Entries::new(&evidence.watch.pagemap));
        let is_from = |page, before| maps::find(now, page).is_some_and(|map| may_come_from(watch, before, map, page));
        let mut shifts: BTreeMap<(u64, u64), BTreeMap<u64, usize>> = BTreeMap::new();
        for &(page, before) in from.iter().filter(|(_, before)| !evidence.touched.contains_key(before)) {
            let Some(map) = watch.space.find(before) else { continue };
            // One that is gone again may have another mapping in its place.
            if !self.pages.contains_key(&page) || is_from(page, before) {
                let of_map = shifts.entry((map.mapping.start, map.mapping.end)).or_default();
                *of_map.entry(page.wrapping_sub(before)).or_default() += 1;
            }
        }
        for ((start, end), shifts) in shifts {
            let Some((shift, _)) = shifts.into_iter().max_by_key(|&(_, pages)| pages) else { continue };
            let (start, end) = (start.wrapping_add(shift), end.wrapping_add(shift));
            let new: Vec<u64> = self.pages.range(start..end.max(start)).map(|(&page, _)| page).collect();
            for page in new {
                let before = page.wrapping_sub(shift);
                let is_moved = watch.base.at(page).is_none() && is_from(page, before);
                let Some(was) = watch.base.at(before).filter(|_| is_moved) else { continue };
                // A part of it stayed.
                if entries.at(before)?.contains(Entry::PRESENT) {
                    continue;
                }
                self.moved.insert(page, before);
                let touched = self.touched(evidence.touched, page);
                let class = match was {
                    Was::Private => look.class_of_held(before, entries.at(page)?, touched.as_ref()),
                    Was::Swapped => {
                        Some(if look.parent_has(before) { WriteClass::Copy } else { WriteClass::CopyOrReuse })
                    }
                    Was::Zero => Some(class_of_zero(touched.as_ref())),
                };
                match class {
                    Some(class) => self.pages.insert(page, class),
                    None => self.pages.remove(&page),
                };
            }
        }
        Ok(())
    }

    /// A page that was there and is no more, untouched, may have been moved and then written, to where new pages are.
    pub(super) fn may_have_moved(&self, evidence: &FaultEvidence<'_>) -> Result<u64, Errno> {
        let is_new = |(page, class): (&u64, &WriteClass)| {
            let may_be = |touched: &Touched| !touched.found_none();
            matches!(class, WriteClass::FirstTouch | WriteClass::PrivateFile)
                && evidence.touched.get(page).is_some_and(may_be)
        };
        let new = self.pages.iter().filter(|&page| is_new(page)).count() as u64;
        if new == 0 {
            return Ok(0);
        }
        let mut private: Vec<(u64, u64)> = Vec::new();
        let add = |run: Range, _| private.push((run.start as u64, run.end() as u64));
        evidence.watch.pagemap.runs(baseline::user_space(), &baseline::PRIVATE, add)?;
        let from: HashSet<u64> = self.moved.values().copied().collect();
        let base = &evidence.watch.base;
        let starts = private.iter().map(|(start, _)| *start).chain([u64::MAX]);
        let ends = [0].into_iter().chain(private.iter().map(|(_, end)| *end));
        let left = ends.zip(starts).filter(|(from, to)| from < to).flat_map(|(start, end)| base.held_in(start, end));
        let left = left.filter(|page| !evidence.touched.contains_key(page) && !from.contains(page)).count() as u64;
        Ok(left.min(new))
    }
}

/// The pages that a fault found where there had been nothing, with the place where the process had held that frame.
pub fn found_before(evidence: &FaultEvidence<'_>, now: &[BackedMapping]) -> Vec<(u64, u64)> {
    let watch = evidence.watch;
    let found = |(&page, touched): (&u64, &Touched)| {
        let frame = touched.found_first()?;
        (watch.base.at(page).is_none() && may_be_moved(watch, page, now)).then_some((page, frame))
    };
    let found: Vec<(u64, u64)> = evidence.touched.iter().filter_map(found).collect();
    let frames = if found.is_empty() { HashMap::new() } else { watch.base.frames() };
    found.iter().filter_map(|(page, frame)| Some((*page, *frames.get(frame)?))).collect()
}

/// Neighbouring pages as their first one and their number.
fn neighbours(pages: &[u64]) -> Vec<(u64, usize)> {
    let runs = pages.chunk_by(|page, next| page.wrapping_add(page_bytes()) == *next);
    runs.filter_map(|run| Some((*run.first()?, run.len()))).collect()
}

/// The pages that went, with the places where they came, as far as there is one choice: as many neighbours went as came there, no
/// other as many, and of those that are gone otherwise there are not so many. All ascending.
fn pairs(went: &[u64], came: &[u64], gone: &[u64]) -> Vec<(u64, u64)> {
    let (went, came, gone) = (neighbours(went), neighbours(came), neighbours(gone));
    let most_gone = gone.iter().map(|&(_, pages)| pages).max().unwrap_or(0);
    let only = |runs: &[(u64, usize)], pages: usize| {
        let mut same = runs.iter().filter(|(_, others)| *others == pages);
        let (start, _) = *same.next()?;
        same.next().is_none().then_some(start)
    };
    let mut pairs = Vec::new();
    for &(_, pages) in came.iter().filter(|(_, pages)| *pages > most_gone) {
        if let (Some(before), Some(here)) = (only(&went, pages), only(&came, pages)) {
            let pages = (0..pages as u64).map(|nth| nth * page_bytes());
            pairs.extend(pages.map(|offset| (before + offset, here + offset)));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_neighbours_as_went_are_those() {
        let pages = |runs: &[(u64, u64)]| -> Vec<u64> {
            runs.iter().flat_map(|&(start, pages)| (start..start + pages).map(|page| page * page_bytes())).collect()
        };
        let found = |went: &[(u64, u64)], came: &[(u64, u64)], gone: &[(u64, u64)]| {
            let pairs = pairs(&pages(went), &pages(came), &pages(gone));
            pairs.into_iter().map(|(before, here)| (before / page_bytes(), here / page_bytes())).collect::<Vec<_>>()
        };
        assert_eq!(found(&[(10, 2), (20, 3)], &[(90, 3)], &[(40, 2)]), [(20, 90), (21, 91), (22, 92)]);
        assert_eq!(found(&[(10, 3), (20, 3)], &[(90, 3)], &[]), [], "either may be it");
        assert_eq!(found(&[(10, 3)], &[(80, 3), (90, 3)], &[]), [], "it may be either");
        assert_eq!(found(&[(10, 3)], &[(90, 3)], &[(40, 3)]), [], "what was new and is gone may have come there, too");
        assert_eq!(found(&[(10, 4)], &[(90, 3)], &[]), []);
    }
}
