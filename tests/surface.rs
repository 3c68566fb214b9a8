//! The promised interface is what the documentation shows: no internals in it, and no type that it does not show.
//!
//! rustdoc's JSON is read, which stable compilers write only when they are told to be of the nightly kind; its
//! format may change with the compiler, and then this test says so.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The names that the root of the crate shows.
const ROOT: &[&str] = &[
    "Error",
    "Result",
    "SideArc",
    "arena",
    "assert_copied_pages",
    "contained",
    "error",
    "fork",
    "heap",
    "hot",
    "page",
    "pool",
    "report",
    "shared",
    "single_threaded",
    "support",
    "twin",
    "watch",
];

/// Crates whose types stand in the interface; lib.rs says that they are part of the promise.
const CRATES: &[&str] =
    &["std", "core", "alloc", "cowbell", "allocator_api2", "hashbrown", "bytemuck", "bytemuck_derive", "serde_core"];

/// The documentation as rustdoc sees it.
fn documentation() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    // Only rustdoc may see the variable: build scripts that see it choose other code, and everything would be built anew.
    let rustdoc = folder.join("rustdoc-json");
    fs::write(&rustdoc, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n").expect("a script");
    fs::set_permissions(&rustdoc, fs::Permissions::from_mode(0o755)).expect("a script that runs");
    let target = folder.join("..");
    let made = Command::new(env!("CARGO"))
        .args(["rustdoc", "--quiet", "-p", "cowbell", "--lib", "--features", "serde", "--target-dir"])
        .arg(&target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .env("RUSTDOC", &rustdoc)
        .current_dir(root)
        .status()
        .expect("cargo");
    assert!(made.success(), "cargo rustdoc: {made}");
    let text = fs::read_to_string(target.join("doc/cowbell.json")).expect("rustdoc's JSON");
    serde_json::from_str(&text).expect("JSON")
}

/// Calls `seen` with the id of every item that this part of an item names: types, traits, modules that are shown again.
fn named<'a>(part: &'a Value, seen: &mut impl FnMut(&'a Value)) {
    match part {
        Value::Object(fields) => {
            for (name, field) in fields {
                if matches!(name.as_str(), "resolved_path" | "trait" | "trait_" | "use")
                    && let Some(id) = field.get("id").filter(|id| !id.is_null())
                {
                    seen(id);
                }
                named(field, seen);
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| named(part, seen)),
        _ => {}
    }
}

fn item<'a>(documentation: &'a Value, id: &Value) -> Option<&'a Value> {
    documentation["index"].get(id.to_string())
}

/// A shown item's name; a `pub use` has that of what it shows.
fn name(item: &Value) -> String {
    let name = item["inner"].pointer("/use/name").unwrap_or(&item["name"]);
    name.as_str().unwrap_or_default().to_owned()
}

/// Tells whether the item is of this crate's own text, rather than an implementation for all types that some crate brings.
fn is_own(item: &Value) -> bool {
    item["crate_id"] == 0 && item["span"]["filename"].as_str().is_some_and(|file| file.starts_with("src/"))
}

#[test]
fn the_documentation_shows_the_promised_interface_and_no_internals() {
    let documentation = documentation();
    let root = item(&documentation, &documentation["root"]).expect("the crate, or rustdoc's format has changed");
    let items = root["inner"]["module"]["items"].as_array().expect("items, or rustdoc's format has changed");
    let mut shown: Vec<String> = items.iter().filter_map(|id| item(&documentation, id)).map(name).collect();
    shown.sort();
    assert_eq!(shown, ROOT, "the root of the crate");

    let (mut looked_at, mut leaks) = (0, BTreeSet::new());
    let index = documentation["index"].as_object().expect("an index");
    for item in index.values().filter(|item| is_own(item)) {
        named(&item["inner"], &mut |id| {
            looked_at += 1;
            let path = &documentation["paths"][id.to_string()];
            let Some(words) = path["path"].as_array() else { return };
            let path: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            let foreign = !CRATES.contains(&path[0]);
            let hidden = path[0] == "cowbell" && !index.contains_key(&id.to_string());
            if foreign || hidden {
                leaks.insert(format!("{} names {}", name(item), path.join("::")));
            }
        });
    }
    assert!(looked_at > 1000, "only {looked_at} names were seen: rustdoc's format has changed");
    assert!(leaks.is_empty(), "not shown, yet part of what is promised: {leaks:#?}");
}
