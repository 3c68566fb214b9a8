//! The code of a file that says by its own name what it is: a copy of bytes, and code without a name, is explained by
//! whoever had it run.

use super::elf;
use std::fs::File;
use std::ops::Range;

/// Beginnings of names of functions that move or set bytes for others.
const MOVES_BYTES: &[&str] =
    &["memcpy", "memmove", "memset", "mempcpy", "strcpy", "strncpy", "stpcpy", "strcat", "bzero", "bcopy"];

/// Tells whether a function merely moves or sets bytes for its caller.
pub fn moves_bytes(function: &str) -> bool {
    moving(function).is_some()
}

/// The name of a function that merely moves or sets bytes, without the part that tells its variants for processors apart.
pub fn moving(function: &str) -> Option<&'static str> {
    // Names that begin with an underscore are the C library's; `memset_rows` is a program's own.
    let name = function.trim_start_matches('_');
    let is_librarys = name.len() < function.len();
    let name = name.trim_start_matches("GI_").trim_start_matches('_');
    MOVES_BYTES.iter().find(|known| name == **known || is_librarys && name.starts_with(**known)).copied()
}

/// The functions of a file that have a name of their own and do more than to move bytes.
pub struct OwnNames {
    layout: elf::LoadLayout,
    /// By address as the file counts them, ascending.
    functions: Vec<Range<u64>>,
}

impl OwnNames {
    /// Reads the file's tables of symbols.
    pub fn read(file: &File) -> Option<Self> {
        elf::with_file(file, |image| {
            let mut functions = Vec::new();
            image.functions(&mut |range, name| {
                if !moves_bytes(name) {
                    functions.push(range);
                }
            });
            functions.sort_unstable_by_key(|range| (range.start, range.end));
            Some(Self { layout: image.layout(), functions })
        })
    }

    /// Tells whether the code at an offset of the file says what it is.
    pub fn covers(&self, offset: u64) -> bool {
        let Some(address) = self.layout.address(offset) else { return false };
        let after = self.functions.partition_point(|range| range.start <= address);
        // Several names may begin at one address.
        let below = self.functions.get(..after).unwrap_or_default().iter().rev();
        below.take(4).any(|range| range.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_bytes_is_known_by_its_name_however_it_is_decorated() {
        for name in [
            "memcpy",
            "__memset_avx2_unaligned_erms",
            "__GI_memmove",
            "__strcpy_sse2",
            "__memcpy_chk",
            "__GI___memset_generic",
        ] {
            assert!(moves_bytes(name), "{name}");
        }
        assert_eq!(moving("__memmove_avx_unaligned_erms"), Some("memmove"));
        for name in ["copy_memory", "setmem", "w17", "PyMem_Malloc", "memset_rows", "strcpy_fields"] {
            assert!(!moves_bytes(name), "{name}");
        }
    }

    #[test]
    fn our_own_file_has_names_of_its_own() {
        let names = OwnNames::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        let here = what_moves_bytes_is_known_by_its_name_however_it_is_decorated as fn() as usize as u64;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let offset = maps.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).unwrap());
            let offset = u64::from_str_radix(fields.nth(1)?, 16).unwrap();
            (start..end).contains(&here).then(|| here - start + offset)
        });
        assert!(names.covers(offset.unwrap()));
        assert!(!names.covers(u64::MAX));
    }
}
