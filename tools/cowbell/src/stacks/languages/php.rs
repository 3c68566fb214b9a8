//! PHP: which lines a process of another php is in, which of its memory are reference counts, and what helps.

mod objects;
mod reader;

use super::recognised::{NOTHING, Recognised};
use super::{InterpreterReader, Language, ObjectReader, PointerBudget, Work, main_thread};
use crate::record::Frame;

/// PHP.
#[derive(Debug)]
pub struct Php;

/// The function by which a program itself asks for a collection.
const COLLECT: &str = "gc_collect_cycles";

const COUNTS: &str = "PHP counts references inside each string, array and object, and keeps there a string's hash and the mark of what it \
                      visits, so reading writes";
const COLLECTS: &str = "PHP's garbage collector writes into each array and object that it visits";

/// The names of PHP's functions and files, and what they tell.
const NAMES: Recognised = Recognised {
    id: "php",
    name: "PHP",
    files: &["libphp", "php"],
    functions: &[
        (Work::References, &["zend_gc_addref", "zend_gc_delref", "rc_dtor_func"]),
        (Work::Collector, &["zend_gc_collect_cycles", "gc_scan_roots", "gc_collect_white"]),
        (Work::Exit, &["php_module_shutdown", "php_request_shutdown"]),
    ],
    beginnings: &[(Work::Allocator, &["_zend_mm_", "zend_mm_", "_emalloc", "_efree"])],
    runs: &["execute_ex", "zend_execute", "zend_call_function"],
    remedies: &[
        (
            Work::References,
            "arrays and strings (not objects): keep the data in a file of constants that opcache has, and include it before the fork. No \
             reference to what opcache keeps is counted. It keeps no file that is younger than two seconds, unless \
             opcache.file_update_protection is 0",
        ),
        (
            Work::Exit,
            "if the child's shutdown functions and destructors need not run, and nobody asks how it ended, flush its files and end it by \
             posix_kill(getmypid(), SIGKILL), which frees nothing and runs none of them",
        ),
        (Work::Collector, "gc_disable() in the child, where it can do without"),
        (
            Work::AskedCollector,
            "gc_collect_cycles() in the parent, right before the fork: what was found to be in use then is not visited again until \
             references to it are given back",
        ),
    ],
    whys: &[
        (Work::References, COUNTS),
        (Work::ObjectReferences, COUNTS),
        (Work::Exit, "PHP frees its values when it ends"),
        (Work::Collector, COLLECTS),
        (Work::AskedCollector, COLLECTS),
    ],
    pastes: &[
        (
            Work::References,
            &[
                "$code = '<?php return ' . var_export($data, true) . ';';    // once, in an earlier run",
                "file_put_contents('data.php', $code);",
                "$data = include 'data.php';    // in the parent, before the fork",
                "; in php.ini, for the command line: opcache.enable_cli=1",
            ],
        ),
        (Work::Exit, &["posix_kill(getmypid(), SIGKILL);    // the child's last line"]),
        (Work::Collector, &["gc_disable();    // in the child, before it reads"]),
        (Work::AskedCollector, &["gc_collect_cycles();    // in the parent, right before the fork"]),
    ],
    ..NOTHING
};

impl Language for Php {
    fn table(&self) -> &Recognised {
        &NAMES
    }

    fn work_of_frames(&self, frames: &[Frame]) -> Option<Work> {
        frames.first().filter(|frame| frame.function == COLLECT).map(|_| Work::AskedCollector)
    }

    fn is_own(&self, file: &str) -> bool {
        !file.split('/').any(|part| part == "vendor")
    }

    fn beside_object_references(&self) -> Option<&'static str> {
        Some("objects of classes are counted all the same, and so is what only they hold")
    }

    fn collects_by_counting(&self) -> bool {
        true
    }

    fn reader(&self, pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        main_thread::reader::<reader::Interpreter>(pid)
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|_| Box::new(objects::Counted))
    }
}
