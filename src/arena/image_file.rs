//! The form of an arena image in a file.
//!
//! ```text
//! 0        header: 1,280 bytes, all numbers little-endian
//!            0  magic            8  format          12  byte order of the data, bytes of a pointer
//!           16  where the data begins              24  bytes used        32  the root's place in the data
//!           40  the root's size, alignment         56  the user's version of the layout
//!           64  CRC-32 of the data                 68  CRC-32 of the whole name of the root's type
//!           72  bytes of the arena's name, of the type's name            76  the arena's name
//!          276  the type's name (cut)            1276  CRC-32 of the header before
//! 65,536   the data as in memory, then zeroes up to a multiple of 65,536
//! ```
//! The data begins and ends at multiples of 64 KiB, so that it can be mapped in place whatever a page is.

use crate::error::{Error, Result};
use crate::page::Bytes;
use crate::sys;

const MAGIC: [u8; 8] = *b"COWBELL\n";

/// The one format there is.
const FORMAT: u32 = 1;

/// Bytes of the header.
pub(super) const HEADER: usize = 1280;

/// Data begins at, and is filled up to, multiples of this: no machine has larger pages.
const UNIT: u64 = 64 << 10;

const TYPE_NAME_MAX: usize = 1000;
const LITTLE: u8 = 1;
const BIG: u8 = 2;
const ORDER: u8 = if cfg!(target_endian = "big") { BIG } else { LITTLE };

/// The description that an image carries of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImageHeader {
    pub(super) begin: u64,
    pub(super) used: u64,
    pub(super) root: u64,
    pub(super) layout: RootLayout,
    pub(super) data_sum: u32,
    pub(super) name: String,
}

/// The fingerprint of the root's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RootLayout {
    size: u64,
    align: u64,
    version: u64,
    type_sum: u32,
    type_name: String,
}

impl RootLayout {
    pub(super) fn of<T>(version: u64) -> Self {
        let whole = std::any::type_name::<T>();
        let end = whole.floor_char_boundary_at(TYPE_NAME_MAX);
        Self {
            size: size_of::<T>() as u64,
            align: align_of::<T>() as u64,
            version,
            type_sum: crc32fast::hash(whole.as_bytes()),
            type_name: whole[..end].to_owned(),
        }
    }
}

/// `str::floor_char_boundary`, which is younger than the compiler we promise.
trait Floor {
    fn floor_char_boundary_at(&self, most: usize) -> usize;
}

impl Floor for str {
    fn floor_char_boundary_at(&self, most: usize) -> usize {
        (0..=most.min(self.len())).rev().find(|&at| self.is_char_boundary(at)).unwrap_or(0)
    }
}

impl ImageHeader {
    /// A new image's.
    pub(super) fn new(name: &str, used: usize, root: u64, layout: RootLayout, data_sum: u32) -> Self {
        Self { begin: UNIT, used: used as u64, root, layout, data_sum, name: name.to_owned() }
    }

    /// Bytes of the whole file; `None` where there are no such numbers.
    pub(super) fn file_len(&self) -> Option<u64> {
        self.used.max(1).checked_next_multiple_of(UNIT)?.checked_add(self.begin)
    }

    pub(super) fn to_bytes(&self) -> [u8; HEADER] {
        let layout = &self.layout;
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &MAGIC);
        put(8, &FORMAT.to_le_bytes());
        put(12, &[ORDER, size_of::<usize>() as u8]);
        let words = [self.begin, self.used, self.root, layout.size, layout.align, layout.version];
        for (at, word) in (16..).step_by(8).zip(words) {
            put(at, &word.to_le_bytes());
        }
        put(64, &self.data_sum.to_le_bytes());
        put(68, &layout.type_sum.to_le_bytes());
        put(72, &(self.name.len() as u16).to_le_bytes());
        put(74, &(layout.type_name.len() as u16).to_le_bytes());
        put(76, self.name.as_bytes());
        put(276, layout.type_name.as_bytes());
        let sum = crc32fast::hash(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the beginning of a file of `file_len` bytes. What it gives can be trusted in so far as the data lies in
    /// the file and the root in the data.
    pub(super) fn parse(bytes: &[u8], file_len: u64) -> Result<Self> {
        let Some(bytes) = bytes.first_chunk::<HEADER>() else {
            return Err(invalid(match bytes.is_empty() {
                true => "the file is empty",
                false => "this is no arena image, or its beginning is cut off",
            }));
        };
        let field = Fields(bytes);
        if !bytes.starts_with(&MAGIC) {
            return Err(invalid("this is no arena image"));
        }
        let format = field.u32(8);
        if format > FORMAT {
            return Err(invalid(format!("the image has format {format}, and this version reads format {FORMAT}"))
                .with_hint("read it with the version of cowbell that wrote it, or a newer one"));
        }
        if field.u32(HEADER - 4) != crc32fast::hash(&bytes[..HEADER - 4]) || format != FORMAT {
            return Err(invalid("the image's header is damaged"));
        }
        if [bytes[12], bytes[13]] != [ORDER, size_of::<usize>() as u8] {
            let order = if bytes[12] == BIG { "big" } else { "little" };
            let bits = u32::from(bytes[13]) * 8;
            return Err(invalid(format!("the image is from another machine: {order}-endian, {bits} bits"))
                .with_hint("make it anew on this one"));
        }
        let damaged = || invalid("the image's header makes no sense");
        let header = Self {
            begin: field.u64(16),
            used: field.u64(24),
            root: field.u64(32),
            layout: RootLayout {
                size: field.u64(40),
                align: field.u64(48),
                version: field.u64(56),
                type_sum: field.u32(68),
                type_name: field.text(276, field.u16(74), TYPE_NAME_MAX).ok_or_else(damaged)?,
            },
            data_sum: field.u32(64),
            name: field.text(76, field.u16(72), super::options::NAME_MAX).ok_or_else(damaged)?,
        };
        let whole = header.file_len().filter(|&len| i64::try_from(len).is_ok()).ok_or_else(damaged)?;
        let root_end = header.root.checked_add(header.layout.size).ok_or_else(damaged)?;
        let page = sys::page_size().bytes() as u64;
        if !super::options::is_name(&header.name) || root_end > header.used || header.begin < HEADER as u64 {
            return Err(damaged());
        }
        if !header.begin.is_multiple_of(page) {
            return Err(invalid(format!(
                "the image's data begins at byte {}, inside a page of this machine",
                header.begin
            ))
            .with_hint("make it anew on this machine"));
        }
        match file_len.cmp(&whole) {
            std::cmp::Ordering::Equal => Ok(header),
            std::cmp::Ordering::Less => {
                Err(invalid(format!("the image is truncated: {} of {}", Bytes(file_len), Bytes(whole))))
            }
            std::cmp::Ordering::Greater => {
                Err(invalid(format!("something follows the image: {} bytes, and it has {whole}", file_len)))
            }
        }
    }

    /// Checks that the root is of this type, in this version.
    pub(super) fn check(&self, wanted: &RootLayout) -> Result<()> {
        let layout = &self.layout;
        if layout == wanted {
            return Ok(());
        }
        if (&layout.type_name, layout.type_sum) != (&wanted.type_name, wanted.type_sum) {
            return Err(invalid(format!("the image holds `{}`, not `{}`", layout.type_name, wanted.type_name)));
        }
        let what = if layout.version != wanted.version {
            format!("version {} of `{}`, not {}", layout.version, layout.type_name, wanted.version)
        } else {
            let sizes = [layout.size, layout.align, wanted.size, wanted.align];
            let [size, align, wanted_size, wanted_align] = sizes;
            format!("a `{}` of {size} bytes (aligned to {align}), not {wanted_size} ({wanted_align})", layout.type_name)
        };
        Err(invalid(format!("the image holds {what}")).with_hint("make it anew with this program"))
    }
}

/// Numbers of a header.
struct Fields<'b>(&'b [u8; HEADER]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn text(&self, at: usize, len: u16, most: usize) -> Option<String> {
        let len = Some(usize::from(len)).filter(|&len| len <= most)?;
        Some(std::str::from_utf8(self.0.get(at..at + len)?).ok()?.to_owned())
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::invalid(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> ImageHeader {
        ImageHeader::new("fünf", 5000, 16, RootLayout::of::<[u64; 3]>(7), 0x1234_5678)
    }

    /// With the sum that belongs to the bytes, as somebody has it who makes an image by hand.
    fn summed(mut bytes: [u8; HEADER]) -> [u8; HEADER] {
        let sum = crc32fast::hash(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = header();
        let len = header.file_len().expect("a length");
        assert_eq!(len, 2 * UNIT);
        assert_eq!(ImageHeader::parse(&header.to_bytes(), len).expect("whole"), header);
        assert!(header.check(&RootLayout::of::<[u64; 3]>(7)).is_ok());
    }

    #[test]
    fn every_changed_byte_and_every_shorter_file_is_refused() {
        let (bytes, len) = (header().to_bytes(), 2 * UNIT);
        for at in 0..HEADER {
            for change in [1, 0x80, 0xff] {
                let mut bytes = bytes;
                bytes[at] ^= change;
                assert!(ImageHeader::parse(&bytes, len).is_err(), "byte {at} by {change:#x}");
            }
            assert!(ImageHeader::parse(&bytes[..at], at as u64).is_err());
        }
    }

    proptest! {
        /// Even where the sum is right: what is trusted is in bounds.
        #[test]
        fn a_header_made_by_hand_is_refused_or_in_bounds(
            at in 8usize..90,
            part in proptest::collection::vec(any::<u8>(), 1..20),
            len in any::<u64>(),
        ) {
            let mut bytes = header().to_bytes();
            bytes[at..at + part.len()].copy_from_slice(&part);
            let bytes = summed(bytes);
            for len in [len, 2 * UNIT] {
                if let Ok(header) = ImageHeader::parse(&bytes, len) {
                    prop_assert!(header.begin.checked_add(header.used).is_some_and(|end| end <= len));
                    prop_assert!(header.root.checked_add(header.layout.size).is_some_and(|end| end <= header.used));
                }
            }
        }
    }
}
