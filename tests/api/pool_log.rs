//! Each worker's end is in the log, with its cause; and what the logger does is no matter of the jobs.
#![expect(unsafe_code, reason = "old generations are released")]

use crate::case::{Outcome, passed};
use crate::look::{Bytes, SOON, frozen_pages, until, write};
use crate::pool_kit::{Gate, data, in_time, zygote_of};
use cowbell::arena::Arena;
use cowbell::page::PageCount;
use cowbell::pool::{JobError, OverBudget, Pool, Shutdown};
use cowbell::sys::pipe;
use libtest_mimic::{Failed, Trial};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

/// The lines of a program's log, zygotes' included.
struct Lines {
    end: File,
    held: Mutex<String>,
}

/// A logger that hands all that is logged to a closure.
struct By<F>(F);

impl<F: Fn(&log::Record<'_>) + Send + Sync> log::Log for By<F> {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        (self.0)(record);
    }

    fn flush(&self) {}
}

/// Makes this the program's logger: zygotes that are forked from now on have it, too.
fn log_by(write: impl Fn(&log::Record<'_>) + Send + Sync + 'static) -> Result<(), Failed> {
    log::set_boxed_logger(Box::new(By(write))).map_err(|e| e.to_string())?;
    log::set_max_level(log::LevelFilter::Info);
    Ok(())
}

impl Lines {
    /// All that is logged from now on.
    fn new() -> Result<Self, Failed> {
        let (end, theirs) = pipe::pair()?;
        rustix::fs::fcntl_setfl(&end, rustix::fs::OFlags::NONBLOCK)?;
        log_by(move |record| {
            let _written = rustix::io::write(&theirs, format!("{} {}\n", record.level(), record.args()).as_bytes());
        })?;
        Ok(Self { end: end.into(), held: Mutex::default() })
    }

    /// Waits for a line with all of these parts.
    fn wait(&self, parts: &[&str]) -> Result<(), Failed> {
        self.wait_for_either(parts, &[""])
    }

    /// Waits for a line that has all of the parts, and one of the endings.
    fn wait_for_either(&self, parts: &[&str], endings: &[&str]) -> Result<(), Failed> {
        let found = until("a line", || {
            let mut held = self.held.lock().expect("one thread");
            let _nothing_now = (&self.end).read_to_string(&mut held);
            let is_it = |line: &str| {
                parts.iter().all(|part| line.contains(part)) && endings.iter().any(|ending| line.ends_with(ending))
            };
            held.lines().any(is_it)
        });
        let held = || self.held.lock().expect("one thread");
        found.map_err(|_| format!("no line with {parts:?} and an end of {endings:?} in\n{}", held()).into())
    }
}

fn the_log_tells_each_workers_end_and_its_cause() -> Outcome {
    let lines = Lines::new()?;
    let gate = Gate::new()?;
    let frozen = frozen_pages("figures", 8)?;
    let builder = Pool::builder().name("told").workers(1).copy_budget(PageCount(3)).over_budget(OverBudget::Retire);
    let pool = builder.time_limit(Duration::from_secs(1)).spawn(frozen, move |pages: &Bytes, job: u64| match job {
        0 => gate.pass(),
        1 => std::process::abort(),
        2 => std::process::exit(0),
        pages_to_copy => (0..pages_to_copy).for_each(|page| write(pages, page)),
    })?;
    let now = || pool.worker_stats().map(|stats| stats.first().map(|worker| worker.pid.to_string()));
    let mut ended = BTreeSet::new();
    for (job, parts) in [
        (1, &["WARN the pool `told`: worker ", "(index 0, generation 0, 0 jobs, ", " was killed by signal 6"][..]),
        (2, &["WARN ", " exited with code 0"]),
        (0, &["WARN ", " was killed: its job's time was over"]),
        (5, &["INFO ", "generation 0, 1 jobs, ", " has left: it had copied 5 pages, and its budget is 3"]),
    ] {
        let started = pool.stats().started;
        let pid = now()?.ok_or("a worker")?;
        let _error = pool.submit(job)?.wait();
        lines.wait(&[parts, &[&format!(" {pid} (")]].concat())?;
        until("it is replaced", || pool.stats().started > started)?;
        assert!(ended.insert(pid));
    }
    gate.close();
    let (pid, ticket) = (now()?.ok_or("a worker")?, pool.submit(0)?);
    gate.reached()?;
    assert!(ticket.cancel()?);
    lines.wait(&["INFO ", &format!(" {pid} ("), " was killed: its job was cancelled"])?;
    until("it is replaced", || pool.workers().iter().any(|now| now.to_string() != pid))?;
    let pid = now()?.ok_or("a worker")?;
    pool.shutdown(Shutdown::Drain)?;
    lines.wait(&["INFO ", &format!(" {pid} ("), " has left: the pool closes"])?;

    let numbers = |generation: u64| Arena::builder("told").capacity(1 << 20).build()?.freeze(generation);
    let pool = Pool::builder().name("replaced").workers(1).spawn(numbers(0)?, |data, (): ()| *data)?;
    let pid = pool.workers()[0];
    let old = pool.replace(numbers(1)?)?;
    // SAFETY: nobody in this process looks at the old generation any more.
    unsafe { old.release() }?;
    lines.wait(&["INFO the pool `replaced`", &format!(" {pid} ("), " has left: there is newer data"])?;
    assert_eq!(pool.submit(())?.wait()?, 1);
    let stats = pool.worker_stats()?;
    assert_eq!((stats.len(), stats[0].generation, stats[0].jobs), (1, 1, 1));
    let pid = stats[0].pid;
    drop(pool);
    // It may see that the pool closes before it is killed for that.
    let endings = [" was killed: the pool was cancelled", " has left: the pool closes"];
    lines.wait_for_either(&["INFO ", &format!(" {pid} (")], &endings)?;
    passed()
}

/// A pool of one worker, which job 0 ends.
fn mortal() -> cowbell::Result<Pool<Bytes, u64, u64>> {
    Pool::builder().workers(1).spawn(data()?, |_, job: u64| if job == 0 { std::process::abort() } else { job })
}

fn run(pool: &Pool<Bytes, u64, u64>, job: u64) -> Result<Result<u64, JobError>, Failed> {
    in_time(SOON, || pool.submit(job).and_then(|ticket| ticket.wait()))
}

fn a_logger_that_panics_ends_neither_zygote_nor_pool() -> Outcome {
    log_by(|_| panic!("nobody reads the log"))?;
    let pool = mortal()?;
    let zygote = zygote_of(&pool)?;
    for deaths in 1..4 {
        let ended = run(&pool, 0)?;
        assert!(matches!(ended, Err(JobError::Died { .. })), "{ended:?}");
        assert_eq!(run(&pool, 5)?, Ok(5));
        assert_eq!((zygote_of(&pool)?, pool.stats().deaths), (zygote, deaths));
    }
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn a_job_whose_worker_died_is_told_before_the_logger() -> Outcome {
    let gate = Gate::new()?;
    log_by(move |_| gate.pass())?;
    let pool = mortal()?;
    let ended = run(&pool, 0)?;
    assert!(matches!(ended, Err(JobError::Died { .. })), "{ended:?}");
    gate.reached()?;
    // The zygote goes on when its logger does.
    gate.open();
    assert_eq!(run(&pool, 5)?, Ok(5));
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

#[derive(serde::Serialize, serde::Deserialize)]
enum Request {
    Get(u64),
    Raw(serde_json::Value),
}

fn the_log_names_parts_of_types_that_cannot_be_passed() -> Outcome {
    let lines = Lines::new()?;
    let numbers = || Arena::builder("told").capacity(1 << 20).build()?.freeze(0u64);
    let builder = Pool::builder().name("told").workers(1);
    let pool = builder.spawn(numbers()?, |data, request: Request| match request {
        Request::Get(number) => number + data,
        Request::Raw(_) => 0,
    })?;
    lines.wait(&[
        "WARN the pool `told`: jobs of type `",
        "::Request` with one of these",
        ": `",
        "::Request::Raw` (jobs",
    ])?;
    assert_eq!(pool.submit(Request::Get(3))?.wait()?, 3);
    assert!(pool.submit(Request::Raw(1.into()))?.wait().is_err());
    let _unchecked =
        Pool::builder().name("unchecked").workers(1).check_types(false).spawn(numbers()?, |_, _: Request| 0)?;
    drop(Pool::builder().name("later").workers(1).spawn(numbers()?, |_, _: Option<serde_json::Value>| 0)?);
    lines.wait(&["WARN the pool `later`: jobs", ": Some of `core::option::Option<serde_json::value::Value>` (jobs"])?;
    assert!(!lines.held.lock().expect("one thread").contains("`unchecked`: jobs"));
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        the_log_tells_each_workers_end_and_its_cause,
        a_logger_that_panics_ends_neither_zygote_nor_pool,
        a_job_whose_worker_died_is_told_before_the_logger,
        the_log_names_parts_of_types_that_cannot_be_passed,
    ]
}
