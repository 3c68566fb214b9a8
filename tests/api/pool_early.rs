//! A pool that was prepared before there were threads gets its data from a program that has many.

use crate::case::{Outcome, passed};
use crate::look::{SOON, anonymous_pages, ends_soon, has_children, until, usable};
use crate::pool_kit::{WORDS, Way, Words, adopt_orphans, all_end_soon, alone, descendants, in_time, multiples};
use cowbell::arena::{Arena, Handle, Vec};
use cowbell::pool::{Death, JobError, Pool, PoolBuilder, Prepared, Shutdown, WorkerContext};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::{page_size, process, procfs, signal};
use cowbell::watch::Watch;
use libtest_mimic::{Failed, Trial};
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS_OF_A_PAGE: usize = 512;

/// A job's result: its word, and its worker's generation.
type Said = (u64, u64);

fn prepared(settings: PoolBuilder) -> cowbell::Result<Prepared<Words, usize, Said>> {
    settings.prepare_with(|worker: &WorkerContext<Words>, at: usize| {
        (worker.root()[at].load(Ordering::Relaxed), worker.generation())
    })
}

fn check(pool: &Pool<Words, usize, Said>, factor: u64, generation: u64) -> Result<(), Failed> {
    let results = in_time(SOON, || pool.map(0..WORDS).collect::<Result<std::vec::Vec<_>, _>>())??;
    assert_eq!(results, (0..WORDS as u64).map(|n| (n * factor, generation)).collect::<std::vec::Vec<_>>());
    Ok(())
}

fn an_async_runtime_and_threads_come_before_the_data() -> Outcome {
    let prepared = prepared(Pool::builder().workers(3))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    assert!(procfs::signal_safe::thread_count()? > 1);
    // The program allocates in between, at addresses that the zygote does not know.
    let between = std::vec![1u8; 64 << 20];
    let pool = runtime.block_on(async {
        let pool = tokio::task::spawn_blocking(move || -> cowbell::Result<_> { prepared.spawn(multiples(3)?) });
        let pool = pool.await.expect("it does not panic")?;
        let tickets = (0..100).map(|at| pool.submit(at)).collect::<Result<std::vec::Vec<_>, _>>()?;
        for (at, ticket) in (0..).zip(tickets) {
            assert_eq!(ticket.await?, (3 * at, 0));
        }
        Ok::<_, Failed>(pool)
    })?;
    check(&pool, 3, 0)?;
    assert_eq!((pool.stats().started, pool.workers().len(), between.len()), (3, 3, 64 << 20));
    // From here on it is a pool as any other: new data, and workers that are replaced.
    pool.replace(multiples(5)?)?;
    check(&pool, 5, 1)?;
    signal::send(pool.workers()[0], signal::KILL);
    until("it is replaced", || pool.stats().deaths == 1 && pool.workers().len() == 3)?;
    check(&pool, 5, 1)?;
    assert_eq!(pool.memory()?.workers.len(), 3);
    for exit in pool.shutdown(Shutdown::Drain)? {
        assert_eq!(exit.report.copied_pages().0, 0, "{}", exit.report);
    }
    passed()
}

fn copies_are_counted_as_in_any_pool() -> Outcome {
    for watch in Watch::ALL {
        if let Err(why) = usable(watch)? {
            println!("without {watch}: {why}");
            continue;
        }
        let settings = Pool::builder().workers(2).watch(watch).populate(watch == Watch::Census);
        let prepared = settings.prepare(|words: &Words, pages: (usize, usize)| {
            (pages.0..pages.1).for_each(|page| {
                words[page * WORDS_OF_A_PAGE].fetch_add(1, Ordering::Relaxed);
            });
        })?;
        let frozen = multiples(1)?;
        let range = frozen.image().range();
        let pool = prepared.spawn(frozen)?;
        for job in [(1, 3), (10, 20), (15, 30)] {
            pool.submit(job)?.wait()?;
        }
        let stats = pool.worker_stats()?;
        let mut all = 0;
        for worker in &stats {
            let copied = worker.copied_pages.ok_or("readable")?.0;
            assert_eq!(copied, anonymous_pages(worker.pid, range)?, "{watch}");
            all += copied;
        }
        assert!((22..=27).contains(&all), "{watch}: {stats:?}");
        let reports = pool.shutdown(Shutdown::Drain)?;
        assert_eq!(reports.iter().map(|exit| exit.report.copied_pages().0).sum::<u64>(), all, "{watch}");
        alone()?;
    }
    passed()
}

fn handles_that_were_made_for_adopted_data_come_through() -> Outcome {
    let prepared = Pool::builder().workers(1).prepare(|_: &Words, word: Handle<AtomicU64>| {
        word.get().map(|word| word.load(Ordering::Relaxed)).map_err(|e| e.to_string())
    })?;
    let frozen = multiples(7)?;
    let pool = prepared.spawn(frozen.clone())?;
    let word = &frozen.root()[100];
    assert_eq!(pool.submit(frozen.handle_contained(word)?)?.wait()?, Ok(700));
    // One that was not looked at is refused: that job's error.
    let refused = pool.submit(frozen.handle(word)?)?.wait();
    assert!(matches!(refused, Err(JobError::NotPassed(_)) | Ok(Err(_))), "{refused:?}");
    passed()
}

fn workers_die_and_are_told_as_in_any_pool() -> Outcome {
    let prepared = Pool::builder().workers(1).prepare(|_: &Words, way: Way| way.go())?;
    let pool = prepared.spawn(multiples(1)?)?;
    for (way, ended, overflow) in [
        (Way::Overflow, Ended::Signaled(libc::SIGSEGV), true),
        (Way::Fault, Ended::Signaled(libc::SIGSEGV), false),
        (Way::Kill, Ended::Signaled(libc::SIGKILL), false),
    ] {
        let told = Death { ended, out_of_memory: false, stack_overflow: overflow };
        let died = pool.submit(way)?.wait();
        assert!(matches!(&died, Err(JobError::Died { death, .. }) if *death == told), "{way:?}: {died:?}");
    }
    passed()
}

fn a_prepared_pool_that_gets_no_data_leaves_no_process() -> Outcome {
    adopt_orphans()?;
    drop(prepared(Pool::builder().workers(2))?);
    assert!(!has_children());

    // The program ends without a word.
    let made = prepared(Pool::builder().workers(2))?;
    let [zygote] = descendants(process::pid())[..] else { return Err("a zygote, and no worker".into()) };
    // A supervisor's signal is no matter of the zygote's.
    signal::send(zygote, signal::TERM);
    let pool = made.spawn(multiples(2)?)?;
    check(&pool, 2, 0)?;
    drop(pool);
    assert!(!has_children());

    // The zygote is dead before there is data.
    alone()?;
    let made = prepared(Pool::builder().workers(2))?;
    let [zygote] = descendants(process::pid())[..] else { return Err("a zygote, and no worker".into()) };
    let watched = pidfd::open(zygote)?;
    signal::send(zygote, signal::KILL);
    ends_soon(&watched, "the zygote")?;
    assert!(made.spawn(multiples(2)?).is_err());
    all_end_soon()?;
    passed()
}

fn data_whose_addresses_the_zygote_has_is_refused_and_nothing_stays() -> Outcome {
    // Frozen before: the zygote has it already. Growing before: its addresses are fenced there.
    let frozen = multiples(1)?;
    let growing = Arena::builder("growing").capacity(1 << 20).build()?;
    let early = prepared(Pool::builder().workers(1))?;
    assert!(early.spawn(frozen).is_err());
    assert!(!has_children());
    alone()?;
    let early = prepared(Pool::builder().workers(1))?;
    let mut words = Vec::new_in(*growing);
    words.push(AtomicU64::new(1));
    assert!(early.spawn(growing.freeze(words)?).is_err());
    assert!(!has_children());
    passed()
}

fn with_threads_it_is_refused_with_a_hint() -> Outcome {
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || stopped.recv());
        let refused = prepared(Pool::builder().workers(1)).expect_err("there is another thread");
        assert!(refused.threads().is_some() && refused.to_string().contains("PoolBuilder::prepare"), "{refused}");
        drop(stop);
    });
    let invalid = prepared(Pool::builder().workers(0));
    assert!(invalid.is_err_and(|e| e.to_string().contains("workers")));
    assert_eq!(page_size().bytes() / size_of::<AtomicU64>(), WORDS_OF_A_PAGE);
    passed()
}

pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        an_async_runtime_and_threads_come_before_the_data,
        copies_are_counted_as_in_any_pool,
        handles_that_were_made_for_adopted_data_come_through,
        workers_die_and_are_told_as_in_any_pool,
        a_prepared_pool_that_gets_no_data_leaves_no_process,
        data_whose_addresses_the_zygote_has_is_refused_and_nothing_stays,
        with_threads_it_is_refused_with_a_hint,
    ]
}
