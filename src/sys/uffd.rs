//! userfaultfd, write-protection only: `userfaultfd(2)`, `ioctl_userfaultfd(2)`.
//!
//! # Safety
//! A write to an armed page waits until somebody lifts the protection, or is a SIGBUS. Whoever
//! arms a range answers for that.
#![expect(unsafe_code, reason = "ioctls pass pointers and decide what memory accesses do")]

use super::Errno;
use super::map::Range;
pub use crate::facts::Door;
use linux_raw_sys::{general as raw, ioctl as number};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

bitflags::bitflags! {
    /// Features of a userfaultfd, asked for when it is opened.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Write faults on protected pages are reported (5.7).
        const PAGEFAULT_FLAG_WP = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
        /// A move by mremap is reported, and what moved stays protected (4.11).
        const EVENT_REMAP = raw::UFFD_FEATURE_EVENT_REMAP as u64;
        /// MADV_DONTNEED and its kind are reported, before the pages go (4.11).
        const EVENT_REMOVE = raw::UFFD_FEATURE_EVENT_REMOVE as u64;
        /// An unmapping is reported, after the pages went (4.11).
        const EVENT_UNMAP = raw::UFFD_FEATURE_EVENT_UNMAP as u64;
        /// A fork is reported, and the child keeps its registration (4.11; needs CAP_SYS_PTRACE).
        const EVENT_FORK = raw::UFFD_FEATURE_EVENT_FORK as u64;
        /// A fault is a SIGBUS in the faulting thread instead of a message (4.14).
        const SIGBUS = raw::UFFD_FEATURE_SIGBUS as u64;
        /// Messages carry the thread id (4.14).
        const THREAD_ID = raw::UFFD_FEATURE_THREAD_ID as u64;
        /// Messages carry the address to the byte (5.18).
        const EXACT_ADDRESS = raw::UFFD_FEATURE_EXACT_ADDRESS as u64;
        /// Shared memory, and private mappings of it, can be write-protected (5.19).
        const WP_HUGETLBFS_SHMEM = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Anonymous pages that are not there yet are protected, too (6.4).
        const WP_UNPOPULATED = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
        /// The kernel lifts the protection by itself and remembers it (6.7).
        const WP_ASYNC = raw::UFFD_FEATURE_WP_ASYNC as u64;
        const _ = !0;
    }
}

/// An open userfaultfd. It watches the address space it was opened in, whoever holds it; when the
/// last descriptor is closed, all its ranges are disarmed and all waiting writers go on.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    features: Features,
}

const _: () = assert!(size_of::<raw::uffd_msg>() == 32);
const _: () = assert!(size_of::<raw::uffdio_api>() == 24);
const _: () = assert!(size_of::<raw::uffdio_register>() == 32);
const _: () = assert!(size_of::<raw::uffdio_writeprotect>() == 24);

/// A write that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingWrite {
    /// The address written to (to the byte with [`Features::EXACT_ADDRESS`], else its page).
    pub address: usize,
    /// The writing thread, in its own pid namespace's numbers; 0 without [`Features::THREAD_ID`].
    pub tid: i32,
    /// Tells whether it was a write to a protected page.
    pub write_protect: bool,
}

/// A message of a userfaultfd.
#[derive(Debug)]
pub enum UffdMessage {
    /// A thread waits for a page.
    Fault(WaitingWrite),
    /// The process forked: a descriptor that watches the child.
    Fork(OwnedFd),
    /// The process moved memory, and with it the protection.
    Remap {
        /// The old address.
        from: usize,
        /// The new address.
        to: usize,
        /// The number of bytes.
        len: usize,
    },
    /// The process gives pages back (MADV_DONTNEED): they are still there while this event is unread.
    Remove(Range),
    /// The process unmapped this: the pages are gone.
    Unmap(Range),
    /// Another event, by its number.
    Other(u8),
}

impl Uffd {
    /// Opens a userfaultfd through one door and settles its features. *Async-signal-safe.*
    ///
    /// A descriptor that was refused a feature stays unusable, so every try opens its own.
    ///
    /// # Errors
    /// ENOENT, EACCES (device); EPERM (system call, or EVENT_FORK without CAP_SYS_PTRACE);
    /// EINVAL when a feature is unknown to this kernel; ENOSYS without userfaultfd.
    pub fn open(door: Door, features: Features) -> Result<Self, Errno> {
        let fd = match door {
            Door::Device => open_device()?,
            Door::SystemCall => open_call(rustix::mm::UserfaultfdFlags::empty())?,
            Door::UserModeOnly => open_call(rustix::mm::UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY))?,
        };
        Self::agree(fd, features)
    }

    /// Settles the features of a userfaultfd that was just made. *Async-signal-safe.*
    ///
    /// # Errors
    /// EPERM: EVENT_FORK without CAP_SYS_PTRACE; EINVAL when a feature is unknown to this kernel.
    pub(super) fn agree(fd: OwnedFd, features: Features) -> Result<Self, Errno> {
        let mut api = raw::uffdio_api { api: API, features: features.bits(), ioctls: 0 };
        // SAFETY: the number is UFFDIO_API's, which reads and writes a uffdio_api.
        let call = unsafe { Updater::<{ number::UFFDIO_API as Opcode }, _>::new(&mut api) };
        // SAFETY: the kernel writes within `api` only.
        unsafe { rustix::ioctl::ioctl(fd.as_fd(), call) }?;
        Ok(Self { fd, features: Features::from_bits_retain(api.features) })
    }

    /// The features this kernel has (all it knows, not only those asked for).
    pub fn kernel_features(&self) -> Features {
        self.features
    }

    /// Takes over a descriptor whose features were settled elsewhere (from [`UffdMessage::Fork`], another process).
    ///
    /// # Safety
    /// It is a userfaultfd: its events carry descriptors that the reader owns, and only the kernel may make those.
    pub unsafe fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, features: Features::empty() }
    }

    /// `UFFDIO_REGISTER` with `UFFDIO_REGISTER_MODE_WP`. *Async-signal-safe.*
    ///
    /// # Safety
    /// The range is the caller's, and whoever writes there can bear to wait or to get a SIGBUS.
    ///
    /// # Errors
    /// EINVAL when the mapping cannot be watched this way (private mappings of ordinary files,
    /// unless asynchronous); EBUSY when another userfaultfd has it; EPERM when the mapping's file is sealed.
    pub unsafe fn register(&self, range: Range) -> Result<(), Errno> {
        let mut register = raw::uffdio_register {
            range: raw::uffdio_range { start: range.start as u64, len: range.len as u64 },
            mode: u64::from(raw::UFFDIO_REGISTER_MODE_WP),
            ioctls: 0,
        };
        // SAFETY: the number is UFFDIO_REGISTER's, which reads and writes a uffdio_register.
        let call = unsafe { Updater::<{ number::UFFDIO_REGISTER as Opcode }, _>::new(&mut register) };
        // SAFETY: the kernel writes within `register` only; the effect is the caller's promise.
        unsafe { rustix::ioctl::ioctl(self.fd.as_fd(), call) }
    }

    /// `UFFDIO_WRITEPROTECT`: arms a registered range, or lifts the protection and wakes who waits there. *Async-signal-safe.*
    ///
    /// # Safety
    /// As [`Self::register`].
    ///
    /// # Errors
    /// ENOENT when the range is not registered;
    /// ESRCH when the watched process is gone; EBADF or ENOTTY when somebody closed the descriptor.
    pub unsafe fn write_protect(&self, range: Range, armed: bool) -> Result<(), Errno> {
        // SAFETY: passed on to the caller.
        unsafe { write_protect(self.fd.as_fd(), range, armed) }
    }

    /// Reads up to 16 events without waiting and calls `seen` for each; false when there was none. *Async-signal-safe*, if `seen` is.
    ///
    /// # Errors
    /// The errno of the read; EMFILE when a fork's descriptor cannot be made (the event is kept).
    pub fn read(&self, seen: impl FnMut(UffdMessage)) -> Result<bool, Errno> {
        self.read_up_to::<16>(seen)
    }

    /// Reads as [`Self::read`] does, but one event at most: one that comes while the first is read is not taken with it. *Async-signal-safe*, if `seen` is.
    ///
    /// # Errors
    /// The errors are those of [`Self::read`].
    pub fn read_one(&self, seen: impl FnMut(UffdMessage)) -> Result<bool, Errno> {
        self.read_up_to::<1>(seen)
    }

    fn read_up_to<const MESSAGES: usize>(&self, mut seen: impl FnMut(UffdMessage)) -> Result<bool, Errno> {
        let mut buffer = [MaybeUninit::<raw::uffd_msg>::uninit(); MESSAGES];
        let len = size_of_val(&buffer);
        // SAFETY: MaybeUninit<u8> covers any bytes, and the slice is the whole buffer.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<MaybeUninit<u8>>(), len) };
        let got = match rustix::io::read(&self.fd, bytes) {
            Ok((filled, _)) => filled.len(),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(e) => return Err(e),
        };
        for message in buffer.iter().take(got / size_of::<raw::uffd_msg>()) {
            // SAFETY: the kernel filled this many whole messages, and any bits are a valid uffd_msg.
            let message = unsafe { message.assume_init() };
            seen(decode(&message));
        }
        Ok(got > 0)
    }

    /// Gives up the descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `UFFDIO_WRITEPROTECT_MODE_WP` of linux/userfaultfd.h, which linux-raw-sys lacks.
const MODE_WP: u64 = 1;

/// `UFFD_API`, the only version there is.
const API: u64 = 0xAA;

/// `UFFDIO_WRITEPROTECT` on a bare descriptor; see [`Uffd::write_protect`]. *Async-signal-safe.*
///
/// # Safety
/// As [`Uffd::register`].
///
/// # Errors
/// Those of [`Uffd::write_protect`].
pub unsafe fn write_protect(fd: BorrowedFd<'_>, range: Range, armed: bool) -> Result<(), Errno> {
    loop {
        // SAFETY: passed on to the caller.
        match unsafe { write_protect_once(fd, range, armed) } {
            Err(Errno::AGAIN) => {}
            done => return done,
        }
    }
}

/// This is [`write_protect`] for whoever reads the userfaultfd's events: it returns EAGAIN, because events must be read first. *Async-signal-safe.*
///
/// # Safety
/// As [`Uffd::register`].
///
/// # Errors
/// Those of [`Uffd::write_protect`].
pub(super) unsafe fn write_protect_once(fd: BorrowedFd<'_>, range: Range, armed: bool) -> Result<(), Errno> {
    let mut protect = raw::uffdio_writeprotect {
        range: raw::uffdio_range { start: range.start as u64, len: range.len as u64 },
        mode: if armed { MODE_WP } else { 0 },
    };
    loop {
        // SAFETY: the number is UFFDIO_WRITEPROTECT's, which reads a uffdio_writeprotect.
        let call = unsafe { Updater::<{ number::UFFDIO_WRITEPROTECT as Opcode }, _>::new(&mut protect) };
        // SAFETY: the kernel writes nothing back; the effect is the caller's promise.
        match unsafe { rustix::ioctl::ioctl(fd, call) } {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// `UFFDIO_WAKE`: wakes who waits in the range, whatever became of it. *Async-signal-safe.*
///
/// # Errors
/// EINVAL for a range off a page.
pub(super) fn wake(fd: BorrowedFd<'_>, range: Range) -> Result<(), Errno> {
    let mut range = raw::uffdio_range { start: range.start as u64, len: range.len as u64 };
    // SAFETY: the number is UFFDIO_WAKE's, which reads a uffdio_range.
    let call = unsafe { Updater::<{ number::UFFDIO_WAKE as Opcode }, _>::new(&mut range) };
    // SAFETY: waking a thread lets it try its access again; nothing else changes.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

/// Tells whether the memory that a userfaultfd is about has a mapping in the range, none of which may be registered: `UFFDIO_UNREGISTER`
/// finds nothing to do there, or nothing at all.
///
/// # Errors
/// The errno of the call, but for EINVAL (nothing is mapped there) and ENOMEM (the address space is gone).
pub(super) fn has_mapping(fd: BorrowedFd<'_>, range: Range) -> Result<bool, Errno> {
    let mut range = raw::uffdio_range { start: range.start as u64, len: range.len as u64 };
    // SAFETY: the number is UFFDIO_UNREGISTER's, which reads a uffdio_range.
    let call = unsafe { Updater::<{ number::UFFDIO_UNREGISTER as Opcode }, _>::new(&mut range) };
    // SAFETY: the kernel writes nothing back; what is not registered stays as it is.
    match unsafe { rustix::ioctl::ioctl(fd, call) } {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOMEM) => Ok(false),
        Err(e) => Err(e),
    }
}

fn decode(message: &raw::uffd_msg) -> UffdMessage {
    match u32::from(message.event) {
        raw::UFFD_EVENT_PAGEFAULT => {
            // SAFETY: the event's number says that this member of the union was filled.
            let fault = unsafe { message.arg.pagefault };
            // SAFETY: with THREAD_ID the kernel fills it, without it the kernel zeroes it.
            let tid = unsafe { fault.feat.ptid };
            UffdMessage::Fault(WaitingWrite {
                address: fault.address as usize,
                tid: tid as i32,
                write_protect: fault.flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WP) != 0,
            })
        }
        raw::UFFD_EVENT_FORK => {
            // SAFETY: the event's number says that this member of the union was filled.
            let fork = unsafe { message.arg.fork };
            // SAFETY: the message came from a userfaultfd (`open`, or `from_fd`'s contract), and the kernel has
            // just opened this descriptor for the reader of the event.
            UffdMessage::Fork(unsafe { OwnedFd::from_raw_fd(fork.ufd as i32) })
        }
        raw::UFFD_EVENT_REMAP => {
            // SAFETY: the event's number says that this member of the union was filled.
            let remap = unsafe { message.arg.remap };
            UffdMessage::Remap { from: remap.from as usize, to: remap.to as usize, len: remap.len as usize }
        }
        number @ (raw::UFFD_EVENT_REMOVE | raw::UFFD_EVENT_UNMAP) => {
            // SAFETY: the event's number says that this member of the union was filled.
            let remove = unsafe { message.arg.remove };
            let range = Range { start: remove.start as usize, len: (remove.end - remove.start) as usize };
            if number == raw::UFFD_EVENT_REMOVE { UffdMessage::Remove(range) } else { UffdMessage::Unmap(range) }
        }
        _ => UffdMessage::Other(message.event),
    }
}

fn open_call(flags: rustix::mm::UserfaultfdFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | rustix::mm::UserfaultfdFlags::CLOEXEC | rustix::mm::UserfaultfdFlags::NONBLOCK;
    // SAFETY: opening one changes nothing; what is done with it is answered for elsewhere.
    unsafe { rustix::mm::userfaultfd(flags) }
}

/// Opens `/dev/userfaultfd`. Whoever is given the descriptor may make userfaultfds of his own memory. *Async-signal-safe.*
///
/// # Errors
/// ENOENT: before Linux 6.1, or no such file here; EACCES.
pub fn device() -> Result<OwnedFd, Errno> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(c"/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// `USERFAULTFD_IOC_NEW`: `_IO(0xAA, 0)`.
pub(super) const NEW: u32 = 0xAA00;

fn open_device() -> Result<OwnedFd, Errno> {
    let device = device()?;
    // SAFETY: `New` is USERFAULTFD_IOC_NEW, which takes flags and returns a descriptor.
    unsafe { rustix::ioctl::ioctl(device.as_fd(), New) }
}

/// `USERFAULTFD_IOC_NEW`, whose result is a descriptor.
struct New;

// SAFETY: the opcode is _IO(0xAA, 0) of linux/userfaultfd.h; its argument is an integer of open
// flags, not a pointer; its result is a fresh descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        rustix::ioctl::opcode::none(0xAA, 0)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut((libc::O_CLOEXEC | libc::O_NONBLOCK) as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the kernel has just opened it for us, and nobody else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// For services that hold the descriptor in the userfaultfd crate's type (feature `userfaultfd`).
#[cfg(feature = "userfaultfd")]
impl From<Uffd> for userfaultfd::Uffd {
    fn from(uffd: Uffd) -> Self {
        use std::os::fd::IntoRawFd;
        // SAFETY: the descriptor is a userfaultfd and becomes the other type's own.
        unsafe { Self::from_raw_fd(uffd.into_fd().into_raw_fd()) }
    }
}

/// From the userfaultfd crate's type (feature `userfaultfd`); its features are not known then.
///
/// The descriptor is duplicated: the crate's own `into_raw_fd` (0.9) returns it and closes it too.
#[cfg(feature = "userfaultfd")]
impl TryFrom<userfaultfd::Uffd> for Uffd {
    type Error = crate::Error;

    fn try_from(uffd: userfaultfd::Uffd) -> crate::Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(uffd.as_fd(), 0)
            .map_err(|e| crate::Error::os("fcntl(F_DUPFD_CLOEXEC)", e))?;
        // SAFETY: the crate's type holds nothing but a userfaultfd.
        Ok(unsafe { Self::from_fd(fd) })
    }
}
