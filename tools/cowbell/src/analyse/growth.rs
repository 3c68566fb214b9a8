//! All the memory of a process, and where it allocated memory of its own: what looks in turn found, added up by line.

use super::code;
use super::script::error_points;
use super::spread::{Sample, SamplingError};
use super::sum::share;
use super::{Profile, Sampled};
use crate::record::{Frame, Resident, Sums, Together};
use crate::stacks::languages::{self, Work};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All the memory of a process, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemorySums {
    pub time_ns: u64,
    /// The name of the process by then.
    pub name: String,
    /// The process' arguments by then.
    pub command: Vec<String>,
    /// The resident memory, in bytes, by where it comes from; `null` where that could not be read.
    pub resident: Option<Resident>,
    /// The kernel's sums in `/proc/PID/smaps_rollup`.
    pub smaps: Option<Sums>,
    pub page_tables_bytes: u64,
    /// The most that was resident at a time.
    pub rss_peak_bytes: u64,
    /// Private memory when the process was first watched; `null` where it was not looked at.
    pub private_first_bytes: Option<u64>,
    /// The most private memory that looks in turn found: at least so much it was.
    pub private_peak_bytes: Option<u64>,
    /// The most of files and shared mappings that was found.
    pub files_peak_bytes: Option<u64>,
    /// The memory that all processes took together by then; `null` where that was not added up.
    pub together: Option<Together>,
}

/// Memory that processes allocated themselves while they were watched.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Growth {
    /// By how much processes were found to have grown, in all.
    pub bytes: u64,
    /// In so many looks.
    pub looks: u64,
    /// The lines at which the busiest thread stood then, most grown first.
    pub lines: Vec<GrowthLine>,
}

/// A line at which processes grew.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GrowthLine {
    /// The language's id; `null` for native code, and where no stack could be read.
    pub language: Option<String>,
    /// Empty where no stack could be read.
    pub function: String,
    /// Empty where not known.
    pub file: String,
    /// 0 where not known.
    pub line: i32,
    /// If the line is the standard library's or a package's: the innermost line outside of them that led there.
    pub called_from: Option<Frame>,
    /// The work of the stack; `null` for the program's own work.
    pub work: Option<Work>,
    /// The line itself, where its file could be read while it ran.
    pub source: Option<String>,
    /// The modules that were being loaded, as the lines say that asked for them.
    pub modules: Vec<String>,
    /// The same with the number of the process that loaded it.
    #[serde(skip)]
    pub loaded: BTreeSet<(usize, String)>,
    /// The numbers of the processes, in [`Summary::processes`](super::Summary::processes).
    pub processes: Vec<usize>,
    pub bytes: u64,
    /// The line's part of all growth that was found.
    pub share: f64,
    /// The points by which its share can be off (95 %).
    pub error_points: f64,
}

/// A place that is told as one line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// A line of a script, by its number, and what its interpreter does there that takes memory.
    Script(u32, Option<Work>),
    /// A function, its file and its line.
    Native(String, String, i32),
    /// No stack could be read.
    Unknown,
}

/// The findings at one place.
#[derive(Default)]
struct Found {
    /// The line's number here.
    number: u32,
    bytes: u64,
    processes: BTreeSet<usize>,
    loaded: BTreeSet<(usize, String)>,
}

/// All that was found.
pub fn growth(profile: &Profile) -> Growth {
    let page_size = profile.page_size();
    let mut places: HashMap<Place, Found> = HashMap::new();
    // Looks at one process follow each other.
    let mut looks: BTreeMap<i32, Vec<Sample>> = BTreeMap::new();
    let leading = leading(profile);
    for grew in &profile.growth {
        let number = places.len() as u32;
        let place = match place(profile, grew.stack) {
            Place::Script(script, _) => Place::Script(script, leading.get(&script).copied()),
            place => place,
        };
        let found = places.entry(place).or_insert(Found { number, ..Found::default() });
        // A look tells where the thread stood then, and not where it grew.
        let look = Sample { line: Some(found.number), weight: grew.pages, is_exact: false };
        looks.entry(grew.pid).or_default().push(look);
        found.bytes += grew.pages.saturating_mul(page_size);
        let Some(&process) = profile.process_by_pid.get(&grew.pid) else { continue };
        found.processes.insert(process);
        found.loaded.extend(module(profile, grew.stack).map(|module| (process, module)));
    }
    let mut error = SamplingError::default();
    looks.values().for_each(|looks| error.follow(looks));
    let all = places.values().fold(0u64, |sum, found| sum.saturating_add(found.bytes));
    let named = |(place, found): (Place, Found)| {
        let modules: BTreeSet<&String> = found.loaded.iter().map(|(_, module)| module).collect();
        GrowthLine {
            modules: modules.into_iter().cloned().collect(),
            processes: found.processes.into_iter().collect(),
            bytes: found.bytes,
            share: share(found.bytes, all),
            error_points: error_points(error.pages(found.number), all / page_size.max(1)),
            loaded: found.loaded,
            ..line(profile, place)
        }
    };
    let mut lines: Vec<_> = places.into_iter().map(named).collect();
    let name = |line: &GrowthLine| (line.file.clone(), line.line, line.function.clone());
    lines.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| name(a).cmp(&name(b))));
    Growth { bytes: all, looks: profile.growth.len() as u64, lines }
}

/// The part of a line's looks that must have found it at one work, for all that it took to count as taken for that.
const LEADING_MIN: f64 = 0.75;

/// The work for which lines of scripts take memory, where that is so of at least [`LEADING_MIN`] of it: looks find a thread at what it does
/// between, too.
fn leading(profile: &Profile) -> HashMap<u32, Work> {
    let mut by_line: HashMap<u32, (u64, HashMap<Work, u64>)> = HashMap::new();
    for grew in &profile.growth {
        let Place::Script(script, work) = place(profile, grew.stack) else { continue };
        let (all, works) = by_line.entry(script).or_default();
        *all += grew.pages;
        if let Some(work) = work {
            *works.entry(work).or_default() += grew.pages;
        }
    }
    let leads = |(script, (all, works)): (u32, (u64, HashMap<Work, u64>))| {
        let lead = works.into_iter().find(|(_, pages)| *pages as f64 >= LEADING_MIN * all as f64);
        lead.map(|(work, _)| (script, work))
    };
    by_line.into_iter().filter_map(leads).collect()
}

fn place(profile: &Profile, stack: Option<u32>) -> Place {
    let Some(Sampled { script, innermost, callers, .. }) = stack.and_then(|stack| profile.stacks.get(&stack)) else {
        return Place::Unknown;
    };
    let is_line = |script: &&u32| profile.places.get(**script as usize).is_some_and(|place| place.is_line());
    if let Some(script) = script.as_ref().filter(is_line) {
        let places = innermost.iter().chain(callers).filter_map(|&code| profile.codes.of(code));
        return Place::Script(*script, code::takes_memory(places.map(|code| code.frames.as_slice())));
    }
    // The function that asked for memory is told, and not the allocator or one that fills memory for others.
    let named = innermost.iter().chain(callers).filter_map(|&code| profile.codes.of(code));
    let own = named.filter_map(|code| code::place(&code.frames).map(|place| (place, code::purpose(&code.frames))));
    let mut own =
        own.filter(|(place, purpose)| *purpose != Some(Work::Allocator) && !code::moves_bytes(place.function));
    match own.next() {
        Some((place, _)) => {
            let (file, line) = place.line.unwrap_or_default();
            Place::Native(place.function.to_owned(), file.to_owned(), line as i32)
        }
        None => Place::Unknown,
    }
}

fn line(profile: &Profile, place: Place) -> GrowthLine {
    let mut line = GrowthLine {
        language: None,
        function: String::new(),
        file: String::new(),
        line: 0,
        called_from: None,
        work: None,
        source: None,
        modules: Vec::new(),
        loaded: BTreeSet::new(),
        processes: Vec::new(),
        bytes: 0,
        share: 0.0,
        error_points: 0.0,
    };
    match place {
        Place::Script(number, keeps) => {
            let Some(place) = profile.places.get(number as usize).cloned() else { return line };
            line.source = profile.sources.get(&(place.frame.file.clone(), place.frame.line)).cloned();
            (line.language, line.function, line.file) = (place.language, place.frame.function, place.frame.file);
            (line.line, line.called_from, line.work) = (place.frame.line, place.called_from, place.work.or(keeps));
        }
        Place::Native(function, file, number) => (line.function, line.file, line.line) = (function, file, number),
        Place::Unknown => {}
    }
    line
}

/// The module that a stack was loading.
fn module(profile: &Profile, stack: Option<u32>) -> Option<String> {
    let Sampled { script, import, .. } = profile.stacks.get(&stack?)?;
    let language = languages::by_id(profile.places.get(script.as_ref().copied()? as usize)?.language.as_deref()?)?;
    let import = import.as_ref()?;
    language.imported(import, profile.sources.get(&(import.file.clone(), import.line))?)
}

/// Why such work takes memory, what helps, and lines to paste, as its language says.
pub fn advice(line: &GrowthLine) -> (Option<&'static str>, Option<&'static str>, &'static [&'static str]) {
    let language = line.language.as_deref().and_then(languages::by_id);
    // Memory that a collection takes is given back.
    match language.zip(line.work.filter(|work| *work != Work::AskedCollector)) {
        Some((language, work)) => (language.why(work), language.remedy(work), language.paste(work)),
        None => (None, None, &[]),
    }
}
