//! Remedies against causes. A remedy stands here only where its effect on that very cause was measured, or where it
//! follows from what the cause is; the listing of sentences (docs/SENTENCES.md) says which.

use super::cause::Cause;
use super::runtime::Runtime;
use crate::stacks::languages::{Language, Spares, Work};

/// Circumstances that change what helps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// Real writes: most of the pages changed in a few words only.
    pub few_words: bool,
    /// Real writes and an allocator's: glibc's allocator wrote most of the pages first, when it gave out memory there.
    pub given_out: bool,
    /// Kernel writes: most are of system calls that read into a buffer of the program's.
    pub reads: bool,
    /// Shutting down: nearly all was copied as an interpreter took itself down, or as destructors freed memory. Else the program's own
    /// code wrote on its way out, and who leaves at once would lose what that does.
    pub torn_down: bool,
    /// A collector's: for most of the pages the program itself asked for the collection.
    pub asked: bool,
    /// A collector's: for nearly all of the pages whose line was seen the program itself asked for the collection, and little else was done.
    pub only_asked: bool,
    /// A collector's: most are pages of what it keeps for itself, and not of objects.
    pub of_tables: bool,
    /// Reference counts: most are of objects of classes.
    pub of_objects: bool,
    /// Values that keep what they are asked for: most keep the places at which a search of strings goes on.
    pub of_positions: bool,
}

/// The remedy that is known to help, in one sentence; `None` where nothing is, or nothing needs to.
pub fn remedy(cause: Cause, runtime: Runtime, circumstances: Circumstances) -> Option<&'static str> {
    if cause == Cause::Exit && !circumstances.torn_down {
        return None;
    }
    if let Some((language, work)) = work(cause, runtime, circumstances) {
        return language.remedy(work);
    }
    Some(match (cause, runtime) {
        (Cause::ReferenceCount, Runtime::Native) => {
            "read through plain references or indices instead of counted ones, or keep the counts apart from the data"
        }
        (Cause::Counter, _) => {
            "keep counters, locks and flags apart from the data that is shared: then only their own pages are copied"
        }
        (Cause::Exit, Runtime::Native) => {
            "if the child's destructors and atexit functions need do nothing but free, flush its files and leave it by _exit(2), \
             which runs none of them"
        }
        (Cause::RealWrite, Runtime::Redis) => {
            "take the snapshot when clients write less: what they change meanwhile is copied"
        }
        (Cause::RealWrite | Cause::Allocator, Runtime::Native) if circumstances.given_out => {
            "malloc gave out memory there that was free: what it holds is new. malloc_trim(0) right before the fork gives free \
             pages back, and what is allocated there afterwards is no copy"
        }
        (Cause::RealWrite, _) if circumstances.few_words => {
            "allocate what is written after the fork apart from data that is only read: one byte written copies its whole page"
        }
        (Cause::RealWrite, _) => "change less of this data after the fork: a page that changes is no longer shared",
        (Cause::Rewritten, Runtime::Native | Runtime::Redis) => {
            "keep words that are written and put back (counters, locks, flags) apart from the data, and write a value \
             only where it differs"
        }
        (Cause::Kernel, _) if circumstances.reads => "read into buffers that the child maps itself",
        _ => return None,
    })
}

/// The language, and the work of its interpreter where it copies for this cause.
fn work(cause: Cause, runtime: Runtime, circumstances: Circumstances) -> Option<(&'static dyn Language, Work)> {
    let language = runtime.language()?;
    let work = match cause {
        Cause::ReferenceCount if circumstances.of_objects => Some(Work::ObjectReferences),
        Cause::ReferenceCount | Cause::CountOrCollector => Some(Work::References),
        Cause::GarbageCollector if circumstances.of_tables && language.collector_has_tables() => {
            Some(Work::CollectorTables)
        }
        Cause::GarbageCollector if circumstances.asked => Some(Work::AskedCollector),
        Cause::GarbageCollector => Some(Work::Collector),
        Cause::Exit => Some(Work::Exit),
        Cause::Hash => Some(Work::Hashes),
        Cause::Number => Some(Work::Numbers),
        Cause::Text => Some(Work::Texts),
        Cause::Remembered if circumstances.of_positions => Some(Work::Positions),
        Cause::Remembered => Some(Work::Remembered),
        Cause::Iterator => Some(Work::Iterators),
        Cause::TextCopies => Some(Work::TextCopies),
        _ => None,
    };
    work.map(|work| (language, work))
}

/// Why such code writes, in one sentence; `None` where the cause's name says it.
pub fn why(cause: Cause, runtime: Runtime, circumstances: Circumstances) -> Option<&'static str> {
    let is_certain = cause != Cause::CountOrCollector && (cause != Cause::Exit || circumstances.torn_down);
    let of_language = work(cause, runtime, circumstances).filter(|_| is_certain);
    if let Some(why) = of_language.and_then(|(language, work)| language.why(work)) {
        return Some(why);
    }
    Some(match (cause, runtime) {
        (Cause::ReferenceCount, _) => "references are counted beside the data, so reading writes",
        (Cause::Counter, _) => "atomic instructions wrote there, as counters, locks and flags need them",
        (Cause::GarbageCollector, _) => "the garbage collector marks what it visits",
        (Cause::Allocator, Runtime::Native) if circumstances.given_out => "malloc gave out memory that was free",
        (Cause::Allocator, _) => "the allocator keeps its books between the data",
        (Cause::RealWrite, Runtime::Redis) => "clients changed data while it was saved",
        (Cause::RealWrite, Runtime::Native) if circumstances.given_out => {
            "malloc gave out again memory that was free, and new data was put there"
        }
        (Cause::RealWrite, _) => "the data itself was changed",
        (Cause::Rewritten, _) => "something was written that was there already, or was put back",
        (Cause::Kernel, _) => "the kernel wrote there for system calls",
        (Cause::NewObject, _) => {
            "objects, new ones or moved ones, were put in free places between objects that are shared"
        }
        (Cause::Exit, _) => "destructors and atexit functions write when the program ends",
        _ => return None,
    })
}

/// The part of the pages copied for a cause that its remedy spares.
pub fn spares(cause: Cause, runtime: Runtime, circumstances: Circumstances) -> Spares {
    work(cause, runtime, circumstances).map_or(Spares::All, |(language, work)| match work {
        Work::AskedCollector if !circumstances.only_asked => language.spares(Work::Collector),
        work => language.spares(work),
    })
}

/// Lines to paste that help against a cause.
pub fn paste(cause: Cause, runtime: Runtime, circumstances: Circumstances) -> &'static [&'static str] {
    if cause == Cause::Exit && !circumstances.torn_down {
        return &[];
    }
    work(cause, runtime, circumstances).map_or(&[], |(language, work)| language.paste(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(id: &str) -> Runtime {
        Runtime::of_language(id).expect("known")
    }

    fn told(cause: Cause, runtime: Runtime) -> &'static str {
        remedy(cause, runtime, Circumstances::default()).expect("a remedy")
    }

    #[test]
    fn each_remedy_is_for_its_own_cause() {
        for cause in [Cause::ReferenceCount, Cause::CountOrCollector] {
            let told = told(cause, language("python"));
            assert!(told.contains("numpy") && told.contains("not of dtype=object"), "{told}");
            assert!(!told.contains("gc.freeze"), "it stops no count: {told}");
        }
        let told = told(Cause::GarbageCollector, language("python"));
        let at = |what: &str| told.find(what).unwrap_or_else(|| panic!("{what} in {told}"));
        assert!(at("gc.disable()") < at("gc.freeze()") && at("gc.freeze()") < at("gc.enable() in the child"));
        let torn_down = Circumstances { torn_down: true, ..Circumstances::default() };
        let exit = remedy(Cause::Exit, language("python"), torn_down).expect("a remedy");
        assert!(
            exit.starts_with("if the child's atexit functions need not run") && exit.contains("os._exit()"),
            "{exit}"
        );
    }

    #[test]
    fn who_works_on_the_way_out_is_not_told_to_leave_at_once() {
        for runtime in [language("python"), language("perl"), Runtime::Native] {
            let of = |torn_down| {
                let circumstances = Circumstances { torn_down, ..Circumstances::default() };
                (remedy(Cause::Exit, runtime, circumstances), paste(Cause::Exit, runtime, circumstances))
            };
            assert!(of(true).0.is_some_and(|told| told.starts_with("if the child's ")), "{:?}", of(true));
            assert_eq!(of(false), (None, &[][..]));
        }
    }

    #[test]
    fn memory_that_malloc_gave_out_has_its_remedy_however_much_of_it_was_filled() {
        let given_out = Circumstances { given_out: true, ..Circumstances::default() };
        for cause in [Cause::RealWrite, Cause::Allocator] {
            assert!(remedy(cause, Runtime::Native, given_out).is_some_and(|told| told.contains("malloc_trim(0)")));
            assert!(why(cause, Runtime::Native, given_out).is_some_and(|why| why.starts_with("malloc gave out")));
        }
        assert_eq!(remedy(Cause::Allocator, Runtime::Native, Circumstances::default()), None);
    }

    #[test]
    fn what_was_not_measured_to_help_is_not_told() {
        // "Collect before the fork" saves nothing under PHP, and huge pages have no part in a page of 4 KiB.
        let php = told(Cause::GarbageCollector, language("php"));
        assert!(!php.contains("before the fork"), "{php}");
        assert!(!told(Cause::RealWrite, Runtime::Redis).contains("huge"));
        assert_eq!(
            remedy(Cause::Kernel, Runtime::Native, Circumstances::default()),
            None,
            "clone reads into no buffer"
        );
        for cause in [Cause::Unknown, Cause::Stack, Cause::Allocator] {
            let all = Circumstances {
                few_words: true,
                given_out: true,
                reads: true,
                torn_down: true,
                asked: true,
                only_asked: true,
                of_tables: true,
                of_objects: true,
                of_positions: true,
            };
            assert_eq!(remedy(cause, language("python"), all), None);
        }
    }
}
