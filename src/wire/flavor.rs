//! The place that postcard writes to: the end of a vector.

use postcard::Result;
use postcard::ser_flavors::Flavor;

/// Appends to a vector that stays the caller's, and cuts it again unless all went well.
pub(super) struct Append<'a> {
    bytes: &'a mut Vec<u8>,
    /// The number of good bytes.
    len: usize,
}

impl<'a> Append<'a> {
    pub(super) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { len: bytes.len(), bytes }
    }
}

impl Drop for Append<'_> {
    fn drop(&mut self) {
        self.bytes.truncate(self.len);
    }
}

impl Flavor for Append<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> Result<()> {
        self.bytes.push(byte);
        Ok(())
    }

    fn finalize(mut self) -> Result<()> {
        self.len = self.bytes.len();
        Ok(())
    }
}
