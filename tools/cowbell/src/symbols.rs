//! Instructions of this program as functions and lines.

use blazesym::symbolize::source::{Process, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolizer};
use blazesym::{Addr, Pid};
use cowbell::sys::process;
use std::path::{Path, PathBuf};

/// What an instruction belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Code {
    /// The function, inlined ones resolved; the address where there is no name.
    pub function: String,
    /// `file:line`, where debug information tells.
    pub line: Option<String>,
}

/// Resolves addresses of this process, in the order given. What has no name stays an address.
pub fn resolve(addresses: &[u64]) -> Vec<Code> {
    let executable = process::executable();
    let bare = |address: u64| {
        let inside = executable.contains(address as usize);
        let function = if inside {
            format!("executable+{:#x}", address as usize - executable.start)
        } else {
            format!("{address:#x}")
        };
        Code { function, line: None }
    };
    let symbolizer = Symbolizer::new();
    let mut this = Process::new(Pid::Slf);
    // By the paths in /proc/self/maps: /proc/self/map_files is closed to ordinary users.
    this.map_files = false;
    let source = Source::Process(this);
    let inputs: Vec<Addr> = addresses.to_vec();
    let Ok(resolved) = symbolizer.symbolize(&source, Input::AbsAddr(&inputs)) else {
        return addresses.iter().copied().map(bare).collect();
    };
    let code = |(symbol, &address): (_, &u64)| {
        let blazesym::symbolize::Symbolized::Sym(symbol) = symbol else { return bare(address) };
        // From the innermost inlined function outwards, the first that is not the standard library's: an
        // atomic's own code is nobody's cause.
        let inlined = symbol.inlined.iter().rev().map(|f| (f.name.as_ref(), f.code_info.as_ref()));
        let mut frames = inlined.chain([(symbol.name.as_ref(), symbol.code_info.as_deref())]).peekable();
        let innermost = frames.peek().copied();
        let is_ours = |place: Option<&CodeInfo>| place.is_none_or(|place| !is_standard(&place.to_path()));
        let Some((name, place)) = frames.find(|(_, place)| is_ours(*place)).or(innermost) else { return bare(address) };
        let line = place.and_then(|place| Some(format!("{}:{}", shorten(&place.to_path()), place.line?)));
        Code { function: name.to_string(), line }
    };
    resolved.into_iter().zip(addresses).map(code).collect()
}

/// Is this file the Rust standard library's?
fn is_standard(path: &Path) -> bool {
    let path = path.to_string_lossy();
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
