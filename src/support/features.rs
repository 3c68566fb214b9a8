//! The features that are probed, and how the answers are kept.

use crate::error::{Error, Result};
use crate::facts::Headroom;

/// Can it be used?
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "verdict", rename_all = "snake_case"))]
pub enum Availability {
    /// Yes.
    Works,
    /// Yes, and it does less than it could.
    Limited {
        /// The loss, and its reason.
        why: String,
        /// The one command that would change it.
        fix: Option<String>,
    },
    /// No.
    Missing(Missing),
}

impl Availability {
    /// Can it be used, limited or not?
    pub fn is_available(&self) -> bool {
        !matches!(self, Self::Missing(_))
    }

    /// Nothing, if it can be used, limited or not.
    ///
    /// # Errors
    /// Unsupported, with the reason and the command that would change it as the hint.
    pub fn require(self) -> Result<()> {
        match self {
            Self::Missing(missing) => Err(missing.into()),
            Self::Works | Self::Limited { .. } => Ok(()),
        }
    }

    /// The missing feature, if it is missing.
    pub fn missing(&self) -> Option<&Missing> {
        match self {
            Self::Missing(missing) => Some(missing),
            Self::Works | Self::Limited { .. } => None,
        }
    }
}

/// Something this kernel does not have or this user may not use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Missing {
    /// The feature's name for people.
    pub feature: &'static str,
    /// The first Linux that has it.
    pub since: &'static str,
    /// Why it cannot be used here.
    pub why: String,
    /// The one command that would change it.
    pub fix: Option<String>,
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        let error = Self::unsupported(missing.feature, missing.since, missing.why);
        match missing.fix {
            Some(fix) => error.with_hint(fix),
            None => error,
        }
    }
}

/// The machine and the user that the features were probed on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Machine {
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// The processor architecture.
    pub arch: &'static str,
    /// Bytes in a page.
    pub page_size: usize,
    /// The effective user id.
    pub uid: u32,
    /// `CAP_SYS_PTRACE` is in effect: every process can be watched.
    pub may_trace: bool,
    /// `CAP_SYS_ADMIN` is in effect: page frames can be told apart.
    pub may_administer: bool,
    /// A seccomp filter decides which system calls this process may make, as in most containers.
    pub has_seccomp_filter: bool,
    /// `vm.unprivileged_userfaultfd`: 1 opens userfaultfd to everyone.
    pub unprivileged_userfaultfd: Option<u64>,
    /// `vm.max_map_count`: how many mappings a process may have.
    pub mappings_max: Option<u64>,
    /// The nearest memory limit.
    pub memory: Option<Headroom>,
}

/// Writes [`Feature`], the fields of [`Support`] and the way from one to the other from one table.
macro_rules! features {
    ($($(#[$doc:meta])+ $variant:ident, $field:ident: $title:literal, $purpose:literal, $since:expr, $config:expr;)+) => {
        /// Everything that is probed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Feature {
            $($(#[$doc])+ $variant,)+
        }

        impl Feature {
            /// All of them, in the order of the report.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name of its field in [`Support`], and its key in JSON.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($field),)+ }
            }

            /// The feature's name for people.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// The feature's use, in one phrase.
            pub fn purpose(self) -> &'static str {
                match self { $(Self::$variant => $purpose,)+ }
            }

            /// The first Linux that has it on this architecture.
            pub fn since(self) -> &'static str {
                match self { $(Self::$variant => $since,)+ }
            }

            /// The build option it needs, where there is one.
            pub(super) fn config(self) -> Option<&'static str> {
                match self { $(Self::$variant => $config,)+ }
            }
        }

        /// The features that this kernel offers to this user.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Support {
            /// The machine and the user.
            pub machine: Machine,
            $($(#[$doc])+ pub $field: Availability,)+
        }

        impl Support {
            /// Asks for every feature, in order.
            pub(super) fn ask(machine: Machine, mut verdict: impl FnMut(Feature) -> Availability) -> Self {
                $(let $field = verdict(Feature::$variant);)+
                Self { machine, $($field,)+ }
            }

            /// One feature's verdict.
            pub fn verdict(&self, feature: Feature) -> &Availability {
                match feature { $(Feature::$variant => &self.$field,)+ }
            }

            pub(super) fn verdict_mut(&mut self, feature: Feature) -> &mut Availability {
                match feature { $(Feature::$variant => &mut self.$field,)+ }
            }
        }
    };
}

/// Write-protection through userfaultfd came to arm64 later than to x86-64.
const fn on_arm64(since_there: &'static str, since: &'static str) -> &'static str {
    if cfg!(target_arch = "aarch64") { since_there } else { since }
}

features! {
    /// A memfd whose content can be made final (3.17).
    SealedMemfd, sealed_memfd: "sealed memfd", "a frozen arena cannot change",
        "3.17", Some("CONFIG_MEMFD_CREATE");
    /// `clone3`, and the address of glibc's cached thread id, `PR_GET_TID_ADDRESS` (5.3).
    Fork, fork: "fork by clone3", "workers can be started",
        "5.3", Some("CONFIG_CHECKPOINT_RESTORE");
    /// `pidfd_open`, `pidfd_send_signal` and `waitid(P_PIDFD)` (5.4).
    ProcessDescriptors, process_descriptors: "process descriptors", "a worker is never mistaken for another process",
        "5.4", None;
    /// `close_range` (5.9).
    CloseRange, close_range: "close_range", "the keeper process has none of the program's files open",
        "5.9", None;
    /// `/proc/PID/pagemap` of one's own processes (3.5 has all bits that are needed).
    Pagemap, pagemap: "/proc/PID/pagemap", "which pages are copies, by a word for each page",
        "3.5", Some("CONFIG_PROC_PAGE_MONITOR");
    /// `ioctl(PAGEMAP_SCAN)` (6.7).
    PagemapScan, pagemap_scan: "PAGEMAP_SCAN", "which pages are copies, listed by the kernel",
        "6.7", Some("CONFIG_PROC_PAGE_MONITOR");
    /// userfaultfd from `/dev/userfaultfd` (6.1).
    UffdDevice, uffd_device: "userfaultfd by device", "sees writes by the kernel, too; for whoever may open the device",
        "6.1", Some("CONFIG_USERFAULTFD");
    /// userfaultfd from the system call, writes by the kernel included (4.3).
    UffdSystemCall, uffd_system_call: "userfaultfd by system call", "sees writes by the kernel, too; for CAP_SYS_PTRACE or by sysctl",
        "4.3", Some("CONFIG_USERFAULTFD");
    /// userfaultfd from the system call, for writes by programs only (5.11).
    UffdUserModeOnly, uffd_user_mode_only: "userfaultfd for user mode only", "does not see read(2) into an armed page; for everyone",
        "5.11", Some("CONFIG_USERFAULTFD");
    /// Write-protection of shared memory and of private mappings of it (5.19; on arm64 6.10).
    UffdMemfd, uffd_memfd: "userfaultfd on memfds", "arenas can be watched write by write",
        on_arm64("6.10", "5.19"), Some("CONFIG_PTE_MARKER_UFFD_WP");
    /// `UFFD_FEATURE_WP_ASYNC`: the kernel records writes by itself (6.7; on arm64 6.10).
    UffdAsync, uffd_async: "userfaultfd WP_ASYNC", "the kernel records writes by itself",
        on_arm64("6.10", "6.7"), Some("CONFIG_PTE_MARKER_UFFD_WP");
    /// `UFFD_FEATURE_SIGBUS`: a write to an armed page sends a signal to the thread that writes (4.14).
    UffdSigbus, uffd_sigbus: "userfaultfd SIGBUS", "a write to an armed page sends a signal to the thread that writes",
        "4.14", Some("CONFIG_USERFAULTFD");
    /// `UFFD_FEATURE_THREAD_ID`: messages name the writing thread (4.14).
    UffdThreadId, uffd_thread_id: "userfaultfd THREAD_ID", "messages name the writing thread",
        "4.14", Some("CONFIG_USERFAULTFD");
    /// `UFFD_FEATURE_EXACT_ADDRESS`: messages name the byte and not the page (5.18).
    UffdExactAddress, uffd_exact_address: "userfaultfd EXACT_ADDRESS", "messages name the byte written to",
        "5.18", Some("CONFIG_USERFAULTFD");
    /// `UFFD_FEATURE_EVENT_FORK`: a child stays armed (4.11; needs `CAP_SYS_PTRACE`).
    UffdEventFork, uffd_event_fork: "userfaultfd EVENT_FORK", "a forked child stays armed",
        "4.11", Some("CONFIG_USERFAULTFD");
    /// The place in the code where another process's thread waits, `/proc/PID/task/TID/syscall`.
    BlockedPc, blocked_pc: "place of a blocked thread", "which line of code wrote",
        "2.6.27", Some("CONFIG_HAVE_ARCH_TRACEHOOK");
    /// perf events of the page faults of one process and its threads: `inherit_thread`, `remove_on_exec` (5.13).
    PageFaults, page_faults: "page faults by perf events", "which instruction wrote, while nothing is armed",
        "5.13", Some("CONFIG_PERF_EVENTS");
    /// `mseal` (6.10).
    Mseal, mseal: "mseal", "a frozen mapping cannot be remapped by mistake",
        "6.10", None;
    /// `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE` (5.14).
    Populate, populate: "MADV_POPULATE", "pages mapped before they are needed",
        "5.14", None;
    /// `MADV_COLLAPSE` of a memfd's pages (6.1).
    Collapse, collapse: "MADV_COLLAPSE", "huge pages behind a frozen arena: faster reads in workers",
        "6.1", Some("CONFIG_TRANSPARENT_HUGEPAGE");
    /// Huge pages for a memfd while it is filled (4.8), as `shmem_enabled` has it.
    HugeMemfd, huge_memfd: "huge pages in memfds", "huge pages already while an arena grows",
        "4.8", Some("CONFIG_TRANSPARENT_HUGEPAGE");
    /// No page merging (KSM) in this process: merging goes round userfaultfd.
    Unmerged, unmerged: "no page merging (KSM)", "merging would hide writes from userfaultfd",
        "6.4", None;
    /// The kernel promises more memory than it has (`vm.overcommit_memory` 0 or 1).
    Overcommit, overcommit: "overcommit", "a fork does not have to find all its memory twice",
        "2.6", None;
}
