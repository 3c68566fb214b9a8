//! `/proc/PID` as types: the one parser of its files, for the library, the tool and the tests.
//!
//! Each function takes the number of a process or of a thread, or [`SELF`]. Names in these files may be of any bytes, so text is made
//! from them lossily. Nothing here is *async-signal-safe* but [`stat::Stat`], [`private`], [`signal_safe`] and
//! [`syscall`].

pub mod maps;
pub mod private;
pub mod signal_safe;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod syscall;

use super::Errno;
use crate::error::{Error, Thread};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

/// This process: `/proc/self`, which is right in a pid namespace that has no `/proc` of its own, too.
pub const SELF: i32 = 0;

fn folder(id: i32) -> String {
    if id == SELF { "/proc/self".to_owned() } else { format!("/proc/{id}") }
}

/// The whole of `/proc/ID/FILE`.
///
/// # Errors
/// ENOENT and ESRCH when there is no such process, EACCES and EPERM without ptrace read access where the file takes that.
pub fn read(id: i32, file: &str) -> Result<Vec<u8>, Errno> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(format!("{}/{file}", folder(id)))?;
        // The standard library would ask for the file's size, which is 0 here, and begin with 32 bytes. The kernel gives
        // so much at once at the most.
        let (mut part, mut held) = ([0; 4 << 10], Vec::new());
        loop {
            match file.read(&mut part) {
                Ok(0) => return Ok(held),
                Ok(got) => held.extend_from_slice(part.get(..got).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    };
    read().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// The same as text.
///
/// # Errors
/// Those of [`read`].
pub fn text(id: i32, file: &str) -> Result<String, Errno> {
    Ok(String::from_utf8(read(id, file)?).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// The user who owns `/proc/ID/FILE`: the process' effective one, or root where the process is not dumpable.
///
/// # Errors
/// ENOENT and ESRCH when there is no such process.
pub fn owner(id: i32, file: &str) -> Result<u32, Errno> {
    let file = fs::metadata(format!("{}/{file}", folder(id)));
    file.map(|file| file.uid()).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// All processes that `/proc` shows, in no order.
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn processes() -> Result<Vec<i32>, Errno> {
    numbered("/proc").map(Iterator::collect)
}

/// The threads of a process, its first one included.
///
/// # Errors
/// ENOENT when it is gone.
pub fn threads(pid: i32) -> Result<Vec<i32>, Errno> {
    numbered(&format!("{}/task", folder(pid))).map(Iterator::collect)
}

/// Tells whether `tid` is a thread of the process `pid`.
pub fn is_thread_of(pid: i32, tid: i32) -> bool {
    fs::exists(format!("{}/task/{tid}", folder(pid))).unwrap_or(false)
}

/// The processes that the threads of this one have made and that were not reaped; none in a kernel without
/// `CONFIG_PROC_CHILDREN`.
pub fn children(pid: i32) -> Vec<i32> {
    let threads = threads(pid).unwrap_or_default().into_iter();
    let lists = threads.filter_map(|tid| text(pid, &format!("task/{tid}/children")).ok());
    lists.flat_map(|list| list.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

/// A process' arguments, without empty ones at the end: programs that write their title there pad it with zeroes. None
/// where there is no memory, as in a zombie or a thread of the kernel.
///
/// # Errors
/// Those of [`read`].
pub fn command(pid: i32) -> Result<Vec<String>, Errno> {
    let text = text(pid, "cmdline")?;
    let words = text.trim_end_matches('\0').split_terminator('\0');
    Ok(words.map(str::to_owned).collect())
}

/// `kill(pid, 0)`: tells whether there is a process or a thread of this number, also one that `/proc` does not show.
pub fn is_there(pid: i32) -> bool {
    let asked = rustix::process::Pid::from_raw(pid).map(rustix::process::test_kill_process);
    matches!(asked, Some(Ok(()) | Err(Errno::PERM)))
}

/// A thread by whose number the memory of a process can be read: its first one, unless that has ended before the others.
pub fn living(pid: i32) -> i32 {
    // The link is one cheap call, and is there as long as the memory is. Whoever may not follow it reads the state.
    let has_program = |id: i32| fs::read_link(format!("{}/exe", folder(id))).is_ok();
    let has_memory = |id: &i32| {
        let state = || read(*id, "stat").is_ok_and(|text| stat::Stat::parse(&text).is_some_and(|s| !s.has_ended()));
        has_program(*id) || state()
    };
    if has_memory(&pid) {
        return pid;
    }
    threads(pid).unwrap_or_default().into_iter().find(has_memory).unwrap_or(pid)
}

/// The entries of a folder that are numbers.
fn numbered(folder: &str) -> Result<impl Iterator<Item = i32>, Errno> {
    let entries = fs::read_dir(folder).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The threads of this process as `/proc/self/task` lists them, which is not at one moment: one that is started while the list
/// is read may be missing, though it was always alive.
///
/// # Errors
/// ENOENT when `/proc` is not mounted.
pub fn own_threads() -> Result<Vec<Thread>, Error> {
    let listed = threads(SELF).map_err(|e| Error::os("read(/proc/self/task)", e))?;
    // A thread that was taken away between the two reads is no longer there.
    let there = |tid: i32| {
        let line = read(tid, "stat").ok()?;
        let stat = stat::Stat::parse(&line)?;
        Some(Thread { tid, name: String::from_utf8_lossy(stat.name).into_owned(), exiting: stat.is_exiting() })
    };
    Ok(listed.into_iter().filter_map(there).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    #[test]
    fn this_process_is_found_with_its_threads_and_its_command() {
        let me = process::pid();
        assert!(processes().expect("/proc").contains(&me));
        let (tid, listed) =
            std::thread::spawn(move || (process::tid(), threads(me).expect("ours"))).join().expect("a thread");
        assert!(listed.contains(&tid) && listed.contains(&me), "{listed:?}");
        assert!(is_thread_of(me, me) && !is_thread_of(me, i32::MAX));
        assert_eq!(command(me), Ok(std::env::args().collect()));
        assert_eq!(living(me), me);
    }

    #[test]
    fn a_process_that_is_not_there_has_nothing() {
        assert_eq!(read(i32::MAX, "maps"), Err(Errno::NOENT));
        assert_eq!(
            (threads(i32::MAX), children(i32::MAX), command(i32::MAX)),
            (Err(Errno::NOENT), vec![], Err(Errno::NOENT))
        );
        assert_eq!(living(i32::MAX), i32::MAX);
    }
}
