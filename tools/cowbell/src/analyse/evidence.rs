//! Evidence on the single pages of an interval.

use super::Stacks;
use crate::record::{Content, Event, PageRun};

/// The evidence about single pages, in order of address.
pub struct IntervalEvidence<'a> {
    /// Events, by page and then by time.
    pub events: Vec<Event>,
    /// Copies that were compared.
    pub contents: &'a [Content],
    /// Copies that were there no more.
    pub gone: &'a [PageRun],
    pub page_size: u64,
    pub stacks: &'a Stacks,
    /// When stacks were sampled, and which, in order of time.
    pub samples: Vec<(u64, u32)>,
}

impl<'a> IntervalEvidence<'a> {
    /// The evidence of an interval's events and of its compared copies.
    pub fn new(mut events: Vec<Event>, contents: &'a [Content], page_size: u64, stacks: &'a Stacks) -> Self {
        for event in &mut events {
            event.page &= !(page_size - 1);
        }
        let sampled = events.iter().filter_map(|event| Some((event.time_ns, event.stack?)));
        let mut samples: Vec<_> = sampled.filter(|(_, stack)| stacks.contains_key(stack)).collect();
        samples.sort_unstable();
        // Stable: events of one page stay in order of time.
        events.sort_by_key(|event| event.page);
        Self { events, contents, gone: &[], page_size, stacks, samples }
    }

    /// Tells whether a copy was there no more, when it was to be compared.
    pub fn is_gone(&self, page: u64) -> bool {
        let run = self.gone.partition_point(|run| run.start <= page).checked_sub(1).and_then(|at| self.gone.get(at));
        run.is_some_and(|run| page < run.start.saturating_add(run.pages.saturating_mul(self.page_size)))
    }
}

/// The part of what is sorted by page that lies in `start..end`.
pub fn between<T>(sorted: &[T], start: u64, end: u64, page: impl Fn(&T) -> u64) -> &[T] {
    let from = sorted.partition_point(|one| page(one) < start);
    let to = sorted.partition_point(|one| page(one) < end);
    sorted.get(from..to).unwrap_or_default()
}
