//! The end of the listener, without a connection that nobody answers.

use socket2::{SockFilter, SockRef};
use std::io;
use std::net::TcpListener;

/// Begins no further connection: the kernel drops what asks for one (SYN), for all processes that have the listener. Connections that have begun are accepted and served
/// as before.
///
/// Closing a listener resets the connections in its queue, whose clients may have sent their requests. With the door shut first, the queue can be emptied. Clients that come
/// later ask again after a second, and find the next instance, or none. (A listener that is systemd's is simply no longer accepted from: it stays, with its queue.)
pub fn shut_the_door(listener: &TcpListener) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let step = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    SockRef::from(listener).attach_filter(&[
        // The packet begins with the header of TCP.
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ])
}
