//! Panics of which nobody is told.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Sync + Send + 'static>;

/// One thread at a time changes the hook: two could each keep the other's.
static CHANGE: Mutex<()> = Mutex::new(());

thread_local! {
    static IS_SILENT: Cell<bool> = const { Cell::new(false) };
}

/// The value of `run`; none if it panics. The program's panic hook, which may print or end the program, is not called for this thread meanwhile. It is
/// called for others as ever; only in the instants in which hooks change places one of them may meet std's own, which prints.
///
/// A thread that is panicking may not change the hook, so nothing is run in it.
pub(super) fn silenced<R>(run: impl FnOnce() -> R) -> Option<R> {
    if std::thread::panicking() {
        return None;
    }
    // One within another needs no hook of its own.
    if IS_SILENT.get() {
        return caught(run);
    }
    let _alone = CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
    let earlier: Arc<Hook> = Arc::new(take_hook());
    let others = Arc::clone(&earlier);
    let ours: Hook = Box::new(move |info| {
        if !IS_SILENT.get() {
            others(info);
        }
    });
    let address = address(&ours);
    set_hook(ours);
    IS_SILENT.set(true);
    let ran = caught(run);
    IS_SILENT.set(false);
    put_back(earlier, address);
    ran
}

fn caught<R>(run: impl FnOnce() -> R) -> Option<R> {
    // The payload's destructor might panic again.
    catch_unwind(AssertUnwindSafe(run)).map_err(std::mem::forget).ok()
}

fn address(hook: &Hook) -> *const () {
    (&raw const **hook).cast()
}

/// Has the earlier hook take the place of ours. One that another thread or `run` has set meanwhile stays.
fn put_back(earlier: Arc<Hook>, ours: *const ()) {
    let now = take_hook();
    if address(&now) != ours {
        return set_hook(now);
    }
    drop(now);
    // Nobody else has it: a hook that runs keeps others from being taken.
    if let Some(earlier) = Arc::into_inner(earlier) {
        set_hook(earlier);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The hook is the program's, so one test does all.
    #[test]
    fn a_panic_is_not_heard_but_those_of_other_threads_are() {
        static OURS: AtomicU32 = AtomicU32::new(0);
        let alone = || CHANGE.lock().unwrap_or_else(PoisonError::into_inner);
        let changing = alone();
        let program = take_hook();
        let mine = std::thread::current().id();
        set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>().is_some_and(|text| text.starts_with("counted")) {
                OURS.fetch_add(if std::thread::current().id() == mine { 100 } else { 1 }, Ordering::Relaxed);
            } else {
                program(info);
            }
        }));
        drop(changing);
        let none = silenced(|| {
            let other = std::thread::spawn(|| panic!("counted, in another thread"));
            other.join().expect_err("it panics");
            panic!("counted, here");
        });
        assert_eq!((none, OURS.load(Ordering::Relaxed)), (None::<()>, 1));
        assert_eq!(silenced(|| (silenced(|| panic!("counted, within")), 7)), Some((None::<()>, 7)));
        catch_unwind(|| panic!("counted, and heard again")).expect_err("it panics");
        assert_eq!(OURS.load(Ordering::Relaxed), 101);

        let later = silenced(|| {
            let held = take_hook();
            set_hook(Box::new(move |info| {
                OURS.fetch_add(1000, Ordering::Relaxed);
                held(info);
            }));
        });
        catch_unwind(|| panic!("counted, by both")).expect_err("it panics");
        assert_eq!((later, OURS.load(Ordering::Relaxed)), (Some(()), 1201), "a hook that was set meanwhile stays");
        let _changing = alone();
        drop(take_hook());
    }
}
