//! Changes of an address space while it is watched: mappings move and go, pages are given back.

use super::baseline::page_bytes;
use super::maps::{BackedMapping, Backing};
use super::watch::OpenInterval;
use crate::record::Watched;
use cowbell::sys::change::MemoryCall;
use cowbell::sys::map::Range;

use cowbell::sys::uffd::UffdMessage as Message;

/// All page tables are read at a change of mappings only if that takes less than this part of the time. A program that unmaps
/// piece by piece would otherwise pay for all its mappings with each.
const READING_SHARE_MAX: u64 = 20;

/// The last reading of all page tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Collected {
    /// When it ended; 0 if there was none.
    pub ended_ns: u64,
    /// The time it took.
    pub took_ns: u64,
}

impl Collected {
    /// Tells whether they may be read again.
    fn is_affordable(self) -> bool {
        cowbell::sys::monotonic_ns() - self.ended_ns >= self.took_ns * READING_SHARE_MAX
    }
}

impl OpenInterval {
    /// Reads one message of the asynchronous userfaultfd, which has only moves and removals, and returns who makes changes. The
    /// pages of a removal go when it has been read, so what was written there is noted first. Its thread may tell its next one right
    /// then, and nobody has looked at that yet: it is left for the next call.
    pub fn read_moves(&mut self, now_ns: u64, messages: &mut Vec<Message>) -> Vec<MemoryCall> {
        if !self.told.moves.is_empty() {
            // Read while the process was armed: nobody looked who made them.
            messages.append(&mut self.told.moves);
            return Vec::new();
        }
        if !self.doors.asynchronous.as_ref().is_some_and(|uffd| uffd.has_events()) {
            return Vec::new();
        }
        let changes = self.threads.changes();
        let mut read = Ok(());
        for change in &changes {
            if let MemoryCall::Drops(range) | MemoryCall::Frees(range) = change {
                read = read.and(self.collect_in(*range, now_ns));
            }
        }
        // Pages that are unmapped are gone; the others are noted while they are there, as far as that is cheap.
        if changes.is_empty() || self.collected.is_affordable() {
            read = read.and(self.collect(now_ns));
        }
        if let (Ok(()), Some(uffd)) = (read, &self.doors.asynchronous) {
            let _none = uffd.read_one(|message| messages.push(message));
        }
        changes
    }

    /// Follows a change of the address space.
    pub fn follow(&mut self, message: &Message, changes: &[MemoryCall]) {
        match *message {
            Message::Remap { from, to, len } => {
                let (from, to, len) = (from as u64, to as u64, len as u64);
                self.base.relocate(from, to, len);
                for (start, end) in self.dropped.take(from, from + len) {
                    self.dropped.add(start - from + to, end - from + to);
                }
                let is_moved = |page: &u64| (from..from + len).contains(page);
                let mut moved: Vec<_> = self
                    .written
                    .iter()
                    .filter(|(page, _)| is_moved(page))
                    .map(|(&page, &written)| (page, written))
                    .collect();
                // Some were moved before. All stay in the interval where they were written.
                moved.extend(self.moved.extract_if(|page, _| is_moved(page)));
                self.moved.extend(moved.into_iter().map(|(page, written)| (page - from + to, written)));
                self.space.moved(from, to, len);
            }
            Message::Remove(range) => self.follow_removal(range, changes),
            Message::Unmap(range) => {
                let (start, end) = (range.start as u64, range.end() as u64);
                self.uncounted += self.unread_in(start, end);
                self.base.remove(start, end);
                self.dropped.take(start, end);
                self.space.removed(start, end);
            }
            Message::Fault(_) | Message::Fork(_) | Message::Other(_) => {}
        }
    }

    /// Pages may be given back: by MADV_DONTNEED they are gone, by MADV_FREE those stay that other processes share. The
    /// message does not say which, and only the thread that waits with it does.
    fn follow_removal(&mut self, range: Range, changes: &[MemoryCall]) {
        let (start, end) = (range.start as u64, range.end() as u64);
        let is_about = |of: &Range| of.start <= range.start && range.end() <= of.end();
        let drops = changes.iter().any(|change| matches!(change, MemoryCall::Drops(of) if is_about(of)));
        let frees = changes.iter().any(|change| matches!(change, MemoryCall::Frees(of) if is_about(of)));
        // A message is about one mapping, and MADV_FREE is refused where a file stands behind it.
        let anonymous = self.space.find(start).is_some_and(|map| map.backing == Backing::Anonymous);
        match (drops || !anonymous, frees) {
            (true, false) => {
                self.base.remove(start, end);
                self.dropped.take(start, end);
            }
            (false, true) => {}
            _ => self.dropped.add(start, end),
        }
    }

    /// The number of pages that may have been copied without an event that would have told.
    pub fn unread(&self) -> u64 {
        self.unread_in(0, u64::MAX)
    }

    fn unread_in(&self, start: u64, end: u64) -> u64 {
        let first = self.space.maps.partition_point(|map| map.mapping.end <= start);
        let inside = self.space.maps.iter().skip(first).take_while(|map| map.mapping.start < end);
        let bits: Vec<&BackedMapping> = inside.filter(|map| map.mapping.watched == Watched::Async).collect();
        let mut written: Vec<u64> = match bits.is_empty() {
            true => Vec::new(),
            false => self.written.keys().copied().filter(|page| (start..end).contains(page)).collect(),
        };
        written.sort_unstable();
        let mut unread = 0;
        for map in bits {
            let (start, end) = (start.max(map.mapping.start), end.min(map.mapping.end));
            unread += match map.backing {
                Backing::Anonymous => {
                    self.base.held_in(start, end).filter(|page| !self.written.contains_key(page)).count() as u64
                }
                // Any page of the file.
                _ => {
                    let known =
                        written.partition_point(|&page| page < end) - written.partition_point(|&page| page < start);
                    (end.saturating_sub(start) / page_bytes()).saturating_sub(known as u64)
                }
            };
        }
        unread
    }
}
