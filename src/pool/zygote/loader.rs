//! Loading data in a process of its own, forked from the zygote: neither the program nor the zygote has a reference into what it builds, so the memory is free
//! when the last worker over it has left, and nobody has to promise anything.
//!
//! ```text
//!  parent                     zygote                          loader                    workers of the new generation
//!  Load(source), channel ──>  forks                      ──>  builds, freezes
//!                             reaps, passes it on        <──  export, file; ends
//!  Adopt(export, file)   <──  Loading::Done, file
//!                        ──>  maps it, gives up the old, forks  ────────────────────>   hold the channel's end while they live
//! ```

use super::worker_log::tell;
use crate::arena::{Export, Image};
use crate::fork::Child;
use crate::pool::protocol::messages::Loading;
use crate::sys::{channel, signal};
use crate::wire;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// Frozen data that a loader has built: what is told of it, and the image with its file.
pub(crate) type Loaded = (Export, Arc<Image>);

/// The zygote's side of loading.
#[derive(Default)]
pub(crate) struct Loader {
    pub(super) running: Option<Running>,
    /// The channel's end of the data that was loaded last and is not adopted yet.
    pub(super) loaded: Option<OwnedFd>,
    /// The channel's end of the data that workers are forked over now. The parent, at the other end, is told by the kernel when nobody has it any more.
    newest: Option<Rc<OwnedFd>>,
}

/// A loader at work.
pub(super) struct Running {
    pub(super) child: Child,
    /// Where the loader writes what it has built, as a [`Loading`].
    pub(super) words: OwnedFd,
    /// Where the parent waits.
    pub(super) end: OwnedFd,
    pub(super) stopped: bool,
}

impl Loader {
    /// In a worker: what it does not hold.
    pub(crate) fn leave(&mut self) {
        (self.running, self.loaded) = (None, None);
    }

    /// The data that was loaded last is what workers are forked over from now on.
    pub(crate) fn adopted(&mut self) {
        self.newest = self.loaded.take().map(Rc::new);
    }

    /// The channel's end that a worker holds who is forked now.
    pub(super) fn users(&self) -> Option<Rc<OwnedFd>> {
        self.newest.clone()
    }

    /// Kills the loader; false if there is none.
    pub(crate) fn stop(&mut self) -> bool {
        let Some(running) = &mut self.running else { return false };
        running.stopped = true;
        if let Err(e) = running.child.kill(signal::KILL) {
            tell(|| log::warn!("the loader {}: {e}", running.child.pid()));
        }
        true
    }

    /// Nobody waits for the loader any more.
    pub(crate) fn close(&mut self) {
        // The child is killed as it is dropped.
        tell(|| self.running = None);
    }
}

impl Running {
    /// What the loader, which has ended, has said. It may have ended in the middle of a word, or have left a process behind that has its end of the channel, so this waits for nothing.
    pub(super) fn said(&self) -> Option<channel::Message> {
        channel::never_wait(self.words.as_fd()).ok()?;
        channel::receive(self.words.as_fd()).ok().flatten()
    }
}

/// A reason may be so long. The whole message has room in the channel then, so that whoever sends it waits for nobody.
const REASON_MAX: usize = 16 << 10;

pub(super) fn failed(why: String) -> Option<channel::Message> {
    encode(&Loading::Failed(shortened(why))).map(|message| (message, None))
}

fn shortened(mut why: String) -> String {
    let fits = (0..=REASON_MAX.min(why.len())).rev().find(|&end| why.is_char_boundary(end));
    why.truncate(fits.unwrap_or(0));
    why
}

fn encode(loading: &Loading) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    wire::encode(loading, &mut message, &mut Vec::new()).ok().map(|()| message)
}

/// In the loader: tells the zygote what it has built; the exit code says whether all of it was told.
pub(super) fn say(zygote: &OwnedFd, loaded: Result<Loaded, String>) -> i32 {
    let (loading, image) = match loaded {
        Ok((export, image)) => (Loading::Done(export.to_bytes()), Some(image)),
        Err(why) => (Loading::Failed(shortened(why)), None),
    };
    let file = image.as_ref().map(|image| image.file());
    let sent = encode(&loading).is_some_and(|message| channel::send(zygote.as_fd(), &message, file).is_ok());
    i32::from(!sent)
}
