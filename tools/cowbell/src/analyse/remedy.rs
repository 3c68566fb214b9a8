//! What helps against a cause. A remedy stands here only where its effect on that very cause was measured, or where it
//! follows from what the cause is; the listing of sentences (docs/SENTENCES.md) says which.

use super::cause::Cause;
use super::runtime::Runtime;
use crate::stacks::languages::{self, Work};

/// What else changes what helps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// Real writes: most of the pages changed in a few words only.
    pub few_words: bool,
    /// Kernel writes: most are of system calls that read into a buffer of the program's.
    pub reads: bool,
}

/// What is known to help, in one sentence; `None` where nothing is, or nothing needs to.
pub fn remedy(cause: Cause, runtime: Runtime, circumstances: Circumstances) -> Option<&'static str> {
    Some(match (cause, runtime) {
        (Cause::ReferenceCount | Cause::CountOrCollector, Runtime::Python) => return of_language(Work::References),
        (Cause::GarbageCollector, Runtime::Python) => return of_language(Work::Collector),
        (Cause::Exit, Runtime::Python) => return of_language(Work::Exit),
        (Cause::ReferenceCount, Runtime::Native) => {
            "read through plain references or indices instead of counted ones, or keep the counts apart from the data"
        }
        (Cause::Counter, _) => {
            "keep counters, locks and flags apart from the data that is shared: then only their own pages are copied"
        }
        (Cause::GarbageCollector, Runtime::Ruby) => {
            "GC.disable in the child, where it can do without; GC.start and GC.compact right before the fork spare a part"
        }
        (Cause::GarbageCollector, Runtime::Php) => "gc_disable() in the child, where it can do without",
        (Cause::Exit, Runtime::Perl) => {
            "leave the child by POSIX::_exit(), which frees nothing; it runs no END blocks either"
        }
        (Cause::Exit, Runtime::Native) => {
            "leave the child by _exit(2), which runs neither destructors nor atexit functions; flush first what must be \
             kept"
        }
        (Cause::RealWrite, Runtime::Redis) => "the price of the snapshot: take it when there are fewer writes",
        (Cause::RealWrite, _) if circumstances.few_words => {
            "keep what is written together, apart from what is only read: one byte written copies its whole page"
        }
        (Cause::RealWrite, _) => "what changes cannot be shared",
        (Cause::Rewritten, Runtime::Native | Runtime::Redis) => {
            "keep words that are written and put back (counters, locks, flags) apart from the data, and write a value \
             only where it differs"
        }
        (Cause::Kernel, _) if circumstances.reads => "read into buffers that the child maps itself",
        _ => return None,
    })
}

/// What the one language that is known so far says.
fn of_language(work: Work) -> Option<&'static str> {
    languages::ALL.iter().find_map(|language| language.remedy(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(cause: Cause, runtime: Runtime) -> &'static str {
        remedy(cause, runtime, Circumstances::default()).expect("a remedy")
    }

    #[test]
    fn each_remedy_is_for_its_own_cause() {
        for cause in [Cause::ReferenceCount, Cause::CountOrCollector] {
            let told = told(cause, Runtime::Python);
            assert!(told.contains("numpy") && told.contains("not of dtype=object"), "{told}");
            assert!(told.contains("import cowbell_fork; cowbell_fork.freeze(DATA)") && told.contains("3.12"), "{told}");
            assert!(!told.contains("gc.freeze"), "it stops no count: {told}");
        }
        let told = told(Cause::GarbageCollector, Runtime::Python);
        let at = |what: &str| told.find(what).unwrap_or_else(|| panic!("{what} in {told}"));
        assert!(at("gc.disable()") < at("gc.freeze()") && at("gc.freeze()") < at("gc.enable() in the child"));
        let exit = super::tests::told(Cause::Exit, Runtime::Python);
        assert!(exit.contains("os._exit()"), "{exit}");
    }

    #[test]
    fn what_was_not_measured_to_help_is_not_told() {
        // "Collect before the fork" saves nothing under PHP, and huge pages have no part in a page of 4 KiB.
        let php = told(Cause::GarbageCollector, Runtime::Php);
        assert!(!php.contains("before the fork"), "{php}");
        assert!(!told(Cause::RealWrite, Runtime::Redis).contains("huge"));
        assert_eq!(
            remedy(Cause::Kernel, Runtime::Native, Circumstances::default()),
            None,
            "clone reads into no buffer"
        );
        for cause in [Cause::Unknown, Cause::Stack, Cause::Allocator] {
            assert_eq!(remedy(cause, Runtime::Python, Circumstances { few_words: true, reads: true }), None);
        }
    }
}
