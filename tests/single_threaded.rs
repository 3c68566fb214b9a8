//! `single_threaded` under the standard test harness, which runs these tests in threads, at the same time. The allocator is the system's.

use cowbell::arena::{Arena, Frozen, Vec};
use cowbell::fork::{self, ForkOptions};
use cowbell::pool::{Pool, Shutdown};
use cowbell::single_threaded;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

fn squares() -> cowbell::Result<Frozen<Vec<u64>>> {
    let arena = Arena::builder("squares").capacity(1 << 20).build()?;
    let mut squares = Vec::new_in(*arena);
    squares.extend((0..1000u64).map(|n| n * n));
    arena.freeze(squares)
}

/// A pool answers every job, and ends.
fn answers() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().workers(2).spawn(squares()?, |squares: &Vec<u64>, at: usize| squares[at])?;
    let results = pool.map(0..1000).collect::<Result<std::vec::Vec<_>, _>>()?;
    assert!(results.iter().enumerate().all(|(at, &square)| square == (at * at) as u64));
    for exit in pool.shutdown(Shutdown::Drain)? {
        assert_eq!(exit.report.copied_pages().0, 0, "{}", exit.report);
    }
    Ok(())
}

/// What a call that fails panics with.
fn failure(call: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(call)).expect_err("it fails");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_pool_is_made() {
    assert!(Pool::builder().spawn(squares().expect("frozen"), |_: &Vec<u64>, (): ()| ()).is_err(), "there are threads");
    single_threaded(answers);
}

#[test]
fn a_pool_is_prepared_and_an_async_runtime_gives_it_its_data() {
    single_threaded(|| -> Result<(), Box<dyn Error>> {
        let prepared = Pool::builder().workers(2).prepare(|squares: &Vec<u64>, at: usize| squares[at])?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
        let result = runtime.block_on(async {
            let pool = tokio::task::spawn_blocking(|| -> cowbell::Result<_> { prepared.spawn(squares()?) }).await;
            let pool = pool.expect("it does not panic").map_err(|e| e.to_string())?;
            pool.submit(30).map_err(|e| e.to_string())?.await.map_err(|e| e.to_string())
        })?;
        assert_eq!(result, 900);
        Ok(())
    });
}

#[test]
fn a_worker_is_forked() -> cowbell::Result<()> {
    single_threaded(|| -> cowbell::Result<()> {
        let squares = squares()?;
        let exit = fork::spawn(&ForkOptions::new(), |_| assert_eq!(squares.root()[7], 49))?.wait()?;
        assert_eq!(exit.ended, fork::Ended::Exited(0));
        Ok(())
    });
    Ok(())
}

#[test]
fn what_it_writes_stays_there_and_it_may_be_called_again() {
    let mut count = 1;
    for _ in 0..2 {
        single_threaded(|| {
            count += 1;
            assert_eq!(count, 2);
        });
    }
    assert_eq!(count, 1);
}

#[test]
fn where_there_is_one_thread_it_runs_in_place() {
    single_threaded(|| {
        let (process, mut is_seen) = (std::process::id(), false);
        single_threaded(|| is_seen = std::process::id() == process);
        assert!(is_seen);
        // A panic goes through as it is.
        let panic = catch_unwind(|| {
            single_threaded(|| {
                if process == std::process::id() {
                    std::panic::panic_any(7)
                }
            })
        })
        .expect_err("it panics");
        assert_eq!(panic.downcast_ref(), Some(&7));
        assert!(failure(|| single_threaded(|| Err::<(), _>("no data"))).contains("exit code 1"));
    });
}

#[test]
fn a_panic_and_what_was_printed_come_through() {
    let text = failure(|| {
        single_threaded(|| {
            println!("seen before");
            assert_eq!(6 * 7, 43, "of its own");
        });
    });
    assert!(text.contains("of its own") && text.contains("right: 43"), "{text}");
    assert!(text.contains("seen before") && text.contains("single_threaded.rs"), "{text}");
}

#[test]
fn an_error_comes_through() {
    let text = failure(|| single_threaded(|| Err::<(), _>("no data")));
    assert!(text.contains("no data") && text.contains("exit code 1"), "{text}");
}

#[test]
#[should_panic(expected = "as it was said: 1 of 2")]
fn a_panic_that_a_test_should_have_comes_through() {
    single_threaded(|| assert_eq!(6 * 7, 43, "as it was said: {} of 2", 1));
}

#[test]
fn a_process_that_ends_is_told() {
    let ends: [(fn(), &str); 2] =
        [(|| std::process::exit(0), "exited with 0"), (|| std::process::abort(), "killed by signal 6")];
    for (end, how) in ends {
        let text = failure(|| single_threaded(end));
        assert!(text.contains(&format!("ended before it was done: {how}")), "{text}");
    }
}

mod within {
    #[test]
    fn a_test_within_a_module_is_found() {
        super::single_threaded(super::answers);
    }
}

/// This program, to run one of its tests.
fn this_program(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(arguments);
    command
}

#[test]
#[ignore = "another test starts it"]
fn it_prints() {
    println!("not printed twice");
    single_threaded(|| {
        println!("from standard output");
        eprintln!("from standard error");
    });
}

#[test]
fn what_is_printed_is_shown_once_whoever_starts_the_test() {
    for way in [
        // A runner that starts a process for each test; a person; a person who has all tests run one after the other.
        ["--exact", "--nocapture"].as_slice(),
        &["--show-output"],
        &["--nocapture", "--test-threads=1"],
    ] {
        let output = this_program(&["it_prints", "--include-ignored"]).args(way).output().expect("started");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{way:?}: {text}");
        for line in ["not printed twice", "from standard output", "from standard error", "running 1 test"] {
            assert_eq!(text.matches(line).count(), 1, "{way:?}, {line}: {text}");
        }
    }
}

/// The pipe on which the worker of the tests below says that it runs.
const PIPE: &str = "COWBELL_TEST_PIPE";

/// Says in the pipe that this process runs, and goes on for a minute.
fn goes_on(pipe: impl AsRef<Path>) {
    let mut pipe = OpenOptions::new().write(true).open(pipe).expect("the pipe");
    pipe.write_all(b"!").expect("its reader is there");
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
#[ignore = "another test starts and kills it"]
fn its_worker_goes_on_for_a_minute() {
    let Some(pipe) = std::env::var_os(PIPE) else { return };
    single_threaded(|| -> Result<(), Box<dyn Error>> {
        let pool = Pool::builder().workers(1).spawn(squares()?, move |_: &Vec<u64>, (): ()| goes_on(&pipe))?;
        let _ended = pool.submit(())?.wait();
        Ok(())
    });
}

#[test]
#[ignore = "another test starts and kills it"]
fn it_goes_on_for_a_minute_before_it_comes_there() {
    let Some(pipe) = std::env::var_os(PIPE) else { return };
    // The variable is there in the processes that a test is run again in.
    if std::env::var_os("COWBELL_TEST_APART").is_some() {
        goes_on(pipe);
    }
    single_threaded(|| ());
}

/// Tells what it reads from a new pipe: that somebody runs, and that whoever held it has ended.
fn pipe(name: &str) -> (std::path::PathBuf, Receiver<usize>) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _there_was_none = std::fs::remove_file(&path);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let (sender, receiver) = mpsc::channel();
    let file = path.clone();
    std::thread::spawn(move || {
        // Opening it waits for the writer, and its end is read once that has ended.
        let mut pipe = std::fs::File::open(file).expect("the pipe");
        while let Ok(read) = pipe.read(&mut [0; 1]) {
            if sender.send(read).is_err() || read == 0 {
                break;
            }
        }
    });
    (path, receiver)
}

#[test]
fn nobody_outlives_a_test_that_is_killed() {
    for test in ["its_worker_goes_on_for_a_minute", "it_goes_on_for_a_minute_before_it_comes_there"] {
        let (path, receiver) = pipe(test);
        let mut program = this_program(&[test, "--exact", "--ignored"]);
        let mut program = program.env(PIPE, path).stdout(Stdio::null()).spawn().expect("started");
        assert_eq!(receiver.recv_timeout(Duration::from_secs(30)), Ok(1), "{test}: it runs");
        program.kill().expect("killed");
        program.wait().expect("reaped");
        assert_eq!(receiver.recv_timeout(Duration::from_secs(30)), Ok(0), "{test}: it has ended");
    }
}

#[test]
fn a_test_with_threads_of_its_own_is_refused() {
    let (sender, receiver) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv().is_err());
    let text = failure(|| single_threaded(|| ()));
    drop(sender);
    assert!(text.contains("the test has threads of its own"), "{text}");
    assert!(thread.join().expect("it ends well"));
    // Those that have ended are not in the way.
    single_threaded(|| ());
}

#[test]
fn a_thread_that_is_no_test_is_told_so() {
    let failed = std::thread::spawn(|| failure(|| single_threaded(|| ()))).join().expect("it ends well");
    assert!(failed.contains("in the thread that the test began in"), "{failed}");
    // A name that is no test's: no test comes there.
    let named = std::thread::Builder::new().name("helper".into()).spawn(|| failure(|| single_threaded(|| ())));
    let failed = named.expect("a thread").join().expect("it ends well");
    assert!(failed.contains("the test `helper` did not come here"), "{failed}");
}
