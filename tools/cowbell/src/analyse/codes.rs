//! Places in code, by number: in which file they lie and what is there.

use crate::record::{Code, Executable, Module, Place};
use std::collections::HashMap;

/// All places of a capture.
#[derive(Debug, Default)]
pub struct Codes {
    modules: HashMap<u32, Module>,
    places: HashMap<u32, Place>,
    names: HashMap<u32, Code>,
}

impl Codes {
    /// Adds a file.
    pub fn module(&mut self, module: Module) {
        self.modules.insert(module.module, module);
    }

    /// Adds a place.
    pub fn place(&mut self, place: Place) {
        self.places.insert(place.code, place);
    }

    /// Adds names.
    pub fn names(&mut self, codes: Vec<Code>) {
        self.names.extend(codes.into_iter().map(|code| (code.code, code)));
    }

    /// The names of a place, where they were resolved.
    pub fn of(&self, code: u32) -> Option<&Code> {
        self.names.get(&code)
    }

    /// The file that a place is in, by the name under which `executable` was called if it is that one.
    pub fn file<'a>(&'a self, code: u32, executable: Option<&'a Executable>) -> Option<&'a str> {
        let module = self.modules.get(&self.places.get(&code)?.module?)?;
        Some(called(&module.path, executable))
    }

    /// A place as a stack of its own.
    pub fn alone(&self, code: u32) -> Option<&[u32]> {
        self.places.get(&code).map(|place| std::slice::from_ref(&place.code))
    }

    /// The words for a place without a name: file and address.
    pub fn bare(&self, code: u32, executable: Option<&Executable>) -> String {
        let Some(place) = self.places.get(&code) else { return "unknown".to_owned() };
        let address = self.names.get(&code).map_or(place.offset, |code| code.address);
        match self.file(code, executable) {
            Some(file) => format!("{}+{address:#x}", file.rsplit('/').next().unwrap_or(file)),
            None => format!("{address:#x}"),
        }
    }
}

/// The name of a file: a program by the name under which it was executed, which may be a link.
pub fn called<'a>(path: &'a str, executable: Option<&'a Executable>) -> &'a str {
    executable.filter(|executable| executable.path == path).map_or(path, |executable| &executable.called)
}
