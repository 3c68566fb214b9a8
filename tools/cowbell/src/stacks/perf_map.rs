//! The names that a just-in-time compiler writes for the code that it makes: /tmp/perf-PID.map, as `perf` reads it.

use cowbell::sys::procfs::status::Status;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// A map beyond this is cut off there: names are not worth more memory.
const BYTES_MAX: u64 = 256 << 20;

/// Functions by where they begin, with their length.
#[derive(Debug, Default)]
pub struct PerfMap {
    functions: BTreeMap<u64, (u64, String)>,
}

impl PerfMap {
    /// Reads the map of a process, which names it by the id that the process knows itself by, in its own /tmp. Empty if
    /// there is none.
    pub fn of(pid: i32) -> Self {
        let ids = Status::of(pid).map(|status| status.numbers("NStgid")).unwrap_or_default();
        let own = ids.last();
        let inside = own.map(|own| format!("/proc/{pid}/root/tmp/perf-{own}.map"));
        let outside = format!("/tmp/perf-{pid}.map");
        let text = inside.and_then(|path| read(Path::new(&path))).or_else(|| read(Path::new(&outside)));
        Self::parse(&text.unwrap_or_default())
    }

    /// Reads lines of `START SIZE NAME`, the numbers in base 16. Code that was made later takes an earlier one's place.
    fn parse(text: &[u8]) -> Self {
        let mut functions = BTreeMap::new();
        for line in text.split(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let mut fields = line.trim_end().splitn(3, ' ');
            let mut number = || u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok();
            if let (Some(start), Some(size)) = (number(), number())
                && let Some(name) = fields.next()
            {
                functions.insert(start, (size, name.to_owned()));
            }
        }
        Self { functions }
    }

    /// The function that an address lies in.
    pub fn function(&self, address: u64) -> Option<&str> {
        let (start, (size, name)) = self.functions.range(..=address).next_back()?;
        (address - start < *size).then_some(name)
    }
}

/// Reads an ordinary file: anybody can put anything into /tmp, a pipe that never ends too.
fn read(path: &Path) -> Option<Vec<u8>> {
    if !fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    File::open(path).ok()?.take(BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_name_of_what_covers_it_and_the_newest_counts() {
        let map = PerfMap::parse(b"1000 10 first\n0x2000 20 py::a b:c.py\nnonsense\n3000 zz x\n1000 8 second\n4000 10");
        assert_eq!(map.function(0x1007), Some("second"));
        assert_eq!(map.function(0x1008), None);
        assert_eq!(map.function(0x201f), Some("py::a b:c.py"));
        assert_eq!((map.function(0xfff), map.function(0x3000), map.function(0x4000)), (None, None, None));
    }
}
