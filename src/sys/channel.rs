//! Messages between two processes that fork from one: socketpair(2), sendmsg(2) with SCM_RIGHTS.

use super::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest message: a longer length is a mistake, not a reason to allocate.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// Two connected ends, closed on exec.
///
/// # Errors
/// EMFILE, ENFILE, ENOMEM.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// From now on [`receive`] fails with EAGAIN where it would block.
///
/// # Errors
/// None known.
pub fn never_wait(end: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::ioctl_fionbio(end, true)
}

/// Sends a message, and a descriptor with it. Blocks until there is room.
///
/// # Errors
/// EPIPE when the other end is gone (no signal); EMSGSIZE.
pub fn send(end: BorrowedFd<'_>, message: &[u8], with: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(Errno::MSGSIZE);
    }
    let length = (message.len() as u64).to_ne_bytes();
    let descriptors: Vec<BorrowedFd<'_>> = with.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::NOBUFS);
    }
    // The length and the descriptor go in one piece; eight bytes always do.
    let sent = rustix::io::retry_on_intr(|| sendmsg(end, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL))?;
    if sent != length.len() {
        return Err(Errno::IO);
    }
    let mut rest = message;
    while !rest.is_empty() {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(end, rest, SendFlags::NOSIGNAL))?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// A message, and the descriptor that came with it.
pub type Message = (Vec<u8>, Option<OwnedFd>);

/// Receives the next message; `None` when the other end is gone. Blocks.
///
/// # Errors
/// ECONNRESET; EPROTO for what [`send`] did not send.
pub fn receive(end: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    let mut length = [0u8; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(end, &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?
    .bytes;
    if got == 0 {
        return Ok(None);
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let expected = u64::from_ne_bytes(length) as usize;
    if got != length.len() || expected > MESSAGE_BYTES_MAX {
        return Err(Errno::PROTO);
    }
    let mut message = vec![0; expected];
    let mut filled = 0;
    while filled < expected {
        let rest = message.get_mut(filled..).unwrap_or_default();
        let got = rustix::io::retry_on_intr(|| rustix::io::read(end.as_fd(), &mut *rest))?;
        if got == 0 {
            return Ok(None);
        }
        filled += got;
    }
    Ok(Some((message, descriptor)))
}
