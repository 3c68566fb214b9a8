//! A batch as the parent follows it: what was done is read, what failed is judged, the rest is queued again.

use super::core::Owner;
use super::core::{Core, NotQueued, Terms};
use crate::pool::memory::buffer;
use crate::pool::protocol::batch::{self, Item, JobStatus};
use crate::pool::protocol::failure::{JobError, JobFailure};
use crate::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// A batch under way.
pub(crate) struct InFlight<R> {
    pub(crate) core: Arc<Core>,
    /// The batch's slot; `None` when all is read.
    number: Option<usize>,
    /// The number of jobs that have no result yet.
    left: usize,
    /// The number of times the first of these was tried in vain.
    attempts: u32,
    max_attempts: u32,
    limit: Option<Duration>,
    /// In the order of the jobs.
    pub(crate) results: Vec<Result<R, JobError>>,
    /// The item of a batch of one job, if it was taken out of shared memory and nobody has read it yet.
    unread: Vec<u8>,
    /// The time that the jobs took that were run, and their number.
    pub(crate) ran: (u64, usize),
}

impl<R: DeserializeOwned> InFlight<R> {
    /// Queues encoded jobs; where there is no room, waits for it or gives `None`.
    ///
    /// # Errors
    /// The pool is closed or gone, or the jobs are too large.
    pub(crate) fn begin(
        core: &Arc<Core>,
        jobs: &[u8],
        terms: Terms,
        max_attempts: u32,
        owner: Option<Owner>,
        waits: bool,
    ) -> Result<Option<Self>, JobError> {
        let number = if waits {
            core.queue(jobs, terms, owner)?
        } else {
            match core.try_queue(jobs, terms, owner) {
                Ok(number) => number,
                Err(NotQueued::Full) => return Ok(None),
                Err(NotQueued::Because(e)) => return Err(e),
            }
        };
        Ok(Some(Self {
            core: Arc::clone(core),
            number: Some(number),
            left: terms.jobs,
            attempts: 0,
            max_attempts,
            limit: terms.limit,
            results: Vec::with_capacity(terms.jobs),
            unread: Vec::new(),
            ran: (0, 0),
        }))
    }

    /// The slot, while there is something to wait for.
    pub(crate) fn number(&self) -> Option<usize> {
        self.number
    }

    /// Tells whether a batch of one job has ended for good. The result is not read.
    pub(crate) fn is_ready(&mut self) -> bool {
        let Some(number) = self.number else { return true };
        self.core.is_done(number) && (self.core.ended(number).done > 0 || self.advance())
    }

    /// Takes the result of a batch of one job out of shared memory as it is, if it is there. True if nothing else will come.
    pub(crate) fn park(&mut self) -> bool {
        self.follow(|run, item| item.append_to(&mut run.unread))
    }

    /// Reads what is there; true when every job has a result.
    pub(crate) fn advance(&mut self) -> bool {
        for item in batch::items(&std::mem::take(&mut self.unread)) {
            self.results.push(read(&self.core, &item));
        }
        self.follow(|run, item| run.results.push(read(&run.core, item)))
    }

    /// Calls `each` with every item that is there, and judges what failed; true when every job has a result.
    fn follow(&mut self, mut each: impl FnMut(&mut Self, &Item<'_>)) -> bool {
        let Some(number) = self.number else { return true };
        if !self.core.is_done(number) {
            return false;
        }
        let core = Arc::clone(&self.core);
        let ended = core.ended(number);
        let mut items = 0;
        core.read_results(number, |item| {
            items += 1;
            each(self, &item);
        });
        for _ in items..ended.done {
            self.results.push(Err(JobError::NotPassed("the result found no room".to_owned())));
        }
        let ran = core.slot(number).ran.swap(0, std::sync::atomic::Ordering::AcqRel);
        self.ran = (self.ran.0 + ran, self.ran.1 + if ran > 0 { ended.done } else { 0 });
        let mut over = ended.done;
        if over > 0 {
            self.attempts = 0;
        }
        if let Some(failure) = ended.failure {
            self.attempts += 1;
            let again =
                self.attempts < self.max_attempts && !matches!(failure, JobFailure::Cancelled) && !core.is_closed();
            if !again {
                self.results.push(Err(self.error(failure)));
                over += 1;
                self.attempts = 0;
            }
        }
        self.left = self.left.saturating_sub(over);
        if self.left > 0 && core.may_queue_again() {
            core.queue_again(number, over);
            return false;
        }
        for _ in 0..std::mem::take(&mut self.left) {
            self.results.push(Err(JobError::Cancelled));
        }
        core.free(number);
        self.number = None;
        true
    }

    fn error(&self, failure: JobFailure) -> JobError {
        let attempts = self.attempts;
        match failure {
            JobFailure::Died(death) => JobError::Died { death, attempts },
            JobFailure::TimedOut => JobError::TimedOut { limit: self.limit.unwrap_or_default(), attempts },
            JobFailure::Cancelled => JobError::Cancelled,
        }
    }

    /// Ends it without the results: nothing will come any more.
    pub(crate) fn fail(&mut self, error: &JobError) {
        for _ in 0..std::mem::take(&mut self.left) {
            self.results.push(Err(error.clone()));
        }
        self.abandon();
    }

    fn abandon(&mut self) {
        if let Some(number) = self.number.take() {
            self.core.abandon(number);
        }
    }
}

impl<R> Drop for InFlight<R> {
    fn drop(&mut self) {
        if self.core.check_process().is_ok() {
            let unread = batch::items(&self.unread);
            unread.for_each(|item| buffer::discard(&self.core.region, &item.passengers()));
        }
        if let Some(number) = self.number.take() {
            self.core.abandon(number);
        }
    }
}

/// A job's result from its item.
fn read<R: DeserializeOwned>(core: &Core, item: &Item<'_>) -> Result<R, JobError> {
    let text = || String::from_utf8_lossy(item.bytes).into_owned();
    match item.status {
        JobStatus::Value => {
            let passengers = item.passengers();
            // A thread may read another's result to make room, so a panic in the type's code must not pass.
            let decode = || buffer::decoding(&core.region, &passengers, || wire::decode(item.bytes, &passengers));
            let value = catch_unwind(AssertUnwindSafe(decode));
            match value {
                Ok(value) => value.map_err(|e| JobError::NotPassed(format!("the result {e}"))),
                Err(said_on_stderr) => {
                    // The payload's destructor might panic again.
                    std::mem::forget(said_on_stderr);
                    Err(JobError::NotPassed("the result cannot be decoded: that panicked".to_owned()))
                }
            }
        }
        JobStatus::Panicked => {
            let said = wire::decode::<(String, Option<String>)>(item.bytes, &[]);
            let (message, location) = said.unwrap_or_else(|_| (text(), None));
            Err(JobError::Panicked { message, location })
        }
        JobStatus::Unreadable | JobStatus::NoRoom => Err(JobError::NotPassed(text())),
    }
}

/// Appends a job's item to a row.
pub(crate) fn encode_job<J: Serialize>(job: &J, row: &mut Vec<u8>) -> Result<(), JobError> {
    let start = batch::begin(row);
    let mut passengers = Vec::new();
    let encoded = wire::encode(job, row, &mut passengers).map_err(|e| JobError::NotPassed(format!("the job {e}")));
    let ended = encoded.and_then(|()| {
        let fits = batch::end(row, start, JobStatus::Value, &passengers);
        fits.then_some(()).ok_or_else(|| JobError::NotPassed("the job is larger than 4 GiB".to_owned()))
    });
    if ended.is_err() {
        row.truncate(start);
    }
    ended
}
