//! `/proc/PID/maps`: the mappings of an address space.

use crate::sys::Errno;
use crate::sys::map::Range;

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The mapping's addresses.
    pub range: Range,
    /// `rw-p` and the like: `p` is private, `s` is shared.
    pub permissions: String,
    /// The offset in the file at which it begins, in bytes.
    pub offset: u64,
    /// The file's device, major and minor number; both 0 where there is no file.
    pub device: (u32, u32),
    /// The file's inode; 0 where there is no file.
    pub inode: u64,
    /// The file or name shown, such as `[heap]` or `/memfd:name (deleted)`; empty if there is none.
    pub name: String,
}

impl Mapping {
    /// Tells whether what is written there is the process' own.
    pub fn is_private(&self) -> bool {
        self.permissions.ends_with('p')
    }

    /// May the process write there?
    pub fn is_writable(&self) -> bool {
        self.permissions.as_bytes().get(1) == Some(&b'w')
    }
}

/// The mappings of a process or thread, ascending.
///
/// # Errors
/// Those of [`super::read`]; a process that has no memory any more has no mappings, which is no error.
pub fn read(id: i32) -> Result<Vec<Mapping>, Errno> {
    Ok(super::text(id, "maps")?.lines().filter_map(parse).collect())
}

/// The range in which the kernel's own code is mapped in a process (`[vdso]`).
pub fn vdso(id: i32) -> Option<Range> {
    read(id).ok()?.into_iter().find(|mapping| mapping.name == "[vdso]").map(|mapping| mapping.range)
}

/// `55d0c000-55d0d000 rw-p 00000000 00:01 1024  /memfd:name (deleted)`, which is also the first line of each mapping in
/// smaps; `None` for any other line.
pub fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = fields.next()?.to_owned();
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = fields.next()?.parse().ok()?;
    // The kernel pads before the name; blanks at its end are the name's own.
    let name = fields.next().unwrap_or_default().trim_start().to_owned();
    Some(Mapping { range: Range { start, len: end.checked_sub(start)? }, permissions, offset, device, inode, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_of_a_line_is_read() {
        let mapping = parse("7f00-8f00 rw-p 00001000 fe:0a 1033   /memfd:a b (deleted)").expect("a mapping");
        assert_eq!(mapping.range, Range { start: 0x7f00, len: 0x1000 });
        assert_eq!((mapping.permissions.as_str(), mapping.offset), ("rw-p", 0x1000));
        assert_eq!((mapping.device, mapping.inode), ((0xfe, 0x0a), 1033));
        assert_eq!(mapping.name, "/memfd:a b (deleted)");
        assert!(mapping.is_private() && mapping.is_writable());
        let anonymous = parse("7f00-7f02 ---s 00000000 00:00 0 ").expect("a mapping");
        assert_eq!((anonymous.name.as_str(), anonymous.is_private(), anonymous.is_writable()), ("", false, false));
    }

    #[test]
    fn what_is_cut_off_or_no_mapping_is_refused() {
        let whole = "7f00-7f02 rw-p 00000000 00:00 0";
        assert!(parse(whole).is_some());
        for end in 0..whole.len() - 2 {
            assert_eq!(parse(&whole[..end]), None, "{end}");
        }
        for line in ["7f02-7f00 rw-p 0 0:0 0 ", "x-y rw-p 0 0:0 0 ", "Rss:  4 kB", "VmFlags: rd wr"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn this_process_has_its_code_mapped() {
        let here = what_is_cut_off_or_no_mapping_is_refused as fn() as usize;
        let maps = read(crate::sys::process::pid()).expect("ours");
        let mapping = maps.iter().find(|mapping| mapping.range.contains(here)).expect("this function lies in one");
        assert!(mapping.inode > 0 && mapping.permissions == "r-xp", "{mapping:?}");
        assert!(maps.is_sorted_by_key(|mapping| mapping.range.start));
        assert!(vdso(crate::sys::process::pid()).is_none_or(|range| range.len > 0));
    }
}
