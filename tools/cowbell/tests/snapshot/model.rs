//! A model of copy-on-write: it follows the scripts that the program of the tests follows.

use std::collections::BTreeMap;

/// The names of the counts, as the report's JSON has them.
pub const COUNTS: [&str; 12] = [
    "shared_with_parent",
    "shared_unknown",
    "own.differs",
    "own.copied_or_new",
    "own.new",
    "own.file_copies",
    "own.unknown",
    "shared_with_others.differs",
    "shared_with_others.copied_or_new",
    "shared_with_others.new",
    "shared_with_others.file_copies",
    "shared_with_others.unknown",
];

/// A process of the model: its frames by page, in two mappings.
#[derive(Clone, Default)]
pub struct Model {
    pub parent: Option<usize>,
    pub pages: [BTreeMap<u64, u64>; 2],
    /// The script's letter for its exec or its end, once that was.
    pub left: Option<char>,
}

/// The mappings.
pub const NAMES: [&str; 2] = ["[heap]", "/memfd:cowbell-snapshot (deleted)"];

/// Copy-on-write as the book has it.
#[derive(Default)]
pub struct Models {
    pub processes: Vec<Model>,
    frames: u64,
}

impl Models {
    pub fn follow(script: &str) -> Self {
        let mut models = Self { processes: vec![Model::default()], frames: 0 };
        let (mut now, mut line) = (0, Vec::new());
        for word in script.split_inclusive([' ', '(', ')']).flat_map(|word| {
            let (body, end) = word.split_at(word.len() - usize::from(word.ends_with([' ', '(', ')'])));
            [body, end]
        }) {
            match word.trim() {
                "" => {}
                "(" => {
                    let child = Model { parent: Some(now), ..models.processes[now].clone() };
                    line.push(now);
                    now = models.processes.len();
                    models.processes.push(child);
                }
                ")" => now = line.pop().expect("a parent"),
                action => models.act(now, action),
            }
        }
        models
    }

    fn act(&mut self, now: usize, word: &str) {
        let (action, pages) = word.split_at(1);
        if action == "x" || action == "e" {
            self.processes[now].left = action.chars().next();
            self.processes[now].pages = Default::default();
            return;
        }
        let (from, to) = pages.split_once('-').expect("two pages");
        for page in from.parse::<u64>().expect("a page")..=to.parse().expect("a page") {
            match action {
                "w" => self.write(now, 0, page),
                "f" => self.write(now, 1, page),
                "d" => drop(self.processes[now].pages[0].remove(&page)),
                "z" => {}
                _ => panic!("{word:?}"),
            }
        }
    }

    fn write(&mut self, now: usize, mapping: usize, page: u64) {
        let old = self.processes[now].pages[mapping].get(&page).copied();
        if old.is_none_or(|frame| self.mappers(mapping, frame) > 1) {
            self.frames += 1;
            let frame = self.frames;
            self.processes[now].pages[mapping].insert(page, frame);
        }
    }

    fn mappers(&self, mapping: usize, frame: u64) -> usize {
        self.processes.iter().filter(|process| process.pages[mapping].values().any(|&mine| mine == frame)).count()
    }

    /// The counts that the tool should give for a process' mapping; `frames`: it reads page frames, `readable`: and the parent's.
    pub fn expected(&self, nth: usize, mapping: usize, frames: bool, readable: bool) -> BTreeMap<&'static str, u64> {
        let mut counts: BTreeMap<&str, u64> = COUNTS.iter().map(|&name| (name, 0)).collect();
        let nothing = BTreeMap::new();
        // The first process executes: the tests' own pages are none of its.
        let theirs = self.processes[nth].parent.map_or(&nothing, |parent| &self.processes[parent].pages[mapping]);
        for (page, &frame) in &self.processes[nth].pages[mapping] {
            let alone = self.mappers(mapping, frame) == 1;
            let parent = theirs.get(page);
            let parent_alone = parent.is_some_and(|&frame| self.mappers(mapping, frame) == 1);
            let name = match (parent, mapping) {
                _ if !readable && alone => "own.unknown",
                _ if !readable => "shared_unknown",
                (Some(&parent), _) if parent == frame && frames => "shared_with_parent",
                (Some(_), _) if !frames && !alone && !parent_alone => "shared_unknown",
                (Some(_), _) if alone => "own.differs",
                (Some(_), _) => "shared_with_others.differs",
                (None, 0) if alone => "own.new",
                (None, 0) => "shared_with_others.new",
                (None, _) if alone => "own.file_copies",
                (None, _) => "shared_with_others.file_copies",
            };
            *counts.get_mut(name).expect("a count") += 1;
        }
        if counts["shared_with_parent"] + counts["shared_unknown"] == 0 {
            // Nothing shows that the mapping is older than the fork.
            for (known, doubted) in [
                ("own.differs", "own.copied_or_new"),
                ("shared_with_others.differs", "shared_with_others.copied_or_new"),
            ] {
                let pages = counts.insert(known, 0).unwrap_or(0);
                counts.insert(doubted, pages);
            }
        }
        counts
    }
}

/// Writes, reads and forks, at most three deep.
pub fn random_script(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (mut script, mut depth) = ("w20-180 f3-9 ".to_owned(), 0);
    for _ in 0..24 {
        let from = random(200);
        script += &match random(9) {
            0 | 1 if depth < 3 => {
                depth += 1;
                "(".to_owned()
            }
            2 | 3 if depth > 0 => {
                depth -= 1;
                ")".to_owned()
            }
            4 => format!("f{}-{} ", from / 4, from / 4 + random(10)),
            5 => format!("d{from}-{} ", from + random(20)),
            6 => format!("z{from}-{} ", from + random(20)),
            _ => format!("w{from}-{} ", from + random(60)),
        };
    }
    script + &")".repeat(depth)
}
