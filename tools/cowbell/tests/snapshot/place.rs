//! The place where the tests of `cowbell snapshot` run: a folder, a user, and the program that copies known pages.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The tool that cargo built, or a copy of it where an ordinary user may run it.
pub fn tool() -> PathBuf {
    std::env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into()).into()
}

/// Becomes an ordinary user without any capability.
pub const NOBODY: [&str; 6] =
    ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];

/// The program that copies pages, and the tool, where everybody may run them. Gone with the test.
pub struct Place {
    pub folder: PathBuf,
    /// Before every command.
    pub user: &'static [&'static str],
}

impl Place {
    /// A place of this test alone.
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("cowbell-snapshot-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let place = Self { folder, user: &[] };
        place.compile("tree", include_str!("tree.c"));
        place
    }

    /// A program of this place, made of C.
    pub fn compile(&self, name: &str, source: &str) -> PathBuf {
        let (program, file) = (self.folder.join(name), self.folder.join(format!("{name}.c")));
        std::fs::write(&file, source).expect("the source");
        let built = Command::new("cc").args(["-O1", "-pthread", "-o"]).args([&program, &file]).output();
        let built = built.expect("cc, which rustc links with");
        assert!(built.status.success(), "{}", text(&built.stderr));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its owner may");
        program
    }

    /// A place for each user that can be tested: the user of the tests and, if that is root, an ordinary one.
    pub fn with_users(name: &str) -> Vec<Self> {
        let mut places = vec![Self::new(name)];
        if cowbell::sys::limits::user().uid != 0 {
            println!("skipped: as root: the tests run as an ordinary user");
            return places;
        }
        let mut nobody = Self::new(&format!("{name}-nobody"));
        nobody.user = &NOBODY;
        std::fs::copy(tool(), nobody.tool()).expect("a copy of the tool");
        // The modes are set here, whatever the umask is.
        for path in [&nobody.folder, &nobody.tool(), &nobody.tree()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("its owner may");
        }
        if nobody.command(Path::new("true")).status().is_ok_and(|status| status.success()) {
            places.push(nobody);
        } else {
            println!("skipped: as nobody: setpriv cannot be run");
        }
        places
    }

    pub fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    pub fn tool(&self) -> PathBuf {
        if self.user.is_empty() { tool() } else { self.folder.join("cowbell") }
    }

    /// A command as this place's user.
    pub fn command(&self, program: &Path) -> Command {
        command(self.user, program)
    }

    pub fn snapshot(&self, arguments: &[&str]) -> Output {
        self.command(&self.tool()).arg("snapshot").args(arguments).output().expect("the tool can be started")
    }

    /// All there is, every mapping included.
    pub fn json(&self, pid: i32) -> Value {
        let output = self.snapshot(&["--json", &pid.to_string()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

fn command(user: &[&str], program: &Path) -> Command {
    let mut words = user.iter().map(Path::new).chain([program]);
    let mut command = Command::new(words.next().expect("a program"));
    command.args(words).stdin(Stdio::null());
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A tree that has done its script and waits. It ends with its standard input.
pub struct Tree {
    pub top: Child,
    /// In the order in which they were started.
    pub pids: Vec<i32>,
}

impl Tree {
    pub fn start(place: &Place, script: &str) -> Self {
        Self::start_as(place, place.user, script)
    }

    /// One of another user than the place's.
    pub fn start_as(place: &Place, user: &'static [&'static str], script: &str) -> Self {
        let mut top = command(user, &place.tree());
        let top = top.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the tree");
        let mut tree = Self { top, pids: Vec::new() };
        for line in BufReader::new(tree.top.stdout.take().expect("its output")).lines() {
            match line.expect("text").as_str() {
                "ready" => return tree,
                pid => tree.pids.push(pid.parse().expect("a process id")),
            }
        }
        panic!("{script:?} came to no end");
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        drop(self.top.stdin.take());
        let _status = self.top.wait();
    }
}
