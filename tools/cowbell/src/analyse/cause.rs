//! The likely cause of a copy: from the layout of the memory, from the code that first wrote to the page, and from how the
//! copy differs from its original.
//!
//! Evidence in, verdict out. The code is that of the *first* write to the page, the contents are those of its end, and what
//! happened between is not seen. Where the two contradict each other the contents decide, because the page would have
//! been copied for them anyway. What neither proves is unknown, for a reason from a fixed list.

use super::code::Purpose;
use super::runtime::Runtime;
use crate::record::{self, Wrote};
use serde::Serialize;

/// Likely causes of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Reference counts of objects.
    ReferenceCount,
    /// Words of objects' headers that were put back: reference counts, or the garbage collector's.
    CountOrCollector,
    /// A counter, lock or flag that atomic instructions write, beside or in the data.
    Counter,
    /// The garbage collector's marks and lists.
    GarbageCollector,
    /// An allocator's lists and headers.
    Allocator,
    /// The worker was set up after its fork, by libraries and the interpreter.
    Start,
    /// The program or its interpreter shut down and freed what it had.
    Exit,
    /// The data itself changed.
    RealWrite,
    /// Strings that are immortal, so that no reference is counted, were asked for their hash, and keep it.
    Hash,
    /// Strings were used as numbers, which they keep.
    Number,
    /// Numbers were used as strings, whose texts they keep.
    Text,
    /// Values were asked for what they remember then: the length of a string, the place of a match, which characters it has, the id of an object.
    Remembered,
    /// Hashes were gone through: where that stands is kept in them, and their keys are put into new values.
    Iterator,
    /// Copies of strings or arrays share their memory, which counts them, or is noted in them.
    TextCopies,
    /// Something was written, and the page is the same as before.
    Rewritten,
    /// The kernel wrote on behalf of a system call.
    Kernel,
    /// Stacks: every process writes its own.
    Stack,
    /// New objects were put in places that were free between those that are shared.
    NewObject,
    /// Neither layout nor code nor contents tell.
    Unknown,
}

/// Why a cause is not known: all reasons there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The code was not seen, and the copy was not compared with its original.
    NoEvidence,
    /// The code has no name, and the copy was not compared with its original.
    NoName,
    /// The code is known and does not tell, and the copy was not compared with its original.
    NotCompared,
    /// Words other than reference counts changed on pages with an interpreter's objects: new and freed objects, attributes,
    /// or what objects remember (a string's hash).
    BesideObjects,
    /// The memory is managed by an interpreter whose objects this program does not know.
    Interpreter,
    /// Other words than a collector's and reference counts changed in the memory of an interpreter whose objects are known no further.
    BesideMarks,
    /// The copies were given back before they could be compared: what was written first says nothing of the rest.
    Freed,
}

/// The difference of a copy from its original, coarsely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Not compared.
    Unknown,
    /// Not compared, because it was there no more.
    Gone,
    /// Not at all.
    Identical,
    /// Nearly only in words that are reference counts by their layout.
    Counts,
    /// Nearly only in words that are reference counts, or hashes that strings keep, by their layout. Whoever asks for a hash
    /// counts a reference meanwhile.
    Hashes,
    /// The same of strings that are immortal.
    ImmortalHashes,
    /// Nearly only in words that were written because strings were used as numbers, or that are reference counts, by their layout.
    Numbers,
    /// The same because numbers were used as strings.
    Texts,
    /// The same because strings were asked for what they remember.
    Remembered,
    /// The same because hashes were gone through.
    Iterators,
    /// Nearly only in counts of the copies of texts, or in reference counts, by their layout.
    TextCopies,
    /// Nearly only in words that a collector wrote as it marked, moved or freed objects, or that are reference counts, by their layout.
    Marks,
    /// Nearly only in places of objects that were free and were given to new ones, by the layout.
    Made,
    /// In at most an eighth of its words.
    Few,
    /// In more.
    Some,
    /// In half of its words or more.
    Large,
}

impl Difference {
    /// Tells whether the copy was compared with its original.
    pub fn is_compared(self) -> bool {
        !matches!(self, Self::Unknown | Self::Gone)
    }

    /// The change of a page that was compared.
    pub fn of(content: &record::Content, page_size: u64) -> Self {
        let page_words = page_size / 8;
        let words = u64::from(content.words);
        let kept = [
            (u64::from(content.copies), Self::TextCopies),
            (u64::from(content.remembered), Self::Remembered),
            (u64::from(content.iterators), Self::Iterators),
            (u64::from(content.texts), Self::Texts),
            (u64::from(content.numbers), Self::Numbers),
        ];
        if content.bytes == 0 {
            Self::Identical
        } else if words > 0 && u64::from(content.counts) * 8 >= words * 7 {
            // Not each: reading an object may also fill in what it remembers, such as a string's hash.
            Self::Counts
        } else if words > 0 && (u64::from(content.counts) + u64::from(content.hashes)) * 8 >= words * 7 {
            if content.immortal.saturating_mul(2) > content.hashes { Self::ImmortalHashes } else { Self::Hashes }
        } else if words > 0
            && kept.iter().fold(u64::from(content.counts), |sum, (words, _)| sum + words) * 8 >= words * 7
        {
            kept.into_iter().max_by_key(|(words, _)| *words).map_or(Self::Counts, |(_, change)| change)
        } else if [content.counts, content.marks, content.made].map(u64::from).iter().sum::<u64>() * 8 >= words * 7
            && content.marks.saturating_add(content.made) > 0
        {
            // The collector would have copied the page for its marks alone.
            if content.marks > 0 { Self::Marks } else { Self::Made }
        } else if words >= page_words / 2 {
            Self::Large
        } else if words <= page_words / 8 {
            Self::Few
        } else {
            Self::Some
        }
    }
}

/// The evidence about a copy.
#[derive(Clone, Copy, Debug)]
pub struct CopyEvidence {
    /// The difference from its original.
    pub change: Difference,
    /// True if it holds objects of an interpreter's.
    pub objects: bool,
    /// The kind of data that the instruction writes which first wrote it.
    pub wrote: Wrote,
    /// True if the instruction that first wrote it is known.
    pub code: bool,
    /// The purpose of that code; `None` where it has no name, or is not known.
    pub purpose: Option<Purpose>,
    /// The kernel wrote it first.
    pub by_kernel: bool,
    /// True if it lies in a stack.
    pub in_stack: bool,
    /// The interpreter or program that runs in the process.
    pub runtime: Runtime,
}

/// The likely cause of a copy, and why it is not known where it is not.
pub fn likely(evidence: &CopyEvidence) -> (Cause, Option<Reason>) {
    let CopyEvidence { change, purpose, wrote, .. } = *evidence;
    let counts_first = purpose == Some(Purpose::References) || wrote == Wrote::ReferenceCount;
    let cause = match (change, purpose) {
        _ if evidence.in_stack => Cause::Stack,
        _ if evidence.by_kernel => Cause::Kernel,
        // The bodies of strings that got numbers: the old ones are freed, and new ones are put where memory was free.
        (Difference::Large | Difference::Some | Difference::Few, Some(Purpose::Numbers)) => Cause::Number,
        (Difference::Large | Difference::Some | Difference::Few, Some(Purpose::Texts)) => Cause::Text,
        (
            Difference::Large | Difference::Some | Difference::Few | Difference::Made | Difference::Remembered,
            Some(Purpose::Iterators),
        ) => Cause::Iterator,
        (Difference::Large | Difference::Some | Difference::Few, Some(Purpose::Remembered | Purpose::Positions)) => {
            Cause::Remembered
        }
        (Difference::Large, _) => return changed(evidence),
        // The collector's compaction moves objects into free places, too.
        (Difference::Made, Some(Purpose::Collector)) => Cause::GarbageCollector,
        (Difference::Made, _) => Cause::NewObject,
        // A function that frees an object counts it down first.
        (Difference::Gone, purpose) if purpose != Some(Purpose::Allocator) => {
            return (Cause::Unknown, Some(Reason::Freed));
        }
        (_, Some(Purpose::Collector)) => Cause::GarbageCollector,
        // Making or freeing an object links the headers of its neighbours, too, and changes much more besides.
        _ if wrote == Wrote::CollectorHeader && !matches!(change, Difference::Some | Difference::Unknown) => {
            Cause::GarbageCollector
        }
        (_, Some(Purpose::Allocator)) => Cause::Allocator,
        (Difference::Counts | Difference::Hashes, _) => Cause::ReferenceCount,
        (Difference::Numbers, _) => Cause::Number,
        (Difference::Texts, _) => Cause::Text,
        (Difference::Remembered, _) => Cause::Remembered,
        (Difference::Iterators, _) => Cause::Iterator,
        (Difference::TextCopies, _) => Cause::TextCopies,
        // The count went back when the copy went.
        (Difference::Identical | Difference::Unknown, _) if wrote == Wrote::TextCopies => Cause::TextCopies,
        // A sub that is called counts its calls beside its references.
        (Difference::Identical, Some(Purpose::ObjectReferences)) if wrote == Wrote::Other => Cause::ReferenceCount,
        // Flags that were written as they had been, or were put back: to set others changes them.
        (Difference::Identical, _) if wrote == Wrote::Flags => Cause::ReferenceCount,
        // The first to count references copies the page without a collection, too.
        (Difference::Marks, _) if !counts_first => match wrote {
            Wrote::Unknown if evidence.runtime.counts_references() => Cause::CountOrCollector,
            _ => Cause::GarbageCollector,
        },
        (Difference::Some, _) if wrote != Wrote::Atomic => return changed(evidence),
        // These words are no counts, since the layout tells counts: to set an attribute counts references first, and the page
        // would be copied without that, too.
        (Difference::Few, _) if evidence.objects && counts_first => return changed(evidence),
        _ if counts_first => Cause::ReferenceCount,
        (Difference::ImmortalHashes, _) => Cause::Hash,
        _ if wrote == Wrote::Atomic => Cause::Counter,
        (Difference::Identical, _) if wrote == Wrote::Iteration => Cause::Iterator,
        (Difference::Identical, _)
            if evidence.objects
                && wrote == Wrote::Unknown
                && evidence.runtime.has_collector()
                && evidence.runtime.counts_references() =>
        {
            Cause::CountOrCollector
        }
        (Difference::Identical, _) => Cause::Rewritten,
        (Difference::Few | Difference::Some | Difference::Marks, _) => return changed(evidence),
        (Difference::Unknown | Difference::Gone, _) => {
            let reason = match (evidence.code, purpose) {
                (false, _) => Reason::NoEvidence,
                (true, None) => Reason::NoName,
                (true, Some(_)) => Reason::NotCompared,
            };
            return (Cause::Unknown, Some(reason));
        }
    };
    (cause, None)
}

/// The cause of a change that is neither a count nor a collector's: whose it is, the program's or its interpreter's.
fn changed(evidence: &CopyEvidence) -> (Cause, Option<Reason>) {
    let is_large = evidence.change == Difference::Large;
    if evidence.runtime.has_unknown_objects() {
        let is_known = evidence.runtime.language().is_some_and(|language| language.objects().is_some());
        let reason = if is_known { Reason::BesideMarks } else { Reason::Interpreter };
        (Cause::Unknown, Some(reason))
    } else if evidence.objects && evidence.purpose.is_none() && !is_large {
        (Cause::Unknown, Some(Reason::BesideObjects))
    } else {
        (Cause::RealWrite, None)
    }
}

impl Cause {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReferenceCount => "reference counts",
            Self::CountOrCollector => "reference counts or the garbage collector",
            Self::Counter => "counters, locks or flags",
            Self::GarbageCollector => "garbage collector",
            Self::Allocator => "allocator metadata",
            Self::Start => "setting up the child",
            Self::Exit => "shutting down",
            Self::RealWrite => "real writes",
            Self::Hash => "hashes that immortal strings keep",
            Self::Number => "numbers that strings keep",
            Self::Text => "texts that numbers keep",
            Self::Remembered => "what values keep when they are asked for it",
            Self::Iterator => "going through hashes",
            Self::TextCopies => "copies that share memory",
            Self::Rewritten => "written, and the same again",
            Self::Kernel => "kernel writes",
            Self::Stack => "stacks",
            Self::NewObject => "objects put between shared ones",
            Self::Unknown => "unknown",
        }
    }
}

impl Cause {
    /// In few words, where there is little room.
    pub fn short(self) -> &'static str {
        match self {
            Self::CountOrCollector => "counts or GC",
            Self::Counter => "shared counters",
            Self::Allocator => "allocator",
            Self::Hash => "hashes",
            Self::Number => "numbers",
            Self::Text => "texts",
            Self::Remembered => "kept answers",
            Self::Iterator => "iterators",
            Self::TextCopies => "shared copies",
            Self::NewObject => "objects put in",
            Self::Rewritten => "same again",
            _ => self.name(),
        }
    }
}

impl Reason {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoEvidence => "the code was not seen, and the copies were not compared with their originals",
            Self::NoName => "the code has no name, and the copies were not compared with their originals",
            Self::NotCompared => "what the code does to the data is not known, and the copies were not compared",
            Self::BesideObjects => {
                "other words than reference counts changed on pages that hold the interpreter's objects: new and freed \
                 objects, attributes, or what objects remember, such as hashes"
            }
            Self::Interpreter => {
                "the process runs an interpreter whose objects cowbell does not know: the program's own writes and the \
                 interpreter's cannot be told apart"
            }
            Self::BesideMarks => {
                "other words changed than the garbage collector's: the interpreter's new objects and the program's own writes \
                 cannot be told apart"
            }
            Self::Freed => {
                "the memory was given back before the copies could be compared with their originals: what was freed, and \
                 what else was written there, is not known"
            }
        }
    }

    /// Would comparing copies with their originals tell?
    pub fn wants_comparing(self) -> bool {
        matches!(self, Self::NoEvidence | Self::NoName | Self::NotCompared)
    }

    /// Would names of the code tell?
    pub fn wants_names(self) -> bool {
        matches!(self, Self::NoName | Self::BesideObjects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn language(id: &str) -> Runtime {
        Runtime::of_language(id).expect("known")
    }

    fn content(bytes: u32, words: u32, counts: u32) -> record::Content {
        record::Content {
            page: 0,
            bytes,
            words,
            counts,
            objects: counts > 0,
            hashes: 0,
            immortal: 0,
            ends: None,
            numbers: 0,
            marks: 0,
            made: 0,
            texts: 0,
            remembered: 0,
            iterators: 0,
            copies: 0,
        }
    }

    const PLAIN: CopyEvidence = CopyEvidence {
        change: Difference::Unknown,
        objects: false,
        wrote: Wrote::Unknown,
        code: true,
        purpose: None,
        by_kernel: false,
        in_stack: false,
        runtime: Runtime::Native,
    };

    #[test]
    fn contents_are_told_apart_by_how_much_changed() {
        for (bytes, words, counts, expected) in [
            (0, 0, 0, Difference::Identical),
            (73, 73, 73, Difference::Counts),
            (1, 1, 0, Difference::Few),
            (512, 64, 55, Difference::Few),
            (512, 64, 56, Difference::Counts),
            (520, 65, 0, Difference::Some),
            (2040, 255, 0, Difference::Some),
            (2048, 256, 0, Difference::Large),
            (4096, 512, 512, Difference::Counts),
        ] {
            assert_eq!(Difference::of(&content(bytes, words, counts), 4096), expected, "{bytes} {words} {counts}");
        }
        let hashes = record::Content { hashes: 30, ..content(300, 60, 25) };
        assert_eq!(Difference::of(&hashes, 4096), Difference::Hashes);
        let immortal = record::Content { immortal: 30, ..hashes };
        assert_eq!(Difference::of(&immortal, 4096), Difference::ImmortalHashes);
        let moved = record::Content { marks: 100, ..content(500, 120, 10) };
        assert_eq!(Difference::of(&moved, 4096), Difference::Marks);
        assert_eq!(
            Difference::of(&record::Content { words: 140, ..moved }, 4096),
            Difference::Some,
            "much else changed"
        );
        let made = record::Content { made: 290, ..content(2400, 300, 0) };
        assert_eq!(Difference::of(&made, 4096), Difference::Made);
        assert_eq!(
            Difference::of(&record::Content { marks: 1, ..made }, 4096),
            Difference::Marks,
            "it is copied for that alone"
        );
        assert_eq!(
            Difference::of(&record::Content { words: 400, ..made }, 4096),
            Difference::Large,
            "much else changed"
        );
        // Half of a page is more words where pages are larger.
        assert_eq!(Difference::of(&content(2048, 256, 0), 65536), Difference::Few);
    }

    #[test]
    fn code_and_contents_make_the_cause() {
        use Difference as C;
        use Purpose as P;
        for (change, purpose, expected) in [
            (C::Unknown, Some(P::References), Cause::ReferenceCount),
            (C::Identical, Some(P::References), Cause::ReferenceCount),
            (C::Few, Some(P::References), Cause::ReferenceCount),
            (C::Counts, Some(P::Other), Cause::ReferenceCount),
            (C::Counts, None, Cause::ReferenceCount),
            (C::Identical, Some(P::Other), Cause::Rewritten),
            (C::Identical, None, Cause::Rewritten),
            (C::Identical, Some(P::Collector), Cause::GarbageCollector),
            (C::Few, Some(P::Collector), Cause::GarbageCollector),
            (C::Unknown, Some(P::Collector), Cause::GarbageCollector),
            (C::Made, Some(P::Collector), Cause::GarbageCollector),
            (C::Made, Some(P::Allocator), Cause::NewObject),
            (C::Made, None, Cause::NewObject),
            (C::Few, Some(P::Allocator), Cause::Allocator),
            (C::Counts, Some(P::Allocator), Cause::Allocator),
            (C::Unknown, Some(P::Allocator), Cause::Allocator),
            // The page would have been copied for its contents, whoever came first.
            (C::Large, Some(P::Allocator), Cause::RealWrite),
            (C::Large, Some(P::References), Cause::RealWrite),
            (C::Some, Some(P::References), Cause::RealWrite),
            (C::Large, None, Cause::RealWrite),
            (C::Some, Some(P::Other), Cause::RealWrite),
            (C::Few, Some(P::Other), Cause::RealWrite),
            (C::Few, None, Cause::RealWrite),
        ] {
            let evidence = CopyEvidence { change, purpose, ..PLAIN };
            assert_eq!(likely(&evidence), (expected, None), "{evidence:?}");
        }
        let in_stack = CopyEvidence { in_stack: true, change: C::Large, ..PLAIN };
        assert_eq!(likely(&in_stack).0, Cause::Stack);
        assert_eq!(likely(&CopyEvidence { by_kernel: true, change: C::Large, ..PLAIN }).0, Cause::Kernel);
    }

    #[test]
    fn the_layout_tells_counts_from_the_collector_where_the_code_has_no_name() {
        let python = CopyEvidence { runtime: language("python"), objects: true, ..PLAIN };
        for (wrote, change, expected) in [
            (Wrote::ReferenceCount, Difference::Identical, Cause::ReferenceCount),
            (Wrote::ReferenceCount, Difference::Unknown, Cause::ReferenceCount),
            (Wrote::CollectorHeader, Difference::Identical, Cause::GarbageCollector),
            (Wrote::CollectorHeader, Difference::Few, Cause::GarbageCollector),
            (Wrote::Unknown, Difference::Identical, Cause::CountOrCollector),
            // The collector moves what it visits in its lists; who counted before had copied the page.
            (Wrote::Other, Difference::Marks, Cause::GarbageCollector),
            (Wrote::CollectorHeader, Difference::Marks, Cause::GarbageCollector),
            (Wrote::ReferenceCount, Difference::Marks, Cause::ReferenceCount),
            (Wrote::Unknown, Difference::Marks, Cause::CountOrCollector),
            (Wrote::Other, Difference::Identical, Cause::Rewritten),
            (Wrote::Atomic, Difference::Few, Cause::Counter),
            // Had the hash been asked for before, the page would have been copied for counting.
            (Wrote::Other, Difference::Hashes, Cause::ReferenceCount),
            (Wrote::Other, Difference::ImmortalHashes, Cause::Hash),
        ] {
            let evidence = CopyEvidence { wrote, change, ..python };
            assert_eq!(likely(&evidence), (expected, None), "{evidence:?}");
        }
    }

    #[test]
    fn what_is_written_beside_counts_is_told_though_counting_came_first() {
        let python = CopyEvidence { runtime: language("python"), objects: true, change: Difference::Few, ..PLAIN };
        let beside = (Cause::Unknown, Some(Reason::BesideObjects));
        // An attribute that was set.
        assert_eq!(likely(&CopyEvidence { wrote: Wrote::ReferenceCount, ..python }), beside);
        let named = CopyEvidence { wrote: Wrote::ReferenceCount, purpose: Some(Purpose::Other), ..python };
        assert_eq!(likely(&named), (Cause::RealWrite, None));
        // Objects that were freed, or made: they are linked with the collector's lists.
        let linked = CopyEvidence { wrote: Wrote::CollectorHeader, change: Difference::Some, ..python };
        assert_eq!(likely(&linked), beside);
        let gone =
            CopyEvidence { wrote: Wrote::CollectorHeader, change: Difference::Unknown, objects: false, ..python };
        assert_eq!(likely(&gone), (Cause::Unknown, Some(Reason::NoName)), "freed, and unmapped");
        // The function tells counts where no layout does.
        let native = CopyEvidence { purpose: Some(Purpose::References), change: Difference::Few, ..PLAIN };
        assert_eq!(likely(&native), (Cause::ReferenceCount, None));
    }

    #[test]
    fn what_was_freed_is_no_counting() {
        let gone = CopyEvidence { runtime: language("python"), change: Difference::Gone, ..PLAIN };
        for wrote in [Wrote::ReferenceCount, Wrote::CollectorHeader, Wrote::Atomic, Wrote::Other, Wrote::Unknown] {
            for purpose in [None, Some(Purpose::References), Some(Purpose::Collector), Some(Purpose::Other)] {
                let evidence = CopyEvidence { wrote, purpose, ..gone };
                assert_eq!(likely(&evidence), (Cause::Unknown, Some(Reason::Freed)), "{evidence:?}");
            }
        }
        assert_eq!(likely(&CopyEvidence { purpose: Some(Purpose::Allocator), ..gone }), (Cause::Allocator, None));
    }

    #[test]
    fn small_real_writes_of_python_are_real_and_what_cannot_be_told_is_unknown_with_a_reason() {
        let python =
            CopyEvidence { runtime: language("python"), wrote: Wrote::Other, change: Difference::Few, ..PLAIN };
        assert_eq!(likely(&python), (Cause::RealWrite, None), "a buffer, by the interpreter's code without a name");
        let beside = CopyEvidence { objects: true, ..python };
        assert_eq!(likely(&beside), (Cause::Unknown, Some(Reason::BesideObjects)));
        let named = CopyEvidence { purpose: Some(Purpose::Other), ..beside };
        assert_eq!(likely(&named), (Cause::RealWrite, None));
        for runtime in ["ruby", "other"].map(language) {
            for change in [Difference::Few, Difference::Some, Difference::Large] {
                let evidence = CopyEvidence { runtime, change, purpose: Some(Purpose::Other), ..python };
                let reason = if runtime == language("ruby") { Reason::BesideMarks } else { Reason::Interpreter };
                assert_eq!(likely(&evidence), (Cause::Unknown, Some(reason)), "{evidence:?}");
            }
        }
        for (code, purpose, reason) in [
            (false, None, Reason::NoEvidence),
            (true, None, Reason::NoName),
            (true, Some(Purpose::Other), Reason::NotCompared),
        ] {
            let evidence = CopyEvidence { code, purpose, ..PLAIN };
            assert_eq!(likely(&evidence), (Cause::Unknown, Some(reason)), "{evidence:?}");
        }
    }

    proptest! {
        #[test]
        fn what_was_not_compared_and_has_no_code_is_never_guessed(objects: bool, python: bool) {
            let runtime = if python { language("python") } else { Runtime::Native };
            let evidence = CopyEvidence { objects, runtime, ..PLAIN };
            prop_assert_eq!(likely(&evidence).0, Cause::Unknown);
        }

        #[test]
        fn an_identical_copy_is_never_a_real_write(bytes in 0..=4096u32, words in 0..=512u32, counts in 0..=512u32) {
            let change = Difference::of(&content(bytes, words, counts), 4096);
            prop_assert_eq!(change == Difference::Identical, bytes == 0);
            for purpose in [None, Some(Purpose::Other), Some(Purpose::Allocator), Some(Purpose::References)] {
                let evidence = CopyEvidence { change, purpose, ..PLAIN };
                prop_assert!(bytes > 0 || likely(&evidence).0 != Cause::RealWrite);
            }
        }
    }
}
