//! The parent's requests, and the zygote's answers.

use super::worker_log;
use super::{Zygote, reply};
use crate::error::Result;
use crate::pool::protocol::adoption;
use crate::pool::protocol::messages::{Reply, Request};
use crate::sys::channel;
use crate::wire;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

impl Zygote<'_> {
    /// Answers a request of the parent; false when the parent is gone.
    pub(super) fn answer(&mut self) -> bool {
        let Ok(Some((message, file))) = channel::receive(self.channels.requests.as_fd()) else { return false };
        let Ok(request) = wire::decode::<Request>(&message, &[]) else { return false };
        let reply = match request {
            Request::Exits => self.take_exits(),
            Request::Workers => self.workers(),
            Request::Cancel { slot, job } => Reply::Done(self.cancel(slot as usize, job as usize)),
            Request::Adopt { offer, .. } if !adoption::take(&self.region.board().adoption, offer) => {
                Reply::Refused("it comes too late".to_owned())
            }
            Request::Adopt { export, .. } => match file {
                Some(file) => {
                    self.adopt(&export, file).map_or_else(|e| Reply::Refused(e.to_string()), |()| Reply::Done(true))
                }
                None => Reply::Refused("no file came with the request".to_owned()),
            },
            Request::Load(source) => match self.load(&source) {
                Ok(end) => return reply(&self.channels.requests, &Reply::Done(true), Some(end)),
                Err(e) => Reply::Refused(e.to_string()),
            },
            Request::StopLoading => Reply::Done(self.loader.stop()),
            Request::Close { cancel } => {
                self.close(cancel);
                // The answer comes when the last worker has gone.
                return true;
            }
        };
        self.reply(&reply)
    }

    pub(super) fn reply(&self, message: &Reply) -> bool {
        reply(&self.channels.requests, message, None)
    }

    fn workers(&self) -> Reply {
        let crew = self.crew.iter().zip(self.region.workers()).enumerate();
        let now =
            crew.filter_map(|(index, (member, own))| Some(worker_log::forked(index, own, member.child.as_ref()?)));
        Reply::Workers(now.collect())
    }

    pub(super) fn take_exits(&mut self) -> Reply {
        Reply::Exits { exits: self.exits.drain(..).collect(), lost: std::mem::take(&mut self.exits_lost) }
    }

    fn adopt(&mut self, export: &[u8], file: OwnedFd) -> Result<()> {
        let is_first = !self.data.has_data();
        self.data.adopt(export, file)?;
        self.loader.adopted();
        if is_first {
            return self.start_all();
        }
        self.region.board().generation.0.fetch_add(1, Ordering::SeqCst);
        self.region.queue().wake_all();
        Ok(())
    }
}
