//! Requests to the zygote, and the end of the pool.

use super::core::{Core, LOOK_AFTER, ZygoteChannel, lock};
use crate::arena::Export;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::protocol::adoption;
use crate::pool::protocol::messages::{Reply, Request};
use crate::pool::protocol::progress;
use crate::pool::protocol::queue;
use crate::sys::{Errno, channel, pidfd};
use crate::wire;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The time that the zygote may take for an answer that is no matter of the user's jobs, and to end.
const ANSWER_TIME: Duration = Duration::from_secs(20);

impl Core {
    /// Cancels a batch of one job, wherever it is; false if it is done already.
    pub(crate) fn cancel(&self, number: usize) -> Result<bool> {
        self.check_process().map_err(|e| Error::invalid(e.to_string()))?;
        if self.take_back(number) {
            return Ok(true);
        }
        let slot = self.slot(number);
        if queue::holder(slot.state.load(Ordering::Acquire)).is_none() {
            return Ok(false);
        }
        let (job, _) = progress::read(&slot.progress);
        match self.request(&Request::Cancel { slot: number as u32, job: job as u32 }, None)? {
            Reply::Done(cancelled) => Ok(cancelled),
            _ => Ok(false),
        }
    }

    /// Sends the zygote a request and waits for the answer.
    ///
    /// # Errors
    /// The zygote is gone, or does not answer: it was stopped.
    pub(crate) fn request(&self, request: &Request, file: Option<BorrowedFd<'_>>) -> Result<Reply> {
        self.request_more(request, file).map(|(reply, _)| reply)
    }

    /// [`Self::request`], and the descriptor that came with the answer.
    ///
    /// # Errors
    /// Those of [`Self::request`].
    pub(super) fn request_more(
        &self,
        request: &Request,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>)> {
        // A process forked from the pool's has a copy of the channel, and would take the answer away.
        self.check_process().map_err(|e| Error::invalid(e.to_string()))?;
        let mut line = lock(&self.line);
        self.ask(&mut line, request, file)
    }

    /// Hands frozen data over to the zygote, which forks the next workers over it.
    ///
    /// # Safety
    /// As [`Pool::replace_unchecked`](super::pool::Pool::replace_unchecked).
    ///
    /// # Errors
    /// Those of [`Pool::replace`](super::pool::Pool::replace).
    #[expect(unsafe_code, reason = "declares an unsafe function")]
    pub(crate) unsafe fn hand_over(&self, new: &Export, file: BorrowedFd<'_>) -> Result<()> {
        self.check_process().map_err(|e| Error::invalid(e.to_string()))?;
        let offer = adoption::offer(&self.region.board().adoption);
        match self.request(&Request::Adopt { offer, export: new.to_bytes() }, Some(file))? {
            Reply::Done(_) => Ok(()),
            Reply::Refused(why) => {
                Err(Error::new(ErrorKind::Child(format!("the zygote cannot take the data over: {why}").into())))
            }
            Reply::Exits { .. } | Reply::Workers(_) => Err(Error::invalid("the zygote answered something else")),
        }
    }

    pub(crate) fn ask(
        &self,
        line: &mut ZygoteChannel,
        request: &Request,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>)> {
        let gone = || Error::new(ErrorKind::Child("the pool's zygote has ended".into()));
        let mut message = Vec::new();
        wire::encode(request, &mut message, &mut Vec::new())?;
        channel::send(line.end.as_fd(), &message, file).map_err(|errno| match errno {
            Errno::MSGSIZE => {
                Error::invalid(format!("{} bytes are too many for a request to the zygote", message.len()))
            }
            _ => gone(),
        })?;
        line.owed += 1;
        let begun = Instant::now();
        let takes_its_time = match request {
            // Workers that leave in order run the program's hooks, which take what they take.
            Request::Close { cancel } => !cancel,
            // The first workers are forked before the answer comes, as many as there are to be.
            Request::Adopt { .. } => self.region.board().started.load(Ordering::Acquire) == 0,
            _ => false,
        };
        // The zygote has begun with what cannot be undone, so its answer is worth any time.
        let mut has_begun = false;
        loop {
            // Only a zygote that was stopped answers never.
            let waits = has_begun || takes_its_time && !pidfd::is_stopped(self.zygote.as_fd());
            let left = if waits { LOOK_AFTER } else { ANSWER_TIME.saturating_sub(begun.elapsed()) };
            // The zygote's own end may be inherited by workers, so its end is looked at as well.
            let ends = [line.end.as_fd(), self.zygote.as_fd()];
            match pidfd::wait_any_within(ends, Some(left)).map_err(|e| Error::os("ppoll", e))? {
                [true, _] => {}
                [false, true] => return Err(gone()),
                [false, false] if left.is_zero() => {
                    let word = &self.region.board().adoption;
                    has_begun = matches!(request, Request::Adopt { offer, .. } if !adoption::revoke(word, *offer));
                    if has_begun {
                        continue;
                    }
                    return Err(Error::new(ErrorKind::Child("the pool's zygote does not answer".into()))
                        .with_hint("if it was stopped, let it go on: kill -CONT"));
                }
                [false, false] => continue,
            }
            let (message, file) = channel::receive(line.end.as_fd()).ok().flatten().ok_or_else(gone)?;
            line.owed -= 1;
            // Answers to earlier requests, for which nobody waits any more, come first.
            if line.owed == 0 {
                return Ok((wire::decode(&message, &[])?, file));
            }
        }
    }

    /// Closes the pool: no further jobs; those that are queued run first, or are cancelled. Returns the zygote's last words.
    ///
    /// # Errors
    /// The zygote was gone before.
    pub(crate) fn close(&self, cancel: bool) -> Result<Option<Reply>> {
        if self.check_process().is_err() {
            return Ok(None);
        }
        let mut front = lock(&self.front);
        front.closed = true;
        self.cancelled.store(cancel, Ordering::Release);
        if cancel {
            for number in 0..self.region.board().slots_used.load(Ordering::Acquire) as usize {
                let _only_if_queued = self.take_back(number);
            }
        }
        drop(front);
        let mut line = lock(&self.line);
        let Some(mut zygote) = line.zygote.take() else { return Ok(None) };
        let reply = self.ask(&mut line, &Request::Close { cancel }, None).map(|(reply, _)| reply);
        // With no answer there is no reason to wait again.
        let ended = zygote.wait_timeout(if reply.is_ok() { ANSWER_TIME } else { Duration::ZERO });
        // Killed, if it does not end.
        drop(zygote);
        self.gone.store(true, Ordering::Release);
        self.region.tell_all();
        ended?;
        reply.map(Some)
    }
}
