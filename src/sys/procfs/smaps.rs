//! `/proc/PID/smaps` and `smaps_rollup`: the kernel's own sums, mapping by mapping.

use super::maps::{self, Mapping};
use crate::sys::Errno;
use crate::sys::map::Range;

/// One mapping's figures, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MappingFigures {
    /// The mapping: its range and what it maps.
    pub mapping: Mapping,
    /// Pages present, shared or not.
    pub rss: u64,
    /// Pages present, each divided by the number of its mappers.
    pub pss: u64,
    /// Present and mapped by this process alone.
    pub private: u64,
    /// Those of them that were written, whoever did.
    pub private_dirty: u64,
    /// Present and mapped by others too, and written.
    pub shared_dirty: u64,
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
/// ENOENT and ESRCH when the process is gone; EACCES or EPERM without ptrace read access to it.
pub fn mappings(pid: i32, range: Range) -> Result<Vec<MappingFigures>, Errno> {
    let mut all = parse(&super::text(pid, "smaps")?);
    all.retain(|figures| figures.mapping.range.overlaps(range));
    Ok(all)
}

/// The whole process in one mapping's form (its `private` is the USS).
///
/// # Errors
/// Those of [`mappings`]; ESRCH also when it has no memory any more.
pub fn rollup(pid: i32) -> Result<MappingFigures, Errno> {
    parse(&super::text(pid, "smaps_rollup")?).pop().ok_or(Errno::SRCH)
}

fn parse(text: &str) -> Vec<MappingFigures> {
    let mut mappings: Vec<MappingFigures> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = maps::parse(line) {
            mappings.push(MappingFigures { mapping, ..MappingFigures::default() });
            continue;
        }
        let (Some(figures), Some((key, value))) = (mappings.last_mut(), line.split_once(':')) else { continue };
        if key == "VmFlags" {
            figures.flags = value.split_whitespace().map(str::to_owned).collect();
            continue;
        }
        let bytes =
            value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib * 1024);
        match key {
            "Rss" => figures.rss = bytes,
            "Pss" => figures.pss = bytes,
            "Private_Clean" => figures.private += bytes,
            "Private_Dirty" => {
                figures.private += bytes;
                figures.private_dirty = bytes;
            }
            "Shared_Dirty" => figures.shared_dirty = bytes,
            "Anonymous" => figures.anonymous = bytes,
            "Swap" => figures.swap = bytes,
            "ShmemPmdMapped" | "FilePmdMapped" => figures.huge_file += bytes,
            _ => {}
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_with_its_figures() {
        let text = "7f0000000000-7f0000010000 rw-p 00001000 00:01 1033   /memfd:cowbell:graph (deleted)\n\
                    Size:                 64 kB\nRss:                  12 kB\nPss:                   7 kB\n\
                    Shared_Dirty:          0 kB\nPrivate_Clean:         4 kB\nPrivate_Dirty:         8 kB\nAnonymous:             8 kB\n\
                    Swap:                 16 kB\nVmFlags: rd wr mr mw me sd \n\
                    7f0000010000-7f0000011000 ---p 00000000 00:00 0 \nRss:  4 kB\n";
        let mappings = parse(text);
        assert_eq!(mappings.len(), 2);
        let first = &mappings[0];
        assert_eq!(first.mapping.range, Range { start: 0x7f00_0000_0000, len: 0x1_0000 });
        assert_eq!(first.mapping.name, "/memfd:cowbell:graph (deleted)");
        assert_eq!(
            (first.rss, first.pss, first.private, first.anonymous, first.swap),
            (12288, 7168, 12288, 8192, 16384)
        );
        assert_eq!((first.private_dirty, first.shared_dirty), (8192, 0));
        assert_eq!(first.flags, ["rd", "wr", "mr", "mw", "me", "sd"]);
        assert_eq!((mappings[1].rss, mappings[1].mapping.permissions.as_str()), (4096, "---p"));
    }
}
