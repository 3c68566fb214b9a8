//! What could not be seen: what the tracer says, and what shows only when all is added up.

use super::Profile;
use super::summary::{Blind, Totals};
use crate::record::{Blindness, Closed};
use std::collections::BTreeMap;

/// No more processes are listed by number.
const PIDS_MAX: usize = 10;
/// No more particulars of one kind are kept.
const DETAILS_MAX: usize = 20;

/// All of it, by kind.
pub fn all(profile: &Profile, totals: &Totals) -> Vec<Blind> {
    let mut kinds = Kinds::default();
    for blind in &profile.blind {
        kinds.add(blind.what, blind.pid, &blind.detail);
    }
    for account in &profile.accounts {
        let pid = account.begin.pid;
        for (name, why) in &account.refused {
            let name = if name.is_empty() { "anonymous memory" } else { name };
            kinds.add(Blindness::NotArmed, pid, &format!("{name}: {why}"));
        }
        match account.end {
            None => kinds.add(Blindness::Other, pid, "cut off: of its pages only those with events are known"),
            Some((Closed::Lost, _)) => {
                kinds.add(Blindness::Other, pid, "gone before it was read: only pages with events are known");
            }
            Some(_) => {}
        }
        if account.unmapped_uncounted > 0 {
            let pages = account.unmapped_uncounted;
            let detail = format!("at most {pages} more pages were unmapped before they could be counted");
            kinds.add(Blindness::Other, pid, &detail);
        }
    }
    if totals.pages.copy_or_reuse > 0 {
        let pages = totals.pages.copy_or_reuse;
        let frames = profile.header.as_ref().is_some_and(|header| header.frames);
        let root = if frames { "" } else { "; root can tell more of them apart" };
        let detail = format!("of {pages} pages that count as copied some may have been reused{root}");
        kinds.add(Blindness::Other, 0, &detail);
    }
    if profile.stray > 0 {
        let detail = format!("{} records belong to no account or process of the capture", profile.stray);
        kinds.add(Blindness::Other, 0, &detail);
    }
    kinds.0.into_values().collect()
}

#[derive(Default)]
struct Kinds(BTreeMap<(Blindness, String), Blind>);

impl Kinds {
    fn add(&mut self, what: Blindness, pid: i32, detail: &str) {
        // What is of no certain kind is told apart by its particulars.
        let apart = if what == Blindness::Other { detail.to_owned() } else { String::new() };
        let empty = || Blind { what, times: 0, pids: Vec::new(), details: Vec::new() };
        let blind = self.0.entry((what, apart)).or_insert_with(empty);
        blind.times += 1;
        if pid != 0 && blind.pids.len() < PIDS_MAX && !blind.pids.contains(&pid) {
            blind.pids.push(pid);
        }
        let is_new = !detail.is_empty() && !blind.details.iter().any(|known| known == detail);
        if is_new && blind.details.len() < DETAILS_MAX {
            blind.details.push(detail.to_owned());
        }
    }
}
