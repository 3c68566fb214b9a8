//! Slots under loom: each job is taken once, whoever dies or stops, and nobody waits for a wake that was lost.

use super::*;

fn every_job_is_taken_once(preemptions: usize, jobs: usize) {
    explore(preemptions, move || {
        let pool = Pool::new(2, 2, jobs);
        let workers = [start(&pool, 0), start(&pool, 1)];
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        for job in 0..jobs {
            parent.submit(job);
        }
        parent.await_all();
        parent.close();
        join(workers);
        for (begun, ended) in pool.begun.iter().zip(&pool.ended) {
            assert_eq!((begun.get(), ended.get()), (1, Some(End::Result)));
        }
    });
}

#[test]
fn every_job_is_taken_once_and_who_sleeps_is_woken() {
    every_job_is_taken_once(2, 1);
}

/// The third goes into a slot and an entry that were used before.
#[test]
fn slots_and_entries_are_used_again() {
    every_job_is_taken_once(1, 3);
}

/// Slots are taken back and queued again behind one that nobody takes, until the ring is full, over and over.
#[test]
fn a_ring_full_of_stale_entries_is_swept() {
    for count in 2..12 {
        explore(0, move || {
            let pool = Pool::new(4, 4, 2 * count + 1);
            let life = Life::long();
            let mut parent = Parent::new(&pool, &life);
            let mut queued = vec![parent.submit(0)];
            let mut job = 1;
            for _ in 0..2 {
                for _ in 1..count {
                    let slot = parent.submit(job);
                    parent.take_back(slot);
                    job += 1;
                }
                // In a slot that has many stale entries.
                queued.push(parent.submit(job));
                job += 1;
            }
            for slot in queued {
                let claimed = parent.view.queue().claim(0);
                assert_eq!(claimed, Some(slot), "they stand in the order in which they were queued");
            }
            assert_eq!(parent.view.queue().claim(0), None);
        });
    }
}

/// The same while a worker takes from it.
#[test]
fn a_ring_is_swept_while_workers_take_from_it() {
    // Slow without optimisation.
    explore(if cfg!(debug_assertions) { 1 } else { 2 }, || {
        let pool = Pool::new(2, 2, 4);
        let worker = start(&pool, 0);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        parent.submit(0);
        for job in 1..3 {
            let slot = parent.submit(job);
            parent.take_back(slot);
        }
        parent.submit(3);
        parent.await_all();
        parent.close();
        join([worker]);
        for (begun, ended) in pool.begun.iter().zip(&pool.ended) {
            assert_eq!(begun.get() == 1, ended.get() == Some(End::Result), "begun or taken back, not both");
            assert!(begun.get() <= 1);
        }
    });
}

/// For each number of accesses: explores a model of a worker with so many left, until it does not use them up.
fn each_death(preemptions: usize, model: impl Fn(u32) -> bool + Send + Sync + Copy + 'static) {
    for accesses in 0.. {
        let died = Arc::new(AtomicBool::new(false));
        let some = Arc::clone(&died);
        explore(preemptions, move || {
            if model(accesses) {
                some.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
        if !died.load(std::sync::atomic::Ordering::Relaxed) {
            assert!(accesses > 10, "a worker does more than that");
            return;
        }
    }
}

/// The job that the dead worker held ends as died, all others with a result, whenever it dies. It is replaced
/// after the zygote has settled what it left.
#[test]
fn a_worker_that_dies_at_any_access_fails_only_what_it_held() {
    each_death(1, |accesses| {
        let pool = Pool::new(2, 2, 2);
        let shared = Rc::clone(&pool);
        let mortal = thread::spawn(move || {
            let life = Life::of(accesses);
            let died = life.live(|| shared.work(0, &life));
            if died {
                shared.settle(0);
                shared.work(0, &Life::long());
            }
            died
        });
        let other = start(&pool, 1);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        for job in 0..2 {
            parent.submit(job);
        }
        parent.await_all();
        parent.close();
        let died = mortal.join().expect("no panic");
        join([other]);
        let failed = pool.ended.iter().filter(|end| end.get() == Some(End::Died)).count();
        assert!(failed <= usize::from(died), "{failed} failed");
        assert!(pool.begun.iter().all(|begun| begun.get() <= 1), "none ran twice");
        died
    });
}

/// A worker dies and is not replaced for long: who is left does it all.
#[test]
fn nobody_waits_for_the_successor_of_a_dead_worker() {
    each_death(2, |accesses| {
        let pool = Pool::new(2, 2, 1);
        let shared = Rc::clone(&pool);
        let mortal = thread::spawn(move || {
            let life = Life::of(accesses);
            let died = life.live(|| shared.work(0, &life));
            if died {
                shared.gone.set(true);
                shared.settle(0);
            }
            died
        });
        let other = start(&pool, 1);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        parent.await_sleepers();
        parent.submit(0);
        parent.await_all();
        parent.close();
        let died = mortal.join().expect("no panic");
        join([other]);
        died
    });
}

/// A worker is stopped for good, and nobody knows. A thread that waits wakes the others after a while, and they do all
/// jobs but the one that it holds.
#[test]
fn a_worker_that_is_stopped_at_any_access_keeps_only_what_it_holds() {
    each_death(1, |accesses| {
        let pool = Pool::new(2, 2, 2);
        let shared = Rc::clone(&pool);
        let stopped = thread::spawn(move || {
            let life = Life::of(accesses);
            let stopped = life.live(|| shared.work(0, &life));
            let life = Life::long();
            for (slot, state) in shared.view(&life).states.iter().enumerate() {
                if stopped && queue::holder(state.load()) == Some(0) {
                    shared.ended[shared.jobs[slot].get()].set(Some(End::Kept));
                }
            }
            // Stands for the time that passes.
            shared.gone.set(stopped);
            shared.tell();
        });
        let other = start(&pool, 1);
        let life = Life::long();
        let mut parent = Parent::new(&pool, &life);
        parent.await_sleepers();
        for job in 0..2 {
            parent.submit(job);
        }
        let mut nudged = false;
        while pool.ended.iter().any(|end| end.get().is_none()) {
            if pool.gone.get() && !nudged {
                parent.view.queue().nudge();
                nudged = true;
                continue;
            }
            parent.collect();
        }
        let was_stopped = pool.gone.get();
        parent.close();
        join([stopped, other]);
        assert!(pool.begun.iter().all(|begun| begun.get() <= 1), "none ran twice");
        was_stopped
    });
}
