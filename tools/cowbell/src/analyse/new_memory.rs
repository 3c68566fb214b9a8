//! Why a worker took new memory, where, and what helps.

use super::because::{SHARE_MIN, always, most, once, remedy_under};
use super::growth::{GrowthLine, advice};
use super::sum::share;
use super::summary::Summary;
use super::verdict::{Help, Verdict, VerdictPlace, Why};
use crate::stacks::languages::{self, Language, Work};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Modules are named if those that are known took this part of what was loaded.
const MODULES_MIN: f64 = 0.9;

/// The modules that several workers loaded, each for itself, and their language; `None` where it is not known for certain which modules took
/// most of it.
fn loaded_by_several(workers: &[usize], lines: &[&GrowthLine]) -> Option<(&'static dyn Language, Vec<String>)> {
    let are_several = |line: &&&GrowthLine| {
        line.work == Some(Work::Import) && line.processes.iter().filter(|at| workers.contains(at)).count() > 1
    };
    let bytes = |of: &dyn Fn(&&&GrowthLine) -> bool| {
        lines.iter().filter(of).fold(0u64, |sum, line| sum.saturating_add(line.bytes))
    };
    let known = bytes(&|line| are_several(line) && !line.modules.is_empty());
    if share(known, bytes(&|line| line.work == Some(Work::Import))) < MODULES_MIN {
        return None;
    }
    let modules: BTreeSet<&String> = lines.iter().filter(are_several).flat_map(|line| &line.modules).collect();
    let language = lines.iter().filter(are_several).find_map(|line| languages::by_id(line.language.as_deref()?))?;
    Some((language, modules.into_iter().cloned().collect()))
}

/// The advice to load early enough what workers loaded each for itself: `text`, and lines to paste that name the modules where these are known
/// for certain, `paste` where not. `command`: by which the workers are told apart from others whose remedy is another.
fn loading_early(
    workers: &[usize],
    command: &[String],
    lines: &[&GrowthLine],
    (text, paste): (&'static str, &'static [&'static str]),
) -> (Cow<'static, str>, Vec<Cow<'static, str>>) {
    // One worker that loaded it tells that it was not there.
    let loaded = lines.iter().flat_map(|line| &line.loaded).filter(|(at, _)| workers.contains(at));
    let modules: BTreeSet<&String> = loaded.map(|(_, module)| module).collect();
    let modules: Vec<String> = modules.into_iter().cloned().collect();
    if let Some(missed) = languages::not_loaded_early(&modules, command) {
        return (missed.into(), Vec::new());
    }
    let early = loaded_by_several(workers, lines).map(|(language, modules)| language.loading_early(&modules, command));
    let early = early.filter(|early| !early.is_empty());
    (text.into(), early.map_or_else(|| always(paste), |early| early.into_iter().map(Cow::from).collect()))
}

/// The reason that is told of growth of which no stack tells.
const NO_STACK: &str = "unknown: no stack could be read when they grew";
/// The share of the growth that must have a known reason, for that to be told before what has none.
const KNOWN_MIN: f64 = 0.25;

/// Values that keep something take at most so many times as much new memory for it as is copied.
const KEPT_PART: u64 = 16;

/// The pages that these workers copied for causes with this remedy.
fn copied_for(summary: &Summary, workers: &BTreeSet<usize>, remedy: Option<&str>) -> u64 {
    let theirs = summary.intervals.iter().filter(|interval| interval.process.is_some_and(|at| workers.contains(&at)));
    let causes = theirs.flat_map(|interval| &interval.causes);
    let of_remedy = causes.filter(|share| remedy.is_some() && share.remedy == remedy);
    of_remedy.fold(0, |sum, share| sum.saturating_add(share.copied_pages))
}

/// Why, where and what helps, of new memory.
pub fn new_memory(summary: &Summary, verdict: &mut Verdict) {
    let workers: BTreeSet<usize> = verdict.workers.iter().copied().collect();
    let lines = summary.growth.lines.iter().filter(|line| line.processes.iter().any(|at| workers.contains(at)));
    let lines: Vec<_> = lines.collect();
    let all = lines.iter().fold(0, |sum: u64, line| sum.saturating_add(line.bytes));
    let page = summary.run.page_size.max(1);
    let (mut whys, mut places): (Vec<Why>, Vec<VerdictPlace>) = (Vec::new(), Vec::new());
    for line in &lines {
        let share = share(line.bytes, all);
        let language = line.language.as_deref().and_then(languages::by_id);
        let remedy_of = language.zip(line.work).and_then(|(language, work)| language.remedy(work));
        // A value is written when it keeps something: new memory is taken for that only where pages of shared values are copied, too.
        let is_agreed = !line.work.is_some_and(Work::keeps)
            || copied_for(summary, &workers, remedy_of).saturating_mul(KEPT_PART) >= line.bytes / page;
        let (why, remedy, paste) = if is_agreed { advice(line) } else { (None, None, &[][..]) };
        let text = match why {
            Some(why) => why,
            None if line.file.is_empty() && line.function.is_empty() => NO_STACK,
            None => "their own code allocated it",
        };
        match whys.iter_mut().find(|known| known.text == text) {
            Some(known) => known.share += share,
            None => whys.push(Why { cause: None, text: text.to_owned(), share }),
        }
        let here = line.work.and_then(|work| remedy_under(summary, &verdict.workers, work));
        if let Some((text, paste)) = here.or(remedy.map(|text| (text, paste))) {
            let (text, paste) = match line.work {
                Some(Work::Import) => {
                    let first = verdict.workers.first().and_then(|&at| summary.processes.get(at));
                    let command = first.filter(|_| here.is_some()).map_or(&[][..], |first| &first.command);
                    loading_early(&verdict.workers, command, &lines, (text, paste))
                }
                _ => (text.into(), always(paste)),
            };
            verdict.helps.push(Help { text, paste, saves_bytes: Some(line.bytes), saves_a_part: None });
        }
        if !(line.file.is_empty() && line.function.is_empty()) {
            places.push(VerdictPlace {
                function: line.function.clone(),
                file: line.file.clone(),
                line: line.line,
                called_from: line.called_from.clone(),
                called_by: None,
                source: line.source.clone(),
                share,
                error_points: Some(line.error_points * summary.growth.bytes as f64 / all.max(1) as f64)
                    .map(|points| points.min(100.0)),
            });
        }
    }
    verdict.places = most(places);
    if whys.is_empty() {
        let text = "unknown: they grew between two looks".to_owned();
        whys.push(Why { cause: None, text, share: 1.0 });
    }
    // The known reasons come first, as long as they are a fair part: each reason has its share beside it.
    let known: f64 = whys.iter().filter(|why| why.text != NO_STACK).map(|why| why.share).sum();
    let is_last = |why: &Why| why.text == NO_STACK && known >= KNOWN_MIN;
    whys.sort_by(|a, b| is_last(a).cmp(&is_last(b)).then(b.share.total_cmp(&a.share)));
    whys.retain(|why| why.share >= SHARE_MIN);
    verdict.why = whys;
    once(&mut verdict.helps);
    let new = verdict.new_bytes.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    // Memory that no look found may have grown at any of these lines, and where others grew there too, nobody knows how much of it was theirs.
    let theirs = lines.iter().all(|line| line.processes.iter().all(|at| workers.contains(at)));
    let unseen = if theirs { new.saturating_sub(all) } else { new };
    let most = |saves: u64| saves.saturating_add(unseen).min(new);
    for help in &mut verdict.helps {
        let copied = copied_for(summary, &workers, Some(&help.text)).saturating_mul(page);
        help.saves_bytes = help.saves_bytes.map(|saves| most(saves).saturating_add(copied));
    }
}
