//! A pool whose data sets are loaded by processes of their own: whatever becomes of a loader, the pool goes on, and memory comes back.

use crate::case::{Outcome, passed};
use crate::look::{SOON, descriptors, ends_soon, has_children, mapped_files, maps, until};
use crate::pool_kit::{
    Gate, WORDS, Way, Words, adopt_orphans, all_end_soon, alone, data_mappings, descendants, in_time, is_freed,
    multiples, words, zygote_of,
};
use cowbell::arena::{FreezeOptions, Frozen, OnWrite};
use cowbell::pool::{Loaded, Pool, PoolBuilder, Prepared, Shutdown, WorkerContext};
use cowbell::sys::{page_size, pidfd, process, procfs, signal};
use libtest_mimic::{Failed, Trial};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A source: multiples of a number, or trouble.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Source {
    Multiples(u64),
    /// The program's own error.
    Missing(String),
    Panic,
    End(Way),
    /// Waits until the gate is open.
    Wait(u64),
    Sealed,
    Locked,
    Twice,
}

/// A job: a word of the data. Its result: that, and the worker's generation.
type Said = (u64, u64);
type PreparedPool = Prepared<Words, usize, Said, Loaded<Source>>;
type LoadedPool = Pool<Words, usize, Said, Loaded<Source>>;

fn load(source: Source, gate: Gate) -> Result<Frozen<Words>, String> {
    let told = |e: cowbell::Error| e.to_string();
    match source {
        Source::Multiples(of) => multiples(of).map_err(told),
        Source::Missing(what) => Err(format!("{what} is missing")),
        Source::Panic => panic!("a bug of the loader's"),
        Source::End(way) => {
            way.go();
            Err("it did not end".to_owned())
        }
        Source::Wait(of) => {
            gate.pass();
            multiples(of).map_err(told)
        }
        Source::Sealed => {
            let (arena, words) = words(1).map_err(told)?;
            arena.freeze_with(words, FreezeOptions::new().on_write(OnWrite::Deny)).map_err(told)
        }
        Source::Locked => {
            let (arena, words) = words(1).map_err(told)?;
            arena.freeze_with(words, FreezeOptions::new().lock(true)).map_err(told)
        }
        Source::Twice => {
            let first = multiples(8).map_err(told)?;
            multiples(9).map_err(told).map(|_second| first)
        }
    }
}

fn prepared(settings: PoolBuilder) -> Result<(Gate, PreparedPool), Failed> {
    let gate = Gate::new()?;
    let prepared = settings.prepare_loaded(
        move |source| load(source, gate),
        |worker: &WorkerContext<Words>, at: usize| (worker.root()[at].load(Ordering::Relaxed), worker.generation()),
    )?;
    Ok((gate, prepared))
}

fn loaded(settings: PoolBuilder, of: u64) -> Result<(Gate, LoadedPool), Failed> {
    let (gate, prepared) = prepared(settings)?;
    Ok((gate, prepared.load(&Source::Multiples(of))?))
}

fn check(pool: &LoadedPool, of: u64, generation: u64) -> Result<(), Failed> {
    let results = in_time(SOON, || pool.map(0..WORDS).collect::<Result<std::vec::Vec<_>, _>>())??;
    assert_eq!(results, (0..WORDS as u64).map(|n| (n * of, generation)).collect::<std::vec::Vec<_>>());
    Ok(())
}

/// The number of descriptors of a process.
fn descriptors_of(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc").count()
}

fn only_the_pool_s_processes_have_the_data() -> Outcome {
    let (_gate, pool) = loaded(Pool::builder().workers(2), 3)?;
    check(&pool, 3, 0)?;
    let zygote = zygote_of(&pool)?;
    assert_eq!(data_mappings(process::pid(), 3), 0, "{:#?}", maps());
    assert_eq!(data_mappings(zygote, 3), 1);
    let memory = pool.memory()?;
    let data = memory.data.ok_or("sealed")?;
    // The vector's words, and a page for the root.
    let bytes = (WORDS * size_of::<AtomicU64>() + page_size().bytes()) as u64;
    assert!((bytes..=2 * bytes).contains(&data.shared_bytes), "{data:?}");
    assert!(data.unmapped_bytes.ok_or("readable")? < data.shared_bytes - bytes / 2, "{data:?}");
    for (of, generation) in [(5, 1), (7, 2)] {
        let former = pool.reload(&Source::Multiples(of))?;
        assert_eq!(former.generation(), generation - 1);
        check(&pool, of, generation)?;
        is_freed(&former)?;
        assert_eq!(data_mappings(zygote, of), 1);
        assert_eq!(data_mappings(zygote, of - 2), 0);
        let now = pool.memory()?.data.ok_or("sealed")?;
        assert_eq!(now.shared_bytes, data.shared_bytes);
    }
    for exit in pool.shutdown(Shutdown::Drain)? {
        assert_eq!(exit.report.copied_pages().0, 0, "{}", exit.report);
    }
    passed()
}

/// Each job once, over the old data or the new; and nothing piles up, in memory, descriptors or mappings.
fn a_hundred_reloads_under_load_leave_one_generation() -> Outcome {
    let (_gate, pool) = loaded(Pool::builder().workers(2), 1)?;
    let zygote = zygote_of(&pool)?;
    let mut before = None;
    std::thread::scope(|scope| -> Outcome {
        let reloads = scope.spawn(|| -> Result<(), Failed> {
            for of in 2..=100 {
                let former = pool.reload(&Source::Multiples(of))?;
                is_freed(&former)?;
                assert_eq!(former.generation(), of - 2);
                drop(former);
                let mappings = procfs::maps::read(zygote).map_err(|e| format!("{e}"))?.len();
                let now = (descriptors_of(zygote), descriptors_of(process::pid()), mappings, mapped_files().len());
                // A worker that has left and is not reaped yet has descriptors of the zygote's, and there is one at a time for each place.
                match before.as_ref() {
                    Some(before) => assert!(now <= *before, "{now:?} after {of}, {before:?} before"),
                    None => before = Some((now.0 + 12, now.1, now.2 + 12, now.3)),
                }
            }
            Ok(())
        });
        let places = || (0..WORDS).cycle();
        for (at, result) in places().zip(pool.map(places().take_while(|_| !reloads.is_finished()))) {
            let (value, generation) = result?;
            assert_eq!(value, at as u64 * (generation + 1));
        }
        reloads.join().map_err(|_| "a reload failed")??;
        passed()
    })?;
    check(&pool, 100, 99)?;
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn a_loader_that_fails_leaves_the_data_as_it_is() -> Outcome {
    let (_gate, pool) = loaded(Pool::builder().workers(1), 3)?;
    let open = descriptors();
    let long = "é".repeat(1 << 20);
    for (source, why) in [
        (Source::Missing(long), "éééé"),
        (Source::Missing("the file".to_owned()), "the file is missing"),
        (Source::Panic, "panicked: a bug of the loader's"),
        (Source::Locked, "FreezeOptions::lock"),
        (Source::End(Way::Kill), "was killed by signal 9"),
        (Source::End(Way::Fault), "was killed by signal 11"),
        (Source::End(Way::Overflow), "its stack overflowed"),
        (Source::End(Way::Abort), "was killed by signal 6"),
        (Source::End(Way::Exit(3)), "exited with code 3"),
        (Source::End(Way::Exit(0)), "ended without a word"),
    ] {
        let error = in_time(SOON, || pool.reload(&source))?.expect_err("it fails");
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert_eq!(pool.submit(7)?.wait()?, (21, 0), "{why}");
        assert_eq!(descriptors(), open, "{why}");
    }
    // Two arenas were built, and one is the data.
    pool.reload(&Source::Twice)?;
    check(&pool, 8, 1)?;
    passed()
}

/// Data that nobody can unmap again would stay in the zygote for ever.
fn data_that_is_denied_for_good_is_refused() -> Outcome {
    let (_gate, pool) = loaded(Pool::builder().workers(1), 3)?;
    let is_for_good = multiples_denied()?;
    match pool.reload(&Source::Sealed) {
        Ok(former) => {
            assert!(!is_for_good);
            is_freed(&former)?;
        }
        Err(e) => assert!(is_for_good && e.to_string().contains("OnWrite::Deny"), "{e}"),
    }
    passed()
}

fn multiples_denied() -> cowbell::Result<bool> {
    let (arena, words) = words(1)?;
    let frozen = arena.freeze_with(words, FreezeOptions::new().on_write(OnWrite::Deny))?;
    Ok(frozen.image().denied_for_good())
}

fn the_first_data_may_fail_too() -> Outcome {
    adopt_orphans()?;
    let (_gate, first) = prepared(Pool::builder().workers(2))?;
    let error = first.load(&Source::Panic).expect_err("it panics");
    assert!(error.to_string().contains("a bug of the loader's"), "{error}");
    all_end_soon()?;
    passed()
}

fn loading_can_be_stopped_and_the_pool_works_meanwhile() -> Outcome {
    let (gate, pool) = loaded(Pool::builder().workers(2), 3)?;
    assert!(!pool.stop_loading()?);
    std::thread::scope(|scope| -> Outcome {
        let reload = scope.spawn(|| pool.reload(&Source::Wait(5)));
        gate.reached()?;
        // Nobody waits for the loader: jobs, workers that die, figures.
        check(&pool, 3, 0)?;
        signal::send(pool.workers()[0], signal::KILL);
        until("the worker is replaced", || pool.stats().deaths == 1 && pool.workers().len() == 2)?;
        assert_eq!(pool.memory()?.workers.len(), 2);
        assert_eq!(pool.take_exits()?.len(), 1);
        assert!(pool.stop_loading()?);
        let error = reload.join().map_err(|_| "no panic")?.expect_err("it was stopped");
        assert!(error.to_string().contains("stopped"), "{error}");
        passed()
    })?;
    check(&pool, 3, 0)?;
    gate.open();
    let former = pool.reload(&Source::Wait(5))?;
    check(&pool, 5, 1)?;
    is_freed(&former)?;
    passed()
}

/// Two threads that reload take turns.
fn reloads_of_several_threads_take_turns() -> Outcome {
    let (_gate, pool) = loaded(Pool::builder().workers(1), 3)?;
    let generations = std::thread::scope(|scope| -> Result<std::vec::Vec<u64>, Failed> {
        let reloads: std::vec::Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pool.reload(&Source::Multiples(5)).map(|former| former.generation())))
            .collect();
        let mut all = std::vec::Vec::new();
        for reload in reloads {
            all.push(reload.join().map_err(|_| "no panic")??);
        }
        all.sort_unstable();
        Ok(all)
    })?;
    assert_eq!(generations, [0, 1, 2, 3]);
    check(&pool, 5, 4)?;
    passed()
}

/// A worker that was forked while data was being loaded has the old data, and is no user of the new, however long it works.
fn a_worker_that_is_replaced_while_data_is_loaded_does_not_hold_it() -> Outcome {
    let (loading, working) = (Gate::new()?, Gate::new()?);
    let prepared = Pool::builder().workers(2).prepare_loaded(
        move |source| load(source, loading),
        move |worker: &WorkerContext<Words>, at: usize| {
            if at == 0 {
                working.pass();
            }
            worker.root()[at].load(Ordering::Relaxed)
        },
    )?;
    let pool = prepared.load(&Source::Multiples(3))?;
    let before = pool.workers();
    let slow = std::thread::scope(|scope| -> Result<_, Failed> {
        let reload = scope.spawn(|| pool.reload(&Source::Wait(5)));
        loading.reached()?;
        before.iter().for_each(|&pid| signal::kill(pid));
        until("they are replaced", || pool.stats().deaths == 2 && pool.workers().len() == 2)?;
        let slow = pool.submit(0)?;
        working.reached()?;
        loading.open();
        let first = reload.join().map_err(|_| "no panic")??;
        assert!(!first.wait_timeout(Duration::ZERO)?, "the slow worker has it");
        Ok(slow)
    })?;
    is_freed(&pool.reload(&Source::Multiples(7))?)?;
    working.open();
    assert_eq!(slow.wait()?, 0);
    passed()
}

fn a_program_that_ends_takes_its_loader_along() -> Outcome {
    adopt_orphans()?;
    // A process that makes such a pool, and is killed while a loader waits.
    let gate = Gate::new()?;
    let mut child = cowbell::fork::spawn(&cowbell::fork::ForkOptions::new(), move |_| {
        let prepared = Pool::builder()
            .workers(1)
            .prepare_loaded(move |source| load(source, gate), |_: &WorkerContext<Words>, at: usize| at)
            .expect("prepared");
        let pool = prepared.load(&Source::Multiples(3)).expect("loaded");
        let _never = pool.reload(&Source::Wait(5));
    })?;
    gate.reached()?;
    assert!(descendants(process::pid()).len() >= 4, "the program, its zygote, a worker, a loader");
    child.kill(signal::KILL)?;
    child.wait()?;
    all_end_soon()?;

    // A pool that is dropped, and one whose zygote is killed, while nobody waits.
    alone()?;
    let (_gate, pool) = loaded(Pool::builder().workers(1), 3)?;
    drop(pool);
    assert!(!has_children());
    alone()?;
    let (gate, pool) = loaded(Pool::builder().workers(1), 3)?;
    std::thread::scope(|scope| -> Outcome {
        let reload = scope.spawn(|| pool.reload(&Source::Wait(5)));
        gate.reached()?;
        let zygote = zygote_of(&pool)?;
        let watched = pidfd::open(zygote)?;
        signal::send(zygote, signal::KILL);
        ends_soon(&watched, "the zygote")?;
        let error = in_time(SOON, || reload.join())?.map_err(|_| "no panic")?.expect_err("the zygote is gone");
        assert!(error.to_string().contains("zygote has ended"), "{error}");
        passed()
    })?;
    drop(pool);
    all_end_soon()?;
    passed()
}

pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        only_the_pool_s_processes_have_the_data,
        a_hundred_reloads_under_load_leave_one_generation,
        a_loader_that_fails_leaves_the_data_as_it_is,
        data_that_is_denied_for_good_is_refused,
        the_first_data_may_fail_too,
        loading_can_be_stopped_and_the_pool_works_meanwhile,
        reloads_of_several_threads_take_turns,
        a_worker_that_is_replaced_while_data_is_loaded_does_not_hold_it,
        a_program_that_ends_takes_its_loader_along,
    ]
}
