//! The meaning of names of functions: whether code counts references, collects garbage or keeps an allocator's books.

use crate::record::NativeFrame;
pub use crate::stacks::languages::Work as Purpose;
use crate::stacks::languages::{outlives_program, runs_program, work_of_function};
pub use crate::stacks::own_name::moves_bytes;

/// Functions that do nothing but count references, inlined or not.
const REFERENCES: &[&str] = &[
    // Redis and Valkey
    "incrRefCount",
    "decrRefCount",
    // GLib
    "g_object_ref",
    "g_object_unref",
    "g_ref_count_inc",
    "g_atomic_ref_count_inc",
    "g_atomic_ref_count_dec",
    // libstdc++
    "_M_add_ref_copy",
    "_M_add_ref_lock",
    "_M_release",
];

/// Functions of collectors that are no language's: Boehm's.
const COLLECTOR: &[&str] = &["GC_mark_from"];

const ALLOCATOR: &[&str] = &[
    // C
    "malloc",
    "free",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "cfree",
    "malloc_consolidate",
    "unlink_chunk",
    "sysmalloc",
    "systrim",
    "malloc_trim",
    "alloc_perturb",
    "sysmalloc_mmap",
    "tcache_get",
    "tcache_put",
    "tcache_init",
    "ptmalloc_init",
    // C++
    "operator new",
    "operator delete",
    // Redis' own layer
    "zmalloc",
    "zfree",
];

const ALLOCATOR_BEGINNINGS: &[&str] = &[
    "_int_malloc",
    "_int_free",
    "_int_realloc",
    "_int_memalign",
    "__libc_malloc",
    "__libc_free",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_memalign",
    "__GI___libc_",
    "je_",
    "_rjem_",
    "jemalloc",
    "tcmalloc",
    // mimalloc
    "mi_malloc",
    "mi_calloc",
    "mi_zalloc",
    "mi_realloc",
    "mi_free",
    "mi_heap_",
    "mi_page_",
    "mi_block_",
    "mi_segment_",
    "mi_arena_",
    "_mi_",
    // jemalloc, whose functions many programs have built in
    "arena_malloc",
    "arena_dalloc",
    "arena_ralloc",
    "arena_palloc",
    "arena_slab_",
    "arena_bin_",
    "arena_cache_bin_",
    "arena_tcache_",
    "arena_large_",
    "arena_decay_",
    "arena_extent_",
    "arena_run_",
    "tcache_alloc_",
    "tcache_dalloc_",
    "tcache_bin_flush_",
    "tcache_event",
    "tcache_gc_",
    "edata_",
    "extent_heap_",
    "extent_tree_",
    "extent_alloc",
    "extent_dalloc",
    "extent_split",
    "extent_merge",
    "extent_recycle",
    "extents_",
    "ztrymalloc",
    "zcalloc",
    "zrealloc",
    "__rust_alloc",
    "__rust_dealloc",
    "__rust_realloc",
    "__rdl_",
    "operator new(",
    "operator new[](",
    "operator delete(",
    "operator delete[](",
];

/// Beginnings of names of libraries that hold nothing but an allocator.
const ALLOCATOR_FILES: &[&str] = &["libjemalloc", "libmimalloc", "libtcmalloc"];

/// The purpose of all code of a file, where that has one, by the file's name.
pub fn purpose_of_file(file: &str) -> Option<Purpose> {
    let name = file.rsplit('/').next().unwrap_or(file);
    ALLOCATOR_FILES.iter().any(|beginning| name.starts_with(beginning)).then_some(Purpose::Allocator)
}

/// Frames that are nobody's own code: what the language's library inlines everywhere.
const LIBRARY_FILES: &[&str] =
    &["/rustc/", "library/core/", "library/alloc/", "library/std/", "/usr/include/", "/lib/gcc/", "Include/object.h"];

/// Beginnings of names of functions in which glibc gives out memory that is free.
const GIVES_OUT: &[&str] = &[
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    "__libc_malloc",
    "__libc_calloc",
    "__libc_realloc",
    "__GI___libc_malloc",
    "__GI___libc_calloc",
    "__GI___libc_realloc",
];

/// Tells whether this is a function in which glibc gives out memory that is free.
pub fn gives_out(function: &str) -> bool {
    GIVES_OUT.iter().any(|beginning| bare(function).starts_with(beginning))
}

/// A function's bare name: without arguments of its type, and without what compilers append (`.constprop.0`,
/// `.part.0`, `.isra.0`, `.cold`, `.lto_priv.0`).
fn bare(function: &str) -> &str {
    let end = [".constprop.", ".part.", ".isra.", ".cold", ".lto_priv."].iter().filter_map(|tail| function.find(tail));
    function.get(..end.min().unwrap_or(function.len())).unwrap_or(function)
}

fn counts_references(name: &str) -> bool {
    // Rust's and C++'s shared pointers, whatever they point to.
    let shared = |name: &str| {
        let counted = name.contains("sync::Arc<") || name.contains("rc::Rc<");
        (counted && (name.ends_with("::clone") || name.ends_with("::drop")))
            || (name.contains("_Sp_counted_base") && ["::_M_add_ref", "::_M_release"].iter().any(|f| name.contains(f)))
    };
    REFERENCES.contains(&name) || shared(name) || work_of_function(name) == Some(Purpose::References)
}

fn collects(name: &str) -> bool {
    COLLECTOR.contains(&name) || work_of_function(name) == Some(Purpose::Collector)
}

fn allocates(name: &str) -> bool {
    ALLOCATOR.contains(&name)
        || ALLOCATOR_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || work_of_function(name) == Some(Purpose::Allocator)
}

/// Functions in which a program or its interpreter shuts down: what runs below them is done on the way out.
const SHUTDOWN: &[&str] = &["__run_exit_handlers", "exit", "quick_exit"];

/// Tells whether a function shuts the program or its interpreter down.
pub fn shuts_down(frames: &[NativeFrame]) -> bool {
    let mut names = frames.iter().map(|frame| bare(&frame.function));
    names.any(|name| SHUTDOWN.contains(&name) || work_of_function(name) == Some(Purpose::Exit))
}

/// Does a function take an interpreter down, or run the program that an interpreter has? Of those that a place has, the innermost
/// that does either.
pub fn teardown(frames: &[NativeFrame]) -> Option<bool> {
    let mut names = frames.iter().map(|frame| bare(&frame.function));
    names.find_map(|name| match work_of_function(name) {
        Some(Purpose::Exit) => Some(true),
        _ if runs_program(name) => Some(false),
        _ => outlives_program(name).then_some(true),
    })
}

/// Functions that fork: what runs below them in a child comes before its own first instruction.
const FORK: &[&str] = &["fork", "__fork", "__libc_fork", "_Fork", "__run_postfork_handlers", "__run_fork_handlers"];

/// Tells whether a function sets up a child that was just forked.
pub fn starts(frames: &[NativeFrame]) -> bool {
    let mut names = frames.iter().map(|frame| bare(&frame.function));
    names.any(|name| FORK.contains(&name) || work_of_function(name) == Some(Purpose::Start))
}

/// The purpose of an instruction, from its frames, the innermost inlined one first. The collector decides over
/// what is inlined into it; references count only in the innermost frames: what a function that was inlined next to
/// one does, it does itself.
pub fn purpose(frames: &[NativeFrame]) -> Option<Purpose> {
    let names: Vec<&str> = frames.iter().map(|frame| bare(&frame.function)).collect();
    let innermost = names.first()?;
    Some(if names.iter().any(|name| collects(name)) {
        Purpose::Collector
    } else if counts_references(innermost) {
        Purpose::References
    } else if let Some(keeps) = names.iter().filter_map(|name| work_of_function(name)).find(|work| work.keeps()) {
        keeps
    } else if names.iter().any(|name| work_of_function(name) == Some(Purpose::ObjectReferences)) {
        Purpose::ObjectReferences
    } else if names.iter().any(|name| allocates(name)) {
        Purpose::Allocator
    } else if frames.iter().zip(&names).take_while(|(frame, _)| is_library(frame)).any(|(_, n)| counts_references(n)) {
        Purpose::References
    } else {
        Purpose::Other
    })
}

/// The work for which an interpreter takes memory, by the places of a stack, the innermost first, as far as it runs no code of the program's
/// inside: a value keeps what it was asked for, or a module is loaded.
pub fn takes_memory<'a>(mut places: impl Iterator<Item = &'a [NativeFrame]>) -> Option<Purpose> {
    let names = |frames: &'a [NativeFrame]| frames.iter().map(|frame| bare(&frame.function));
    let told = places.find_map(|frames| {
        names(frames).find_map(|name| match work_of_function(name) {
            // Code that goes through a hash takes memory for its keys, and gives it back.
            Some(work) if work.keeps() && work != Purpose::Iterators || work == Purpose::Import => Some(Some(work)),
            _ => runs_program(name).then_some(None),
        })
    });
    told.flatten()
}

fn is_library(frame: &NativeFrame) -> bool {
    frame.file.as_ref().is_some_and(|file| LIBRARY_FILES.iter().any(|part| file.contains(part)))
        || counts_references(bare(&frame.function))
}

/// The place of an instruction, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedPlace<'a> {
    /// The function in the symbol table.
    pub function: &'a str,
    /// The function inlined into it that says most about the write.
    pub inlined: Option<&'a str>,
    /// File and line, of the innermost frame that is the program's own.
    pub line: Option<(&'a str, u32)>,
}

/// The place of an instruction; `None` without frames.
pub fn place(frames: &[NativeFrame]) -> Option<NamedPlace<'_>> {
    let outermost = frames.last()?;
    let own = frames.iter().find(|frame| !is_library(frame)).unwrap_or(outermost);
    // A reference count that is inlined into the function is worth its name where the program's own frame is the function itself.
    let counter = || frames.iter().find(|frame| counts_references(bare(&frame.function)));
    let inlined = if own == outermost { counter() } else { Some(own) };
    let inlined = inlined.filter(|frame| frame.function != outermost.function).map(|frame| frame.function.as_str());
    let line = own.file.as_deref().zip(own.line);
    Some(NamedPlace { function: &outermost.function, inlined, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(names: &[&str]) -> Vec<NativeFrame> {
        let frame = |name: &&str| NativeFrame { function: (*name).into(), file: None, line: None };
        names.iter().map(frame).collect()
    }

    #[test]
    fn names_tell_what_code_is_for() {
        for (names, expected) in [
            (&["Py_INCREF", "listiter_next"][..], Purpose::References),
            (&["listiter_next"], Purpose::Other),
            (&["gc_list_move", "visit_reachable", "gc_collect_main"], Purpose::Collector),
            (&["update_refs.lto_priv.0"], Purpose::Collector),
            (&["gc_mark_ptr"], Purpose::Collector),
            (&["_int_malloc"], Purpose::Allocator),
            (&["unlink_chunk.constprop.0"], Purpose::Allocator),
            (&["pymalloc_free", "_PyObject_Free"], Purpose::Allocator),
            (&["operator new(unsigned long)"], Purpose::Allocator),
            (&["<alloc::sync::Arc<T> as core::clone::Clone>::clone", "serve"], Purpose::References),
            (&["incrRefCount"], Purpose::References),
            // Names that only begin alike.
            (&["freeze"], Purpose::Other),
            (&["malloc_report"], Purpose::Other),
            (&["visit_node"], Purpose::Other),
            (&["arena_mark"], Purpose::Other),
            (&["mi_update"], Purpose::Other),
            (&["extent_write"], Purpose::Other),
            (&["arena_malloc_hard", "malloc_default"], Purpose::Allocator),
            (&["mi_page_free_list_extend"], Purpose::Allocator),
            (&["Py_INCREF_me"], Purpose::Other),
            (&["dictAddRaw"], Purpose::Other),
        ] {
            assert_eq!(purpose(&frames(names)), Some(expected), "{names:?}");
        }
        assert_eq!(purpose(&[]), None);
    }

    #[test]
    fn the_place_is_the_programs_own_line_and_names_the_count_inlined_into_it() {
        let frame = |function: &str, file: &str, line| NativeFrame {
            function: function.into(),
            file: Some(file.into()),
            line: Some(line),
        };
        let found =
            [frame("Py_INCREF", "./Include/object.h", 505), frame("listiter_next", "Objects/listobject.c", 3273)];
        let expected = NamedPlace {
            function: "listiter_next",
            inlined: Some("Py_INCREF"),
            line: Some(("Objects/listobject.c", 3273)),
        };
        assert_eq!(place(&found), Some(expected));
        let found = [
            frame("core::sync::atomic::AtomicU64::fetch_add", "/rustc/abc/library/core/src/sync/atomic.rs", 9),
            frame("bump", "src/a.rs", 3),
            frame("serve", "src/b.rs", 4),
        ];
        let expected = NamedPlace { function: "serve", inlined: Some("bump"), line: Some(("src/a.rs", 3)) };
        assert_eq!(place(&found), Some(expected));
        assert_eq!(place(&[]), None);
    }
}
