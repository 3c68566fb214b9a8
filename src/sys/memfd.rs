//! Anonymous files in memory and their seals: `memfd_create(2)`, `fcntl(F_ADD_SEALS)`,
//! `ftruncate(2)`, `fallocate(2)`, `pread(2)`.

use crate::error::{Error, Result};
use rustix::fs::{FallocateFlags, SealFlags};
use rustix::process::Resource;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Seals that make a memfd's content final for every process.
pub const SEALS_FINAL: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// `memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)`. Since Linux 3.17.
///
/// The name shows as `/memfd:NAME (deleted)` in `/proc/PID/maps`.
///
/// # Errors
/// Invalid when the name is longer than 249 bytes or holds a NUL; EMFILE and ENFILE when there
/// are too many descriptors.
pub fn create(name: &str) -> Result<OwnedFd> {
    if name.len() > 249 || name.contains('\0') {
        return Err(Error::invalid("a memfd's name has at most 249 bytes and no NUL"));
    }
    let made = memfd::MemfdOptions::new().allow_sealing(true).close_on_exec(true).create(name);
    match made {
        Ok(memfd) => Ok(memfd.into_file().into()),
        Err(memfd::Error::Create(e) | memfd::Error::GetSeals(e) | memfd::Error::AddSeals(e)) => {
            let errno = e.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error);
            Err(Error::os("memfd_create", errno))
        }
    }
}

/// [`create`], with O_APPEND: several processes may write to it at once, which the kernel does not let one position be moved by.
///
/// # Errors
/// Those of [`create`].
pub fn create_to_append(name: &str) -> Result<OwnedFd> {
    let fd = create(name)?;
    rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::APPEND).map_err(|e| Error::os("fcntl(F_SETFL)", e))?;
    Ok(fd)
}

/// `ftruncate(fd, len)`: the file's length in bytes; it stays sparse.
///
/// # Errors
/// Invalid when `len` is above `RLIMIT_FSIZE`: the kernel would send SIGXFSZ, which kills.
/// EPERM when a seal forbids the change.
pub fn set_len(fd: BorrowedFd<'_>, len: u64) -> Result<()> {
    // Making a file shorter needs no leave.
    let grows = rustix::fs::fstat(fd).map_or(true, |now| len > now.st_size as u64);
    if grows && rustix::process::getrlimit(Resource::Fsize).current.is_some_and(|limit| len > limit) {
        return Err(Error::invalid(format!("{len} bytes exceed the limit on file size"))
            .with_hint("raise it: ulimit -f unlimited"));
    }
    rustix::fs::ftruncate(fd, len).map_err(|e| Error::os("ftruncate", e))
}

/// `fstat(fd)`: the bytes that the file takes, in memory or swapped out; what is sparse takes none.
///
/// # Errors
/// None known.
pub fn held_bytes(fd: BorrowedFd<'_>) -> Result<u64> {
    // Blocks are of 512 bytes, whatever st_blksize says: see stat(3type).
    rustix::fs::fstat(fd).map(|now| now.st_blocks as u64 * 512).map_err(|e| Error::os("fstat", e))
}

/// `fallocate(fd, 0, offset, len)`: puts zeroed memory behind a range, or fails in order where a
/// later touch would be a SIGBUS.
///
/// # Errors
/// ENOSPC or ENOMEM when there is no memory to commit.
pub fn allocate(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), rustix::io::Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(fd, FallocateFlags::empty(), offset, len))
}

/// `fcntl(fd, F_ADD_SEALS, seals)`.
///
/// # Errors
/// EBUSY when a writable shared mapping of the file is alive anywhere, or its pages are pinned for
/// I/O; EPERM when it was sealed against sealing.
pub fn seal(fd: BorrowedFd<'_>, seals: SealFlags) -> Result<()> {
    rustix::fs::fcntl_add_seals(fd, seals).map_err(|e| Error::os("fcntl(F_ADD_SEALS)", e))
}

/// The same with [`SEALS_FINAL`]. *Async-signal-safe.*
///
/// # Errors
/// Those of [`seal`].
pub fn seal_raw(fd: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    rustix::fs::fcntl_add_seals(fd, SEALS_FINAL)
}

/// `pwrite(fd, range, offset)`: this process's own memory, all of it. *Async-signal-safe.*
///
/// # Safety
/// The range is mapped and readable, and nobody writes to it meanwhile.
///
/// # Errors
/// The errno of the write: ENOSPC and ENOMEM when there is no memory.
#[expect(unsafe_code, reason = "the memory is read where it lies")]
pub unsafe fn write_from(fd: BorrowedFd<'_>, range: super::map::Range, offset: u64) -> Result<(), rustix::io::Errno> {
    let mut done = 0;
    while done < range.len {
        let at = std::ptr::with_exposed_provenance::<std::ffi::c_void>(range.start + done);
        // SAFETY: passed on to the caller; the kernel reads the bytes, whatever they are.
        let count = unsafe { libc::pwrite64(fd.as_raw_fd(), at, range.len - done, (offset + done as u64) as i64) };
        match usize::try_from(count) {
            Ok(0) => return Err(rustix::io::Errno::IO),
            Ok(count) => done += count,
            Err(_) => match super::map::last_errno() {
                rustix::io::Errno::INTR => {}
                errno => return Err(errno),
            },
        }
    }
    Ok(())
}

/// `pwrite(fd, bytes, offset)`, all of them. *Async-signal-safe.*
///
/// # Errors
/// The errno of the write: ENOSPC and ENOMEM when there is no memory.
pub fn write_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<(), rustix::io::Errno> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(fd, rest, offset + done as u64) {
            Ok(0) => return Err(rustix::io::Errno::IO),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// `fcntl(fd, F_GET_SEALS)`; none for what is no memfd.
pub fn seals(fd: BorrowedFd<'_>) -> SealFlags {
    rustix::fs::fcntl_get_seals(fd).unwrap_or(SealFlags::empty())
}

/// `dup3(empty memfd, fd, O_CLOEXEC)`: from now on the number means an empty file, so that it keeps nothing else alive.
/// Whoever owns the number still does.
///
/// # Safety
/// Whoever owns the number knows of it, and nobody relies on what the file holds: not on its content, not on its length.
///
/// # Errors
/// EMFILE, ENFILE.
///
/// ```compile_fail,E0133
/// use std::os::fd::AsFd;
///
/// let file = std::fs::File::open("/dev/null")?;
/// cowbell::sys::memfd::forget(file.as_fd())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[cfg(feature = "pool")]
#[expect(unsafe_code, reason = "declares an unsafe function")]
pub unsafe fn forget(fd: BorrowedFd<'_>) -> Result<()> {
    let nothing = create("cowbell:nothing")?;
    let mut target = super::descriptor::alias(fd);
    rustix::io::dup3(&nothing, &mut target, rustix::io::DupFlags::CLOEXEC).map_err(|e| Error::os("dup3", e))
}

/// `pread(fd, buffer, offset)`, the whole buffer or as much as the file holds. *Async-signal-safe.*
///
/// # Errors
/// The errno of the read; bytes already read are lost.
pub fn read_at(fd: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize, rustix::io::Errno> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(fd.as_fd(), rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
