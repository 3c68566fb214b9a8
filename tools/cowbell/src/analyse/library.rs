//! Reports of the library as a summary, so that one view, diff and check serves both.

use super::cause::Cause;
use super::growth::Growth;
use super::mapping::MappingKind;
use super::sum::share;
use super::summary::{
    AtWork, ByClass, CauseShare, Contents, Gap, Interval, MappingCopies, Overhead, ProcessSummary, Run, Script,
    Summary, Totals,
};
use super::verdict::{self, Verdict};
use crate::record::{Closed, GapKind, HeldPages, Mode, Origin, WatchReason, Who};
use cowbell::report::{self, ArenaReport, Census, Report};
use std::collections::BTreeMap;

/// The summary of reports together.
///
/// # Errors
/// There is none, or they are of different page sizes, or of a version that this program does not know.
pub fn summary(reports: &[Report]) -> Result<Summary, String> {
    let Some(first) = reports.first() else { return Err("it has no report".to_owned()) };
    let page_size = first.page_size;
    if reports.iter().any(|report| report.page_size != page_size) {
        return Err("its reports are of different page sizes".to_owned());
    }
    let theirs = reports.iter().map(|report| report.version).max().unwrap_or_default();
    if theirs != report::VERSION {
        return Err(format!("a report of the library's version {theirs}, which this cowbell does not read"));
    }
    let intervals: Vec<Interval> = (1u32..).zip(reports).map(|(number, report)| interval(number, report)).collect();
    let mut pages = ByClass::default();
    intervals.iter().for_each(|interval| pages.add_all(&interval.pages));
    let copied_pages = pages.copied();
    let uncounted: u64 = intervals.iter().map(|interval| interval.unmapped_uncounted_pages).sum();
    let is_bounded = intervals.iter().all(|interval| interval.end_ns.is_some());
    let totals = Totals {
        intervals: intervals.len() as u64,
        processes: intervals.len() as u64,
        pages,
        copied_pages,
        copied_bytes: copied_pages.saturating_mul(page_size),
        copied_pages_min: copied_pages,
        copied_pages_max: is_bounded.then_some(copied_pages.saturating_add(uncounted)),
        shared_pages: intervals.iter().map(|interval| interval.held.file).sum(),
        started_afresh: 0,
        forks: Default::default(),
        unknown: Default::default(),
    };
    let mut contents = Contents::default();
    for interval in &intervals {
        contents.compared_pages += interval.contents.compared_pages;
        contents.identical_pages += interval.contents.identical_pages;
        contents.changed_bytes += interval.contents.changed_bytes;
    }
    contents.amplification = super::interval::amplification(&contents, page_size);
    let mut summary = Summary {
        cut: None,
        verdict: Verdict::default(),
        growth: Growth::default(),
        run: run(page_size),
        totals,
        processes: reports.iter().map(process).collect(),
        mappings: mappings(reports.iter().flat_map(|report| &report.arenas), page_size, copied_pages),
        intervals,
        functions: Vec::new(),
        script: Script::default(),
        syscalls: Vec::new(),
        causes: causes(&contents, copied_pages),
        contents,
        objects: Vec::new(),
        gaps: gaps(reports),
        kinds: None,
        overhead: Overhead::default(),
    };
    summary.verdict = verdict::verdict(&summary);
    Ok(summary)
}

fn run(page_size: u64) -> Run {
    Run {
        command: vec!["a program with the library".to_owned()],
        cowbell: String::new(),
        kernel: String::new(),
        page_size,
        started_unix_ms: 0,
        duration_ns: 0,
        mode: Mode::Count,
        mode_reason: String::new(),
        who: Who::Child,
        stacks_every: 0,
        // A frozen arena's copies are told by its file, never by frames: none is in doubt.
        frames: true,
        ended: None,
    }
}

fn process(report: &Report) -> ProcessSummary {
    ProcessSummary {
        pid: report.pid,
        parent: 0,
        origin: Origin::Forked,
        command: vec!["child of a program with the library".to_owned()],
        executed: Vec::new(),
        executed_ns: Vec::new(),
        started_ns: 0,
        ended_ns: None,
        ended: report.ended,
        fork_page_tables_bytes: None,
        memory: None,
    }
}

fn interval(number: u32, report: &Report) -> Interval {
    let copied_pages = report.copied_pages().0;
    let closed = match report.census {
        Census::Last => Some(Closed::Exit),
        Census::AtExec => Some(Closed::Exec),
        Census::Lost | Census::NotTaken => Some(Closed::Lost),
        Census::Living => None,
    };
    let is_final = matches!(report.census, Census::Last | Census::AtExec);
    let contents = contents(&report.arenas, report.page_size);
    Interval {
        interval: number,
        pid: report.pid,
        process: Some(number as usize - 1),
        role: WatchReason::Child,
        language: None,
        mode: Mode::Count,
        begin_ns: 0,
        end_ns: is_final.then_some(0),
        closed,
        held: HeldPages { file: report.arenas.iter().map(|arena| arena.pages.0).sum(), ..HeldPages::default() },
        arm_ns: 0,
        pages: ByClass { private_file: copied_pages, ..ByClass::default() },
        copied_pages,
        copied_bytes: report.copied_bytes(),
        causes: causes(&contents, copied_pages),
        code_unknown: Vec::new(),
        // The library tells no phases: all counts as work.
        at_work: AtWork {
            compared_pages: contents.compared_pages,
            identical_pages: contents.identical_pages,
            file_pages: copied_pages,
            undated_pages: 0,
            after_stacks_pages: 0,
        },
        contents,
        when: None,
        mappings: mappings(report.arenas.iter(), report.page_size, copied_pages),
        // Each of them may have been copied again.
        unmapped_uncounted_pages: report.arenas.iter().map(|arena| arena.inherited_pages.0).sum(),
    }
}

fn contents(arenas: &[ArenaReport], page_size: u64) -> Contents {
    let mut contents = Contents::default();
    for arena in arenas {
        if let Some(changed) = arena.bytes_changed {
            contents.compared_pages += arena.copied_pages.0;
            contents.changed_bytes += changed;
            contents.identical_pages += arena.identical_pages.0;
        }
    }
    contents.amplification = super::interval::amplification(&contents, page_size);
    contents
}

/// The one cause that a library's report knows. What else changed, changed for reasons that it does not tell.
fn causes(contents: &Contents, copied: u64) -> Vec<CauseShare> {
    let cause = Cause::Rewritten;
    let pages = contents.identical_pages;
    let one = CauseShare {
        cause,
        name: cause.name(),
        copied_pages: pages,
        share: share(pages, copied),
        without_code_pages: pages,
        without_name_pages: 0,
        reasons: Vec::new(),
        why: None,
        remedy: None,
        paste: &[],
        spared_pages: 0,
        spares_a_part: None,
        nameless_file: None,
    };
    if pages > 0 { vec![one] } else { Vec::new() }
}

fn mappings<'a>(arenas: impl Iterator<Item = &'a ArenaReport>, page_size: u64, copied: u64) -> Vec<MappingCopies> {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for arena in arenas {
        let (pages, bytes) = sums.entry(&arena.name).or_default();
        *pages += arena.copied_pages.0;
        *bytes = (*bytes).max(arena.pages.0.saturating_mul(page_size));
    }
    let mapping = |(name, (copied_pages, bytes)): (&str, (u64, u64))| MappingCopies {
        kind: MappingKind::Memfd,
        name: name.to_owned(),
        start: None,
        bytes,
        pages: ByClass { private_file: copied_pages, ..ByClass::default() },
        copied_pages,
        share: share(copied_pages, copied),
    };
    let mut mappings: Vec<MappingCopies> = sums.into_iter().map(mapping).collect();
    mappings.sort_by_key(|mapping| std::cmp::Reverse(mapping.copied_pages));
    mappings
}

fn gaps(reports: &[Report]) -> Vec<Gap> {
    let gap = |of: &dyn Fn(&Report) -> bool, detail: &str| {
        let pids: Vec<i32> = reports.iter().filter(|report| of(report)).map(|report| report.pid).collect();
        let times = pids.len() as u64;
        (times > 0).then(|| Gap { what: GapKind::Other, times, pids, details: vec![detail.to_owned()] })
    };
    let living =
        gap(&|r| r.census == Census::Living, "the census is of a living child, which may have copied more since");
    let lost = gap(
        &|r| matches!(r.census, Census::Lost | Census::NotTaken),
        "there was no last census: the child may have copied more",
    );
    let inherited = gap(
        &|r| r.arenas.iter().any(|arena| arena.inherited_pages.0 > 0),
        "pages that were private copies already when the child was forked: whether they were copied again is not known",
    );
    [living, lost, inherited].into_iter().flatten().collect()
}
