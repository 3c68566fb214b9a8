//! A job's panic, its message and place, kept instead of printed: it becomes the job's error.

use crate::fork::panics::message;
use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};

thread_local! {
    static IN_JOB: Cell<bool> = const { Cell::new(false) };
    static HEARD: RefCell<Option<Heard>> = const { RefCell::new(None) };
}

/// A panic's message and place.
pub(crate) type CaughtPanic = (String, Option<String>);

/// The last panic that the hook heard of in a job. The job may have caught it and ended by another, of which no hook hears:
/// `resume_unwind` calls none.
struct Heard {
    message: String,
    kind: TypeId,
    place: Option<String>,
}

/// Puts a hook before the one that is there. Called once in each worker, which is a process of its own.
///
/// In a pool that was made by a thread that unwinds, the workers are such threads too, and may not change the hook: their panics
/// are printed, and have no place.
pub(crate) fn capture() {
    // A worker of a pool that was made in a job begins in the middle of that.
    IN_JOB.set(false);
    HEARD.take();
    if std::thread::panicking() {
        return;
    }
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Panics of other threads are not the job's; they are printed as ever.
        if !IN_JOB.get() {
            return earlier(info);
        }
        let heard = Heard {
            message: message(info.payload()).to_owned(),
            kind: info.payload().type_id(),
            place: info.location().map(ToString::to_string),
        };
        HEARD.with_borrow_mut(|last| *last = Some(heard));
    }));
}

/// Runs a job; what its panic said, if it panics.
pub(crate) fn catch<R>(job: impl FnOnce() -> R) -> Result<R, CaughtPanic> {
    IN_JOB.set(true);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    IN_JOB.set(false);
    let heard = HEARD.with_borrow_mut(Option::take);
    ended.map_err(|payload| {
        let said = said(&*payload, heard);
        // The payload's destructor might panic again.
        std::mem::forget(payload);
        said
    })
}

/// The payload is the truth; what the hook heard adds the place, if it heard of this panic.
fn said(payload: &dyn Any, heard: Option<Heard>) -> CaughtPanic {
    let text = message(payload);
    let place = heard.filter(|heard| heard.message == text && heard.kind == payload.type_id());
    (text.to_owned(), place.and_then(|heard| heard.place))
}
