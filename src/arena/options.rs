//! The choices that are made for an arena: its name, huge pages, and what a write to it does.

/// When huge pages are put behind an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Never: ordinary pages.
    #[default]
    Never,
    /// `MADV_HUGEPAGE`: wherever the system's settings for shared memory allow it.
    Advise,
    /// `MADV_COLLAPSE` when the arena is frozen (Linux 6.1): works whatever the settings say, costs
    /// about half a second a GiB once, and makes a child's first read of everything many times
    /// faster. Copies stay as small as ordinary pages.
    Collapse,
}

/// The effect of a child's write into a frozen arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum OnWrite {
    /// The child gets its own copy of the page, which is counted.
    #[default]
    Copy,
    /// The child dies by SIGSEGV, with a line that names arena, page, object and instruction. Where
    /// the kernel has `mseal` (6.10), nobody can lift that any more, and the arena cannot be released.
    Deny,
}

/// May an arena have this name?
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Bytes of an arena's name.
pub(super) const NAME_MAX: usize = 200;
