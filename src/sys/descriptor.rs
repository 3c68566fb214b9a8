//! Descriptors of the calling process, whatever they are of.
#![expect(unsafe_code, reason = "a descriptor is known by its number")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The same descriptor where a call wants it owned; it is not closed by this value.
pub(super) fn alias(fd: BorrowedFd<'_>) -> std::mem::ManuallyDrop<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: the number is open, and its owner stays its owner, because this value is not dropped.
    std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) })
}
