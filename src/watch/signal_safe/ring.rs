//! Events in shared memory: many writers (signal handlers, a monitor), one reader, no lock.
//!
//! ```text
//! head    the next number to be written; events that found no room are counted in `dropped`
//! tail    the next number to be read
//! slot    number.wrapping_add(1) once the event is complete, then the event's words, then where the ring has them the callers
//! ```
//! Invariant: `tail <= head <= tail + slots`. A slot claimed but not complete holds the reader up; when
//! the writers are dead, it is a loss, and is counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Words that an event takes, its number included and its callers not.
const EVENT_WORDS: usize = 8;

/// The number of callers that an event has room for.
pub const CALLERS_MAX: usize = 24;

/// Words of a slot.
pub(crate) fn slot_words(callers: bool) -> usize {
    if callers { EVENT_WORDS + CALLERS_MAX } else { EVENT_WORDS }
}

/// Words of the ring's own header.
pub(crate) const HEADER_WORDS: usize = 3;

const HEAD: usize = 0;
const TAIL: usize = 1;
const DROPPED: usize = 2;

/// An event's content: what a slot holds behind its number.
pub(crate) type Payload = [u64; EVENT_WORDS - 1];

/// The calls that led to an event, the innermost first; 0 behind the last.
pub(crate) type Callers = [u64; CALLERS_MAX];

/// A view of the ring in its words.
#[derive(Clone, Copy)]
pub(crate) struct EventRing<'a> {
    header: &'a [AtomicU64],
    slots: &'a [AtomicU64],
    slot_words: usize,
}

impl<'a> EventRing<'a> {
    /// `words`: the header, then the slots, with room for callers or without. *Async-signal-safe.*
    pub(crate) fn new(words: &'a [AtomicU64], callers: bool) -> Self {
        let (header, slots) = words.split_at_checked(HEADER_WORDS).unwrap_or((words, &[]));
        Self { header, slots, slot_words: slot_words(callers) }
    }

    fn capacity(self) -> u64 {
        (self.slots.len() / self.slot_words) as u64
    }

    fn word(self, at: usize) -> Option<&'a AtomicU64> {
        self.header.get(at)
    }

    fn slot(self, number: u64) -> Option<&'a [AtomicU64]> {
        let at = number.checked_rem(self.capacity())? as usize * self.slot_words;
        self.slots.get(at..at + self.slot_words)
    }

    /// Adds an event, or counts it as dropped when there is no room. Callers are kept where the ring has room for them. *Async-signal-safe.*
    pub(crate) fn push(self, event: &Payload, callers: &Callers) {
        let (Some(head), Some(tail), Some(dropped)) = (self.word(HEAD), self.word(TAIL), self.word(DROPPED)) else {
            return;
        };
        let mut number = head.load(Ordering::Relaxed);
        loop {
            if number.wrapping_sub(tail.load(Ordering::Acquire)) >= self.capacity() {
                dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            match head.compare_exchange_weak(number, number.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => number = now,
            }
        }
        let Some([complete, words @ ..]) = self.slot(number) else { return };
        for (word, &value) in words.iter().zip(event.iter().chain(callers)) {
            word.store(value, Ordering::Relaxed);
        }
        complete.store(number.wrapping_add(1), Ordering::Release);
    }

    /// Takes the oldest event. With `writers_gone`, an incomplete one is skipped and counted as dropped.
    pub(crate) fn pop(self, writers_gone: bool) -> Option<(Payload, Callers)> {
        let (head, tail, dropped) = (self.word(HEAD)?, self.word(TAIL)?, self.word(DROPPED)?);
        loop {
            let number = tail.load(Ordering::Relaxed);
            // Never more than the ring has: a writer gone wild may have written anything there.
            let waiting = head.load(Ordering::Relaxed).wrapping_sub(number).min(self.capacity());
            if waiting == 0 {
                return None;
            }
            let [complete, words @ ..] = self.slot(number)? else { return None };
            let done = complete.load(Ordering::Acquire) == number.wrapping_add(1);
            if !done && !writers_gone {
                return None;
            }
            let (mut event, mut callers) = (Payload::default(), Callers::default());
            for (value, word) in event.iter_mut().chain(&mut callers).zip(words) {
                *value = word.load(Ordering::Relaxed);
            }
            // Frees the slot, so the words are read before.
            tail.store(number.wrapping_add(1), Ordering::Release);
            if done {
                return Some((event, callers));
            }
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of events that were lost.
    pub(crate) fn dropped(self) -> u64 {
        self.word(DROPPED).map_or(0, |dropped| dropped.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These rings have room for callers.
    const CALLERS: bool = true;
    const NONE: Callers = [0; CALLERS_MAX];

    fn words(slots: usize) -> Vec<AtomicU64> {
        (0..HEADER_WORDS + slots * slot_words(CALLERS)).map(|_| AtomicU64::new(0)).collect()
    }

    fn event(n: u64) -> Payload {
        [n; EVENT_WORDS - 1]
    }

    #[test]
    fn events_come_out_in_order_and_the_overflow_is_counted() {
        let words = words(4);
        let ring = EventRing::new(&words, CALLERS);
        for round in 0..5 {
            for n in 0..6 {
                ring.push(&event(round * 10 + n), &[n; CALLERS_MAX]);
            }
            let out: Vec<_> = std::iter::from_fn(|| ring.pop(false)).collect();
            assert!(out.iter().enumerate().all(|(n, (_, callers))| *callers == [n as u64; CALLERS_MAX]));
            let out: Vec<_> = out.iter().map(|(e, _)| e[0]).collect();
            assert_eq!(out, [0, 1, 2, 3].map(|n| round * 10 + n));
            assert_eq!(ring.dropped(), (round + 1) * 2);
        }
    }

    #[test]
    fn an_event_its_writer_did_not_finish_is_a_counted_loss() {
        let words = words(4);
        let ring = EventRing::new(&words, CALLERS);
        ring.push(&event(1), &NONE);
        words[HEAD].fetch_add(1, Ordering::Relaxed);
        ring.push(&event(3), &NONE);
        assert_eq!(ring.pop(false), Some((event(1), NONE)));
        assert_eq!(ring.pop(false), None, "the writer may still be at it");
        assert_eq!(ring.pop(true), Some((event(3), NONE)));
        assert_eq!((ring.pop(true), ring.dropped()), (None, 1));
    }

    #[test]
    fn writers_and_reader_at_once_lose_nothing_uncounted() {
        let words = words(64);
        let ring = EventRing::new(&words, CALLERS);
        let each = 20_000;
        let mut seen = [0u64; 3];
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|w| {
                    scope.spawn(move || (1..=each).for_each(|n| ring.push(&[w, n, n, n, n, n, n], &[n; CALLERS_MAX])))
                })
                .collect();
            let mut read = 0;
            while read + ring.dropped() < 3 * each || !writers.iter().all(|w| w.is_finished()) {
                if let Some(([w, n, rest @ ..], callers)) = ring.pop(false) {
                    assert!(rest.iter().chain(&callers).all(|&r| r == n), "no event is torn");
                    assert!(n > seen[w as usize], "each writer's events stay in order");
                    seen[w as usize] = n;
                    read += 1;
                }
            }
            assert_eq!(read + ring.dropped(), 3 * each);
        });
    }
}
