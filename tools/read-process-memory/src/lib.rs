//! Reads memory from another process without copying its pages.
//!
//! This stands in, in this workspace, for the crate of the same name, through which py-spy reads the processes that it
//! looks at. That crate calls `process_vm_readv(2)`, which pins the pages it reads; and before the kernel pins an
//! anonymous page that a process shares, it gives the process a copy of its own (`gup_must_unshare` in `mm/gup.c`, since
//! Linux 5.19). A tool that says which pages a forked child copied must not be the one that copies them. Reading
//! `/proc/PID/mem` pins nothing.
//!
//! The interface is the part of the other crate's that Linux has and py-spy uses.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A process id.
pub type Pid = i32;

/// Reads from another process' memory.
pub trait CopyAddress {
    /// Fills `buf` with what is at `addr`.
    ///
    /// # Errors
    /// Nothing is there, or less; the process is gone, or is not ours to trace.
    fn copy_address(&self, addr: usize, buf: &mut [u8]) -> io::Result<()>;
}

/// A process whose memory is read.
#[derive(Clone, Debug)]
pub struct ProcessHandle(Pid);

impl TryFrom<Pid> for ProcessHandle {
    type Error = io::Error;

    fn try_from(pid: Pid) -> io::Result<Self> {
        Ok(Self(pid))
    }
}

thread_local! {
    /// The memory read last: a stack takes some fifty reads of one process.
    static LAST: RefCell<Option<(Pid, File)>> = const { RefCell::new(None) };
}

impl CopyAddress for ProcessHandle {
    fn copy_address(&self, addr: usize, buf: &mut [u8]) -> io::Result<()> {
        LAST.with_borrow_mut(|last| {
            if let Some((pid, memory)) = last
                && *pid == self.0
                && memory.read_exact_at(buf, addr as u64).is_ok()
            {
                return Ok(());
            }
            // An open file means the memory that the process had then: it may have executed another program, or its id
            // may be another's now.
            let memory = File::open(format!("/proc/{}/mem", self.0))?;
            memory.read_exact_at(buf, addr as u64)?;
            *last = Some((self.0, memory));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    fn read<const N: usize>(pid: Pid, address: usize) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        ProcessHandle::try_from(pid)?.copy_address(address, &mut bytes).map(|()| bytes)
    }

    /// The address of a process' first mapping: its program's header.
    fn header_of(pid: Pid) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        usize::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap()
    }

    #[test]
    fn memory_of_this_and_of_another_process_is_read_in_turn() {
        let ours = std::process::id() as Pid;
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let theirs = cat.id() as Pid;
        // Until it answers it may still be on its way into the program.
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let word = 0x0123_4567_u32;
        for _ in 0..2 {
            assert_eq!(read(ours, &raw const word as usize).unwrap(), word.to_ne_bytes());
            assert_eq!(&read(theirs, header_of(theirs)).unwrap(), b"\x7fELF");
        }
        let header = header_of(theirs);
        drop(cat.stdin.take());
        cat.wait().unwrap();
        assert!(read::<4>(theirs, header).is_err(), "gone");
    }

    #[test]
    fn where_nothing_is_there_is_an_error() {
        let ours = std::process::id() as Pid;
        assert!(read::<4>(ours, 0).is_err());
        assert!(read::<4>(ours, usize::MAX - 1).is_err());
        assert_eq!(&read(ours, header_of(ours)).unwrap(), b"\x7fELF");
    }
}
