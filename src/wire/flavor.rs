//! Where postcard writes to: the end of a vector, or a slice of fixed length.

use postcard::ser_flavors::Flavor;
use postcard::{Error, Result};

/// Appends to a vector that stays the caller's, and cuts it again unless all went well.
pub(super) struct Append<'a> {
    bytes: &'a mut Vec<u8>,
    /// How many are good.
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

/// Fills a slice from its start.
pub(super) struct Fill<'a> {
    bytes: &'a mut [u8],
    written: usize,
    /// Set once something did not fit; a user's `Serialize` may swallow the error or make another of it.
    full: &'a mut bool,
}

impl<'a> Fill<'a> {
    pub(super) fn new(bytes: &'a mut [u8], full: &'a mut bool) -> Self {
        Self { bytes, written: 0, full }
    }
}

impl Flavor for Fill<'_> {
    type Output = usize;

    fn try_extend(&mut self, data: &[u8]) -> Result<()> {
        let end = self.written.saturating_add(data.len());
        match self.bytes.get_mut(self.written..end) {
            Some(place) if !*self.full => {
                place.copy_from_slice(data);
                self.written = end;
                Ok(())
            }
            _ => {
                *self.full = true;
                Err(Error::SerializeBufferFull)
            }
        }
    }

    fn try_push(&mut self, byte: u8) -> Result<()> {
        self.try_extend(&[byte])
    }

    fn finalize(self) -> Result<usize> {
        if *self.full { Err(Error::SerializeBufferFull) } else { Ok(self.written) }
    }
}
