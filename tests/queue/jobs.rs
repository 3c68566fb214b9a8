//! The progress of a batch under loom: a job is done or condemned, and never both.

use super::*;

/// A batch of two jobs, and the next one in the same slot, in the hands of the same worker.
struct Batches {
    state: Memory32,
    progress: AtomicU64,
    /// The batch that is in the slot; the test's own.
    batch: Cell<usize>,
    finished: Cell<usize>,
    killed: Cell<bool>,
}

impl Batches {
    /// True if all was done; else the worker waits for its death.
    fn work(&self) -> bool {
        let life = Life::long();
        let (state, progress) = (Word32(&self.state, &life), Long64(&self.progress, &life));
        for batch in 1..=2 {
            if batch == 2 {
                progress::reset(&progress);
                self.batch.set(2);
                self.finished.set(0);
            }
            state.store(queue::taken_by(0));
            for job in 0..2 {
                if !progress::begin(&progress, job) || !progress::finish(&progress, job) {
                    return false;
                }
                self.finished.set(job + 1);
            }
            while !queue::give_back(&state, 0) {
                // Death is no access to memory; it comes while the worker waits.
                if self.killed.get() {
                    return false;
                }
                thread::yield_now();
            }
        }
        true
    }
}

impl Batches {
    /// The zygote's judgement: no later than at which batch it looked, what it saw, and, if it could not condemn that, what
    /// it saw then of the same batch.
    fn judge(&self) -> Option<(usize, Progress, Option<Progress>)> {
        let life = Life::long();
        let (state, progress) = (Word32(&self.state, &life), Long64(&self.progress, &life));
        let seen = progress::look(&progress);
        let batch = self.batch.get();
        if !queue::hold(&state, 0) {
            return None;
        }
        if progress::condemn(&progress, seen) {
            self.killed.set(true);
            return Some((batch, seen, None));
        }
        // Seen in the first batch, and that is still in the slot.
        let after = (self.batch.get() == 1).then(|| progress::look(&progress));
        queue::let_go(&state, 0);
        Some((batch, seen, after))
    }
}

/// A job that the zygote has condemned never counts as done, and its worker never leaves it for another; a job that
/// was done, or stood in the slot before, is not condemned.
#[test]
fn a_job_is_done_or_condemned() {
    explore(5, || {
        let all = Rc::new(Batches {
            state: Memory32::new(),
            progress: AtomicU64::new(0),
            batch: Cell::new(1),
            finished: Cell::new(0),
            killed: Cell::new(false),
        });
        let worker = thread::spawn({
            let all = Rc::clone(&all);
            move || all.work()
        });
        let zygote = thread::spawn({
            let all = Rc::clone(&all);
            move || all.judge()
        });
        let judged = zygote.join().expect("no panic");
        let left = worker.join().expect("no panic");
        assert_eq!(left, !all.killed.get(), "who is killed has not left, who is not killed gets on");
        let Some((batch, seen, after)) = judged else { return };
        let life = Life::long();
        let progress = Long64(&all.progress, &life);
        if all.killed.get() {
            assert!(all.batch.get() <= batch, "the look was at an earlier batch");
            assert_eq!(all.finished.get(), seen.job(), "the job was not done");
            assert_eq!(progress::read(&progress), (seen.job(), JobPhase::Condemned));
        }
        if let Some(after) = after {
            assert!(after.job() > seen.job(), "it could have been condemned");
        }
    });
}
