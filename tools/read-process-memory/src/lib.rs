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
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The bytes that are read at once and kept: a page on most machines, and a part of one on the others.
const BLOCK: usize = 4096;
/// The most blocks that are kept: a stack leads through a dozen.
const BLOCKS_MAX: usize = 256;

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

/// The blocks that were read since [`at_one_moment`] began, of one process: `None` of those that cannot be read whole.
type Blocks = HashMap<usize, Option<Box<[u8]>>>;

thread_local! {
    /// The memory read last: a stack takes some fifty reads of one process.
    static LAST: RefCell<Option<(Pid, File)>> = const { RefCell::new(None) };
    /// Memory that is kept while it cannot change.
    static KEPT: RefCell<Option<(Pid, Blocks)>> = const { RefCell::new(None) };
}

/// Runs `look`, which reads the memory of a process of which what is read stands still: what lies in one block is read once. Reads of
/// this thread only are kept, and only until `look` returns or panics.
pub fn at_one_moment<T>(look: impl FnOnce() -> T) -> T {
    /// Ends what [`at_one_moment`] began.
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            KEPT.with_borrow_mut(|kept| *kept = None);
        }
    }
    let _ends = Ends;
    KEPT.with_borrow_mut(|kept| *kept = Some((0, Blocks::new())));
    look()
}

impl CopyAddress for ProcessHandle {
    fn copy_address(&self, addr: usize, buf: &mut [u8]) -> io::Result<()> {
        let is_kept = KEPT.with_borrow_mut(|kept| kept.as_mut().is_some_and(|kept| copy_kept(self.0, kept, addr, buf)));
        if is_kept { Ok(()) } else { read(self.0, addr, buf) }
    }
}

/// Fills `buf` from blocks that are kept, or are read now; false if one of them cannot be read whole.
fn copy_kept(pid: Pid, kept: &mut (Pid, Blocks), addr: usize, buf: &mut [u8]) -> bool {
    if buf.len() > BLOCKS_MAX * BLOCK / 16 {
        return false;
    }
    let (of, blocks) = kept;
    if *of != pid || blocks.len() >= BLOCKS_MAX {
        blocks.clear();
        *of = pid;
    }
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let Some(at) = addr.checked_add(done) else { return false };
        let (start, within) = (at / BLOCK * BLOCK, at % BLOCK);
        let read = || {
            let mut block = vec![0; BLOCK];
            read(pid, start, &mut block).is_ok().then(|| block.into_boxed_slice())
        };
        let block = blocks.entry(start).or_insert_with(read);
        let Some(block) = block.as_deref().and_then(|block| block.get(within..)) else { return false };
        let count = block.len().min(rest.len());
        let (Some(to), Some(from)) = (rest.get_mut(..count), block.get(..count)) else { return false };
        to.copy_from_slice(from);
        done += count;
    }
    true
}

fn read(pid: Pid, addr: usize, buf: &mut [u8]) -> io::Result<()> {
    LAST.with_borrow_mut(|last| {
        if let Some((of, memory)) = last
            && *of == pid
            && memory.read_exact_at(buf, addr as u64).is_ok()
        {
            return Ok(());
        }
        // An open file means the memory that the process had then: it may have executed another program, or its id
        // may be another's now.
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        memory.read_exact_at(buf, addr as u64)?;
        *last = Some((pid, memory));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    fn read<const N: usize>(pid: Pid, address: usize) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        ProcessHandle::try_from(pid)?.copy_address(address, &mut bytes).map(|()| bytes)
    }

    /// The address of a process' first mapping: its program's header.
    fn header_of(pid: Pid) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        usize::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap()
    }

    /// A process that runs until its input ends.
    fn cat() -> Child {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Until it answers it may still be on its way into the program.
        cat.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        cat
    }

    #[test]
    fn memory_of_this_and_of_another_process_is_read_in_turn() {
        let ours = std::process::id() as Pid;
        let mut cat = cat();
        let theirs = cat.id() as Pid;
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
    fn at_one_moment_memory_is_what_it_was_at_the_first_read_and_not_afterwards() {
        let ours = std::process::id() as Pid;
        // Eight bytes that lie in two blocks.
        let mut bytes = vec![0u8; 3 * BLOCK];
        let base = bytes.as_ptr() as usize;
        let at = (base + BLOCK) / BLOCK * BLOCK - 4;
        let mut write = |byte: u8| bytes.get_mut(at - base..at - base + 8).unwrap().fill(byte);
        write(1);
        at_one_moment(|| {
            assert_eq!(read::<8>(ours, at).unwrap(), [1; 8]);
            write(2);
            assert_eq!(read::<8>(ours, at).unwrap(), [1; 8]);
        });
        assert_eq!(read::<8>(ours, at).unwrap(), [2; 8]);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            at_one_moment(|| {
                assert_eq!(read::<8>(ours, at).unwrap(), [2; 8]);
                panic!("memory makes no sense");
            });
        }));
        assert!(panicked.is_err());
        write(3);
        assert_eq!(read::<8>(ours, at).unwrap(), [3; 8], "it ended with the panic");
    }

    #[test]
    fn of_two_processes_and_of_nothing_the_same_is_read_at_one_moment() {
        let ours = std::process::id() as Pid;
        let mut cat = cat();
        let theirs = cat.id() as Pid;
        let (word, header) = (0x0123_4567_u32, header_of(theirs));
        at_one_moment(|| {
            for _ in 0..2 {
                assert_eq!(read(ours, &raw const word as usize).unwrap(), word.to_ne_bytes());
                assert_eq!(&read(theirs, header).unwrap(), b"\x7fELF");
            }
            assert!(read::<4>(ours, 0).is_err());
            assert!(read::<4>(ours, usize::MAX - 1).is_err());
        });
        drop(cat.stdin.take());
        cat.wait().unwrap();
    }

    #[test]
    fn where_nothing_is_there_is_an_error() {
        let ours = std::process::id() as Pid;
        assert!(read::<4>(ours, 0).is_err());
        assert!(read::<4>(ours, usize::MAX - 1).is_err());
        assert_eq!(&read(ours, header_of(ours)).unwrap(), b"\x7fELF");
    }
}
