//! Figures of a pool at work are the kernel's own, to the page.

use crate::case::{Outcome, passed, skipped};
use crate::look::{Bytes, SOON, anonymous_pages, frozen_pages, until, usable, wait, write};
use crate::pool_kit::{Gate, TOUCHERS as WORKERS, Touch, data, doubling, each, still, touching, zygote_of};
use crate::watching::watches_that;
use cowbell::fork::{self, ForkOptions};
use cowbell::page::PageCount;
use cowbell::pool::{Pool, PoolMemory, Shutdown, WorkerStats};
use cowbell::sys::map::Range;
use cowbell::sys::{page_size, process, signal};
use cowbell::watch::Watch;
use libtest_mimic::{Completion, Failed, Trial};
use rustix::process::{DumpableBehavior, geteuid, set_dumpable_behavior};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

const PAGES: u64 = 300;

/// One word for each page of a range, as the kernel tells it.
fn words(pid: i32, range: Range) -> Vec<u64> {
    let size = page_size().bytes();
    let mut bytes = vec![0; range.len / size * 8];
    let file = File::open(format!("/proc/{pid}/pagemap")).expect("readable");
    file.read_exact_at(&mut bytes, (range.start / size * 8) as u64).expect("the tables");
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight"))).collect()
}

const PRESENT: u64 = 1 << 63;
const FILE: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 56;

/// Pages of no file that a process has alone, from its maps and one word for each page of them all.
fn own_bytes(pid: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("readable");
    let mut own = 0;
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next().expect("a range"), fields.next().expect("permissions"));
        let name = fields.nth(3).unwrap_or_default();
        let kernels = name.starts_with('[')
            && !name.starts_with("[heap")
            && !name.starts_with("[stack")
            && !name.starts_with("[anon");
        if !permissions.ends_with('p') || kernels {
            continue;
        }
        let (start, end) = range.split_once('-').expect("two ends");
        let [start, end] = [start, end].map(|end| usize::from_str_radix(end, 16).expect("an address"));
        let words = words(pid, Range { start, len: end - start });
        own += words.into_iter().filter(|word| word & (PRESENT | EXCLUSIVE | FILE) == PRESENT | EXCLUSIVE).count();
    }
    (own * page_size().bytes()) as u64
}

/// The sum of what a process maps alone, over all its mappings.
fn uss_bytes(pid: i32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("readable");
    let kib = |line: &str| line.strip_suffix(" kB")?.rsplit(' ').next()?.parse::<u64>().ok();
    smaps.lines().filter(|line| line.starts_with("Private_")).filter_map(kib).sum::<u64>() * 1024
}

fn copied(stats: &[WorkerStats]) -> Vec<(i32, u64)> {
    stats.iter().map(|worker| (worker.pid, worker.copied_pages.expect("readable").0)).collect()
}

fn copies_are_counted_to_the_page(watch: Watch) -> Outcome {
    if let Err(why) = usable(watch)? {
        return skipped(why);
    }
    let frozen = frozen_pages("figures", PAGES as usize)?;
    let range = frozen.image().range();
    let pool = touching(frozen, watch)?;
    assert!(copied(&pool.worker_stats()?).iter().all(|worker| worker.1 == 0), "nobody has written");
    for round in 0..20u64 {
        let jobs: Vec<Touch> = (0..30).map(|job| (round * 7 + job * 3, job % 4, 0)).collect();
        let by_themselves = each(&pool, &jobs)?;
        let stats = pool.worker_stats()?;
        assert_eq!(stats.iter().map(|worker| worker.index).collect::<Vec<_>>(), (0..WORKERS).collect::<Vec<_>>());
        for (pid, pages) in copied(&stats) {
            assert_eq!(pages, anonymous_pages(pid, range)?, "the kernel's count of worker {pid}");
            if let Some((_, last)) = by_themselves.iter().rfind(|own| own.0 == pid) {
                assert_eq!(pages, *last, "the worker's own count");
            }
        }
    }
    // One worker, one page.
    let before = copied(&pool.worker_stats()?);
    let fresh = PAGES - 1;
    let (who, _) = pool.submit((fresh, 1, 0))?.wait()?;
    let more = |pid: i32| u64::from(pid == who);
    let expected: Vec<_> = before.iter().map(|&(pid, pages)| (pid, pages + more(pid))).collect();
    assert_eq!(copied(&pool.worker_stats()?), expected);
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn planted_copies_are_counted_to_the_page() -> Outcome {
    copies_are_counted_to_the_page(Watch::Census)
}

fn planted_copies_are_counted_to_the_page_under_other_watches() -> Outcome {
    let mut skips = Vec::new();
    for watch in watches_that(|watch| watch != Watch::Census) {
        let one = copies_are_counted_to_the_page(watch)?;
        skips.extend((!matches!(one, Completion::Completed)).then(|| watch.to_string()));
    }
    if skips.is_empty() { passed() } else { skipped(format!("not to be had here: {}", skips.join(", "))) }
}

fn a_worker_is_told_with_its_jobs_generation_and_age() -> Outcome {
    let pool = touching(frozen_pages("figures", PAGES as usize)?, Watch::Census)?;
    each(&pool, &[(0, 0, 1); 60])?;
    let first = pool.worker_stats()?;
    assert_eq!(first.iter().map(|worker| worker.jobs).sum::<u64>(), 60);
    assert!(first.iter().all(|worker| worker.generation == 0 && worker.age < SOON && !worker.age.is_zero()));
    assert_eq!(first.iter().map(|worker| worker.pid).collect::<BTreeSet<_>>(), pool.workers().into_iter().collect());
    let later = pool.worker_stats()?;
    assert!(first.iter().zip(&later).all(|(then, now)| then.pid == now.pid && then.age < now.age));

    // A worker that replaces another begins anew.
    signal::send(first[1].pid, signal::KILL);
    until("the worker is replaced", || pool.stats().started == WORKERS as u64 + 1)?;
    let now = pool.worker_stats()?;
    let new = now.iter().find(|worker| worker.index == 1).ok_or("nobody has its index")?;
    assert_eq!((new.jobs, new.copied_pages, new.pid == first[1].pid), (0, Some(PageCount(0)), false));
    assert!(new.age < now[0].age);
    assert_eq!(pool.stats().jobs, 60, "those of the dead one count on");

    pool.shutdown(Shutdown::Drain)?;
    passed()
}

/// The pages of the data that one of these processes maps.
fn mapped(pids: impl IntoIterator<Item = i32>, range: Range) -> u64 {
    let of =
        |pid| words(pid, range).into_iter().enumerate().filter(|(_, word)| word & (PRESENT | FILE) == PRESENT | FILE);
    pids.into_iter().flat_map(of).map(|(page, _)| page).collect::<BTreeSet<_>>().len() as u64
}

fn memory_is_what_page_tables_and_the_file_say() -> Outcome {
    let frozen = frozen_pages("figures", PAGES as usize)?;
    let (range, size) = (frozen.image().range(), page_size().bytes() as u64);
    let blocks = rustix::fs::fstat(frozen.image().file())?.st_blocks as u64 * 512;
    let pool = touching(frozen, Watch::Census)?;
    let zygote = zygote_of(&pool)?;
    let everybody = || pool.workers().into_iter().chain([zygote, process::pid()]);
    let data = |memory: &PoolMemory| {
        let data = memory.data.expect("a sealed file");
        (data.shared_bytes, data.unmapped_bytes.expect("readable"))
    };
    let all = pool.memory()?;
    assert_eq!(data(&all), (blocks, blocks), "nobody has read it: {all:?}");
    // Read by workers, copied by workers that had read before and by those that had not, and read by the parent.
    for jobs in [vec![(0, 0, 1)], vec![(64, 0, 16); 9], vec![(0, 1, 0)], vec![(200, 10, 0); 9], vec![(64, 16, 0); 9]] {
        each(&pool, &jobs)?;
        let expected = blocks - size * mapped(everybody(), range);
        assert_eq!(data(&pool.memory()?), (blocks, expected), "{jobs:?}");
    }
    let before = data(&pool.memory()?).1;
    std::hint::black_box(pool.data()[range.len / 2].load(Ordering::Relaxed));
    let expected = blocks - size * mapped(everybody(), range);
    assert!(expected < before, "the parent maps a part");
    assert_eq!(data(&pool.memory()?).1, expected);

    // Own memory: copies are, what only one maps of the data is not.
    for pid in pool.workers() {
        let (own, claimed) = still(|| own_bytes(pid), || pool.memory())?;
        let claimed = claimed.workers.iter().find(|worker| worker.pid == pid).ok_or("it lives")?.own_bytes;
        assert_eq!(claimed, Some(own), "worker {pid}");
        let (uss, claimed) = still(|| uss_bytes(pid), || pool.worker_stats())?;
        let claimed = claimed.iter().find(|worker| worker.pid == pid).ok_or("it lives")?.uss_bytes;
        assert_eq!(claimed, Some(uss), "worker {pid}");
    }
    let (own, claimed) = still(|| own_bytes(zygote), || pool.memory())?;
    assert_eq!(claimed.zygote_own_bytes, Some(own));
    // This process looks at itself, and allocates for it.
    let (before, claimed, after) =
        (own_bytes(process::pid()), pool.memory()?.parent_own_bytes, own_bytes(process::pid()));
    assert!(
        before.min(after) <= claimed + (1 << 20) && claimed <= before.max(after) + (1 << 20),
        "{before} {claimed} {after}"
    );
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn a_planted_copy_is_a_page_of_its_workers_own() -> Outcome {
    let pool = touching(frozen_pages("figures", PAGES as usize)?, Watch::Census)?;
    // Warm: the first job of a worker has its code and its stack copied. On a busy machine one worker may take all jobs before another has begun.
    let warm = RefCell::new(BTreeSet::new());
    until("each worker has run a job", || {
        warm.borrow_mut().extend(each(&pool, &[(0, 1, 0); 60]).into_iter().flatten().map(|(who, _)| who));
        warm.borrow().len() == WORKERS
    })?;
    let own = |memory: &PoolMemory| -> Vec<_> {
        memory.workers.iter().map(|worker| (worker.pid, worker.own_bytes.expect("readable"))).collect()
    };
    let mut right = 0;
    for first in (100..250).step_by(50) {
        let before = own(&pool.memory()?);
        let (who, _) = pool.submit((first, 40, 0))?.wait()?;
        let after = own(&pool.memory()?);
        for (before, after) in before.into_iter().zip(after) {
            let planted = if before.0 == who { 40 * page_size().bytes() as u64 } else { 0 };
            // A worker's allocator may touch a page more.
            let more = after.1 - before.1 - planted;
            assert!(before.0 == after.0 && more <= 4 * page_size().bytes() as u64, "{before:?} {after:?}");
            right += u32::from(more == 0);
        }
    }
    assert!(right >= 6, "mostly nothing else was written: {right} of 9");
    pool.shutdown(Shutdown::Drain)?;
    passed()
}

fn copies_that_the_zygote_inherited_are_nobodys() -> Outcome {
    let frozen = frozen_pages("figures", PAGES as usize)?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let pages: Bytes = *frozen;
        (10..20).for_each(|page| write(pages, page));
        let pool = touching(frozen.clone(), Watch::Census).map_err(|e| text(&e))?;
        for job in [(0, 5, 0), (18, 4, 0)] {
            let (who, own) = pool.submit(job).map_err(|e| text(&e))?.wait().map_err(|e| text(&e))?;
            let stats = pool.worker_stats().map_err(|e| text(&e))?;
            let claimed = copied(&stats).into_iter().find(|worker| worker.0 == who);
            if claimed != Some((who, own)) {
                return Err(format!("{claimed:?}, and the worker says {own}"));
            }
        }
        Ok(())
    })?;
    assert!(wait(&mut child)?.success());
    passed()
}

fn workers_that_die_while_they_are_looked_at_are_left_out() -> Outcome {
    let pool = touching(frozen_pages("figures", PAGES as usize)?, Watch::Census)?;
    let over = AtomicBool::new(false);
    let deaths = std::thread::scope(|scope| -> Result<u64, Failed> {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                pool.workers().into_iter().for_each(|pid| signal::send(pid, signal::KILL));
                std::thread::yield_now();
            }
        });
        // An assertion that failed would leave the other thread killing.
        let looks = || -> Result<(), Failed> {
            while pool.stats().deaths < 40 {
                let stats = pool.worker_stats()?;
                if stats.len() > WORKERS || stats.iter().any(|worker| worker.copied_pages != Some(PageCount(0))) {
                    return Err(format!("{stats:?}").into());
                }
                let memory = pool.memory()?;
                if memory.workers.iter().any(|worker| worker.own_bytes.is_none()) {
                    return Err(format!("{memory:?}").into());
                }
            }
            Ok(())
        };
        let looked = looks();
        over.store(true, Ordering::Relaxed);
        looked.map(|()| pool.stats().deaths)
    })?;
    assert!(deaths >= 40);
    passed()
}

fn a_worker_that_may_not_be_read_has_no_figures_and_fails_nobody() -> Outcome {
    let gate = Gate::new()?;
    let pool = Pool::builder()
        .workers(1)
        .on_worker_start(|_| {
            let hidden = DumpableBehavior::NotDumpable;
            set_dumpable_behavior(hidden).expect("prctl");
        })
        .spawn(data()?, move |_, (): ()| gate.pass())?;
    let ticket = pool.submit(())?;
    gate.reached()?;
    let root = geteuid().is_root();
    let (stats, memory) = (pool.worker_stats()?, pool.memory()?);
    assert_eq!((stats[0].copied_pages.is_some(), stats[0].uss_bytes.is_some()), (root, root));
    assert_eq!(memory.workers[0].own_bytes.is_some(), root);
    assert_eq!(memory.data.and_then(|data| data.unmapped_bytes).is_some(), root);
    assert!(memory.zygote_own_bytes.is_some());
    gate.open();
    ticket.wait()?;
    passed()
}

fn a_pool_of_another_process_has_no_figures() -> Outcome {
    let pool = doubling(1)?;
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        let refused = [pool.worker_stats().is_err(), pool.memory().is_err(), pool.openmetrics().is_err()];
        i32::from(refused != [true; 3])
    })?;
    assert!(wait(&mut child)?.success());
    assert_eq!(pool.submit(2)?.wait()?, 4, "and the pool goes on");
    // The zygote is gone: that is said.
    signal::send(zygote_of(&pool)?, signal::KILL);
    until("the pool is gone", || pool.worker_stats().is_err() && pool.memory().is_err())?;
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        planted_copies_are_counted_to_the_page,
        planted_copies_are_counted_to_the_page_under_other_watches,
        a_worker_is_told_with_its_jobs_generation_and_age,
        memory_is_what_page_tables_and_the_file_say,
        a_planted_copy_is_a_page_of_its_workers_own,
        copies_that_the_zygote_inherited_are_nobodys,
        workers_that_die_while_they_are_looked_at_are_left_out,
        a_worker_that_may_not_be_read_has_no_figures_and_fails_nobody,
        a_pool_of_another_process_has_no_figures,
    ]
}
