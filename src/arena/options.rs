//! The choices that are made for an arena: its name, huge pages, and what a write to it does.

/// When huge pages are put behind an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// An arena grows in huge pages beyond its first 16 MiB, as long as the kernel has some (Linux 6.1, whatever its settings for shared memory
    /// say); else in ordinary ones. Nothing is copied for it, and a child's first read of what lies in huge pages takes many times less. Filling the arena does, too, but where the memory must come
    /// from a virtual machine's host (`cowbell-bench forks` prints both). What was committed and not used is given back at the freeze, as with ordinary pages, and
    /// copies stay as small.
    #[default]
    Auto,
    /// Never: ordinary pages.
    Never,
    /// `MADV_HUGEPAGE`: wherever the system's settings for shared memory allow it.
    Advise,
    /// The arena grows as with [`Self::Auto`], from the first byte on; and when it is frozen its ordinary pages are copied to huge ones (`MADV_COLLAPSE`), which takes
    /// about half a second a GiB, and memory for one huge page at a time. The arena's end is rounded up to a huge page.
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
