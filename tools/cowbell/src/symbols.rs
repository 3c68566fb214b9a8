//! Instructions of this program as functions and lines.

use crate::record::{NativeFrame, Place};
use crate::stacks::names::Names;
use cowbell::sys::procfs::maps;
use cowbell::sys::{executable, process};
use std::path::{Path, PathBuf};

/// The names of what an instruction belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Symbols {
    /// The function, inlined ones resolved; the address where there is no name.
    pub function: String,
    /// `file:line`, where debug information tells.
    pub line: Option<String>,
}

/// Resolves addresses of this process, in the order given. What has no name stays an address.
pub fn resolve(addresses: &[u64]) -> Vec<Symbols> {
    let mut names = Names::new();
    let places = places(addresses, &mut names);
    let resolved = names.resolve(&places);
    resolved
        .iter()
        .zip(addresses)
        .map(|(code, &address)| named(&code.frames).unwrap_or_else(|| bare(address)))
        .collect()
}

/// The places of the addresses in the files that this process maps.
fn places(addresses: &[u64], names: &mut Names) -> Vec<Place> {
    let maps = maps::read(process::pid()).unwrap_or_default();
    let place = |(nth, &address): (usize, &u64)| {
        let found = maps.iter().zip(1..).find(|(map, _)| map.range.contains(address as usize));
        let code = nth as u32 + 1;
        match found {
            Some((map, module)) => {
                names.add_file(module, Path::new(&map.name));
                Place { code, module: Some(module), offset: address - map.range.start as u64 + map.offset, pid: 0 }
            }
            None => Place { code, module: None, offset: address, pid: 0 },
        }
    };
    addresses.iter().enumerate().map(place).collect()
}

/// From the innermost inlined function outwards, the first that is not the standard library's: an atomic's own code is
/// nobody's cause.
fn named(frames: &[NativeFrame]) -> Option<Symbols> {
    let is_ours = |frame: &&NativeFrame| frame.file.as_deref().is_none_or(|file| !is_standard(file));
    let frame = frames.iter().find(is_ours).or(frames.first())?;
    let line = frame.file.as_ref().and_then(|file| Some(format!("{}:{}", shorten(Path::new(file)), frame.line?)));
    Some(Symbols { function: frame.function.clone(), line })
}

fn bare(address: u64) -> Symbols {
    let executable = executable::executable();
    let function = if executable.contains(address as usize) {
        format!("executable+{:#x}", address as usize - executable.start)
    } else {
        format!("{address:#x}")
    };
    Symbols { function, line: None }
}

/// Tells whether this file is the Rust standard library's.
fn is_standard(path: &str) -> bool {
    ["/rustc/", "library/core/", "library/alloc/", "library/std/"].iter().any(|part| path.contains(part))
}

/// The last parts of a path: enough to find the file by.
fn shorten(path: &Path) -> String {
    let parts: Vec<_> = path.components().rev().take(4).collect();
    parts.into_iter().rev().collect::<PathBuf>().display().to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_function_of_this_program_has_its_name_and_an_address_of_nothing_stays_one() {
        let here = super::resolve as *const () as u64;
        let codes = super::resolve(&[here, 16]);
        assert!(codes[0].function.contains("resolve"), "{codes:?}");
        assert_eq!(codes[1].function, "0x10");
    }
}
