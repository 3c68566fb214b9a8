//! The words that a failing child has for its parent: a panic's message and place, a refused write.

use crate::arena;
use crate::sys::process;
use crate::watch::Evidence;
use std::fmt::Write;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

/// The exit code of a child whose closure panicked, as Rust programs have it.
pub(super) const PANICKED: i32 = 101;

/// The bytes of a panic's message that are kept, so that its place has room behind it.
const MESSAGE_BYTES_MAX: usize = 1536;

/// The region of the child this process is; null in a process nobody spawned.
static MINE: AtomicPtr<Evidence> = AtomicPtr::new(null_mut());

/// The process that it is the region of: a child may be forked by others, too.
static PID: AtomicI32 = AtomicI32::new(0);

/// Says which child this process is.
pub(super) fn this_is(evidence: &'static Evidence) {
    PID.store(process::pid(), Ordering::Release);
    MINE.store(std::ptr::from_ref(evidence).cast_mut(), Ordering::Release);
}

/// The region of the child this process is.
#[expect(unsafe_code, reason = "a pointer is followed")]
pub(super) fn mine() -> Option<&'static Evidence> {
    // SAFETY: `this_is` stored a reference that lives as long as this process.
    unsafe { MINE.load(Ordering::Acquire).as_ref() }
}

/// The same; none in a process that a child forked by other means than ours.
pub(super) fn own() -> Option<&'static Evidence> {
    mine().filter(|_| PID.load(Ordering::Acquire) == process::pid())
}

/// Puts our panic hook before the one that is there, and listens to refused writes, once. Both do
/// nothing but in a child.
///
/// A child cannot install it itself: that takes a lock. If the program replaces the hook later, a
/// child's panic is still reported by its exit code 101.
pub(super) fn install_hooks() {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    // A thread that is panicking may not change the hook; the next spawn will.
    if !*done && !std::thread::panicking() {
        *done = true;
        arena::observe_diagnosis(arena::Observer {
            refused: |refused| {
                if let Some(evidence) = mine() {
                    evidence.refused(refused);
                }
            },
            overflowed: |overflow| {
                if let Some(evidence) = own() {
                    evidence.overflowed(overflow);
                }
            },
        });
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if let Some(evidence) = mine() {
                let payload = cut(message(info.payload()), MESSAGE_BYTES_MAX);
                evidence.begin_panic_text();
                let mut text = Text(evidence);
                let _fits = match info.location() {
                    Some(location) => write!(text, "{payload}, at {location}"),
                    None => write!(text, "{payload}"),
                };
            }
            earlier(info);
        }));
    }
}

/// In a child that ends by a panic: its text is this one's, and not that of an earlier one that was caught. No hook hears of
/// `resume_unwind`, nor where the program has replaced ours.
pub(super) fn ended_by(evidence: &'static Evidence, payload: &dyn std::any::Any) {
    let text = cut(message(payload), MESSAGE_BYTES_MAX);
    let heard = evidence.panic_text().is_some_and(|heard| {
        heard.0.strip_prefix(text).is_some_and(|rest| rest.is_empty() || rest.starts_with(", at "))
    });
    if !heard {
        evidence.begin_panic_text();
        evidence.add_panic_text(text);
    }
}

struct Text(&'static Evidence);

impl Write for Text {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        self.0.add_panic_text(part);
        Ok(())
    }
}

/// The part of a text that fits, in whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=text.len().min(bytes_max)).rev().find(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

pub(crate) fn message(payload: &dyn std::any::Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(a payload that is no text)")
}
