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

use super::{LOADER, Zygote, tell};
use crate::arena::{Export, Image};
use crate::error::{Error, Result};
use crate::fork::{self, Child, ForkOptions};
use crate::pool::protocol::failure::Death;
use crate::pool::protocol::messages::Loading;
use crate::sys::{channel, process, signal};
use crate::wire;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// Frozen data that a loader has built: what is told of it, and the image with its file.
pub(crate) type Loaded = (Export, Arc<Image>);

/// The zygote's side of loading.
#[derive(Default)]
pub(crate) struct Loader {
    running: Option<Running>,
    /// The channel's end of the data that was loaded last and is not adopted yet.
    loaded: Option<OwnedFd>,
    /// The channel's end of the data that workers are forked over now. The parent, at the other end, is told by the kernel when nobody has it any more.
    newest: Option<Rc<OwnedFd>>,
}

/// A loader at work.
struct Running {
    child: Child,
    /// Where the loader writes what it has built, as a [`Loading`].
    words: OwnedFd,
    /// Where the parent waits.
    end: OwnedFd,
    stopped: bool,
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
    fn said(&self) -> Option<channel::Message> {
        channel::never_wait(self.words.as_fd()).ok()?;
        channel::receive(self.words.as_fd()).ok().flatten()
    }
}

impl Zygote<'_> {
    /// Forks a loader.
    ///
    /// # Errors
    /// Invalid while there is one, and when the pool closes; those of [`fork::spawn`].
    pub(super) fn load(&mut self, source: &[u8], end: OwnedFd) -> Result<()> {
        if self.closing || self.loader.running.is_some() {
            let why = if self.closing { "the pool closes" } else { "data is being loaded already" };
            return Err(Error::invalid(why));
        }
        self.loader.loaded = None;
        let (words, theirs) = channel::pair().map_err(|e| Error::os("socketpair", e))?;
        let options = ForkOptions::new().last_census(false);
        let (crew, loader, data) = (&mut self.crew, &mut self.loader, &mut *self.data);
        let mut held = Some((words, end));
        let child = fork::spawn(&options, |_| {
            crew.clear();
            *loader = Loader::default();
            held = None;
            process::set_name(c"cowbell-loader");
            process::die_first_of_memory();
            say(&theirs, data.load(source))
        })?;
        drop(theirs);
        let Some((words, end)) = held else { return Ok(()) };
        self.poller.add(child.pidfd(), LOADER).map_err(|e| Error::os("epoll_ctl", e))?;
        self.loader.running = Some(Running { child, words, end, stopped: false });
        Ok(())
    }

    /// The loader has ended: passes on what it has said, or why it has said nothing.
    pub(super) fn reap_loader(&mut self) {
        let Some(mut running) = self.loader.running.take() else { return };
        let _closed_soon = self.poller.remove(running.child.pidfd());
        let told = match running.child.wait() {
            Ok(exit) if exit.success() => running.said(),
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

fn failed(why: String) -> Option<channel::Message> {
    encode(&Loading::Failed(why)).map(|message| (message, None))
}

fn encode(loading: &Loading) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    wire::encode(loading, &mut message, &mut Vec::new()).ok().map(|()| message)
}

/// In the loader: tells the zygote what it has built; the exit code says whether all of it was told.
fn say(zygote: &OwnedFd, loaded: Result<Loaded, String>) -> i32 {
    let (loading, image) = match loaded {
        Ok((export, image)) => (Loading::Done(export.to_bytes()), Some(image)),
        Err(why) => (Loading::Failed(why), None),
    };
    let file = image.as_ref().map(|image| image.file());
    let sent = encode(&loading).is_some_and(|message| channel::send(zygote.as_fd(), &message, file).is_ok());
    i32::from(!sent)
}
