//! The record about all the memory that a process has.

use serde::{Deserialize, Serialize};

/// All the memory that a process has at one moment: at its end, or when the tool lets it go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The process.
    pub pid: i32,
    /// The time.
    pub time_ns: u64,
    /// The name of the process by then: it may have given itself a title.
    pub name: String,
    /// The process' arguments by then, lossily as text.
    pub command: Vec<String>,
    /// The resident pages by where they come from; `None` where its page tables could not be read.
    pub pages: Option<Resident>,
    /// The kernel's own sums; `None` where they could not be read.
    pub kernel: Option<Sums>,
    /// Bytes of its page tables.
    pub page_tables: u64,
    /// The most bytes that were resident at a time.
    pub resident_max: u64,
    /// The findings of looks in turn; `None` where it was not looked at.
    pub looks: Option<Looks>,
    /// The memory that it and all others take together just then, if more of them lived than ever before at such a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
}

/// The memory of several processes at one moment, as the kernel adds it up, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Together {
    /// The number of memories: processes that run in another's are none.
    pub memories: u64,
    /// The time that reading them took, one after the other; only one of the processes stood still.
    pub took_ns: u64,
    pub rss: u64,
    pub pss: u64,
}

/// A process has more private pages than it ever had before, as far as looks at it in turn tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grew {
    /// The process.
    pub pid: i32,
    /// When it was looked at.
    pub time_ns: u64,
    /// The pages by which it has more than at its most before.
    pub pages: u64,
    /// The [`Stack`](super::Stack) of the thread that had run most since the look before; `None` where it could not be read.
    pub stack: Option<u32>,
}

/// The findings of looks at a process, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looks {
    /// Private ones when it was first watched.
    pub first: u64,
    /// The most private ones.
    pub most: u64,
    /// The most of files and shared mappings.
    pub files_most: u64,
}

/// Resident pages by where they come from. Together they are what the kernel calls resident (`Rss`), and the first six are its
/// `Anonymous`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Pages that it had when it was first watched (a child: from its parent), not written since, and others have them too.
    pub inherited: u64,
    /// The same, and nobody else has them any more.
    pub inherited_alone: u64,
    /// Copied.
    pub copied: u64,
    /// Copied or reused: it could not be told which.
    pub copied_or_reused: u64,
    /// Copied from a page of a file.
    pub copied_of_file: u64,
    /// Came after the process was first watched: memory that it allocated.
    pub new: u64,
    /// Pages of files that are mapped privately, and not copied.
    pub file: u64,
    /// Pages of shared mappings.
    pub shared_mapping: u64,
}

impl Resident {
    /// Pages of no file.
    pub fn anonymous(&self) -> u64 {
        self.inherited + self.inherited_alone + self.copied + self.copied_or_reused + self.copied_of_file + self.new
    }

    /// The same in bytes.
    pub fn in_bytes(&self, page_size: u64) -> Self {
        let of = |pages: u64| pages.saturating_mul(page_size);
        Self {
            inherited: of(self.inherited),
            inherited_alone: of(self.inherited_alone),
            copied: of(self.copied),
            copied_or_reused: of(self.copied_or_reused),
            copied_of_file: of(self.copied_of_file),
            new: of(self.new),
            file: of(self.file),
            shared_mapping: of(self.shared_mapping),
        }
    }
}

/// The sums of `/proc/PID/smaps_rollup`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub rss: u64,
    pub pss: u64,
    pub private_clean: u64,
    pub private_dirty: u64,
    pub shared_clean: u64,
    pub shared_dirty: u64,
    pub anonymous: u64,
    pub swap: u64,
}
