//! New data for a pool at work: a generation after the other.
#![expect(unsafe_code, reason = "old generations are released")]

use crate::case::{Outcome, passed};
use crate::look::{SOON, has_children, until, wait};
use crate::pool_kit::{Gate, adopt_orphans, all_end_soon, descendants, in_time, table, zygote_of};
use cowbell::arena::{Arena, FreezeOptions, Frozen, Handle, OnWrite};
use cowbell::fork::{self, ForkOptions};
use cowbell::pool::{JobError, Pool, Shutdown, Ticket};
use cowbell::sys::{process, signal};
use libtest_mimic::Trial;
use std::sync::atomic::{AtomicBool, Ordering};

type Numbers = &'static [u64];

/// A thousand times the generation's number.
fn generation(number: u64) -> cowbell::Result<Frozen<Numbers>> {
    let arena = Arena::builder(format!("generation {number}")).capacity(1 << 20).build()?;
    let numbers: Numbers = arena.alloc_iter(std::iter::repeat_n(number, 1000))?;
    arena.freeze(numbers)
}

fn reading() -> cowbell::Result<Pool<Numbers, usize, u64>> {
    Pool::builder().workers(2).spawn(generation(0)?, |numbers: &'static Numbers, at: usize| numbers[at])
}

fn jobs_run_over_the_newest_data_and_the_workers_of_the_old_leave() -> Outcome {
    let pool = reading()?;
    assert_eq!(pool.submit(3)?.wait(), Ok(0));
    for number in 1..=5 {
        let old_workers = pool.workers();
        let old = pool.replace(generation(number)?)?;
        assert_eq!((old.root()[0], pool.data()[0], pool.frozen().root()[0]), (number - 1, number, number));
        assert_eq!(pool.submit(999)?.wait(), Ok(number));
        assert!(pool.map(0..500).all(|result| result == Ok(number)));
        drop(old);
        let are_new = |workers: &[i32]| workers.len() == 2 && workers.iter().all(|pid| !old_workers.contains(pid));
        // A worker that is slow to be replaced would leave a generation out.
        until("all are replaced", || are_new(&pool.workers()))?;
    }
    assert_eq!(pool.stats().deaths, 0);
    let exits = pool.shutdown(Shutdown::Drain)?;
    assert_eq!(exits.len(), 12);
    assert!(exits.iter().all(|exit| exit.left_by_itself && exit.report.copied_pages().0 == 0), "{exits:?}");
    assert!(!has_children());
    passed()
}

fn each_job_runs_once_while_the_data_is_replaced_a_hundred_times_under_load() -> Outcome {
    const GENERATIONS: u64 = 100;
    const JOBS_MAX: usize = 1 << 20;
    let begun = table(JOBS_MAX)?;
    let pool = Pool::builder().workers(3).spawn(generation(0)?, move |numbers: &'static Numbers, job: usize| {
        begun[job].fetch_add(1, Ordering::SeqCst);
        numbers[job % 1000]
    })?;
    // Frozen before: a freeze may find pages that the kernel holds for a moment, and here time matters.
    let mut generations = (1..=GENERATIONS).map(generation).collect::<Result<Vec<_>, _>>()?.into_iter();
    let mut jobs = 0;
    in_time(2 * SOON, || {
        let newest = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (pool, newest, generations) = (&pool, &newest, &mut generations);
            scope.spawn(move || {
                for new in generations {
                    pool.replace(new).expect("the zygote takes it over");
                }
                newest.store(true, Ordering::SeqCst);
            });
            let mut last = 0;
            while !newest.load(Ordering::SeqCst) {
                let tickets: Vec<_> = (jobs..jobs + 50).map(|job| pool.submit(job).expect("open")).collect();
                let mapped = pool.map(jobs + 50..jobs + 500).chunk(7);
                let results = mapped.chain(tickets.into_iter().map(Ticket::wait));
                let seen: Vec<u64> = results.map(|result| result.expect("a result")).collect();
                // Later jobs see no older data.
                assert!(seen.iter().all(|number| (last..=GENERATIONS).contains(number)), "{seen:?} after {last}");
                last = *seen.iter().max().expect("jobs");
                jobs += 500;
                assert!(jobs + 3000 < JOBS_MAX, "the data is not replaced");
            }
            assert!(
                pool.map(jobs..jobs + 2000).chunk(9).all(|result| result == Ok(GENERATIONS)),
                "submitted after the last"
            );
            jobs += 2000;
        });
    })?;
    assert!(begun.iter().take(jobs).all(|count| count.load(Ordering::SeqCst) == 1), "none lost, none twice");
    assert!(begun.iter().skip(jobs).all(|count| count.load(Ordering::SeqCst) == 0));
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn a_job_that_runs_keeps_its_data_to_the_end() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder().workers(1).spawn(generation(0)?, move |numbers: &'static Numbers, waits: bool| {
        let before = numbers[1];
        if waits {
            gate.pass();
        }
        (before, numbers[1])
    })?;
    let running = pool.submit(true)?;
    gate.reached()?;
    drop(pool.replace(generation(1)?)?);
    let queued = pool.submit(false)?;
    gate.open();
    assert_eq!(running.wait(), Ok((0, 0)));
    assert_eq!(queued.wait(), Ok((1, 1)));
    passed()
}

fn handles_of_another_generation_are_refused() -> Outcome {
    let first = generation(0)?;
    let pool =
        Pool::builder().workers(1).spawn(first.clone(), |_, place: Handle<u64>| *place.get().expect("it is here"))?;
    let old = first.handle(&first.root()[7])?;
    assert_eq!(pool.submit(old)?.wait(), Ok(0));
    drop(pool.replace(generation(1)?)?);
    let new = pool.frozen().handle_contained(&pool.data()[7])?;
    assert_eq!(pool.submit(new)?.wait(), Ok(1));
    let refused = pool.submit(old)?.wait();
    assert!(matches!(&refused, Err(JobError::NotPassed(_))), "{refused:?}");
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

type Words = Option<Handle<&'static str>>;

/// The root is of numbers, or of nothing. What lies beside it leads into memory that the parent got after the pool was made: a worker that
/// followed it died of SIGSEGV, or read something else.
fn a_handle_of_new_data_is_refused_by_workers_unless_what_it_leads_to_is_contained() -> Outcome {
    let frozen = |root: Words, on_write| {
        let arena = Arena::builder("words").capacity(32 << 20).build()?;
        let own: &'static str = Box::leak("x".repeat(16 << 20).into_boxed_str());
        let leading_out = arena.alloc(own)? as &'static &'static str;
        let contained = arena.alloc(&*arena.alloc_str("in the arena")?)? as &'static &'static str;
        let frozen = arena.freeze_with(root, FreezeOptions::new().on_write(on_write))?;
        Ok::<_, cowbell::Error>((frozen, leading_out, contained))
    };
    let follow = |words: Handle<&'static str>| words.get().map(|words| words.bytes().map(usize::from).sum::<usize>());
    let (first, inherited, _) = frozen(None, OnWrite::Copy)?;
    let job = move |root: &Words, job: Option<Handle<&'static str>>| {
        let in_root = root.map(|words| follow(words).map_err(|e| e.to_string()));
        (job.map(|words| follow(words).expect("it is here")), in_root, job)
    };
    let pool = Pool::builder().workers(1).spawn(first.clone(), job)?;
    let (sum, _, back) = pool.submit(Some(first.handle(inherited)?))?.wait()?;
    assert_eq!((sum, back), (Some(inherited.len() * usize::from(b'x')), Some(first.handle(inherited)?)));

    // One that stays in the workers even after the next.
    let (second, leading_out, contained) = frozen(None, OnWrite::Deny)?;
    drop(pool.replace(second.clone())?);
    let refused = pool.submit(Some(second.handle(leading_out)?))?.wait();
    assert!(matches!(&refused, Err(JobError::NotPassed(why)) if why.contains("handle_contained")), "{refused:?}");
    let e = second.handle_contained(leading_out).expect_err("it leads out");
    assert!(e.is_invalid() && e.to_string().contains("points out of it"), "{e}");
    let whole = second.handle_contained(contained)?;
    assert_eq!(whole, second.handle(contained)?, "one object");
    let back = pool.submit(Some(whole))?.wait()?.2.ok_or("it came back")?;
    let sum = "in the arena".bytes().map(usize::from).sum::<usize>();
    assert_eq!((back, follow(back)?, pool.submit(Some(back))?.wait()?.0), (whole, sum, Some(sum)));

    for (words, follows) in [(second.handle(leading_out)?, false), (whole, denied_for_good(&second))] {
        drop(pool.replace(frozen(Some(words), OnWrite::Copy)?.0)?);
        let in_root = pool.submit(None)?.wait()?.1.ok_or("the root has a handle")?;
        assert_eq!(in_root.as_ref().ok(), follows.then_some(&sum), "{in_root:?}");
    }
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

/// Tells whether writing is denied for good: the image cannot be unmapped then, so workers have it beside the next one.
fn denied_for_good<T>(frozen: &Frozen<T>) -> bool {
    frozen.image().denied_for_good()
}

fn data_that_lies_elsewhere_is_refused_and_the_pool_goes_on() -> Outcome {
    let pool = reading()?;
    let arena = Arena::builder("not contained").capacity(1 << 20).build()?;
    let outside: Numbers = Box::leak(Box::new([9u64; 1000]));
    let e = pool.replace(arena.freeze_unchecked(outside)?).expect_err("it lies outside");
    assert!(e.is_invalid(), "{e}");
    assert!(pool.map(0..100).all(|result| result == Ok(0)));
    assert_eq!(pool.data()[0], 0);
    drop(pool.replace(generation(4)?)?);
    assert!(pool.map(0..100).all(|result| result == Ok(4)));
    passed()
}

fn workers_that_are_killed_are_replaced_over_the_newest_data() -> Outcome {
    let pool = reading()?;
    for number in 1..=10 {
        drop(pool.replace(generation(number)?)?);
        pool.workers().into_iter().for_each(signal::kill);
        let results: Vec<_> = in_time(SOON, || pool.map(0..100).chunk(1).collect())?;
        for result in results {
            assert!(matches!(result, Err(JobError::Died { .. })) || result == Ok(number), "{result:?}");
        }
    }
    passed()
}

/// A zygote that is stopped answers nobody. New data that was reported as refused is not taken over when it goes on.
fn a_replace_that_was_given_up_is_not_done_later() -> Outcome {
    let pool = reading()?;
    let zygote = zygote_of(&pool)?;
    signal::send(zygote, signal::STOP);
    let refused = pool.replace(generation(1)?).expect_err("nobody answers");
    assert!(refused.to_string().contains("does not answer"), "{refused}");
    signal::send(zygote, libc::SIGCONT);
    // Behind this answer the zygote has read the request that was given up.
    pool.take_exits()?;
    assert_eq!((pool.submit(1)?.wait(), pool.data()[0]), (Ok(0), 0));
    drop(pool.replace(generation(2)?)?);
    assert_eq!((pool.submit(1)?.wait(), pool.data()[0]), (Ok(2), 2));
    passed()
}

fn nobody_but_the_pools_process_replaces_its_data_and_only_while_it_is_there() -> Outcome {
    adopt_orphans()?;
    let pool = reading()?;
    let mut new = Some(generation(1)?);
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| {
        assert!(pool.replace(new.take().expect("it was there")).is_err());
    })?)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(pool.submit(1)?.wait(), Ok(0));
    drop(pool.replace(new.ok_or("the child had a copy")?)?);
    assert_eq!(pool.submit(1)?.wait(), Ok(1));
    signal::kill(zygote_of(&pool)?);
    all_end_soon()?;
    assert!(pool.replace(generation(2)?).is_err());
    assert_eq!(pool.data()[0], 1);
    passed()
}

/// Those of this process and the ones below it that have a file or a mapping of the arena of this name.
fn holders(name: &str) -> Vec<String> {
    let file = format!("/memfd:cowbell:{name}");
    let mut found = Vec::new();
    for pid in descendants(process::pid()).into_iter().chain([process::pid()]) {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        // The name's end, so that 1 is not 10; the kernel puts " (deleted)" behind it.
        let named =
            |text: &str| text.split_once(&file).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(' '));
        found.extend(maps.lines().filter(|line| named(line)).map(|line| format!("{pid} maps {line}")));
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            if named(&target.to_string_lossy()) {
                found.push(format!("{pid} has descriptor {:?}", entry.file_name()));
            }
        }
    }
    found
}

/// A memfd's memory is free when nobody maps it and nobody has a descriptor of it.
fn generations_that_were_released_are_held_by_nobody_while_the_pool_lives() -> Outcome {
    let pool = reading()?;
    assert_eq!(pool.submit(0)?.wait(), Ok(0));
    assert!(
        holders("generation 0").len() >= 4,
        "the parent, the zygote and the workers: {:?}",
        holders("generation 0")
    );
    for number in 1..=3 {
        let old = pool.replace(generation(number)?)?;
        assert_eq!(pool.submit(0)?.wait(), Ok(number));
        // SAFETY: nothing of it is used any more.
        unsafe { old.release() }?;
        let name = format!("generation {}", number - 1);
        until("nobody holds the old generation", || holders(&name).is_empty())
            .map_err(|e| format!("{}: {:?}", e.message().unwrap_or_default(), holders(&name)))?;
    }
    assert_eq!(pool.submit(0)?.wait(), Ok(3));
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        jobs_run_over_the_newest_data_and_the_workers_of_the_old_leave,
        each_job_runs_once_while_the_data_is_replaced_a_hundred_times_under_load,
        a_job_that_runs_keeps_its_data_to_the_end,
        handles_of_another_generation_are_refused,
        a_handle_of_new_data_is_refused_by_workers_unless_what_it_leads_to_is_contained,
        generations_that_were_released_are_held_by_nobody_while_the_pool_lives,
        data_that_lies_elsewhere_is_refused_and_the_pool_goes_on,
        workers_that_are_killed_are_replaced_over_the_newest_data,
        a_replace_that_was_given_up_is_not_done_later,
        nobody_but_the_pools_process_replaces_its_data_and_only_while_it_is_there,
    ]
}
