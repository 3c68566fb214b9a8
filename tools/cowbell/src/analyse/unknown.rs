//! Why the code that wrote a page, its name, its line or its caller is not known: all reasons there are.

use crate::record::Nameless;
use serde::Serialize;
use std::collections::BTreeMap;

/// A reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// The process was counted only: no write was an event.
    NotTraced,
    /// The page lies in a private mapping of an ordinary file, where the kernel makes no events of writes.
    PrivateFileMapping,
    /// The page lies in memory that was mapped after the interval had opened.
    MappedLater,
    /// The kernel would not arm the mapping.
    NotArmed,
    /// The kernel wrote by itself: when it made or ended the thread.
    WrittenByKernel,
    /// The thread went on before it could be asked where it stood.
    ThreadNotSeen,
    /// The page was copied without a fault of the process' own: another process wrote, or a device.
    NoEvent,
    /// No page fault was told of it: the kernel wrote where its faults are not told, another process or a device did, or the
    /// fault was lost.
    NoFault,
    /// See [`Nameless`].
    GeneratedCode,
    /// See [`Nameless`].
    NoSymbols,
    /// See [`Nameless`].
    FileGone,
    /// See [`Nameless`].
    FileReplaced,
    /// See [`Nameless`].
    FileUnreadable,
    /// The capture ends before the names.
    CutOff,
    /// The file has the function's name, and no information about lines.
    NoLineInformation,
    /// The caller is kept in no place that unwind information gives, and no stack of this page was sampled.
    NotSampled,
}

impl From<Nameless> for Unknown {
    fn from(why: Nameless) -> Self {
        match why {
            Nameless::GeneratedCode => Self::GeneratedCode,
            Nameless::NoSymbols => Self::NoSymbols,
            Nameless::FileGone => Self::FileGone,
            Nameless::FileReplaced => Self::FileReplaced,
            Nameless::FileUnreadable => Self::FileUnreadable,
        }
    }
}

impl Unknown {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotTraced => "by code that count mode does not see",
            Self::PrivateFileMapping => "in private file mappings, where the kernel reports no write",
            Self::MappedLater => "in memory mapped later, where no write is reported",
            Self::NotArmed => "in memory that the kernel did not let cowbell watch",
            Self::WrittenByKernel => "by the kernel, as threads began or ended",
            Self::ThreadNotSeen => "by threads that ran on before cowbell could ask them",
            Self::NoFault => "without a page fault on record: by the kernel, from outside, or it was lost",
            Self::NoEvent => "from outside: another process or a device wrote",
            Self::GeneratedCode => "generated code that /tmp/perf-PID.map does not name",
            Self::NoSymbols => "files without symbols",
            Self::FileGone => "files that were gone when they were to be read",
            Self::FileReplaced => "files that another build had replaced",
            Self::FileUnreadable => "files that may not be read",
            Self::CutOff => "the capture ends before the names",
            Self::NoLineInformation => "files without information about lines",
            Self::NotSampled => "callers that were not sampled",
        }
    }
}

/// Pages by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unknowns(BTreeMap<Unknown, u64>);

impl Unknowns {
    /// Adds pages.
    pub fn add(&mut self, why: Unknown, pages: u64) {
        let sum = self.0.entry(why).or_default();
        *sum = sum.saturating_add(pages);
    }

    /// Adds another's.
    pub fn add_all(&mut self, other: &Self) {
        for (&why, &pages) in &other.0 {
            self.add(why, pages);
        }
    }

    /// The most frequent reason.
    pub fn most(&self) -> Option<Unknown> {
        self.0.iter().max_by_key(|(why, pages)| (**pages, std::cmp::Reverse(**why))).map(|(why, _)| *why)
    }

    /// All of them, most pages first.
    pub fn shares(&self) -> Vec<UnknownShare> {
        let share =
            |(&reason, &copied_pages): (&Unknown, &u64)| UnknownShare { reason, text: reason.text(), copied_pages };
        let mut shares: Vec<_> = self.0.iter().map(share).collect();
        shares.sort_by_key(|share| (std::cmp::Reverse(share.copied_pages), share.reason));
        shares
    }
}

/// Copies of which something is not known for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnknownShare {
    pub reason: Unknown,
    /// The reason in words.
    pub text: &'static str,
    pub copied_pages: u64,
}
