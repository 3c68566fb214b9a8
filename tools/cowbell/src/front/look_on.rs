//! Attaching for somebody who looks on: what is known so far can be asked for at any time.

use super::Session;
use super::capture::CaptureWriter;
use super::keep::Kept;
use crate::analyse::live::Live;
use crate::failure::Failure;
use crate::record::{Mode, Who};
use crate::trace::ability;
use crate::trace::link::{Options, Target, TracerCommand};
use cowbell::sys::signal;
use std::io::Read;
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A stack with every so many copies of an instruction, as `attach` has it.
const STACKS_EVERY: u32 = 64;
/// The number of processes at a time that `attach` watches, too.
const CHILDREN_MAX: usize = 1000;
/// A tracer that tells more than so much at a time is heard on later: a terminal waits for its next picture.
const READS_MAX: usize = 256;

/// A process and all that it has forked, watched.
pub struct LookOn(Session);

impl LookOn {
    /// Attaches, in the mode that tells each copy when it is made, unless another is asked for or that is not allowed. Whether it
    /// succeeds is told by the first [`Self::hear`].
    ///
    /// # Errors
    /// The tracer cannot be started.
    pub fn attach(pid: i32, mode: Option<Mode>) -> Result<Self, Failure> {
        let options = Options {
            target: Target::Attach(pid),
            mode: mode.or_else(|| ability::trace().is_ok().then_some(Mode::Trace)),
            who: Who::Both,
            stacks_every: STACKS_EVERY,
            children_max: CHILDREN_MAX,
            signal_mask: signal::mask(),
        };
        Session::start(&options, Kept::looked_at(CaptureWriter::nameless()?)).map(Self)
    }

    /// Takes what the tracer has told by now, and waits for nothing; is there more to come?
    ///
    /// # Errors
    /// It could not attach, or the capture could not be written.
    pub fn hear(&mut self) -> Result<bool, Failure> {
        let (mut found, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        for _ in 0..READS_MAX {
            let Session { stream, poller, kept, .. } = &mut self.0;
            poller.wait(Some(Duration::ZERO), &mut found).map_err(|e| Failure::new(format!("cannot wait: {e}")))?;
            if !found.contains(&super::TRACER) {
                return Ok(true);
            }
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => {
                    return match kept.failed.take() {
                        Some((_, message)) => Err(Failure::new(message)),
                        None => Ok(false),
                    };
                }
                Ok(got) => {
                    kept.hear(buffer.get(..got).unwrap_or_default())?;
                    self.0.hang_up();
                }
            }
        }
        Ok(true)
    }

    /// The state of the run up to now.
    pub fn live(&self) -> Option<&Live> {
        self.0.kept.live()
    }

    /// Keeps what was captured up to now in a file of that name; its path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, name: &Path) -> Result<PathBuf, Failure> {
        self.0.kept.save(name)
    }

    /// Lets everybody go, and waits until that is done.
    pub fn leave(mut self) {
        self.0.order(TracerCommand::Detach);
        let _gone = self.0.stream.shutdown(Shutdown::Write);
        let mut buffer = vec![0; 1 << 16];
        // The tracer's end closes its socket; it waits at most some seconds for threads that do not stand still.
        while self.0.stream.read(&mut buffer).is_ok_and(|got| got > 0) {}
        let _status = self.0.tracer.wait();
    }
}
