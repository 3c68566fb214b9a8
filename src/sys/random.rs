//! Numbers that nobody else has: `getrandom(2)`.

use super::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// `getrandom`: 64 random bits, others in every process; never 0. Since Linux 3.17. *Raw.*
///
/// # Errors
/// ENOSYS or EPERM where a sandbox forbids the call.
pub fn bits() -> Result<u64, Errno> {
    loop {
        let mut bytes = [0; size_of::<u64>()];
        // Fewer than 256 bytes come whole, but a signal may interrupt the wait for the first ones after the boot.
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        match u64::from_ne_bytes(bytes) {
            0 => {}
            bits => return Ok(bits),
        }
    }
}
