//! Why pages were copied, where, and what helps.

use super::cause::Cause;
use super::code::moves_bytes;
use super::script::error_points;
use super::sum::share;
use super::summary::{CauseShare, Gap, Interval, ScriptLine, Summary};
use super::unknown::Unknown;
use super::verdict::{Help, LITTLE, Verdict, VerdictKind, VerdictPlace, Why};
use crate::record::{GapKind, Mode};
use crate::stacks::languages::{self, Language, Spares, Work};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A cause or a line of less than this share is not told first.
pub const SHARE_MIN: f64 = 0.03;
/// A remedy that saves less than this share is not told.
const HELP_SHARE_MIN: f64 = 0.1;
/// A remedy against the collector that saves a part of what it copied, and nobody knows how much, is told where it copied this share.
const PART_SHARE_MIN: f64 = 0.5;
/// A remedy that saves less than this is not told: a process takes about as much in the kernel, whatever it shares (its page tables, its
/// stack), so that nobody would find what was saved.
const HELP_BYTES_MIN: u64 = 128 << 10;
/// Where no share can be off by more points than this, the error is told beside each share only.
const ERROR_POINTS_MIN: f64 = 10.0;
/// The most places that are told.
const PLACES_MAX: usize = 3;

/// Why, where and what helps, of copies.
pub fn copies(summary: &Summary, of: &[&Interval], verdict: &mut Verdict) {
    let page = summary.run.page_size;
    let mut causes: BTreeMap<Cause, u64> = BTreeMap::new();
    let (mut compared, mut same) = (0, 0);
    for interval in of {
        for cause in &interval.causes {
            let pages = causes.entry(cause.cause).or_default();
            *pages = pages.saturating_add(cause.copied_pages);
        }
        compared = interval.at_work.compared_pages.saturating_add(compared);
        same = interval.at_work.identical_pages.saturating_add(same);
    }
    let all = causes.values().fold(0u64, |sum, pages| sum.saturating_add(*pages));
    let ending = causes.remove(&Cause::Exit).unwrap_or(0);
    let starting = causes.remove(&Cause::Start).unwrap_or(0);
    let work = all.saturating_sub(ending.saturating_add(starting));
    verdict.same_share = (share(compared, work) >= 0.9).then(|| share(same, work));
    let mut causes: Vec<_> = causes.into_iter().collect();
    causes.sort_by_key(|&(cause, pages)| (std::cmp::Reverse(pages), cause));
    for (cause, pages) in causes {
        // The reasons are those of the verdict's own intervals: what others copied explains none of these copies.
        let known = of.iter().flat_map(|interval| &interval.causes).filter(|share| share.cause == cause);
        let told = known.max_by_key(|share| share.copied_pages);
        let is_count = summary.run.mode == Mode::Count && cause == Cause::CountOrCollector;
        let text = told.map_or(cause.name().to_owned(), |told| match (told.why, told.reasons.first()) {
            _ if is_count => "reference counts or the garbage collector: --mode faults tells which".to_owned(),
            (Some(why), _) => why.to_owned(),
            (None, Some(reason)) => format!("{}: {}", cause.name(), reason.text),
            (None, None) => cause.name().to_owned(),
        });
        let share = share(pages, work);
        if share >= SHARE_MIN || verdict.why.is_empty() {
            verdict.why.push(Why { cause: Some(cause), text, share });
        }
        let pages = pages.saturating_add(if cause == Cause::ReferenceCount { collected_by_counting(of) } else { 0 });
        let spared = spared(cause, pages, of, work);
        // A remedy that spares all counts spares the collector's copies, too; without the collector the same pages are copied for the counts.
        if cause == Cause::GarbageCollector && (counts_spare_all(of, work) || counts_lead(of)) {
            continue;
        }
        // One remedy may be for several causes.
        let remedied =
            |known: &CauseShare| told.is_some_and(|told| told.remedy.is_some() && told.remedy == known.remedy);
        let of_remedy = pages_of(of, |known| known.cause == cause || remedied(known) && known.cause != Cause::Exit);
        let saved = spared.ok().filter(|pages| *pages > 0);
        let is_much = self::share(of_remedy, work) >= HELP_SHARE_MIN
            && saved.unwrap_or(pages).saturating_mul(page) >= HELP_BYTES_MIN;
        // A remedy that spares a part may cost others as much, where most was copied for other reasons.
        if cause == Cause::GarbageCollector && spared.is_err() && share < PART_SHARE_MIN {
            continue;
        }
        let is_worth_it = !matches!(verdict.kind, VerdictKind::Shared | VerdictKind::Uncertain) && is_much;
        if let Some((text, paste)) = told.and_then(|told| Some((told.remedy?, told.paste))).filter(|_| is_worth_it) {
            if matches!(cause, Cause::ReferenceCount | Cause::CountOrCollector)
                && let Some((text, paste)) = newer_remedy(summary, of)
            {
                verdict.helps.push(Help {
                    text: text.into(),
                    paste: always(paste),
                    saves_bytes: Some(pages.saturating_mul(page)),
                    saves_a_part: None,
                });
            }
            verdict.helps.push(Help {
                text: text.into(),
                paste: always(paste),
                saves_bytes: saved.map(|pages| pages.saturating_mul(page)),
                saves_a_part: spared.err(),
            });
            if let Some(help) =
                for_the_collector(of, pages.saturating_mul(page)).filter(|_| cause == Cause::CountOrCollector)
            {
                verdict.helps.push(help);
            }
        }
    }
    once(&mut verdict.helps);
    // The way out comes last: it does not hurt whom the work does not.
    let ending_bytes = ending.saturating_mul(page);
    let is_worth_it = ending_bytes >= LITTLE && share(ending, all) >= 0.1;
    let exits = of.iter().flat_map(|interval| &interval.causes).filter(|share| share.cause == Cause::Exit);
    // If one of several processes works on its way out, leaving at once would lose its work: then none is advised to.
    let exit = exits.min_by_key(|share| share.remedy.is_some()).filter(|_| is_worth_it);
    let here = remedy_under(summary, &verdict.workers, Work::Exit);
    // Without a remedy of the language's there is none of the program's: the program's own code runs then.
    if let Some((text, paste)) = exit.and_then(|exit| exit.remedy.map(|text| here.unwrap_or((text, exit.paste)))) {
        verdict.helps.push(Help {
            text: text.into(),
            paste: always(paste),
            saves_bytes: Some(ending_bytes),
            saves_a_part: None,
        });
    }
    let (places, are_lines) = places(summary, verdict.kind, work);
    verdict.places = places;
    verdict.no_line = if are_lines || work == 0 { None } else { no_line(summary, of) };
    let errors = verdict.places.iter().filter_map(|place| place.error_points);
    verdict.places_error_points = errors.reduce(f64::max).filter(|points| *points >= ERROR_POINTS_MIN);
    if verdict.places.is_empty() && work > 0 {
        verdict.places_unknown = unseen(of);
    }
}

/// The share of the causes that are one of these.
fn pages_of(of: &[&Interval], is_one: impl Fn(&CauseShare) -> bool) -> u64 {
    let causes = of.iter().flat_map(|interval| &interval.causes).filter(|share| is_one(share));
    causes.fold(0, |sum, share| sum.saturating_add(share.copied_pages))
}

/// The pages that a collector copied which ran because references were counted: without counting there would be none of these.
fn collected_by_counting(of: &[&Interval]) -> u64 {
    let language = of.iter().find_map(|interval| languages::by_id(interval.language?));
    let asked = language.and_then(|language| language.remedy(Work::AskedCollector));
    let is_theirs = |share: &CauseShare| {
        share.cause == Cause::GarbageCollector && (share.remedy.is_none() || share.remedy != asked)
    };
    if language.is_some_and(Language::collects_by_counting) { pages_of(of, is_theirs) } else { 0 }
}

/// The pages that the remedy against a cause spares, of these that were copied for it; an error that says why nobody knows.
fn spared(cause: Cause, pages: u64, of: &[&Interval], work: u64) -> Result<u64, &'static str> {
    // A page that is copied for two causes is told under one, and is copied for the other when that one is gone.
    let is_much = |other: Cause| share(pages_of(of, |share| share.cause == other), work) >= HELP_SHARE_MIN;
    if cause == Cause::GarbageCollector && is_much(Cause::ReferenceCount) {
        return Err("on some of these pages references are counted, too");
    }
    if cause == Cause::ReferenceCount && is_much(Cause::NewObject) {
        return Err("on some of these pages new objects are put, too");
    }
    let mut shares = of.iter().flat_map(|interval| &interval.causes).filter(|share| share.cause == cause);
    shares.try_fold(pages, |left, share| match share.spares_a_part {
        Some(why) => Err(why),
        None => Ok(left.saturating_sub(share.copied_pages.saturating_sub(share.spared_pages))),
    })
}

/// Tells whether the remedy against counting references spares what the collector copies as well.
fn counts_spare_all(of: &[&Interval], work: u64) -> bool {
    let language = of.iter().find_map(|interval| languages::by_id(interval.language?));
    let counts = of.iter().flat_map(|interval| &interval.causes).filter(|share| share.cause == Cause::ReferenceCount);
    let told = counts.max_by_key(|share| share.copied_pages);
    language.is_some_and(Language::collects_by_counting)
        && collected_by_counting(of) > 0
        && share(pages_of(of, |share| share.cause == Cause::ReferenceCount), work) >= HELP_SHARE_MIN
        && told.is_some_and(|told| told.remedy.is_some() && told.spares_a_part.is_none())
}

/// Tells whether most of what the collector and counting copied was copied for counts, where the collector runs because of these: it is left
/// with little that is copied for nothing else.
fn counts_lead(of: &[&Interval]) -> bool {
    let collected = collected_by_counting(of);
    collected > 0 && pages_of(of, |share| share.cause == Cause::ReferenceCount) > collected
}

/// The reason why the code of most of these copies is not known, where it is not.
fn unseen(of: &[&Interval]) -> Option<&'static str> {
    let mut pages: BTreeMap<Unknown, u64> = BTreeMap::new();
    for share in of.iter().flat_map(|interval| &interval.code_unknown) {
        let sum = pages.entry(share.reason).or_default();
        *sum = sum.saturating_add(share.copied_pages);
    }
    pages.into_iter().max_by_key(|&(_, pages)| pages).map(|(why, _)| why.text())
}

/// One remedy for several causes is told once; what saves most comes first.
pub fn once(helps: &mut Vec<Help>) {
    let mut merged: Vec<Help> = Vec::new();
    for help in std::mem::take(helps) {
        match merged.iter_mut().find(|known| known.text == help.text) {
            Some(known) => {
                known.saves_bytes = known.saves_bytes.zip(help.saves_bytes).map(|(a, b)| a.saturating_add(b));
            }
            None => merged.push(help),
        }
    }
    merged.sort_by_key(|help| std::cmp::Reverse(help.saves_bytes));
    *helps = merged;
}

/// The remedy against counting references with the interpreter that runs there, if its version has more to offer.
fn newer_remedy(summary: &Summary, of: &[&Interval]) -> Option<(&'static str, &'static [&'static str])> {
    let language = of.iter().find_map(|interval| languages::by_id(interval.language?))?;
    let of_file = |file: &str| language.newer_remedy(Work::References, file);
    summary.mappings.iter().find_map(|mapping| of_file(&mapping.name))
}

/// The remedy against the collector, where it may have been either that or counting.
fn for_the_collector(of: &[&Interval], bytes: u64) -> Option<Help> {
    let language = of.iter().find_map(|interval| languages::by_id(interval.language?))?;
    // A remedy that spares a part only is not guessed at where it is not even known that the collector wrote.
    if language.spares(Work::Collector) != Spares::All {
        return None;
    }
    let text = format!("if it was the garbage collector: {}", language.remedy(Work::Collector)?).into();
    Some(Help { text, paste: always(language.paste(Work::Collector)), saves_bytes: Some(bytes), saves_a_part: None })
}

/// The remedy for some work in the very program that the workers run, where that is another one than in others.
pub fn remedy_under(
    summary: &Summary,
    workers: &[usize],
    work: Work,
) -> Option<(&'static str, &'static [&'static str])> {
    let commands = workers.iter().filter_map(|&at| summary.processes.get(at)).map(|process| &process.command);
    let mut found =
        commands.map(|command| languages::ALL.iter().find_map(|language| language.remedy_under(work, command)));
    // Workers of several programs would each need their own remedy.
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)?
}

/// The reason why nothing is known of an interpreter's lines; `None` where no interpreter runs.
fn no_line(summary: &Summary, of: &[&Interval]) -> Option<String> {
    let language = of.iter().find_map(|interval| languages::by_id(interval.language?))?;
    let is_about = |gap: &&Gap| gap.what == GapKind::NoLines && of.iter().any(|one| gap.pids.contains(&one.pid));
    let (samples, of_script) = (summary.script.samples, summary.script.script_samples);
    if summary.run.mode == Mode::Count {
        let name = language.name();
        Some(format!("--mode count takes no stacks; --mode faults does, and tells lines where {name} can be read"))
    } else if summary.run.stacks_every == 0 {
        Some("no stacks were taken (--stacks 0)".to_owned())
    } else if let Some(gap) = summary.gaps.iter().find(is_about) {
        Some(gap.details.join("; "))
    } else if let Some(why) = language.has_no_lines() {
        Some(why.to_owned())
    } else if samples == 0 {
        Some("no stack was sampled of what was copied".to_owned())
    } else {
        // Those of all processes and languages are counted together.
        let some = if of_script == 0 { "none".to_owned() } else { of_script.to_string() };
        let is_few = of_script.saturating_mul(2) < samples;
        is_few.then(|| {
            format!(
                "{some} of the stacks sampled of all processes, {samples} in all, had a frame of a script that could be \
                 read"
            )
        })
    }
}

/// The places where those whom the verdict is about made copies at work: lines of a script, or where there are none, functions. True if
/// they are lines.
fn places(summary: &Summary, kind: VerdictKind, work: u64) -> (Vec<VerdictPlace>, bool) {
    let theirs =
        |all: u64, parents: u64| if kind == VerdictKind::ParentPays { parents } else { all.saturating_sub(parents) };
    let at_work = |cause: Cause| !matches!(cause, Cause::Start | Cause::Exit);
    let lines = summary.script.lines.iter().filter(|line| at_work(line.cause));
    let error = |line: &ScriptLine| match kind {
        VerdictKind::ParentPays => line.parents_copied_pages_error,
        _ => line.others_copied_pages_error,
    };
    let lines = lines.map(|line| VerdictPlace {
        function: line.function.clone(),
        file: line.file.clone(),
        line: line.line,
        called_from: line.called_from.clone(),
        called_by: None,
        source: line.source.clone(),
        share: share(theirs(line.copied_pages_estimated, line.parents_copied_pages_estimated), work).min(1.0),
        error_points: Some(error_points(error(line), work)),
    });
    let functions = summary.functions.iter().filter(|function| at_work(function.cause));
    let functions = functions.map(|function| {
        let line = function.lines.first();
        VerdictPlace {
            function: function.inlined.clone().unwrap_or_else(|| function.function.clone()),
            file: line.map_or_else(|| function.module.clone(), |line| line.file.clone()),
            line: line.map_or(0, |line| line.line as i32),
            called_from: None,
            called_by: function.called_from.clone().filter(|_| moves_bytes(&function.function)),
            source: line.and_then(|line| line.source.clone()),
            share: share(theirs(function.copied_pages, function.parents_copied_pages), work).min(1.0),
            error_points: None,
        }
    });
    let told = most(lines.collect());
    if told.is_empty() { (most(functions.collect()), false) } else { (told, true) }
}

/// The largest places. Lines of libraries to which the same line of the user's own led are one: that is the one to change.
pub fn most(places: Vec<VerdictPlace>) -> Vec<VerdictPlace> {
    let mut merged: Vec<VerdictPlace> = Vec::new();
    for place in places {
        let same = |known: &&mut VerdictPlace| {
            let is_line = |one: &VerdictPlace| (one.file.clone(), one.line, one.function.clone());
            let is_same_line = place.line > 0 && is_line(known) == is_line(&place);
            known.called_from == place.called_from && (known.called_from.is_some() || is_same_line)
        };
        match merged.iter_mut().find(same) {
            Some(known) => {
                known.share += place.share;
                known.error_points = known.error_points.zip(place.error_points).map(|(one, other)| one.hypot(other));
            }
            None => merged.push(place),
        }
    }
    merged.retain(|place| place.share >= SHARE_MIN);
    merged.sort_by(|a, b| b.share.total_cmp(&a.share));
    merged.truncate(PLACES_MAX);
    merged
}

/// Lines to paste that are always the same.
pub fn always(paste: &'static [&'static str]) -> Vec<Cow<'static, str>> {
    paste.iter().map(|line| Cow::from(*line)).collect()
}
