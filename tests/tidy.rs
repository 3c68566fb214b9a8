//! The order of the house: who may use whom, and where things may be.

#[path = "tidy/arrows.rs"]
mod arrows;
#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/lengths.rs"]
mod lengths;
#[path = "tidy/signal_safe.rs"]
mod signal_safe;
#[path = "tidy/words.rs"]
mod words;

use arrows::{ARROWS, Arrows, BENCH_ARROWS, SERVICE_ARROWS, TESTS, TOOL_ARROWS, Tests};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of the tool that compute: they neither ask the kernel nor read a file nor look at the clock.
const PURE: &[&str] = &["record", "analyse", "views"];

/// Ways out of a computation.
const EFFECTS: &[&str] = &[
    "cowbell::sys",
    "cowbell::support",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "std::time",
    "std::net",
    "std::os",
    "stdout()",
    "stderr()",
    "stdin()",
    "println!",
    "print!",
];

/// The one file of a pure room that reads: the lines of sources, for people.
const IMPURE: &[&str] = &["analyse/source.rs"];

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

/// The room of a file below a folder of sources.
fn room_in(folder: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(folder).expect("below the folder");
    let first = inside.components().next().expect("a part").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn sources() -> Vec<(PathBuf, String)> {
    let folder = root().join("src");
    files_below(&folder, "rs").into_iter().map(|path| (path.clone(), room_in(&folder, &path))).collect()
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

/// The names behind `crate::` in a line, those of a group in braces too.
fn names_behind_crate(line: &str) -> Vec<String> {
    let parts = line.split("crate::").skip(1).flat_map(|rest| match rest.strip_prefix('{') {
        Some(group) => group.split('}').next().unwrap_or_default().split(", ").collect(),
        None => vec![rest],
    });
    parts.map(|part| part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

/// The rooms of a folder that use others. The crate's root, which knows all of them, is no room.
fn uses(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let folder = root().join(folder);
    // A room's tests may look at more than the room does.
    let files = files_below(&folder, "rs").into_iter().filter(|path| !path.ends_with("tests.rs"));
    let sources = files.map(|path| (room_in(&folder, &path), path));
    let sources: Vec<_> = sources.filter(|(room, _)| !["main", "lib"].contains(&room.as_str())).collect();
    let rooms: BTreeSet<String> = sources.iter().map(|(room, _)| room.clone()).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> =
        rooms.iter().map(|room| (room.clone(), BTreeSet::new())).collect();
    for (room, path) in &sources {
        let used = code(path).iter().flat_map(|line| names_behind_crate(line)).collect::<Vec<_>>();
        let used = used.into_iter().filter(|name| rooms.contains(name) && name != room);
        uses.entry(room.clone()).or_default().extend(used);
    }
    uses
}

/// A table as [`uses`] finds it.
fn table(arrows: Arrows) -> BTreeMap<String, BTreeSet<String>> {
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    arrows.iter().map(|(room, used)| ((*room).to_owned(), set(used))).collect()
}

/// Demands that a table says exactly what is used.
fn agree(folder: &str, found: &BTreeMap<String, BTreeSet<String>>, arrows: Arrows) {
    let table = table(arrows);
    let pairs = |map: &BTreeMap<String, BTreeSet<String>>| -> BTreeSet<(String, String)> {
        map.iter().flat_map(|(room, used)| used.iter().map(|used| (room.clone(), used.clone()))).collect()
    };
    let (used, allowed) = (pairs(found), pairs(&table));
    let forbidden: Vec<_> = used.difference(&allowed).collect();
    let idle: Vec<_> = allowed.difference(&used).collect();
    assert!(forbidden.is_empty(), "{folder}: no arrow allows {forbidden:?}");
    assert!(idle.is_empty(), "{folder}: nobody needs the arrows {idle:?}");
    assert!(
        found.keys().eq(table.keys()),
        "{folder}: the rooms are {:?}, the table's {:?}",
        found.keys(),
        table.keys()
    );
}

#[test]
fn rooms_use_exactly_what_their_arrows_say() {
    for (folder, arrows) in [
        ("src", ARROWS),
        ("tools/cowbell/src", TOOL_ARROWS),
        ("tools/bench/src", BENCH_ARROWS),
        ("tools/service/src", SERVICE_ARROWS),
    ] {
        agree(folder, &uses(folder), arrows);
    }
}

#[test]
fn arrows_lead_down_only() {
    // `error` and `support` are told of elsewhere: `Errno` is the kernel's, watches are known by name.
    for arrows in [TOOL_ARROWS, BENCH_ARROWS, SERVICE_ARROWS] {
        let mut left = table(arrows);
        while let Some(room) = left.iter().find(|(_, used)| used.is_empty()).map(|(room, _)| room.clone()) {
            left.remove(&room);
            left.values_mut().for_each(|used| used.retain(|name| *name != room));
        }
        assert_eq!(left, BTreeMap::new(), "these rooms use each other");
    }
}

#[test]
fn tests_use_helpers_and_what_their_arrows_say() {
    for Tests { folder, helpers, arrows } in TESTS {
        let mut found = uses(folder);
        for (room, used) in &mut found {
            used.retain(|name| helpers.contains(&room.as_str()) || !helpers.contains(&name.as_str()));
        }
        found.retain(|_, used| !used.is_empty());
        agree(folder, &found, arrows);
    }
}

#[test]
fn nothing_that_ships_depends_on_the_bench() {
    for manifest in ["Cargo.toml", "tools/cowbell/Cargo.toml", "tools/read-process-memory/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).expect("a manifest");
        assert!(!text.contains("cowbell-bench"), "{manifest}");
    }
}

#[test]
fn rooms_that_compute_have_no_way_out() {
    let folder = root().join("tools/cowbell/src");
    for path in files_below(&folder, "rs").into_iter().filter(|path| PURE.contains(&room_in(&folder, path).as_str())) {
        let inside = path.strip_prefix(&folder).expect("below").to_string_lossy().into_owned();
        let effect = code(&path).into_iter().find(|line| EFFECTS.iter().any(|effect| line.contains(effect)));
        if inside.ends_with("tests.rs") {
            continue;
        }
        assert_eq!(effect.is_some(), IMPURE.contains(&inside.as_str()), "{inside}: {effect:?}");
    }
}

/// Names of languages and of their interpreters, in lower case: those of the files that are languages, and PHP's engine. A person's
/// language is no program's.
fn languages(room: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["zend".to_owned()]);
    for entry in fs::read_dir(room).expect("the room of languages") {
        let path = entry.expect("an entry").path();
        let is_one = |path: &Path| code(path).iter().any(|line| line.starts_with("impl Language for "));
        // Those that are only recognised are several.
        if path.is_file() && !path.ends_with("recognised.rs") && is_one(&path) {
            names.insert(path.file_stem().expect("a file's").to_string_lossy().into_owned());
        }
    }
    names
}

/// Tells whether a line of code names a language. A name of one or two letters lies in many words, so it counts as a text of its own.
fn names_language(line: &str, language: &str) -> bool {
    let line = line.to_lowercase();
    if language.len() > 2 { line.contains(language) } else { line.contains(&format!("\"{language}\"")) }
}

#[test]
fn languages_are_named_in_their_own_room_only() {
    let folder = root().join("tools/cowbell/src");
    let own = folder.join("stacks/languages");
    // The lab runs programs of Python's and others', by name.
    let lab = folder.join("lab");
    let languages = languages(&own);
    let mut named = BTreeSet::new();
    for path in
        files_below(&folder, "rs").into_iter().filter(|path| !path.ends_with("tests.rs") && !path.starts_with(&lab))
    {
        let lines = code(&path);
        let naming = |language: &String| lines.iter().find(|line| names_language(line, language));
        if path.starts_with(&own) {
            named.extend(languages.iter().filter(|language| naming(language).is_some()));
        } else {
            assert_eq!(languages.iter().find_map(naming), None, "{}", path.display());
        }
    }
    assert_eq!(named, languages.iter().collect(), "each names itself");
    assert!(languages.contains("python") && languages.contains("r"), "they are found: {languages:?}");
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
    for (path, _) in sources().into_iter().filter(|(path, _)| !path.ends_with("watch/signal_safe/keeper.rs")) {
        for line in code(&path).iter().filter(|line| line.contains("4096")) {
            assert!(line.contains("buffer"), "{}: {line}", path.display());
        }
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
fn the_guide_for_contributors_names_paths_that_exist() {
    let text = fs::read_to_string(root().join("docs/CONTRIBUTING.md")).expect("text");
    let quoted = text.split('`').skip(1).step_by(2).map(|code| code.split(' ').next().unwrap_or_default());
    let ours = |path: &&str| ["src/", "tests/", "tools/", "docs/"].iter().any(|folder| path.starts_with(folder));
    let paths: Vec<&str> = quoted.filter(ours).collect();
    assert!(paths.len() > 15, "they are found: {paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "{path}");
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
            // The listing of sentences has places that are filled in.
            if target.is_empty() || target.contains("://") || target.starts_with('{') {
                continue;
            }
            assert!(page.with_file_name("").join(target).exists(), "{}: {target}", page.display());
        }
    }
}
