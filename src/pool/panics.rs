//! What a job's panic said and where, kept instead of printed: it becomes the job's error.

use std::cell::{Cell, RefCell};

thread_local! {
    static IN_JOB: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<Option<Said>> = const { RefCell::new(None) };
}

/// A panic's message and place.
pub(super) type Said = (String, Option<String>);

/// Puts a hook before the one that is there. Called once in each worker, which is a process of its own.
pub(super) fn capture() {
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Panics of other threads are not the job's; they are printed as ever.
        if !IN_JOB.get() {
            return earlier(info);
        }
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = text.unwrap_or("(a payload that is no text)").to_owned();
        let location = info.location().map(ToString::to_string);
        SAID.with_borrow_mut(|said| *said = Some((message, location)));
    }));
}

/// Runs a job; what its panic said, if it panics.
pub(super) fn catch<R>(job: impl FnOnce() -> R) -> Result<R, Said> {
    IN_JOB.set(true);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    IN_JOB.set(false);
    ended.map_err(|payload| {
        // Its destructor might panic again.
        std::mem::forget(payload);
        let said = SAID.with_borrow_mut(Option::take);
        said.unwrap_or_else(|| ("(a panic that nobody heard: the program replaced the panic hook)".to_owned(), None))
    })
}
