//! Starting programs: one that ends with its parent, and one that stands still before its first instruction until the tracer is ready.
#![expect(unsafe_code, reason = "code between fork and exec")]

use super::{Errno, descriptor, pipe, prctl, process, signal, tracing};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::JoinHandle;

/// Has the process that a command will start end by SIGKILL when the thread that starts it ends: from before its first instruction on.
pub fn end_with_this_thread(command: &mut Command) {
    let parent = process::pid();
    let before_exec = move || {
        prctl::die_with_parent()?;
        // One that ended before has sent no signal.
        if process::parent_pid() == parent { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only two system calls are made.
    unsafe { command.pre_exec(before_exec) };
}

/// A process forked for a program and waiting to execute it.
pub struct Launch {
    pid: i32,
    go: OwnedFd,
    launched: Launched,
}

/// A process on its way into a program.
pub struct Launched {
    told: OwnedFd,
    starter: JoinHandle<io::Result<Child>>,
}

/// A program's arguments as `execvp` takes them.
struct Words {
    pointers: Vec<*const libc::c_char>,
    _owned: Vec<CString>,
}

// SAFETY: the pointers point into strings on the heap that are owned beside them and never change.
unsafe impl Send for Words {}
// SAFETY: nothing of it changes.
unsafe impl Sync for Words {}

impl Words {
    fn new(words: &[OsString]) -> io::Result<Self> {
        let owned = words.iter().map(|word| CString::new(word.clone().into_vec()));
        let owned: Vec<CString> = owned.collect::<Result<_, _>>()?;
        let pointers = owned.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { pointers, _owned: owned })
    }

    /// Becomes the program; returns if that fails.
    fn execute(&self) -> Errno {
        let Some(&program) = self.pointers.first().filter(|program| !program.is_null()) else { return Errno::NOENT };
        // SAFETY: a list of strings that ends with a null pointer, all of which live in `self`.
        unsafe { libc::execvp(program, self.pointers.as_ptr()) };
        super::map::last_errno()
    }
}

impl Launch {
    /// Forks. The child waits for [`Launch::go`]; without it, it ends. The program, looked for on the `PATH`, starts with
    /// the signals of `mask` blocked, bit `n - 1` for signal `n`, whatever the caller blocks.
    ///
    /// # Errors
    /// No process or no descriptor to be had; a zero byte in an argument.
    pub fn prepare(words: &[OsString], mask: u64) -> io::Result<Self> {
        let (told, tell) = pipe::pair()?;
        let (gate, go) = pipe::pair()?;
        let program = Words::new(words)?;
        let held = descriptor::number(&go);
        // The closure executes the program itself: were that left to the standard library, then on failure a thread of its own
        // would wait for the child, and take the tracer's stops.
        let before_exec = move || {
            // Else the child would hold its own gate open, and wait for ever for a tracer that died.
            // SAFETY: this is the forked child, which runs nothing that owns its copy of the descriptor.
            unsafe { libc::close(held) };
            tracing::give_number(&tell, process::pid());
            if pipe::take_byte(&gate) {
                signal::set_mask(mask);
                tracing::give_number(&tell, program.execute().raw_os_error());
            }
            process::exit(127)
        };
        let mut command = Command::new(words.first().cloned().unwrap_or_default());
        // SAFETY: between fork and exec only system calls are made, on descriptors and strings that the closure owns.
        unsafe { command.pre_exec(before_exec) };
        // `spawn` returns once the program runs, so it waits in a thread of its own. The command goes with it, and with
        // the command the descriptors of the closure: a child that failed is then noticed at `told`.
        let starter = std::thread::spawn(move || command.spawn());
        match tracing::take_number(&told) {
            Some(pid) => Ok(Self { pid, go, launched: Launched { told, starter } }),
            None => {
                drop(go);
                match starter.join() {
                    Ok(Err(e)) => Err(e),
                    _ => Err(io::Error::from(Errno::CHILD)),
                }
            }
        }
    }

    /// The process that will be the program.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it execute the program. The result is in [`Launched::result`]: a tracer must serve the stops on the way there.
    pub fn go(self) -> Launched {
        pipe::give_byte(&self.go);
        self.launched
    }
}

impl Launched {
    /// Waits until the program runs or the process has ended.
    ///
    /// # Errors
    /// Why the program could not be executed: `NotFound`, `PermissionDenied`, …
    pub fn result(self) -> io::Result<()> {
        // The starter's copy of the pipe goes with it.
        let _child = self.starter.join();
        match tracing::take_number(&self.told) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}
