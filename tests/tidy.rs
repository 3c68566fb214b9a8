//! The order of the house: who may use whom, and where things may be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file without its tests.
const LINES_MAX: usize = 420;

/// A room and the rooms it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("page", &[]),
    // Promised types that the door to the kernel fills in.
    ("facts", &["page"]),
    // `Errno` is the one type of the kernel's that an error carries.
    ("error", &["sys", "page"]),
    ("sys", &["page", "facts", "error"]),
    // Handles say how they travel.
    ("arena", &["wire", "sys", "page", "error"]),
    ("wire", &["error"]),
    ("shared", &["sys", "page", "error"]),
    ("support", &["sys", "facts", "error", "watch", "page"]),
    ("watch", &["arena", "sys", "facts", "page", "error"]),
    // Types only: what arenas and watches found.
    ("report", &["arena", "watch", "sys", "facts", "page"]),
    ("fork", &["report", "watch", "arena", "shared", "sys", "facts", "page", "error"]),
    ("pool", &["wire", "fork", "report", "watch", "arena", "sys", "facts", "page", "error"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            found.extend(files_below(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found
}

/// A file's code: without its tests, comments and documentation.
fn code(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("text");
    let body = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    body.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect()
}

fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).expect("below src");
    let first = inside.components().next().expect("a part").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn sources() -> Vec<(PathBuf, String)> {
    files_below(&root().join("src"), "rs").into_iter().map(|path| (path.clone(), room(&path))).collect()
}

#[test]
fn only_sys_calls_the_kernel() {
    for (path, room) in sources().into_iter().filter(|(_, room)| room != "sys") {
        for line in code(&path) {
            for door in ["rustix::", "libc::", "linux_raw_sys::", "memfd::Memfd"] {
                assert!(!line.contains(door), "{} ({room}): {line}", path.display());
            }
        }
    }
}

#[test]
fn rooms_use_only_what_their_arrows_allow() {
    for (path, room) in sources().into_iter().filter(|(_, room)| room != "lib") {
        let (_, allowed) =
            ARROWS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("a new room: {room}"));
        for line in code(&path) {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_room = ARROWS.iter().any(|(name, _)| *name == used);
                assert!(!is_room || used == room || allowed.contains(&used.as_str()), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn page_report_and_support_have_no_unsafe_code() {
    for (path, room) in sources() {
        if ["page", "facts", "error", "report", "support", "lib"].contains(&room.as_str()) {
            assert!(!code(&path).iter().any(|line| line.contains("unsafe")), "{}", path.display());
        }
    }
}

#[test]
fn no_page_size_is_written_out() {
    // The keeper compares in chunks of 4096 bytes, whatever a page is.
    for (path, _) in sources().into_iter().filter(|(path, _)| !path.ends_with("watch/keeper.rs")) {
        for line in code(&path).iter().filter(|line| line.contains("4096")) {
            assert!(line.contains("buffer"), "{}: {line}", path.display());
        }
    }
}

#[test]
fn files_stay_short() {
    for path in files_below(&root().join("src"), "rs").into_iter().chain(files_below(&root().join("tools"), "rs")) {
        let lines = code(&path).len();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
    }
}

#[test]
fn the_top_level_holds_nothing_else() {
    let agreed: BTreeSet<&str> =
        ["Cargo.toml", "Cargo.lock", "src", "tests", "tools", "docs", "build.rs", "README.md", "target"].into();
    for entry in fs::read_dir(root()).expect("the top level") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let fine = agreed.contains(name.as_str()) || name.starts_with('.') || name.starts_with("LICENSE");
        assert!(fine, "{name} is not agreed");
    }
}

#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut pages = files_below(&root().join("docs"), "md");
    pages.push(root().join("README.md"));
    for page in pages {
        let text = fs::read_to_string(&page).expect("text");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(page.with_file_name("").join(target).exists(), "{}: {target}", page.display());
        }
    }
}
