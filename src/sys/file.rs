//! Ordinary files: `open(2)`, `fstat(2)`, `pwrite(2)`, `fsync(2)`, `rename(2)`.

use super::Errno;
use crate::error::{Error, Result};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// `open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)`: for reading, and never waits, whatever it is.
///
/// # Errors
/// ENOENT, EACCES, EMFILE and other errnos of the call.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::os("open", e))
}

/// The length of an ordinary file, in bytes.
///
/// # Errors
/// Invalid when it is a directory, a device, a pipe or a socket.
pub fn regular_len(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::os("fstat", e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat.st_size as u64),
        FileType::Directory => Err(Error::invalid("a directory, not an ordinary file")),
        _ => Err(Error::invalid("not an ordinary file")),
    }
}

/// `open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)`: a new file that only this user may open.
///
/// # Errors
/// EEXIST, EACCES, ENOSPC and other errnos of the call.
pub fn create_new(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Error::os("open(new file)", e))
}

/// `pwrite(fd, bytes, offset)`, all of them.
///
/// # Errors
/// ENOSPC when the disk is full, EDQUOT, EIO.
pub fn write_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(fd, rest, offset + done as u64) {
            Ok(0) => return Err(Error::os("pwrite", Errno::IO)),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::os("pwrite", e)),
        }
    }
    Ok(())
}

/// `fsync(fd)`: returns when the file is on the disk.
///
/// # Errors
/// EIO, ENOSPC.
pub fn sync(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::fsync(fd)).map_err(|e| Error::os("fsync", e))
}

/// Makes the names in a directory last, as far as its filesystem can.
///
/// # Errors
/// EACCES, EIO.
pub fn sync_directory(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::os("open(directory)", e))?;
    match rustix::io::retry_on_intr(|| rustix::fs::fsync(directory.as_fd())) {
        // Some filesystems have nothing to do there.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(e) => Err(Error::os("fsync(directory)", e)),
    }
}

/// `rename(from, to)` in one step; if not `replace`, `to` must not exist.
///
/// # Errors
/// EEXIST when `to` exists and is not to be replaced; EISDIR, EACCES.
pub fn rename(from: &Path, to: &Path, replace: bool) -> Result<()> {
    if replace {
        return rustix::fs::rename(from, to).map_err(|e| Error::os("rename", e));
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every filesystem can; a second name is never made over a first.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::link(from, to).map_err(|e| Error::os("link", e))?;
            rustix::fs::unlink(from).map_err(|e| Error::os("unlink", e))
        }
        done => done.map_err(|e| Error::os("rename", e)),
    }
}

/// `unlink(path)`.
///
/// # Errors
/// ENOENT, EACCES.
pub fn remove(path: &Path) -> Result<()> {
    rustix::fs::unlink(path).map_err(|e| Error::os("unlink", e))
}
