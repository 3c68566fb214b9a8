//! A claim, and what it may need.

use crate::memory::Kind;
use crate::{evidence, watcher};
use rustix::thread::CapabilitySet;
use std::time::Duration;

/// Why a claim could not be examined here.
#[derive(Debug)]
pub struct Skip(pub String);

/// The claim was seen to hold, or could not be examined. One that does not hold panics.
pub type Verdict = Result<(), Skip>;

/// A claim about the kernel.
pub struct Claim {
    /// The function's name, which states the claim.
    pub name: &'static str,
    /// The same in one sentence, as in `docs/KERNEL.md`.
    pub says: &'static str,
    /// Without these it is skipped.
    pub needs: &'static [Need],
    /// Longer than this is a failure.
    pub limit: Duration,
    /// Files (of `/proc/sys`, `/sys`) whose content is put back afterwards, whatever happened.
    pub restores: &'static [&'static str],
    /// The function that examines it.
    pub run: Run,
}

/// The way to examine a claim.
pub enum Run {
    /// Once.
    Once(fn() -> Verdict),
    /// Once for each kind of memory.
    On(&'static [Kind], fn(Kind) -> Verdict),
}

impl Claim {
    pub const fn new(name: &'static str, says: &'static str, run: Run) -> Self {
        Self { name, says, needs: &[], limit: Duration::from_secs(30), restores: &[], run }
    }

    pub const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    pub const fn limit_s(self, seconds: u64) -> Self {
        Self { limit: Duration::from_secs(seconds), ..self }
    }

    pub const fn restores(self, restores: &'static [&'static str]) -> Self {
        Self { restores, ..self }
    }
}

/// `claim!(function, "sentence")`, or `claim!(function on [Kind, …], "sentence")`.
macro_rules! claim {
    ($function:ident, $says:literal) => {
        $crate::claim::Claim::new(stringify!($function), $says, $crate::claim::Run::Once($function))
    };
    ($function:ident on [$($kind:ident),+], $says:literal) => {
        $crate::claim::Claim::new(
            stringify!($function),
            $says,
            $crate::claim::Run::On(&[$($crate::memory::Kind::$kind),+], $function),
        )
    };
}
pub(crate) use claim;

/// A claim's needs of the kernel and of the user.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A userfaultfd by whichever door, that write-protects shared memory (5.19).
    Uffd,
    /// A userfaultfd that also handles faults the kernel takes on a program's behalf.
    FullUffd,
    /// `UFFD_FEATURE_WP_ASYNC` (6.7), by whichever door.
    WpAsync,
    /// `ioctl(PAGEMAP_SCAN)` (6.7).
    Scan,
    /// `mseal(2)` (6.10).
    Mseal,
    /// `PR_GET_TID_ADDRESS`, of CONFIG_CHECKPOINT_RESTORE.
    TidAddress,
    /// A capability of the administrator.
    Capability(&'static str, CapabilitySet),
}

/// CAP_SYS_ADMIN: frame numbers, swap, machine-wide settings.
pub const ADMIN: Need = Need::Capability("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN);
/// CAP_SYS_PTRACE: `EVENT_FORK`.
pub const PTRACE: Need = Need::Capability("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE);
/// CAP_NET_ADMIN: taskstats.
pub const NET_ADMIN: Need = Need::Capability("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN);

impl Need {
    /// `Err` with the reason, if this process does not have it.
    pub fn check(self) -> Verdict {
        let missing = |why: String| Err(Skip(why));
        match self {
            Self::Uffd => match watcher::any(watcher::SYNC) {
                Ok(_) => Ok(()),
                Err(e) => missing(format!("needs userfaultfd write-protection of shared memory (5.19): {e}")),
            },
            Self::FullUffd => match watcher::full(watcher::SYNC) {
                Ok(_) => Ok(()),
                Err(e) => missing(format!(
                    "needs a userfaultfd that handles kernel faults (/dev/userfaultfd or CAP_SYS_PTRACE): {e}"
                )),
            },
            Self::WpAsync => match watcher::any(watcher::ASYNC) {
                Ok(_) => Ok(()),
                Err(e) => missing(format!("needs UFFD_FEATURE_WP_ASYNC (6.7): {e}")),
            },
            Self::Scan => match evidence::try_scan() {
                Ok(()) => Ok(()),
                Err(e) => missing(format!("needs PAGEMAP_SCAN (6.7): {e}")),
            },
            Self::Mseal => match evidence::try_mseal() {
                Ok(()) => Ok(()),
                Err(e) => missing(format!("needs mseal (6.10): {e}")),
            },
            Self::TidAddress => match rustix::thread::get_clear_child_tid_address() {
                Ok(Some(_)) => Ok(()),
                _ => missing("needs PR_GET_TID_ADDRESS (CONFIG_CHECKPOINT_RESTORE)".to_owned()),
            },
            Self::Capability(name, bit) => {
                let held = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(bit));
                if held { Ok(()) } else { missing(format!("needs {name}")) }
            }
        }
    }
}
