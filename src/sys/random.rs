//! Random bytes: `getrandom(2)`.

use super::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// `getrandom(buf, buflen, 0)`: fills it with random bytes, and waits until the machine has gathered some after its start.
///
/// # Errors
/// ENOSYS where a filter of system calls says so.
pub fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
