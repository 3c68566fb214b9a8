//! The needs of a way, and whether they are met here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Something that a way needs.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Python, and a package of it: the module that is imported, and its name on PyPI.
    Module(&'static str, &'static str),
    /// Python of this version or a newer one.
    Python(u32, u32),
    /// A program, and Debian's package.
    Program(&'static str, &'static str),
    /// Ruby of this version or a newer one.
    Ruby(u32, u32),
}

impl Need {
    /// Why it is not met; `None` if it is.
    pub fn missing(self, python: &Python) -> Option<String> {
        match self {
            Self::Module(module, package) => (!python.has(module)).then(|| match python.version {
                Some(_) => format!("{} has no {module}: pip install {package}", python.path.display()),
                None => format!("there is no {}", python.path.display()),
            }),
            Self::Python(major, minor) => (python.version < Some((major, minor))).then(|| match python.version {
                Some(_) => format!("{} is older than CPython {major}.{minor}", python.path.display()),
                None => format!("there is no {}", python.path.display()),
            }),
            Self::Program(name, package) => {
                find(name).is_none().then(|| format!("there is no {name}: apt-get install {package}"))
            }
            Self::Ruby(major, minor) => (version(Path::new("ruby"), &["-e", "print RUBY_VERSION"])
                < Some((major, minor)))
            .then(|| format!("Ruby is older than {major}.{minor}")),
        }
    }
}

/// A program of the PATH, or of PostgreSQL, which Debian keeps out of it.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgresql = versions.map(|version| version.path().join("bin"));
    std::env::split_paths(&path).chain(postgresql).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// The version that a program prints, its first two numbers.
fn version(program: &Path, arguments: &[&str]) -> Option<(u32, u32)> {
    let said = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut numbers = said.trim().split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// A Python.
#[derive(Debug)]
pub struct Python {
    /// The command.
    pub path: PathBuf,
    version: Option<(u32, u32)>,
    modules: RefCell<BTreeMap<&'static str, bool>>,
}

impl Python {
    /// The Python of this name, which may not be there.
    pub fn find(path: &Path) -> Self {
        let version = version(path, &["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]);
        Self { path: path.to_owned(), version, modules: RefCell::default() }
    }

    /// Python's version in words.
    pub fn version_words(&self) -> Option<String> {
        self.version.map(|(major, minor)| format!("CPython {major}.{minor}"))
    }

    /// Tells whether it can import a module.
    fn has(&self, module: &'static str) -> bool {
        let imports = || {
            let mut command = Command::new(&self.path);
            command.args(["-c", &format!("import {module}")]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        *self.modules.borrow_mut().entry(module).or_insert_with(imports)
    }
}
