//! Parts that the tests share: trials that can skip with a reason, and a child that takes turns with its parent.

use cowbell::fork::{Child, Context, ForkOptions};
use libtest_mimic::{Completion, Failed, Trial};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::OwnedFd;

/// The end of a test: passed, or skipped for a reason; an error is a failure.
pub type Outcome = Result<Completion, Failed>;

/// A test by its claim.
pub fn trial(name: impl Into<String>, test: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::ignorable_test(name, test)
}

/// The test has shown its claim.
pub fn passed() -> Outcome {
    Ok(Completion::Completed)
}

/// The test cannot be made here.
pub fn skipped(why: impl Into<String>) -> Outcome {
    let why: String = why.into();
    eprintln!("skipped: {why}");
    Ok(Completion::ignored_with(why))
}

/// Long runs are asked for by `COWBELL_SOAK=1`.
pub fn soak() -> bool {
    std::env::var_os("COWBELL_SOAK").is_some()
}

/// One end of a conversation by single bytes; a partner that died ends it.
pub struct Turns {
    from: OwnedFd,
    to: OwnedFd,
}

impl Turns {
    /// Both ends of one conversation.
    pub fn new() -> Result<(Self, Self), Failed> {
        let (a, b) = (pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?);
        Ok((Self { from: a.0, to: b.1 }, Self { from: b.0, to: a.1 }))
    }

    /// Lets the other side go on.
    pub fn give(&self) {
        rustix::io::write(&self.to, b"t").expect("the other side waits");
    }

    /// Waits for the other side; false when it is gone.
    pub fn take(&self) -> bool {
        rustix::io::retry_on_intr(|| rustix::io::read(&self.from, &mut [0u8; 1])) == Ok(1)
    }
}

/// Forks a child that runs `work` and then waits until the parent lets it end. Returns when the work is done.
pub fn child_that_waits(options: &ForkOptions<'_>, work: impl FnOnce(&Context)) -> Result<(Child, Turns), Failed> {
    let (mine, theirs) = Turns::new()?;
    let child = cowbell::fork::spawn(options, |context| {
        work(context);
        theirs.give();
        theirs.take();
    })?;
    // With the child's ends closed here, its death ends the conversation.
    drop(theirs);
    if !mine.take() {
        let mut child = child;
        let exit = child.wait()?;
        return Err(format!("the child ended early: {:?}, {:?}", exit.ended, exit.panic).into());
    }
    Ok((child, mine))
}
