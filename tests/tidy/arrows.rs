//! The rooms of each folder, and who may use whom: exact tables, which the tests hold against the code.

/// A room and the rooms that it uses. A table is exact: an arrow that is missing fails, and so does one that nobody needs.
pub type Arrows = &'static [(&'static str, &'static [&'static str])];

/// The library's, `src/`.
pub const ARROWS: Arrows = &[
    ("page", &[]),
    // Promised types that the door to the kernel fills in.
    ("facts", &["page"]),
    // `Errno` is the one type of the kernel's that an error carries.
    ("error", &["sys", "page"]),
    ("sys", &["page", "facts", "error"]),
    // Handles say how they travel.
    ("arena", &["wire", "sys", "facts", "page", "error"]),
    ("wire", &["error"]),
    // Text alone.
    ("openmetrics", &[]),
    ("shared", &["sys", "error"]),
    ("support", &["sys", "facts", "error", "watch", "page"]),
    ("watch", &["arena", "sys", "facts", "page", "error"]),
    // Types only: what arenas and watches found.
    ("report", &["arena", "watch", "sys", "facts", "page"]),
    ("fork", &["report", "watch", "arena", "shared", "sys", "facts", "page", "error"]),
    ("heap", &["fork", "watch", "arena", "sys", "page", "error"]),
    ("apart", &["fork", "sys", "error"]),
    ("assertion", &["apart", "heap", "fork", "report"]),
    ("pool", &["wire", "openmetrics", "fork", "report", "watch", "arena", "sys", "facts", "page", "error"]),
];

/// The tool's, `tools/cowbell/src/`: what was observed, who observes it, what it comes to, how it is shown, the commands.
pub const TOOL_ARROWS: Arrows = &[
    ("record", &[]),
    // Languages know what a function's work is.
    ("analyse", &["record", "stacks"]),
    ("views", &["record", "analyse", "stacks"]),
    ("stacks", &["record"]),
    ("trace", &["record", "stacks", "failure"]),
    ("failure", &[]),
    ("output", &["analyse", "views", "failure"]),
    ("snapshot", &["views", "output", "failure"]),
    ("exporter", &["snapshot", "failure"]),
    // The command looks as a snapshot does, and attaches as the front does.
    ("top", &["record", "analyse", "front", "snapshot", "views", "failure"]),
    // One door to files: captures, and reports of the library.
    ("input", &["record", "analyse", "failure"]),
    ("report", &["input", "analyse", "views", "output", "failure"]),
    ("manual", &["failure"]),
    ("check", &["input", "analyse", "views", "failure"]),
    ("diff", &["input", "analyse", "views", "output", "failure"]),
    // Names are given to code while the capture is kept.
    ("front", &["record", "analyse", "stacks", "trace", "output", "failure"]),
    ("symbols", &["record", "stacks"]),
    ("demo", &["symbols", "views", "failure"]),
    ("lab", &["analyse", "demo", "failure", "input", "output", "views"]),
    ("doctor", &["trace", "views"]),
];

/// The bench's, `tools/bench/src/`.
pub const BENCH_ARROWS: Arrows = &[
    ("error", &[]),
    ("spread", &[]),
    ("server", &["error"]),
    ("arming", &["error", "spread"]),
    ("forks", &["server", "error", "spread"]),
    ("writes", &["error", "spread"]),
    ("pool", &["error", "spread"]),
    // By the names that the crate shows.
    ("text", &[]),
];

/// The service kit's, `tools/service/src/`.
pub const SERVICE_ARROWS: Arrows = &[
    ("data", &[]),
    ("listener", &[]),
    ("routes", &["data"]),
    ("worker", &["data", "routes"]),
    ("service", &["data", "worker"]),
    ("admin", &["service"]),
];

/// A folder of tests: those of its files that all others may use, and every other arrow.
pub struct Tests {
    pub folder: &'static str,
    pub helpers: &'static [&'static str],
    pub arrows: Arrows,
}

pub const TESTS: &[Tests] = &[
    Tests {
        folder: "tests/api",
        helpers: &["apart", "case", "limits", "look", "pool_kit"],
        arrows: &[
            ("apart", &["case"]),
            ("pool_kit", &["look"]),
            ("limits", &["apart", "arena", "case", "look"]),
            ("blind", &["watching"]),
            ("endurance", &["watching"]),
            ("faulting", &["exactness", "watching"]),
            ("frozen", &["arena"]),
            ("growing", &["arena", "faults"]),
            ("images", &["watching"]),
            ("images_refused", &["images"]),
            ("pool_ends", &["pool_faults"]),
            ("pool_figures", &["watching"]),
            ("pool_panics", &["pool_futures"]),
            ("pool_refused", &["pool_results"]),
            ("pool_several", &["pool_review"]),
            ("shared_collections", &["shared"]),
            ("shared_locks", &["shared"]),
            ("transfer_refused", &["transfer"]),
        ],
    },
    Tests {
        folder: "tests/kernel",
        helpers: &["case", "child", "claim", "evidence", "memory", "tracee", "watcher"],
        arrows: &[
            ("memory", &["case", "claim"]),
            ("evidence", &["memory"]),
            ("watcher", &["memory", "theirs"]),
            ("tracee", &["child"]),
            ("claim", &["evidence", "memory", "watcher"]),
            ("case", &["claim", "docs", "memory"]),
            ("copying", &["writers"]),
            ("launching", &["remote_ends"]),
            ("perf", &["changes", "processes"]),
            ("perf_lives", &["perf", "perf_rights"]),
            ("perf_rights", &["perf"]),
            ("pouring", &["forking"]),
            ("remote_ends", &["remote"]),
            ("settling", &["copying"]),
            ("sharers_end", &["sharing"]),
            ("sharing", &["ending"]),
            ("stores", &["remote"]),
            ("tool", &["copying", "remote"]),
            ("threads", &["io_ring"]),
            ("tracing", &["processes"]),
        ],
    },
    Tests {
        folder: "tests/heap",
        helpers: &["memory", "writers"],
        arrows: &[
            ("forking", &["freezing"]),
            ("freezing", &["threads"]),
            ("hostile", &["freezing", "threads"]),
            ("recording", &["threads"]),
            ("side_arcs", &["freezing"]),
        ],
    },
    Tests { folder: "tools/service/tests/service", helpers: &["http", "running"], arrows: &[("running", &["http"])] },
    Tests {
        folder: "tools/cowbell/tests/run",
        helpers: &["case", "exact", "lab", "model", "python", "verdict"],
        arrows: &[
            ("exact", &["case", "lab", "model", "verdict"]),
            ("model", &["case"]),
            ("cases", &["said"]),
            ("allocators", &["said"]),
            ("kinds", &["programs", "said"]),
            ("languages", &["said"]),
            ("no_line", &["said"]),
            ("perl_php", &["languages", "said"]),
            ("phases", &["programs", "said"]),
            ("python", &["exact", "lab"]),
            ("r", &["languages", "said"]),
            ("ruby", &["allocators", "languages", "said"]),
            ("verdict", &["case", "lab", "model"]),
            ("judge", &["judged", "plan", "writing"]),
            ("judged", &["plan"]),
            ("plan", &["writing"]),
            ("experiments", &["programs"]),
            ("published", &["programs"]),
        ],
    },
];
