//! What the zygote does about a loader: it forks it, and passes on what it has said.

use super::loader::{Running, failed, say};
use super::{LOADER, Zygote, tell};
use crate::error::{Error, Result};
use crate::fork::{self, ForkOptions};
use crate::pool::protocol::failure::Death;
use crate::sys::{channel, limits, prctl};
use std::os::fd::{AsFd, OwnedFd};

impl Zygote<'_> {
    /// Forks a loader, and returns the end of the channel on which the parent hears of it.
    ///
    /// # Errors
    /// Invalid when the pool closes; those of [`fork::spawn`].
    pub(super) fn load(&mut self, source: &[u8]) -> Result<OwnedFd> {
        if self.closing {
            return Err(Error::invalid("the pool closes"));
        }
        self.loader.loaded = None;
        // The parent has data loaded one after the other, so nobody waits for one that is still at work: it was stopped, or its request was given up.
        if let Some(running) = self.loader.running.take() {
            let _closed_soon = self.poller.remove(running.child.pidfd());
            tell(|| drop(running));
        }
        let (parents, end) = channel::pair().map_err(|e| Error::os("socketpair", e))?;
        let (words, theirs) = channel::pair().map_err(|e| Error::os("socketpair", e))?;
        let options = ForkOptions::new().last_census(false);
        let (crew, settings, data) = (&mut self.crew, self.settings, &mut *self.data);
        let mut held = Some((parents, words));
        let child = fork::spawn(&options, |_| {
            crew.clear();
            // What it keeps are the ends of the data that it has: a process that it leaves behind has that, too.
            held = None;
            settings.worker_signals.begin_loader();
            prctl::set_name(c"cowbell-loader");
            limits::die_first_of_memory();
            say(&theirs, data.load(source))
        })?;
        drop(theirs);
        let (parents, words) = held.ok_or_else(|| Error::invalid("this is the loader"))?;
        self.poller.add(child.pidfd(), LOADER).map_err(|e| Error::os("epoll_ctl", e))?;
        self.loader.running = Some(Running { child, words, end, stopped: false });
        Ok(parents)
    }

    /// The loader has ended: passes on what it has said, or why it has said nothing.
    pub(super) fn reap_loader(&mut self) {
        let Some(mut running) = self.loader.running.take() else { return };
        let _closed_soon = self.poller.remove(running.child.pidfd());
        let told = match running.child.wait() {
            Ok(exit) if exit.success() && !running.stopped => running.said(),
            Ok(exit) => {
                let death = Death {
                    ended: exit.ended,
                    out_of_memory: self.was_out_of_memory(exit.ended),
                    stack_overflow: exit.stack_overflow.is_some(),
                };
                let why = match exit.panic {
                    _ if running.stopped => "loading was stopped".to_owned(),
                    Some(panic) => format!("the process that loads it panicked: {}", panic.0),
                    None => format!("the process that loads it {death}"),
                };
                failed(why)
            }
            Err(e) => failed(e.to_string()),
        };
        let told = told.or_else(|| failed("the process that loads it ended without a word".to_owned()));
        let Some((message, file)) = told else { return };
        // A parent that is gone takes the zygote along.
        let _heard = channel::send(running.end.as_fd(), &message, file.as_ref().map(AsFd::as_fd));
        self.loader.loaded = file.is_some().then_some(running.end);
    }
}
