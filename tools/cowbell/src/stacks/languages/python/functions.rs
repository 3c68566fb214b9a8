//! The work of functions of CPython's interpreter, by their names.

use crate::stacks::languages::Work;

/// Functions that do nothing but count references, inlined or not.
const REFERENCES: &[&str] = &[
    "Py_INCREF",
    "Py_DECREF",
    "Py_XINCREF",
    "Py_XDECREF",
    "Py_NewRef",
    "Py_XNewRef",
    "_Py_NewRef",
    "_Py_XNewRef",
    "_Py_INCREF",
    "_Py_DECREF",
    "_Py_DECREF_SPECIALIZED",
    "_Py_DECREF_NO_DEALLOC",
    "_Py_IncRef",
    "_Py_DecRef",
    "Py_IncRef",
    "Py_DecRef",
    "Py_SET_REFCNT",
    "Py_INCREF_MORTAL",
];

/// Functions of the collector (Modules/gcmodule.c, Python/gc.c).
const COLLECTOR: &[&str] = &[
    "gc_collect_main",
    "gc_collect_region",
    "gc_collect_young",
    "gc_collect_full",
    "gc_collect_increment",
    "gc_collect_with_callback",
    "gc_collect_generations",
    "update_refs",
    "subtract_refs",
    "subtract_refs_unreachable",
    "deduce_unreachable",
    "move_unreachable",
    "move_legacy_finalizers",
    "move_legacy_finalizer_reachable",
    "clear_unreachable_mask",
    "handle_resurrected_objects",
    "untrack_tuples",
    "untrack_dicts",
    "_PyTuple_MaybeUntrack",
    "_PyDict_MaybeUntrack",
    "gc_reset_refs",
    "gc_decref",
    "gc_set_refs",
    "gc_clear_collecting",
    "gc_freeze_impl",
    "gc_unfreeze_impl",
    "update_gc_refs",
    "mark_stacks",
    "_PyGC_CollectNoFail",
    "_PyGC_CollectIfEnabled",
    "_PyGC_Collect",
    "_PyGC_Freeze",
    "_Py_RunGC",
    "PyGC_Collect",
    "gc_collect",
    "gc_freeze",
    "collect_generations",
    "invoke_gc_callback",
];

/// Beginnings of names of the collector's callbacks: no other code of the interpreter is named so.
const COLLECTOR_BEGINNINGS: &[&str] = &["gc_list_", "visit_decref", "visit_reachable", "visit_move"];

/// Functions of the object allocator (Objects/obmalloc.c).
const ALLOCATOR: &[&str] = &[
    "_PyObject_Malloc",
    "_PyObject_Free",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "PyObject_Malloc",
    "PyObject_Free",
    "PyObject_Realloc",
    "PyMem_Malloc",
    "PyMem_Free",
    "PyMem_RawFree",
    "PyMem_RawMalloc",
    "_PyMem_RawFree",
    "_PyMem_RawMalloc",
    "allocate_from_new_pool",
    "insert_to_usedpool",
    "insert_to_freepool",
    "new_arena",
    "arena_map_mark_used",
];

/// Functions that run code of the program (Python/ceval.c).
const RUNS: &[&str] = &["_PyEval_EvalFrameDefault", "_PyEval_Vector", "PyEval_EvalCode", "PyEval_EvalFrameEx"];

/// Tells whether a function runs code of the program.
pub fn runs_program(function: &str) -> bool {
    RUNS.contains(&function)
}

/// Tells whether a function runs the program and then takes the interpreter down: below it is the one or the other. It is exported,
/// where the functions that take it down are not (since CPython 3.13).
pub fn outlives_program(function: &str) -> bool {
    function == "Py_RunMain"
}

/// The work of a function; `None` for one that is in none of these lists.
pub fn work(function: &str) -> Option<Work> {
    if COLLECTOR.contains(&function) || COLLECTOR_BEGINNINGS.iter().any(|start| function.starts_with(start)) {
        Some(Work::Collector)
    } else if REFERENCES.contains(&function) {
        Some(Work::References)
    } else if ALLOCATOR.contains(&function) || function.starts_with("pymalloc_") {
        Some(Work::Allocator)
    } else if ["Py_FinalizeEx", "Py_Finalize", "_Py_Finalize", "finalize_modules", "finalize_interp_clear"]
        .contains(&function)
    {
        Some(Work::Exit)
    } else if function == "PyOS_AfterFork_Child" {
        Some(Work::Start)
    } else {
        None
    }
}
