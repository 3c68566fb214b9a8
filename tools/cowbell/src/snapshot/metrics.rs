//! A snapshot as OpenMetrics.

use super::compare::PageCounts;
use super::document::{Snapshot, TakesBy};
use super::text::command;
use cowbell::openmetrics::{Exposition, MetricKind};

/// A family of metrics about a process: its name, what it tells, and which pages.
type Figure = (&'static str, &'static str, fn(&PageCounts) -> u64);

const FIGURES: [Figure; 7] = [
    ("cowbell_process_shared_bytes", "Private memory that the parent or others have too.", |pages| {
        pages.shared_with_parent + pages.shared_unknown + pages.shared_with_others.pages
    }),
    ("cowbell_process_own_bytes", "Private memory that nobody else has: the five below are parts of it.", |pages| {
        pages.own.pages
    }),
    (
        "cowbell_process_differs_bytes",
        "Of it: the parent has another page there, in a mapping of which they share pages (without page frames: of which anybody does): copied since the fork, or each wrote it first.",
        |pages| pages.own.differs,
    ),
    (
        "cowbell_process_copied_or_new_bytes",
        "Of it: the parent has another page there; copied, or mapped by each after the fork.",
        |pages| pages.own.copied_or_new,
    ),
    ("cowbell_process_new_bytes", "Of it: the parent has nothing there, or runs another program.", |pages| {
        pages.own.new
    }),
    ("cowbell_process_file_copies_bytes", "Of it: private copies of pages of files.", |pages| pages.own.file_copies),
    ("cowbell_process_unknown_bytes", "Of it: the parent's page is swapped out or could not be read.", |pages| {
        pages.own.unknown
    }),
];

/// The memory of each process of some trees, and their sums.
pub fn metrics(snapshots: &[Snapshot]) -> String {
    let mut out = Exposition::new();
    let processes = || {
        let of = |snapshot: &'_ Snapshot| snapshot.page_size;
        snapshots
            .iter()
            .flat_map(move |snapshot| snapshot.processes.iter().map(move |one| (of(snapshot), snapshot.pid, one)))
    };
    for (name, help, pages) in FIGURES {
        let mut family = out.family(name, MetricKind::Gauge, help, "bytes");
        for (page_size, top, process) in processes() {
            if let Some(memory) = process.memory.as_ref().filter(|memory| memory.has_counts(process.parent)) {
                family.sample(&labels(top, process), pages(&memory.pages).saturating_mul(page_size) as f64);
            }
        }
    }
    let mut family =
        out.family("cowbell_process_pss_bytes", MetricKind::Gauge, "Resident memory, shared pages in parts.", "bytes");
    for (_, top, process) in processes() {
        if let Some(memory) = &process.memory {
            family.sample(&labels(top, process), memory.pss_bytes as f64);
        }
    }
    let of_tree = |snapshot: &Snapshot| {
        let by = if snapshot.total.takes_by == TakesBy::Frames { "frames" } else { "pss" };
        [("top", snapshot.pid.to_string()), ("by", by.to_owned())]
    };
    let help =
        "What the processes of the tree take together, each page counted once; by PSS where frames are not readable.";
    let mut family = out.family("cowbell_tree_takes_bytes", MetricKind::Gauge, help, "bytes");
    for snapshot in snapshots {
        family.sample(&of_tree(snapshot), snapshot.total.takes_bytes as f64);
    }
    let mut family = out.family(
        "cowbell_tree_unshared_bytes",
        MetricKind::Gauge,
        "What they would take if nothing were shared.",
        "bytes",
    );
    for snapshot in snapshots {
        family.sample(&of_tree(snapshot), snapshot.total.unshared_bytes as f64);
    }
    let mut family = out.family("cowbell_tree_processes", MetricKind::Gauge, "Processes that were read.", "processes");
    for snapshot in snapshots {
        family.sample(&of_tree(snapshot), snapshot.total.processes as f64);
    }
    let help = "Processes of the tree that were not read: the kernel's own, that ended, or that the kernel guards.";
    let mut family = out.family("cowbell_tree_unread_processes", MetricKind::Gauge, help, "processes");
    for snapshot in snapshots {
        let unread = snapshot.processes.iter().filter(|process| process.memory.is_none()).count();
        family.sample(&of_tree(snapshot), unread as f64);
    }
    out.finish()
}

fn labels(top: i32, process: &super::document::ProcessReport) -> [(&'static str, String); 5] {
    [
        ("top", top.to_string()),
        ("pid", process.pid.to_string()),
        ("parent", process.parent.to_string()),
        ("depth", process.depth.to_string()),
        ("command", command(process).chars().take(200).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::document::{MemoryReport, ProcessReport, Readable, Relation, Total};
    use super::super::process::ReadState;
    use super::*;

    #[test]
    fn pages_that_are_counted_with_another_process_are_no_figures_of_this_one() {
        let process = |pid, relation| ProcessReport {
            pid,
            parent: 1,
            depth: 1,
            name: "worker".to_owned(),
            command: Vec::new(),
            state: ReadState::Read,
            why: String::new(),
            memory: Some(MemoryReport {
                relation,
                rss_bytes: 0,
                pss_bytes: 4096,
                uss_bytes: 0,
                swap_bytes: 0,
                hugetlb_bytes: 0,
                pages: PageCounts::default(),
                mappings: Vec::new(),
            }),
        };
        let snapshot = Snapshot {
            kernel: String::new(),
            page_size: 4096,
            pid: 1,
            evidence: Readable { frames: true, zero_pages: true },
            notes: Vec::new(),
            processes: vec![
                process(7, Relation::Forked),
                process(8, Relation::SameMemory { of: 1 }),
                process(9, Relation::SameMemory { of: 7 }),
            ],
            total: Total { processes: 3, memories: 2, ..Total::default() },
        };
        let shown = metrics(&[snapshot]);
        let of = |name: &str| -> Vec<i32> {
            let lines = shown.lines().filter(|line| line.starts_with(&format!("{name}{{")));
            lines.filter_map(|line| line.split("pid=\"").nth(1)?.split('"').next()?.parse().ok()).collect()
        };
        assert_eq!(of("cowbell_process_shared_bytes"), [7, 8], "{shown}");
        assert_eq!(of("cowbell_process_pss_bytes"), [7, 8, 9], "{shown}");
        let processes = shown.lines().find(|line| line.starts_with("cowbell_tree_processes{")).expect("a sum");
        assert!(processes.ends_with(" 3") || processes.ends_with(" 3.0"), "{processes}");
    }
}
