//! Panics that are caught, passed on, or under way: what is told of them is the one that ended the job or the child.

use crate::case::{Outcome, passed};
use crate::look::wait;
use cowbell::fork::{self, Ended, Exit, ForkOptions};
use libtest_mimic::{Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};

/// Panics and catches it.
fn caught(text: &'static str) -> Box<dyn std::any::Any + Send> {
    catch_unwind(|| panic!("{text}")).expect_err("it panics")
}

fn ended(body: impl FnOnce() -> i32) -> Result<Exit, Failed> {
    let exit = wait(&mut fork::spawn(&ForkOptions::new(), |_| body())?)?;
    assert_eq!(exit.ended, Ended::Exited(101));
    Ok(exit)
}

fn a_childs_end_is_laid_to_the_panic_that_ended_it() -> Outcome {
    let said = |exit: Exit| exit.panic.map(|panic| panic.0);
    let exit = ended(|| {
        let _first = caught("the first");
        resume_unwind(Box::new("the second"))
    })?;
    assert_eq!(said(exit).as_deref(), Some("the second"));
    let exit = ended(|| resume_unwind(Box::new("alone".to_owned())))?;
    assert_eq!(said(exit).as_deref(), Some("alone"));
    let exit = ended(|| resume_unwind(caught("passed on")))?;
    assert!(said(exit).is_some_and(|text| text.starts_with(&format!("passed on, at {}", file!()))));
    let exit = ended(|| {
        let _first = caught("of no account");
        101
    })?;
    assert_eq!(said(exit), None, "it chose that code");
    let exit = ended(|| {
        let _first = caught("of no account");
        resume_unwind(Box::new(7))
    })?;
    assert_eq!(said(exit).as_deref(), Some("(a payload that is no text)"));
    passed()
}

/// Runs something while this thread unwinds.
struct Unwinding<F: FnMut()>(F);

impl<F: FnMut()> Drop for Unwinding<F> {
    fn drop(&mut self) {
        assert!(std::thread::panicking());
        (self.0)();
    }
}

fn while_unwinding(body: impl FnMut()) {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let _unwinding = Unwinding(body);
        panic!("to be unwound");
    }));
    assert!(ended.is_err());
}

fn a_child_that_is_forked_while_unwinding_tells_its_own_panic() -> Outcome {
    let mut exits = Vec::new();
    while_unwinding(|| {
        for panics in [false, true] {
            let body = |_: &fork::Context| {
                if panics {
                    panic!("of the child")
                }
            };
            exits.push(fork::spawn(&ForkOptions::new(), body).and_then(|mut child| child.wait()));
        }
    });
    let exits = exits.into_iter().collect::<Result<Vec<_>, _>>()?;
    assert!(exits[0].success() && exits[0].panic.is_none(), "{:?}", exits[0]);
    assert_eq!(exits[1].ended, Ended::Exited(101));
    assert_eq!(exits[1].panic.as_ref().map(|panic| panic.0.as_str()), Some("of the child"));
    passed()
}

#[cfg(feature = "pool")]
mod jobs {
    use super::*;
    use crate::pool_kit::data;
    use cowbell::pool::{JobError, Pool};

    /// The result of each kind of job.
    fn run(_: &crate::look::Bytes, kind: u64) -> u64 {
        match kind {
            0 => {
                let _first = caught("the first");
                resume_unwind(Box::new("the second"))
            }
            1 => resume_unwind(Box::new("alone".to_owned())),
            2 => resume_unwind(caught("passed on")),
            3 => panic_any(7),
            4 => {
                let _first = caught("of no account");
                kind
            }
            5 => resume_unwind(Box::new(7)),
            6 => {
                std::panic::set_hook(Box::new(|_| ()));
                panic!("with another hook")
            }
            _ => kind,
        }
    }

    fn said(ended: Result<u64, JobError>) -> (String, bool) {
        match ended {
            Err(JobError::Panicked { message, location }) => (message, location.is_some()),
            other => (format!("{other:?}"), false),
        }
    }

    pub fn a_jobs_end_is_laid_to_the_panic_that_ended_it() -> Outcome {
        let pool = Pool::builder().workers(1).spawn(data()?, run)?;
        let ends: Vec<_> = pool.map([0, 1, 2, 3, 4, 5, 0, 6]).map(said).collect();
        let expected = [
            ("the second", false),
            ("alone", false),
            ("passed on", true),
            ("(a payload that is no text)", true),
            ("Ok(4)", false),
            ("(a payload that is no text)", false),
            ("the second", false),
            ("with another hook", false),
        ];
        assert_eq!(ends, expected.map(|(text, placed)| (text.to_owned(), placed)));
        passed()
    }

    pub fn a_pool_that_is_made_while_unwinding_works() -> Outcome {
        let frozen = data()?;
        let mut ends = Vec::new();
        while_unwinding(|| {
            let pool = Pool::builder().workers(2).spawn(frozen.clone(), run);
            let pool = pool.expect("a pool");
            ends.extend(pool.map([7, 1, 0, 8]).map(said));
        });
        let expected = [("Ok(7)", false), ("alone", false), ("the second", false), ("Ok(8)", false)];
        assert_eq!(ends, expected.map(|(text, placed)| (text.to_owned(), placed)));
        passed()
    }
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    let mut trials = claims![
        a_childs_end_is_laid_to_the_panic_that_ended_it,
        a_child_that_is_forked_while_unwinding_tells_its_own_panic,
    ];
    #[cfg(feature = "pool")]
    {
        use jobs::{a_jobs_end_is_laid_to_the_panic_that_ended_it, a_pool_that_is_made_while_unwinding_works};
        trials
            .extend(claims![a_jobs_end_is_laid_to_the_panic_that_ended_it, a_pool_that_is_made_while_unwinding_works,]);
    }
    trials
}
