//! CPython: which lines a thread of another process is in, read from outside; what its interpreter's functions and its
//! library's lines work at.
//!
//! Everything here only reads the target's memory: it neither stops nor resumes anything, because the tracer has the
//! thread of interest standing still already.

mod fork_server;
mod functions;
mod imports;
mod objects;
mod pools;

use super::recognised::{NOTHING, Recognised};
use super::{Import, InterpreterReader, Language, ObjectReader, PointerBudget, Work};
use crate::record::Frame;
use crate::stacks::FRAMES_MAX;
use cowbell::sys::procfs::maps::{self, Mapping};
use cowbell::sys::procfs::status::Status;
use py_spy::config::{Config, LockingStrategy};
use py_spy::{PythonSpy, StackTrace};
use read_process_memory::{CopyAddress, ProcessHandle, at_one_moment};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// Offsets at which the C library keeps a thread's id in its control block, glibc first, then musl. Neither has moved it for ten
/// years; where it is not there the thread is not found, and no other one is taken for it.
const IDS_IN_CONTROL_BLOCK: [u64; 2] = if cfg!(target_arch = "x86_64") { [720, 48] } else { [208, 32] };

/// CPython.
#[derive(Debug)]
pub struct CPython;

impl Language for CPython {
    fn table(&self) -> &Recognised {
        // Python's names tell more than a table can hold.
        &NOTHING
    }

    fn id(&self) -> &'static str {
        "python"
    }

    fn name(&self) -> &'static str {
        "Python"
    }

    fn is_run_by(&self, file: &str) -> bool {
        let name = file.rsplit('/').next().unwrap_or(file);
        let version = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit()) || rest.is_empty();
        // Python's extensions are mapped even where the interpreter is part of another program.
        name.starts_with("libpython")
            || name.contains(".cpython-")
            || name.strip_prefix("python").is_some_and(|rest| version(rest) && !rest.ends_with(".so"))
    }

    fn work_of_function(&self, function: &str) -> Option<Work> {
        functions::work(function)
    }

    fn runs_program(&self, function: &str) -> bool {
        functions::runs_program(function)
    }

    fn outlives_program(&self, function: &str) -> bool {
        functions::outlives_program(function)
    }

    fn work_of_frames(&self, frames: &[Frame]) -> Option<Work> {
        // The innermost of the frames that say what they are for decides.
        frames.iter().find_map(|frame| {
            let file = frame.file.as_str();
            let function = frame.function.rsplit('.').next().unwrap_or_default();
            if function.starts_with("_after_fork") || function == "_after_at_fork_child_reinit_locks" {
                Some(Work::Start)
            } else if file.starts_with("<frozen importlib") {
                Some(Work::Import)
            } else if (file.ends_with("/pickle.py") && matches!(function, "load" | "loads" | "_loads"))
                || (file.ends_with("/multiprocessing/reduction.py") && function == "loads")
                || (file.ends_with("/multiprocessing/queues.py") && function == "get")
                || (file.ends_with("/multiprocessing/connection.py") && function.contains("recv"))
            {
                Some(Work::Unpickling)
            } else if (file.ends_with("/pickle.py") && matches!(function, "dump" | "dumps" | "_dumps"))
                || (file.ends_with("/multiprocessing/reduction.py") && matches!(function, "dump" | "dumps"))
                || (file.ends_with("/multiprocessing/queues.py") && matches!(function, "put" | "_feed"))
                || (file.ends_with("/multiprocessing/connection.py") && function.contains("send"))
            {
                Some(Work::Pickling)
            } else {
                None
            }
        })
    }

    fn phase_of_frames(&self, frames: &[Frame]) -> Option<Work> {
        // The innermost frame that says so decides: below it are those of the parent at its fork, which may be a worker itself.
        for frame in frames {
            let function = frame.function.rsplit('.').next().unwrap_or_default();
            let path: Vec<&str> = frame.file.rsplit('/').take(3).collect();
            match (path.as_slice(), function) {
                (["process.py", "multiprocessing" | "billiard", ..], "run")
                | (["process.py", "futures", "concurrent"], "_process_worker")
                | ([_, "workers", "gunicorn"], "run") => return None,
                (["util.py", "multiprocessing" | "billiard", ..], "_exit_function")
                | (["threading.py", ..], "_shutdown")
                | (["thread.py", "futures", "concurrent"], "_python_exit") => return Some(Work::Exit),
                (["process.py", "multiprocessing" | "billiard", ..], "_bootstrap")
                | (["spawn.py", "multiprocessing", ..], "_main")
                | (["forkserver.py", "multiprocessing", ..], "_serve_one")
                | (["arbiter.py", "gunicorn", ..], "spawn_worker") => return Some(Work::Start),
                _ if function.starts_with("_after_fork") || function == "_after_at_fork_child_reinit_locks" => {
                    return Some(Work::Start);
                }
                _ => {}
            }
        }
        None
    }

    fn import_of_frames(&self, frames: &[Frame]) -> Option<Import> {
        imports::outermost(frames, |file| self.is_own(file))
    }

    fn imported(&self, import: &Import, line: &str) -> Option<String> {
        imports::module(import, line)
    }

    fn is_own(&self, file: &str) -> bool {
        let library = |part: &&str| {
            part.strip_prefix("python").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let parts: Vec<&str> = file.split('/').collect();
        let foreign = parts.windows(2).any(|pair| matches!(pair, ["lib" | "lib64", version] if library(version)));
        let package = parts.iter().any(|part| ["site-packages", "dist-packages"].contains(part));
        !(foreign || package || file.starts_with('<'))
    }

    fn remedy(&self, work: Work) -> Option<&'static str> {
        match work {
            Work::References => Some(
                "keep the data in few large objects: numpy arrays (not of dtype=object), array, mmap, memoryview, Arrow. \
                 Reading an object counts its references",
            ),
            Work::Collector => Some(
                "gc.disable() in the parent before it loads the data, gc.freeze() right before the fork, and \
                 gc.enable() in the child: what is frozen its collector does not visit",
            ),
            Work::Unpickling => Some(
                "keep large data in a global that is there before the pool is made, and send its index or key: what is \
                 inherited by fork is not pickled",
            ),
            Work::Import => Some(
                "import in the parent, before the fork (gunicorn: --preload): then what the modules make is shared",
            ),
            Work::Exit => Some(
                "if the child's atexit functions need not run, flush its files and leave it by os._exit(), which frees nothing: \
                 it runs none of them, no finally block, and joins no thread",
            ),
            Work::Hashes => Some("ask for the hashes before the fork: hash(x) once for each"),
            _ => None,
        }
    }

    fn why(&self, work: Work) -> Option<&'static str> {
        match work {
            Work::References => Some("Python counts references inside each object, so reading writes"),
            Work::Collector => Some("Python's garbage collector writes into each object that it visits"),
            Work::Exit => Some("Python frees its objects when it ends"),
            Work::Unpickling => Some("workers unpickle what they are sent into memory of their own"),
            Work::Pickling => Some("what is sent to another process is pickled into memory first"),
            Work::Import => Some("modules were loaded after the fork, by each process for itself"),
            _ => None,
        }
    }

    fn paste(&self, work: Work) -> &'static [&'static str] {
        match work {
            Work::Collector => &[
                "gc.disable()    # in the parent, before it loads the data",
                "gc.freeze()     # in the parent, right before the fork",
                "gc.enable()     # in the child",
            ],
            Work::Exit => &["sys.stdout.flush(); os._exit(0)    # the child's last line"],
            Work::Unpickling => &[
                "data = load()                     # a global, before the pool is made",
                "pool = multiprocessing.Pool(4)    # with the start method fork",
                "pool.map(work, range(n))          # work(i) uses data and i",
            ],
            _ => &[],
        }
    }

    fn remedy_under(&self, work: Work, command: &[String]) -> Option<(&'static str, &'static [&'static str])> {
        let runs = |what: &str| command.iter().take(4).any(|word| word.split(['/', '.']).any(|part| part == what));
        match work {
            Work::Exit if runs("gunicorn") => Some((
                "if the workers' atexit functions need not run, end the workers by os._exit() in gunicorn's hook worker_exit, which \
                 frees nothing; flush there what must be kept",
                &["def worker_exit(server, worker):    # in gunicorn.conf.py", "    os._exit(0)"],
            )),
            Work::Exit if runs("uwsgi") => Some((
                "if the workers' atexit functions need not run, have uwsgi end them without taking the interpreter down, which frees \
                 each object; flush what must be kept in a function that uwsgi.atexit names: that one runs still",
                &["skip-atexit-teardown = true    # in uwsgi.ini, or --skip-atexit-teardown"],
            )),
            Work::Import if fork_server::serves(command) => Some((
                "have the fork server load these modules, before the first process is started: what it has loaded its children share. \
                 Before Python 3.12.8, and in 3.13.0, it does not look for them beside the script, only in the current directory, by \
                 PYTHONPATH and among installed packages; and of what it does not find it says nothing",
                &["multiprocessing.set_forkserver_preload(['MODULE'])"],
            )),
            _ => None,
        }
    }

    fn newer_remedy(&self, work: Work, file: &str) -> Option<(&'static str, &'static [&'static str])> {
        let name = file.rsplit('/').next().unwrap_or(file);
        let version = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python3.")?;
        let (digits, rest) = version.split_at(version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len()));
        // Free-threaded and debug builds (3.13t, 3.13d) have objects of another layout.
        let minor: u32 = digits.parse().ok().filter(|_| !rest.starts_with(['t', 'd']))?;
        (work == Work::References && (12..=15).contains(&minor)).then_some((
            "cowbell_fork.freeze(DATA), right before the fork, makes objects immortal in place: reading them writes nothing. \
             DATA stands for what the children read (docs/PYTHON.md; tools/build-wheel makes the package)",
            &["import cowbell_fork; cowbell_fork.freeze(DATA)"],
        ))
    }

    fn loading_early(&self, modules: &[String], command: &[String]) -> Vec<String> {
        let list = |names: &[String], quote: &str| {
            names.iter().map(|name| format!("{quote}{name}{quote}")).collect::<Vec<_>>().join(", ")
        };
        let told = fork_server::preloads(command);
        // The line takes the place of the program's own, whose list it goes on with. Alone, `__main__` is everybody's.
        let before = told.iter().filter(|_| told != ["__main__"]).filter(|name| !modules.contains(name));
        let all: Vec<String> = before.chain(modules).cloned().collect();
        match modules {
            [] => Vec::new(),
            _ if fork_server::serves(command) => {
                vec![format!("multiprocessing.set_forkserver_preload([{}])", list(&all, "'"))]
            }
            _ => vec![format!("import {}    # in the parent, before the fork", list(modules, ""))],
        }
    }

    fn not_loaded_early(&self, modules: &[String], command: &[String]) -> Option<String> {
        let told = fork_server::preloads(command);
        let missed: Vec<&str> = modules.iter().filter(|name| told.contains(name)).map(String::as_str).collect();
        (!missed.is_empty()).then(|| {
            format!(
                "the fork server was told to preload {}, and has not: where an import fails there, it goes on without a word (Python 3.15: \
                 unless it is given on_error='warn'). Before Python 3.12.8, and in 3.13.0, it does not look for modules beside the script, \
                 only in the current directory, by PYTHONPATH and among installed packages",
                missed.join(", ")
            )
        })
    }

    fn starting_programs(&self) -> Option<&'static str> {
        Some(
            "Python's subprocess takes vfork from Python 3.10 on (3.12.0 does not), unless it is given preexec_fn, user, group or \
             extra_groups",
        )
    }

    fn reader(&self, pid: i32) -> Result<Option<Box<dyn InterpreterReader>>, String> {
        Ok(Python::find(pid)?.map(|python| Box::new(python) as Box<dyn InterpreterReader>))
    }

    fn objects(&self) -> Option<fn(PointerBudget) -> Box<dyn ObjectReader>> {
        Some(|patience| Box::new(objects::TypeObjects::new(patience)))
    }

    fn symbols_package(&self, file: &str) -> Option<String> {
        let version = file.strip_prefix("/usr/bin/python")?;
        let is_version = version.contains('.') && version.chars().all(|c| c.is_ascii_digit() || c == '.');
        is_version.then(|| format!("python{version}-dbg"))
    }
}

impl InterpreterReader for Python {
    fn language(&self) -> &'static dyn Language {
        &CPython
    }

    fn for_child(&self, pid: i32) -> Box<dyn InterpreterReader> {
        Box::new(Python::for_child(self, pid))
    }

    fn frames(&mut self, tid: i32, _pc: Option<u64>) -> Vec<Frame> {
        Python::frames(self, tid)
    }
}

/// The interpreter of one process.
#[derive(Clone)]
struct Python {
    /// The process.
    pid: i32,
    /// True if it lives in a process id namespace of its own, and so knows its threads by other ids.
    namespaced: bool,
    /// The reader, which knows where the interpreter keeps its threads. It is shared by all forked relatives, in which these are at
    /// the same addresses, and turned towards one of them at each use.
    spy: Arc<Mutex<PythonSpy>>,
}

impl Python {
    /// Finds the interpreter in a process; `None` if it runs no CPython.
    ///
    /// If there is one, its symbols are parsed, which takes milliseconds: ask once a family, then use
    /// [`Python::for_child`].
    ///
    /// # Errors
    /// The process has the looks of CPython and cannot be read: not initialised yet, of an unknown version, without
    /// permission, or gone.
    fn find(pid: i32) -> Result<Option<Self>, String> {
        let maps = maps::read(pid).map_err(|e| format!("cannot read the mappings of process {pid}: {e}"))?;
        if !maps.iter().filter_map(code_file).any(|file| CPython.is_run_by(file)) {
            return Ok(None);
        }
        let config = Config {
            blocking: LockingStrategy::AlreadyLocked,
            // Otherwise it looks in the file system for where each file's package begins.
            full_filenames: true,
            collect_thread_names: false,
            ..Config::default()
        };
        match catch_unwind(|| PythonSpy::new(pid, &config)) {
            Ok(Ok(spy)) => Ok(Some(Self { pid, namespaced: is_namespaced(pid), spy: Arc::new(Mutex::new(spy)) })),
            Ok(Err(e)) => Err(format!("cannot read the Python of process {pid}: {e:#}")),
            Err(_) => Err(format!("cannot read the Python of process {pid}: its memory makes no sense")),
        }
    }

    /// The interpreter of a process that was forked from this one and has not executed another program.
    fn for_child(&self, pid: i32) -> Self {
        Self { pid, namespaced: is_namespaced(pid), spy: Arc::clone(&self.spy) }
    }

    /// The frames of a thread that stands still, the innermost first. Empty if it runs none, or if what is
    /// there makes no sense.
    fn frames(&mut self, tid: i32) -> Vec<Frame> {
        let tid = if self.namespaced { own_id(self.pid, tid).unwrap_or(tid) } else { tid };
        let mut spy = self.spy.lock().unwrap_or_else(PoisonError::into_inner);
        spy.pid = self.pid;
        spy.process.pid = self.pid;
        // A thread that writes reference counts holds the interpreter lock nearly always, and its stack alone is read much
        // faster than all of them.
        let mut stack = |lock_holder_only| {
            spy.config.gil_only = lock_holder_only;
            at_one_moment(|| {
                // The reader trusts the lengths that it finds, so memory caught half-written can make it panic.
                let stacks = catch_unwind(AssertUnwindSafe(|| spy.get_stack_traces())).ok()?.ok()?;
                stacks.into_iter().find(|stack| self.is_of(stack, tid))
            })
        };
        let stack = stack(true).or_else(|| stack(false));
        let frame = |frame: py_spy::Frame| Frame { function: frame.name, file: frame.filename, line: frame.line };
        stack.into_iter().flat_map(|stack| stack.frames).take(FRAMES_MAX).map(frame).collect()
    }

    /// Tells whether this is the stack of the thread that its process knows by this id.
    fn is_of(&self, stack: &StackTrace, tid: i32) -> bool {
        // Python before 3.11 does not tell the id, and just after a fork tells the parent's. The control block,
        // which is what pthread_self() points to, has it from the first instruction after the fork.
        stack.os_thread_id == Some(tid as u64) || self.control_block_has(stack.thread_id, tid)
    }

    /// Tells whether this is the id in the control block that the C library keeps for a thread.
    fn control_block_has(&self, address: u64, tid: i32) -> bool {
        let Ok(memory) = ProcessHandle::try_from(self.pid) else { return false };
        IDS_IN_CONTROL_BLOCK.into_iter().any(|offset| {
            let mut id = [0; size_of::<i32>()];
            let at = address.wrapping_add(offset) as usize;
            memory.copy_address(at, &mut id).is_ok() && i32::from_ne_bytes(id) == tid
        })
    }
}

/// The file whose code a mapping shows; a debugger maps an interpreter's file too, but as data.
fn code_file(mapping: &Mapping) -> Option<&str> {
    (mapping.permissions.contains('x') && mapping.name.starts_with('/')).then_some(mapping.name.as_str())
}

/// The ids of a thread, from the outermost namespace to its own.
fn ids(pid: i32, tid: i32) -> Vec<i32> {
    Status::of_thread(pid, tid).map(|status| status.thread_ids()).unwrap_or_default()
}

/// Tells whether a process knows itself by another id than we do.
fn is_namespaced(pid: i32) -> bool {
    ids(pid, pid).len() > 1
}

/// The id by which a thread knows itself.
fn own_id(pid: i32, tid: i32) -> Option<i32> {
    ids(pid, tid).last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::fixture::Program;
    use std::fs;
    use std::process::Command;

    #[test]
    fn a_worker_works_once_its_library_runs_the_job_and_the_frames_below_its_fork_are_its_parents() {
        let lib = "/usr/lib/python3.11";
        let frames = |names: &[&str]| -> Vec<Frame> {
            let frame = |name: &&str| {
                let (file, function) = name.split_once(' ').expect("both");
                let file = if file.starts_with('/') { file.to_owned() } else { format!("{lib}/{file}") };
                Frame { function: function.into(), file, line: 1 }
            };
            names.iter().map(frame).collect()
        };
        let process = "multiprocessing/process.py";
        let [run, bootstrap, end] = [
            format!("{process} run"),
            format!("{process} _bootstrap"),
            "multiprocessing/util.py _exit_function".into(),
        ];
        for (names, due) in [
            (&["random.py seed", &bootstrap][..], Some(Work::Start)),
            (&["/app.py f", &run, &bootstrap, "multiprocessing/popen_fork.py _launch"], None),
            (&["/app.py last", &end, &bootstrap], Some(Work::Exit)),
            // Forked by a worker's job.
            (&[bootstrap.as_str(), "/app.py f", &run, &bootstrap], Some(Work::Start)),
            (
                &["/x/site-packages/gunicorn/workers/sync.py run", "/x/site-packages/gunicorn/arbiter.py spawn_worker"],
                None,
            ),
            (&["/app.py load", "/x/site-packages/gunicorn/arbiter.py spawn_worker"], Some(Work::Start)),
            (&["threading.py _after_fork"], Some(Work::Start)),
            (&["/app.py run"], None),
        ] {
            assert_eq!(CPython.phase_of_frames(&frames(names)), due, "{names:?}");
        }
    }

    #[test]
    fn what_a_fork_server_was_told_to_preload_is_named_if_its_workers_loaded_it_and_kept_in_the_line_to_paste() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let server = |list: &str| {
            let code = format!("from multiprocessing.forkserver import main; main(9, 12, {list}, **{{}})");
            names(&["python3", "-c", &code])
        };
        let missed = CPython.not_loaded_early(&names(&["heavy", "other"]), &server("['json', 'heavy']"));
        assert!(missed.is_some_and(|text| text.contains("told to preload heavy, and has not")));
        assert_eq!(CPython.not_loaded_early(&names(&["other"]), &server("['json', 'heavy']")), None);
        assert_eq!(CPython.not_loaded_early(&names(&["heavy"]), &names(&["python3", "heavy.py"])), None);
        let early = |list: &str| CPython.loading_early(&names(&["heavy"]), &server(list));
        assert_eq!(early("['__main__']"), ["multiprocessing.set_forkserver_preload(['heavy'])"]);
        let both = "multiprocessing.set_forkserver_preload(['__main__', 'json', 'heavy'])";
        assert_eq!(early("['__main__', 'json']"), [both]);
    }

    /// Starts a Python program that says whom to look at, one process and thread a line.
    fn start(source: &str) -> Program {
        let python = std::env::var("COWBELL_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        Program::start(Command::new(python).args(["-c", source]))
    }

    /// The next process and thread.
    fn next(program: &mut Program) -> (i32, i32) {
        let line = program.line();
        let (pid, tid) = line.split_once(' ').unwrap();
        (pid.parse().unwrap(), tid.parse().unwrap())
    }

    /// The same, once that thread waits for its input.
    fn next_reading(program: &mut Program) -> (i32, i32) {
        let (pid, tid) = next(program);
        program.wait_until_reading(pid, tid);
        (pid, tid)
    }

    /// Waits until a file of a thread in /proc says something.
    fn wait_until(thread: (i32, i32), file: &str, says: impl Fn(&str) -> bool) {
        let path = format!("/proc/{}/task/{}/{file}", thread.0, thread.1);
        while !says(&fs::read_to_string(&path).unwrap()) {
            std::thread::yield_now();
        }
    }

    /// The fields of /proc/PID/stat after the name, which may hold anything.
    fn fields(stat: &str) -> Vec<&str> {
        stat.rsplit_once(") ").unwrap().1.split(' ').collect()
    }

    fn calls(frames: &[Frame]) -> Vec<(&str, i32)> {
        frames.iter().map(|frame| (frame.function.rsplit('.').next().unwrap(), frame.line)).collect()
    }

    const FORKS: &str = "
import os, threading

def inner(go):
    os.write(1, b'%d %d\\n' % (os.getpid(), threading.get_native_id()))
    os.read(go, 1)

def outer(go):
    x = 1
    inner(go)

pid = os.fork()
if pid:
    outer(0)
    os.waitpid(pid, 0)
else:
    outer(0)
    os._exit(0)
";

    #[test]
    fn a_parent_and_its_forked_child_tell_their_functions_and_lines() {
        let mut program = start(FORKS);
        let parent = program.pid();
        let (first, second) = (next_reading(&mut program), next_reading(&mut program));
        let child = if first.0 == parent { second } else { first };
        let mut python = Python::find(parent).unwrap().expect("CPython");
        let mut in_child = python.for_child(child.0);
        assert_eq!(calls(&python.frames(parent)), [("inner", 6), ("outer", 10), ("<module>", 14)]);
        assert_eq!(calls(&in_child.frames(child.1)), [("inner", 6), ("outer", 10), ("<module>", 17)]);
        assert_eq!(python.frames(parent)[0].file, "<string>");
        assert_eq!(calls(&python.frames(parent))[2], ("<module>", 14), "the parent again after the child");
    }

    /// A process' share of its anonymous memory: it grows when a shared page becomes two.
    fn share_kib(pid: i32) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Pss_Anon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    const FORKS_DEEP: &str = "
import os

def deepest():
    if os.fork():
        os.wait()
        return
    os.write(1, b'%d %d\\n' % (os.getpid(), os.getpid()))
    os.read(0, 1)

functions, filler = [deepest], []
for n in range(40):
    names = {'next': functions[-1]}
    exec(compile(f'def f{n}(): next()', f'file{n}.py', 'exec'), names)
    functions.append(names[f'f{n}'])
    filler.append([str(n * 1000 + i) for i in range(1000)])
functions[-1]()
";

    #[test]
    fn looking_at_a_forked_child_gives_it_no_copies() {
        let mut program = start(FORKS_DEEP);
        let (child, _) = next_reading(&mut program);
        let mut python = Python::find(program.pid()).unwrap().expect("CPython").for_child(child);
        let before = share_kib(child);
        assert_eq!(python.frames(child).len(), 42);
        assert_eq!(share_kib(child), before);
        Python::find(child).unwrap().expect("CPython");
        assert_eq!(share_kib(child), before, "finding it anew");
    }

    const THREADS: &str = "
import os, threading

def here(go):
    os.write(1, b'%d %d\\n' % (os.getpid(), threading.get_native_id()))
    os.read(go, 1)

def there(go):
    here(go)

thread = threading.Thread(target=there, args=(0,))
thread.start()
here(0)
thread.join()
";

    #[test]
    fn each_thread_has_its_own_stack_and_a_stranger_none() {
        let mut program = start(THREADS);
        let pid = program.pid();
        let (first, second) = (next_reading(&mut program), next_reading(&mut program));
        let (main, thread) = if first.1 == pid { (first, second) } else { (second, first) };
        let mut python = Python::find(pid).unwrap().expect("CPython");
        assert_eq!(calls(&python.frames(main.1)), [("here", 6), ("<module>", 13)]);
        assert_eq!(calls(&python.frames(thread.1))[..2], [("here", 6), ("there", 9)]);
        assert_eq!(python.frames(1), []);
    }

    #[test]
    fn a_thread_is_found_by_its_control_block_alone() {
        let mut program = start(THREADS);
        let pid = program.pid();
        let (_, _) = (next_reading(&mut program), next_reading(&mut program));
        let python = Python::find(pid).unwrap().expect("CPython");
        let stacks = python.spy.lock().unwrap().get_stack_traces().unwrap();
        let id = stacks.iter().find(|stack| stack.frames.len() == 2).unwrap().thread_id;
        assert!(python.control_block_has(id, pid));
        assert!(!python.control_block_has(id, std::process::id() as i32));
        assert!(!python.control_block_has(0, pid));
    }

    const SPINS: &str = "
import os, threading

def spin(data):
    os.write(1, b'%d %d\\n' % (os.getpid(), os.getpid()))
    while True:
        for x in data: pass

threading.Thread(target=os.read, args=(0, 1), daemon=True).start()
spin([1] * 1000)
";

    /// A program whose main thread was stopped in a loop, where it holds the interpreter lock.
    fn stopped_in_a_loop() -> (Program, i32) {
        let mut program = start(SPINS);
        let thread = next(&mut program);
        // Once it has spent time in its own code, it has left the system call by which it told us.
        let ticks = |stat: &str| fields(stat)[11].parse::<u64>().unwrap();
        let before = ticks(&fs::read_to_string(format!("/proc/{}/stat", thread.0)).unwrap());
        wait_until(thread, "stat", |stat| ticks(stat) > before + 2);
        assert!(Command::new("kill").args(["-STOP", &thread.0.to_string()]).status().unwrap().success());
        wait_until(thread, "stat", |stat| fields(stat)[0] == "T");
        (program, thread.0)
    }

    #[test]
    fn a_thread_stopped_in_a_loop_is_at_the_loop_and_the_holder_of_the_lock() {
        let (_program, pid) = stopped_in_a_loop();
        let mut python = Python::find(pid).unwrap().expect("CPython");
        let frames = python.frames(pid);
        let lock_holder_sufficed = python.spy.lock().unwrap().config.gil_only;
        let [("spin", line), ("<module>", 10)] = calls(&frames)[..] else { panic!("{frames:?}") };
        assert!((6..=7).contains(&line), "{line}");
        assert!(lock_holder_sufficed);
    }

    const RECURSES: &str = "
import os

def down(n):
    if n:
        return down(n - 1)
    os.write(1, b'%d %d\\n' % (os.getpid(), os.getpid()))
    os.read(0, 1)

down(200)
";

    #[test]
    fn of_a_deep_recursion_the_innermost_frames_are_kept() {
        let mut program = start(RECURSES);
        let (pid, tid) = next_reading(&mut program);
        let frames = Python::find(pid).unwrap().expect("CPython").frames(tid);
        assert_eq!(frames.len(), FRAMES_MAX);
        assert_eq!(calls(&frames)[..2], [("down", 8), ("down", 6)]);
    }

    #[test]
    fn a_process_without_python_has_none_and_one_that_is_gone_is_an_error() {
        let pid = std::process::id() as i32;
        assert!(Python::find(pid).unwrap().is_none());
        let mut gone = Command::new("true").spawn().unwrap();
        let pid = gone.id() as i32;
        gone.wait().unwrap();
        assert!(Python::find(pid).is_err());
    }

    #[test]
    fn frames_of_a_process_that_is_gone_are_none() {
        let mut program = start(RECURSES);
        let (pid, tid) = next_reading(&mut program);
        let mut python = Python::find(pid).unwrap().expect("CPython");
        drop(program);
        assert_eq!(python.frames(tid), []);
    }

    #[test]
    fn an_interpreter_is_known_by_its_files() {
        for path in ["/usr/bin/python3.11", "/usr/lib/libpython3.12.so.1.0", "/x/_json.cpython-311-x86_64-linux-gnu.so"]
        {
            assert!(CPython.is_run_by(path), "{path}");
        }
        for path in [
            "/usr/lib/python3/dist-packages/bin/ninja",
            "/usr/bin/redis-server",
            "/usr/lib/pypy3",
            "/usr/bin/pythonista",
        ] {
            assert!(!CPython.is_run_by(path), "{path}");
        }
        let code = |line| code_file(&maps::parse(line)?).map(str::to_owned);
        assert_eq!(code("7f00-7f01 r-xp 00000000 fe:00 17 /usr/bin/python3").as_deref(), Some("/usr/bin/python3"));
        assert_eq!(code("7f00-7f01 r--p 00000000 fe:00 17 /usr/bin/python3"), None);
        assert_eq!(code("7f00-7f01 r-xp 00000000 00:00 0 [vdso]"), None);
    }

    #[test]
    #[ignore = "measures, claims nothing"]
    fn costs() {
        let mut program = start(FORKS);
        let parent = program.pid();
        let (first, second) = (next_reading(&mut program), next_reading(&mut program));
        let child = if first.0 == parent { second } else { first };
        let time = |what: &str, n: u32, f: &mut dyn FnMut()| {
            let start = std::time::Instant::now();
            (0..n).for_each(|_| f());
            eprintln!("{what}: {:.1} µs", start.elapsed().as_secs_f64() * 1e6 / f64::from(n));
        };
        time("find", 10, &mut || drop(Python::find(parent).unwrap().unwrap()));
        time("find none", 10, &mut || drop(Python::find(std::process::id() as i32).unwrap()));
        let python = Python::find(parent).unwrap().unwrap();
        time("for_child", 1000, &mut || drop(python.for_child(child.0)));
        let mut python = python.for_child(child.0);
        time("frames, no lock", 1000, &mut || assert_eq!(python.frames(child.1).len(), 3));
        let (_spinning, pid) = stopped_in_a_loop();
        let mut python = Python::find(pid).unwrap().unwrap();
        time("frames, lock held", 1000, &mut || assert_eq!(python.frames(pid).len(), 2));
        time("frames of a stranger", 1000, &mut || assert_eq!(python.frames(1).len(), 0));
    }
}
