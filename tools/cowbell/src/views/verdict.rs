//! The beginning of a report: the verdict, why, where, what helps.

use super::lines::{Text, WIDTH, clean, count, head, some, tail};
use super::table::wrap;
use super::width::width;
use crate::analyse::Cause;
use crate::analyse::summary::{Gap, Summary};
use crate::analyse::verdict::{Verdict, VerdictKind, VerdictPlace, Why};
use crate::record::{GapKind, Mode, Origin, WatchReason};
use crate::stacks::own_name;
use cowbell::page::Bytes;
use std::collections::BTreeSet;

/// Text behind the words in the margin begins here.
const INDENT: usize = 6;
/// Verdict, cause, place and remedy are to be seen at a glance: in so many lines.
const FIRST_LINES: usize = 10;
/// Places are cut to this.
const WHERE_MAX: usize = 44;

/// The verdict and its cause; and, unless `quiet`, where and what helps.
pub fn verdict(text: &mut Text, summary: &Summary, quiet: bool) {
    for line in wrap(&sentence(summary), WIDTH) {
        text.loud(&line);
    }
    let verdict = &summary.verdict;
    if has_cause(verdict) {
        text.line("");
        why(text, summary);
    }
    if quiet {
        return;
    }
    if has_cause(verdict) {
        places(text, summary);
    }
    helps(text, verdict);
}

/// Tells whether there is anything that wants a reason. Nothing does where all is well.
pub fn has_cause(verdict: &Verdict) -> bool {
    matches!(verdict.kind, VerdictKind::Copied | VerdictKind::New | VerdictKind::ParentPays) && !verdict.why.is_empty()
}

/// The verdict in one sentence, or two.
pub fn sentence(summary: &Summary) -> String {
    let verdict = &summary.verdict;
    let copied = bound(verdict.copied_bytes_min, verdict.copied_bytes);
    let command = head(&summary.run.command.join(" "), 40);
    let command = command.trim_end();
    match verdict.kind {
        VerdictKind::Copied => {
            let same = match verdict.same_share {
                Some(same) if same >= 0.9 => {
                    format!(", and {} of the copies ended as they began: nothing written there lasted", share(same))
                }
                Some(same) if same >= 0.1 => format!("; {} of the copies ended as they began", share(same)),
                _ => String::new(),
            };
            format!("COPIED: {} {}{same}.", who(summary), of_shared(summary, &copied))
        }
        VerdictKind::Shared if verdict.workers.is_empty() && verdict.shared_bytes == 0 => {
            let (parents, whose) = parents(summary);
            let parent = Bytes(verdict.parent_bytes);
            format!("{}: {parents} copied {parent} while {whose} children lived.", shared_word(verdict))
        }
        VerdictKind::Shared => {
            let new = match sum(&verdict.new_bytes) {
                0 => String::new(),
                new => format!(", and took at least {} of new memory", Bytes(new)),
            };
            format!("{}: {} {}{new}.", shared_word(verdict), who(summary), of_shared(summary, &copied))
        }
        VerdictKind::Uncertain => {
            // Where each write is seen before, tracing is no remedy.
            let help = if summary.run.mode == Mode::Trace { "" } else { "; --mode trace sees most of it" };
            format!(
                "UNCERTAIN: {} {}: {} may have been copied and was unmapped before it could be counted{help}.",
                who(summary),
                of_shared(summary, &copied),
                Bytes(verdict.gone_bytes)
            )
        }
        VerdictKind::New => {
            let copied = if verdict.copied_bytes == 0 { "nothing".to_owned() } else { copied };
            let (workers, by) = grown(&verdict.new_bytes);
            let of = of_shared(summary, &copied);
            // Copies of processes that were found running are no child's.
            let of = if is_attached(summary) { format!("; the processes {of}") } else { format!(", and {of}") };
            format!("NEW: {workers} grew by at least {by}{of}.")
        }
        VerdictKind::NothingToShare => {
            let afresh = summary.totals.started_afresh;
            if afresh == 0 {
                let made = summary.processes.len().saturating_sub(1) as u64;
                let processes = some(made, "process", "processes");
                return format!(
                    "NOTHING TO SHARE: under {command} {processes} ran in the starter's own memory (vfork): nothing is copied."
                );
            }
            let programs = some(afresh, "program was started afresh", "programs were started afresh");
            format!("NOTHING TO SHARE: under {command} {programs} by exec, which shares nothing with the starter.")
        }
        VerdictKind::NothingForked if is_attached(summary) => format!(
            "NOTHING TO SHARE: {} shared no private memory with others when cowbell attached, and forked nothing since.",
            some(summary.processes.len() as u64, "process", "processes")
        ),
        VerdictKind::NothingForked => {
            let became = summary.processes.first().and_then(|root| root.executed.last()?.first());
            let became = became.filter(|_| !verdict.folded.is_empty());
            let since =
                became.map_or(String::new(), |program| format!(" once it ran {}", head(program, 40).trim_end()));
            format!("NOTHING TO SHARE: nothing forked under {command}{since}.")
        }
        VerdictKind::CopiedBefore => {
            let before = Bytes(verdict.before_bytes);
            if !has_watched_parent(summary) {
                return format!(
                    "BEFORE: the process had {before} of its own when cowbell attached, and copied {copied} since. {}",
                    PARENT_UNWATCHED
                );
            }
            let pid = summary.processes.first().map_or(String::new(), |process| format!(" {}", process.pid));
            format!(
                "BEFORE: the processes had {before} of their own when cowbell attached, and copied {copied} since. \
                 `cowbell snapshot{pid}` tells what of it differs from the parent's."
            )
        }
        VerdictKind::ParentPays => {
            let parent = Bytes(verdict.parent_bytes);
            // Nobody knows what children copied that were not watched.
            let hides = |gap: &Gap| matches!(gap.what, GapKind::TooManyChildren | GapKind::NotArmed);
            let children = match verdict.workers.is_empty() {
                true => String::new(),
                false if summary.gaps.iter().any(hides) => format!(", the children that were watched copied {copied}"),
                false => format!(", the children copied {copied}"),
            };
            let (parents, whose) = parents(summary);
            format!("THE PARENT PAYS: {parents} copied {parent} while {whose} children lived{children}.")
        }
        VerdictKind::Unwatched => {
            let why = if summary.gaps.is_empty() { "" } else { "; why, is below" };
            format!("UNKNOWN: no process was watched under {command}{why}.")
        }
    }
}

/// The sentence on a process that was found without its parent.
pub const PARENT_UNWATCHED: &str = "Whether it had copied any of that is not known: its parent was not watched.";

fn is_attached(summary: &Summary) -> bool {
    summary.processes.iter().any(|process| process.origin == Origin::Attached)
}

/// Tells whether any process was found running together with the one that made it.
pub fn has_watched_parent(summary: &Summary) -> bool {
    let found = || summary.processes.iter().filter(|process| process.origin == Origin::Attached);
    found().any(|process| found().any(|parent| parent.pid == process.parent))
}

/// An amount, as far as it is certain.
fn bound(least: u64, most: u64) -> String {
    let (lower, upper) = (Bytes(least).to_string(), Bytes(most).to_string());
    match least {
        // Also where they differ by less than is told.
        _ if lower == upper => upper,
        0 => format!("at most {upper}"),
        _ => format!("{lower} to {upper}"),
    }
}

/// The verdict's word where little was copied. Of what nobody watched it is not known whether it is well.
fn shared_word(verdict: &Verdict) -> &'static str {
    if verdict.is_whole && verdict.unseen_peak_bytes == 0 { "SHARED: all is well" } else { "SHARED, of what was seen" }
}

/// The processes that forked, and whose children they have.
fn parents(summary: &Summary) -> (&'static str, &'static str) {
    if role_count(summary, WatchReason::Parent) == 1 { ("the parent", "its") } else { ("the parents", "their") }
}

/// The number of processes that ever had this part.
pub fn role_count(summary: &Summary, role: WatchReason) -> u64 {
    // A parent is one parent, however often it forked.
    let mut pids: Vec<_> = summary.intervals.iter().filter(|a| a.role == role).map(|a| (a.process, a.pid)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.len() as u64
}

fn who(summary: &Summary) -> String {
    match summary.verdict.workers.len() {
        0 => "the processes".to_owned(),
        _ if is_attached(summary) => "the processes".to_owned(),
        workers => children(workers),
    }
}

fn children(number: usize) -> String {
    some(number as u64, "child", "children")
}

/// The words for how much was copied of what was shared; copies of pages of files are no part of that.
fn of_shared(summary: &Summary, copied: &str) -> String {
    let verdict = &summary.verdict;
    let (shared, files, whom) = (Bytes(verdict.shared_bytes), Bytes(verdict.file_bytes), whom(summary));
    let they = if verdict.workers.len() == 1 && !is_attached(summary) { "it" } else { "they" };
    match verdict.file_bytes {
        0 => format!("copied {copied} of the {shared} that {they} shared with {whom}"),
        _ => format!("copied {copied}, of which {files} are pages of files; {they} shared {shared} with {whom}"),
    }
}

fn whom(summary: &Summary) -> &'static str {
    let workers = &summary.verdict.workers;
    let parents: BTreeSet<i32> =
        workers.iter().filter_map(|&at| summary.processes.get(at)).map(|worker| worker.parent).collect();
    match (workers.len(), parents.len()) {
        _ if is_attached(summary) => "others",
        (0, _) => "others",
        (1, _) => "its parent",
        (_, ..=1) => "their parent",
        _ => "their parents",
    }
}

/// The children that grew, and by how much each. Those whose growth does not change the sum, as it is told, did not.
fn grown(bytes: &[u64]) -> (String, String) {
    let mut sorted = bytes.to_vec();
    sorted.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
    let told = |number: usize| Bytes(sum(sorted.get(..number).unwrap_or_default())).to_string();
    let all = told(sorted.len());
    let grew = (1..sorted.len()).find(|&number| told(number) == all).unwrap_or(sorted.len());
    let who = match (grew, children(bytes.len())) {
        (all, children) if all == bytes.len() => children,
        (1, children) => format!("one of {children}"),
        (some, children) => format!("{} of {children}", count(some as u64)),
    };
    let (most, least) =
        (sorted.first().copied().unwrap_or(0), sorted.get(grew.saturating_sub(1)).copied().unwrap_or(0));
    let by = match grew {
        0 | 1 => Bytes(most).to_string(),
        _ if most - least <= most / 10 => format!("{} each", Bytes(least)),
        _ => format!("{all} in all, one by {}", Bytes(most)),
    };
    (who, by)
}

fn sum(bytes: &[u64]) -> u64 {
    bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

/// A share without its fraction; what is not all is not told as all.
fn share(share: f64) -> String {
    let percent = (share * 100.0).round();
    if percent >= 100.0 && share < 1.0 { "99 %".to_owned() } else { format!("{percent:.0} %") }
}

fn why(text: &mut Text, summary: &Summary) {
    let verdict = &summary.verdict;
    // One that is most of it stands for itself, if it says something.
    let is_enough = |why: &Why| why.share >= 0.5 && (why.cause != Some(Cause::Unknown) || why.share >= 0.9);
    let shown = if verdict.why.first().is_some_and(is_enough) { 1 } else { 2 };
    let one = |why: &Why| {
        let mut sentence = clean(&why.text);
        if let Some(first) = sentence.get(..1).map(str::to_uppercase) {
            sentence.replace_range(..1, &first);
        }
        // The shares of new memory need no such words, since nothing else is spoken of, and the remedy should stand near.
        let of = if verdict.kind == VerdictKind::New { "" } else { " of the copies" };
        format!("{sentence} ({}{of}).", share(why.share))
    };
    let mut sentences: Vec<String> = verdict.why.iter().take(shown).map(one).collect();
    if verdict.ending_is_unknown && verdict.kind == VerdictKind::Copied {
        let help = match (summary.run.mode, summary.run.stacks_every) {
            (Mode::Count, _) => ": --mode faults tells",
            (_, 0) => ": --stacks 1/64 tells",
            _ => "",
        };
        sentences.push(format!("If the interpreter freed its objects as it ended, those copies are included{help}."));
    }
    let lines = wrap(&sentences.join(" "), WIDTH - INDENT);
    for (nth, line) in lines.iter().enumerate() {
        let margin = if nth == 0 { "Why" } else { "" };
        text.line(&format!("{margin:INDENT$}{line}"));
    }
}

fn places(text: &mut Text, summary: &Summary) {
    let verdict = &summary.verdict;
    if let Some(why) = verdict.places_unknown.filter(|_| verdict.kind == VerdictKind::ParentPays) {
        for (nth, line) in wrap(&format!("not known: {why}"), WIDTH - INDENT).iter().enumerate() {
            let margin = if nth == 0 { "Where" } else { "" };
            text.line(&format!("{margin:INDENT$}{line}"));
        }
    }
    let longest = verdict.places.iter().map(|place| width(&where_is(place))).max().unwrap_or(0);
    let where_width = longest.min(WHERE_MAX);
    // Shares that are estimates have their error beside them.
    let told = |place: &VerdictPlace| match place.error_points {
        Some(points) if points >= 0.5 => share(place.share).replace(" %", &format!(" ±{} %", points.ceil())),
        _ => share(place.share),
    };
    let share_width = verdict.places.iter().map(|place| width(&told(place))).max().unwrap_or(0).max(5);
    let what_width = WIDTH - INDENT - share_width - 2 - where_width - 2;
    let first = verdict.places.first().map_or(0.0, |place| place.share);
    // Beside one that is most of it, little ones only take room.
    let is_told = |place: &&VerdictPlace| first < 0.5 || place.share >= 0.1;
    // A blank line, a heading and the first line of the remedy are to come yet.
    let no_line = verdict.no_line.as_ref().map(|why| wrap(&format!("no line: {}", clean(why)), WIDTH - INDENT));
    let no_line = no_line.unwrap_or_default();
    let taken = text.lines() + no_line.len() + 3;
    let room = if verdict.helps.is_empty() { usize::MAX } else { FIRST_LINES.saturating_sub(taken).max(1) };
    let is_margin_taken = !verdict.places.is_empty() || verdict.kind == VerdictKind::ParentPays;
    for (nth, place) in verdict.places.iter().filter(is_told).take(room).enumerate() {
        let margin = if nth == 0 { "Where" } else { "" };
        // The place's own words are told where it has any: a function says where it is, a line what it does.
        let what = match place.called_by {
            Some(_) => own_name::moving(&place.function).unwrap_or(&place.function),
            None => place.source.as_deref().unwrap_or(&place.function),
        };
        let (at, what) = (tail(&where_is(place), where_width), head(what, what_width));
        text.line(&format!("{margin:INDENT$}{:>share_width$}  {at}  {what}", told(place)));
    }
    for (nth, line) in no_line.iter().enumerate() {
        let margin = if nth == 0 && !is_margin_taken { "Where" } else { "" };
        text.line(&format!("{margin:INDENT$}{line}"));
    }
}

/// A place: of a library's line, the user's own that led there comes first.
fn where_is(place: &VerdictPlace) -> String {
    let at = |file: &str, line: i32| if line > 0 { format!("{file}:{line}") } else { file.to_owned() };
    let short = |file: &str, line: i32| at(file.rsplit('/').next().unwrap_or(file), line);
    clean(&match (&place.called_from, &place.called_by) {
        // A function that copies bytes for others says nothing by its own place.
        (_, Some(caller)) => caller.clone(),
        (Some(own), _) => format!("{} > {}", short(&own.file, own.line), short(&place.file, place.line)),
        (None, None) => at(&place.file, place.line),
    })
}

fn helps(text: &mut Text, verdict: &Verdict) {
    if verdict.helps.is_empty() {
        return;
    }
    text.heading("What helps");
    for (nth, help) in verdict.helps.iter().enumerate() {
        let saves = match (help.saves_bytes, help.saves_a_part) {
            (Some(bytes), _) if verdict.kind == VerdictKind::New => format!(" (saves up to {})", Bytes(bytes)),
            (Some(bytes), _) => format!(" (saves {} of copies)", Bytes(bytes)),
            (None, Some(why)) => format!(" (saves a part, and how much is not known: {why})"),
            (None, None) => String::new(),
        };
        for (line_nth, line) in wrap(&format!("{}{saves}", help.text), WIDTH - 5).iter().enumerate() {
            let number = if line_nth == 0 { (nth + 1).to_string() } else { String::new() };
            text.line(&format!("  {number:<3}{line}"));
        }
        for line in &help.paste {
            text.line(&format!("         {}", clean(line)));
        }
    }
}
