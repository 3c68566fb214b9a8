//! `/proc/PID/smaps` and `smaps_rollup`: the kernel's own sums, mapping by mapping.

use super::map::Range;
use crate::error::{Error, Result};
use std::fs;

/// One mapping's figures, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address and one past the last.
    pub addresses: (usize, usize),
    /// `rw-p` and the like.
    pub permissions: String,
    /// The file or name shown, empty if none.
    pub name: String,
    /// Pages present, shared or not.
    pub rss: u64,
    /// Pages present, each divided by the number of its mappers.
    pub pss: u64,
    /// Present and mapped by this process alone.
    pub private: u64,
    /// Present and belonging to no file: copies, in a private file mapping.
    pub anonymous: u64,
    /// Swapped out.
    pub swap: u64,
    /// Mapped by huge entries, of files and of shared memory.
    pub huge_file: u64,
    /// The two-letter flags of `VmFlags`.
    pub flags: Vec<String>,
}

/// The mappings of a process that overlap a range.
///
/// # Errors
/// ENOENT when the process is gone; EACCES or EPERM without ptrace read access to it.
pub fn mappings(pid: i32, range: Range) -> Result<Vec<Mapping>> {
    let text = read(pid, "smaps")?;
    Ok(parse(&text).into_iter().filter(|m| m.addresses.0 < range.end() && range.start < m.addresses.1).collect())
}

/// The whole process in one mapping's form (its `private` is the USS).
///
/// # Errors
/// As [`mappings`].
pub fn rollup(pid: i32) -> Result<Mapping> {
    let text = read(pid, "smaps_rollup")?;
    parse(&text).pop().ok_or_else(|| Error::os("read(smaps_rollup)", super::Errno::SRCH))
}

fn read(pid: i32, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|e| {
        let errno = e.raw_os_error().map_or(super::Errno::IO, super::Errno::from_raw_os_error);
        Error::os("read(smaps)", errno)
    })
}

fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
            continue;
        }
        let (Some(mapping), Some((key, value))) = (mappings.last_mut(), line.split_once(':')) else { continue };
        if key == "VmFlags" {
            mapping.flags = value.split_whitespace().map(str::to_owned).collect();
            continue;
        }
        let bytes =
            value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib * 1024);
        match key {
            "Rss" => mapping.rss = bytes,
            "Pss" => mapping.pss = bytes,
            "Private_Clean" | "Private_Dirty" => mapping.private += bytes,
            "Anonymous" => mapping.anonymous = bytes,
            "Swap" => mapping.swap = bytes,
            "ShmemPmdMapped" | "FilePmdMapped" => mapping.huge_file += bytes,
            _ => {}
        }
    }
    mappings
}

/// `55d0c000-55d0d000 rw-p 00000000 00:01 1024  /memfd:name (deleted)`
fn header(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let addresses = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let permissions = fields.next()?.to_owned();
    let name = fields.nth(3).map_or("", str::trim).to_owned();
    Some(Mapping { addresses, permissions, name, ..Mapping::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_with_its_figures() {
        let text = "7f0000000000-7f0000010000 rw-p 00001000 00:01 1033   /memfd:cowbell:graph (deleted)\n\
                    Size:                 64 kB\nRss:                  12 kB\nPss:                   7 kB\n\
                    Private_Clean:         4 kB\nPrivate_Dirty:         8 kB\nAnonymous:             8 kB\n\
                    Swap:                 16 kB\nVmFlags: rd wr mr mw me sd \n\
                    7f0000010000-7f0000011000 ---p 00000000 00:00 0 \nRss:  4 kB\n";
        let mappings = parse(text);
        assert_eq!(mappings.len(), 2);
        let first = &mappings[0];
        assert_eq!(first.addresses, (0x7f00_0000_0000, 0x7f00_0001_0000));
        assert_eq!(first.name, "/memfd:cowbell:graph (deleted)");
        assert_eq!(
            (first.rss, first.pss, first.private, first.anonymous, first.swap),
            (12288, 7168, 12288, 8192, 16384)
        );
        assert_eq!(first.flags, ["rd", "wr", "mr", "mw", "me", "sd"]);
        assert_eq!((mappings[1].rss, mappings[1].permissions.as_str()), (4096, "---p"));
    }
}
