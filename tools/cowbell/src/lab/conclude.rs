//! Conclusions: what the findings of an experiment's ways say together, and whether it is as expected.

use crate::analyse::experiment::{WatchedRun, Way};
use cowbell::page::Bytes;

/// A conclusion in the making.
#[derive(Debug)]
pub struct Conclusion<'a> {
    ways: &'a [Way],
    /// The findings, in sentences.
    pub seen: Vec<String>,
    /// The expectations that are not met.
    pub unexpected: Vec<String>,
}

impl<'a> Conclusion<'a> {
    /// Nothing is concluded yet.
    pub fn new(ways: &'a [Way]) -> Self {
        Self { ways, seen: Vec::new(), unexpected: Vec::new() }
    }

    /// Returns what was found of a way; with most workers, if it was gone with several numbers of them. `None` if it was skipped or failed.
    pub fn watched(&self, name: &str) -> Option<&'a WatchedRun> {
        self.of(name)?.finding()?.watched.as_ref()
    }

    /// A figure that a way's program told.
    pub fn told(&self, name: &str, figure: &str) -> Option<f64> {
        self.of(name)?.finding()?.told.get(figure)?.as_f64()
    }

    fn of(&self, name: &str) -> Option<&'a Way> {
        self.ways.iter().filter(|way| way.name == name).max_by_key(|way| way.workers)
    }

    /// Adds a sentence.
    pub fn say(&mut self, sentence: String) {
        self.seen.push(sentence);
    }

    /// Adds what was expected, if it is not so.
    pub fn expect(&mut self, is_so: bool, expected: &str) {
        if !is_so {
            self.unexpected.push(expected.to_owned());
        }
    }

    /// Expects that all of these ways that told an answer told the same one.
    pub fn agree(&mut self, names: &[&str]) {
        let answers = self.ways.iter().filter(|way| names.contains(&way.name));
        let mut answers: Vec<_> = answers.filter_map(|way| way.finding()?.told.get("answer")).collect();
        answers.dedup();
        self.expect(answers.len() <= 1, "the answers are the same in each way");
    }
}

/// The memory that each worker has of its own.
pub fn own(watched: &WatchedRun) -> u64 {
    watched.copied_bytes + watched.new_bytes
}

/// Bytes in words.
pub fn bytes(bytes: u64) -> Bytes {
    Bytes(bytes)
}
