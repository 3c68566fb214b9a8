//! The calling thread's stack, by the unwinder that the standard library links for panics (`_Unwind_Backtrace`, libgcc).
//!
//! # Safety
//! The unwinder follows the tables (`.eh_frame`) that compilers write for every function. Code that says there what is not so, written by hand, may lead it
//! to addresses where nothing is; that is why no stack is walked unless the user asks.
#![expect(unsafe_code, reason = "a foreign function calls back")]

use std::ffi::{c_int, c_void};

/// `struct _Unwind_Context`, of which nothing is known.
#[repr(C)]
struct Context {
    _hidden: [u8; 0],
}

/// `_URC_NO_REASON`: go on.
const GO_ON: c_int = 0;
/// `_URC_END_OF_STACK`: enough.
const ENOUGH: c_int = 5;

unsafe extern "C" {
    fn _Unwind_Backtrace(each: extern "C" fn(*mut Context, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut Context, before: *mut c_int) -> usize;
}

/// Where the frames go, and which are left out.
struct Walk<'a> {
    frames: &'a mut [u64],
    len: usize,
    /// Frames up to and with the one of this instruction are left out; 0 leaves none out.
    behind: u64,
    skip: usize,
}

/// Fills `frames` with the calls that led to the caller of this, the innermost first, and returns how many there are. Each is an address inside of the calling
/// instruction. It allocates nothing.
#[inline(never)]
pub fn callers(frames: &mut [u64]) -> usize {
    // The first frame is that of this function.
    walk(Walk { frames, len: 0, behind: 0, skip: 1 })
}

/// The same in a signal handler, from the interrupted instruction outwards: those that called the function which `pc` is in. 0 where the handler's frame
/// does not lead there.
///
/// It allocates nothing. Before glibc 2.35 and libgcc 12 it takes the loader's lock, which a thread may take again while it holds it; since then none.
/// Where somebody registered tables by hand (`__register_frame`, as compilers at run time do) libgcc before 13 takes one that a thread may not take again.
pub fn callers_of_interrupted(pc: u64, frames: &mut [u64]) -> usize {
    walk(Walk { frames, len: 0, behind: pc, skip: 0 })
}

/// In its caller's frame, which is the first that the unwinder sees.
#[inline(always)]
fn walk(mut walk: Walk<'_>) -> usize {
    // SAFETY: the function takes its argument for what is passed here, and neither unwinds nor keeps it.
    unsafe { _Unwind_Backtrace(frame, (&raw mut walk).cast()) };
    walk.len
}

extern "C" fn frame(context: *mut Context, argument: *mut c_void) -> c_int {
    // SAFETY: it is what `walk` passed, which nobody else uses meanwhile.
    let walk = unsafe { &mut *argument.cast::<Walk<'_>>() };
    let mut before = 0;
    // SAFETY: the context is the unwinder's, and valid during this call.
    let ip = unsafe { _Unwind_GetIPInfo(context, &raw mut before) } as u64;
    if walk.behind != 0 {
        // An interrupted frame stands before its instruction, all others behind their call.
        if before != 0 && ip == walk.behind {
            walk.behind = 0;
        }
        return GO_ON;
    }
    if walk.skip > 0 {
        walk.skip -= 1;
        return GO_ON;
    }
    match walk.frames.get_mut(walk.len) {
        Some(place) if ip != 0 => {
            *place = if before == 0 { ip - 1 } else { ip };
            walk.len += 1;
            GO_ON
        }
        _ => ENOUGH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn inner(frames: &mut [u64]) -> usize {
        std::hint::black_box(callers(frames))
    }

    #[test]
    fn a_stack_begins_with_the_call_and_is_as_long_as_there_is_room() {
        let mut frames = [0; 4];
        assert_eq!(inner(&mut frames), 4);
        let function = inner as fn(&mut [u64]) -> usize as usize as u64;
        assert!((function..function + 4096).contains(&frames[0]), "{function:#x} {frames:x?}");
        let mut two = [0; 2];
        assert_eq!((inner(&mut two), two[0]), (2, frames[0]));
        assert_eq!(callers_of_interrupted(7, &mut two), 0, "nobody was interrupted there");
    }
}
