//! The likely cause of a copy, from how the copy differs from its original and from the code that first wrote it.
//!
//! Evidence in, guess out. A guess it is: the code is that of the *first* write to the page, the contents are those of
//! its end, and what happened between is not seen. Where the two contradict each other the contents decide, because
//! the page would have been copied for them anyway.

use super::code::Purpose;
use crate::record;
use crate::stacks::languages;
use serde::Serialize;

/// Likely causes of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Reference counts of objects that were only read.
    ReferenceCount,
    /// A count, lock or flag beside or in the data.
    Counter,
    /// The garbage collector's marks and lists.
    GarbageCollector,
    /// An allocator's lists and headers.
    Allocator,
    /// The data itself changed.
    RealWrite,
    /// A little changed, and the rest of the page was copied with it.
    Neighbour,
    /// The kernel wrote on behalf of a system call.
    Kernel,
    /// Stacks: every process writes its own.
    Stack,
    /// Neither contents nor code tell.
    Unknown,
}

/// What runs in a process, as far as it changes what helps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// CPython.
    Python,
    /// Ruby.
    Ruby,
    /// Redis or a relative.
    Redis,
    /// Anything else.
    #[default]
    Native,
}

/// How a copy differs from its original, coarsely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// Not compared.
    Unknown,
    /// Not at all.
    Identical,
    /// All but only in words that look like counters.
    Counters,
    /// In at most an eighth of its words.
    Few,
    /// In more.
    Some,
    /// In half of its words or more.
    Large,
}

impl Change {
    /// Of a page that was compared.
    pub fn of(content: &record::Content, page_size: u64) -> Self {
        let page_words = page_size / 8;
        let words = u64::from(content.words);
        if content.bytes == 0 {
            Self::Identical
        } else if words > 0 && u64::from(content.counters) * 8 >= words * 7 {
            // Not each: reading an object may also fill in what it remembers, such as a string's hash.
            Self::Counters
        } else if words >= page_words / 2 {
            Self::Large
        } else if words <= page_words / 8 {
            Self::Few
        } else {
            Self::Some
        }
    }
}

/// What is known of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// How it differs.
    pub change: Change,
    /// What the code that first wrote it is for; `None` where the code is not known.
    pub purpose: Option<Purpose>,
    /// The kernel wrote it first.
    pub by_kernel: bool,
    /// It lies in a stack.
    pub in_stack: bool,
    /// That code belongs to the Python interpreter, or nothing is known of the code and the process runs one.
    pub python: bool,
}

/// The likely cause of a copy.
pub fn likely(evidence: &Evidence) -> Cause {
    let Evidence { change, purpose, by_kernel, in_stack, python } = *evidence;
    let counting = if python { Cause::ReferenceCount } else { Cause::Counter };
    match (change, purpose) {
        _ if in_stack => Cause::Stack,
        _ if by_kernel => Cause::Kernel,
        (Change::Large, _) => Cause::RealWrite,
        (_, Some(Purpose::Collector)) => Cause::GarbageCollector,
        (_, Some(Purpose::Allocator)) => Cause::Allocator,
        (Change::Some, _) => Cause::RealWrite,
        (Change::Few, _) => Cause::Neighbour,
        (_, Some(Purpose::References)) => Cause::ReferenceCount,
        (Change::Identical | Change::Counters, _) => counting,
        (Change::Unknown, _) => Cause::Unknown,
    }
}

impl Cause {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReferenceCount => "reference counts",
            Self::Counter => "counters or locks",
            Self::GarbageCollector => "garbage collector",
            Self::Allocator => "allocator metadata",
            Self::RealWrite => "real writes",
            Self::Neighbour => "page neighbours",
            Self::Kernel => "kernel writes",
            Self::Stack => "stacks",
            Self::Unknown => "unknown",
        }
    }

    /// The cause that looks the same where the code tells nothing: both leave pages as they were.
    pub fn otherwise(self, runtime: Runtime) -> Option<Self> {
        let looks_alike = self == Self::ReferenceCount && runtime == Runtime::Python;
        looks_alike.then_some(Self::GarbageCollector)
    }

    /// What is known to help, in one sentence.
    pub fn remedy(self, runtime: Runtime) -> Option<&'static str> {
        use Runtime::{Native, Python, Redis, Ruby};
        Some(match (self, runtime) {
            (Self::ReferenceCount, Python) => return languages::ALL.iter().find_map(|l| l.remedy(Purpose::References)),
            (Self::ReferenceCount, _) => {
                "read through plain references or indices instead of counted ones, or keep the counts apart from \
                 the data"
            }
            (Self::Counter, Redis | Native | Ruby | Python) => {
                "keep counters, locks and flags apart from the data that is shared: one page of them is copied once"
            }
            (Self::GarbageCollector, Python) => {
                return languages::ALL.iter().find_map(|l| l.remedy(Purpose::Collector));
            }
            (Self::GarbageCollector, Ruby) => {
                "Process.warmup, or GC.start and GC.compact, right before the fork: old objects are marked and moved \
                 before they are shared"
            }
            (Self::GarbageCollector, _) => "collect right before the fork, so that what is shared is marked already",
            (Self::Allocator, Redis) => {
                "the price of allocating during a snapshot: fewer writes meanwhile, and activedefrag off"
            }
            (Self::Allocator, _) => {
                "load the shared data first and free nothing between, malloc_trim(0) before the fork; an allocator \
                 with its books apart (jemalloc) or MALLOC_ARENA_MAX=1 leaves fewer pages in between"
            }
            (Self::RealWrite, Redis) => {
                "the price of the snapshot: snapshots at a time of fewer writes, transparent huge pages off"
            }
            (Self::RealWrite, _) => "nothing is wasted: what changes cannot be shared; allocate it after the fork",
            (Self::Neighbour, Redis) => {
                "the price of the snapshot, a page for a few bytes: snapshots at a time of fewer writes, \
                 transparent huge pages off"
            }
            (Self::Neighbour, _) => {
                "part what is written from what is only read: each in memory of its own, allocated together"
            }
            (Self::Kernel, _) => "read into buffers that were allocated after the fork",
            (Self::Stack | Self::Unknown, _) => return None,
        })
    }
}

impl Runtime {
    /// From the names of what a process has mapped and the program that it runs.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let found = names.filter_map(|name| {
            let file = name.rsplit('/').next().unwrap_or(name);
            if languages::of_files(std::iter::once(name)).is_some() {
                Some(Self::Python)
            } else if file.starts_with("libruby") || file.starts_with("ruby") {
                Some(Self::Ruby)
            } else if ["redis-server", "valkey-server", "keydb-server"].iter().any(|server| file.starts_with(server)) {
                Some(Self::Redis)
            } else {
                None
            }
        });
        // A program that embeds Python next to its own work is Python's here: that is what copies.
        found.min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(bytes: u32, words: u32, counters: u32) -> record::Content {
        record::Content { page: 0, bytes, words, counters }
    }

    #[test]
    fn contents_are_told_apart_by_how_much_changed() {
        for (bytes, words, counters, expected) in [
            (0, 0, 0, Change::Identical),
            (73, 73, 73, Change::Counters),
            (1, 1, 0, Change::Few),
            (512, 64, 55, Change::Few),
            (512, 64, 56, Change::Counters),
            (520, 65, 0, Change::Some),
            (2040, 255, 0, Change::Some),
            (2048, 256, 0, Change::Large),
            (4096, 512, 512, Change::Counters),
        ] {
            assert_eq!(Change::of(&content(bytes, words, counters), 4096), expected, "{bytes} {words} {counters}");
        }
        // Half of a page is more words where pages are larger.
        assert_eq!(Change::of(&content(2048, 256, 0), 65536), Change::Few);
    }

    #[test]
    fn contents_and_code_make_the_cause() {
        use Change as C;
        use Purpose as P;
        let plain = Evidence { change: C::Unknown, purpose: None, by_kernel: false, in_stack: false, python: false };
        for (change, purpose, python, expected) in [
            (C::Identical, Some(P::Other), true, Cause::ReferenceCount),
            (C::Counters, Some(P::Other), true, Cause::ReferenceCount),
            (C::Unknown, Some(P::References), true, Cause::ReferenceCount),
            (C::Identical, None, true, Cause::ReferenceCount),
            (C::Identical, Some(P::References), false, Cause::ReferenceCount),
            (C::Identical, Some(P::Other), false, Cause::Counter),
            (C::Counters, None, false, Cause::Counter),
            (C::Identical, Some(P::Collector), true, Cause::GarbageCollector),
            (C::Few, Some(P::Collector), true, Cause::GarbageCollector),
            (C::Unknown, Some(P::Collector), true, Cause::GarbageCollector),
            (C::Few, Some(P::Allocator), true, Cause::Allocator),
            (C::Counters, Some(P::Allocator), true, Cause::Allocator),
            (C::Unknown, Some(P::Allocator), false, Cause::Allocator),
            // The page would have been copied for its contents, whoever came first.
            (C::Large, Some(P::Allocator), false, Cause::RealWrite),
            (C::Large, Some(P::References), true, Cause::RealWrite),
            (C::Large, None, false, Cause::RealWrite),
            (C::Some, Some(P::Other), false, Cause::RealWrite),
            (C::Few, Some(P::Other), false, Cause::Neighbour),
            (C::Few, None, true, Cause::Neighbour),
            (C::Unknown, Some(P::Other), true, Cause::Unknown),
            (C::Unknown, None, true, Cause::Unknown),
        ] {
            let evidence = Evidence { change, purpose, python, ..plain };
            assert_eq!(likely(&evidence), expected, "{evidence:?}");
        }
        let in_stack = Evidence { in_stack: true, change: C::Large, ..plain };
        assert_eq!(likely(&in_stack), Cause::Stack);
        assert_eq!(likely(&Evidence { by_kernel: true, change: C::Large, ..plain }), Cause::Kernel);
    }

    #[test]
    fn freezing_is_no_remedy_against_reference_counts() {
        let remedy = Cause::ReferenceCount.remedy(Runtime::Python).expect("a remedy");
        assert!(remedy.contains("numpy") && remedy.contains("gc.freeze() does not"), "{remedy}");
        let remedy = Cause::GarbageCollector.remedy(Runtime::Python).expect("a remedy");
        assert!(remedy.contains("gc.freeze()"), "{remedy}");
    }

    #[test]
    fn runtimes_are_known_by_their_files() {
        for (name, expected) in [
            ("/usr/bin/python3.13", Runtime::Python),
            ("/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", Runtime::Python),
            ("python3", Runtime::Python),
            ("/home/x/python-tools/convert", Runtime::Native),
            ("/usr/bin/pythonista", Runtime::Native),
            ("/usr/bin/redis-server", Runtime::Redis),
            ("/usr/lib/libruby-3.3.so.3.3", Runtime::Ruby),
            ("/bin/cat", Runtime::Native),
        ] {
            assert_eq!(Runtime::of(["/lib/libc.so.6", name].into_iter()), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_was_not_compared_and_has_no_code_is_never_guessed(python: bool) {
            let change = Change::Unknown;
            let evidence = Evidence { change, purpose: None, by_kernel: false, in_stack: false, python };
            prop_assert_eq!(likely(&evidence), Cause::Unknown);
        }

        #[test]
        fn an_identical_copy_is_never_a_real_write(bytes in 0..=4096u32, words in 0..=512u32, counters in 0..=512u32) {
            let change = Change::of(&content(bytes, words, counters), 4096);
            prop_assert_eq!(change == Change::Identical, bytes == 0);
            for purpose in [None, Some(Purpose::Other), Some(Purpose::Allocator), Some(Purpose::References)] {
                let evidence = Evidence { change, purpose, by_kernel: false, in_stack: false, python: false };
                prop_assert!(bytes > 0 || likely(&evidence) != Cause::RealWrite);
            }
        }
    }
}
