//! The module that a stack is loading: by the line of the user's own that imports it.

use super::super::Import;
use crate::record::Frame;

/// The outermost import of a stack, its innermost frame first, if a line of the user's own asks for it.
pub fn outermost(frames: &[Frame], is_own: impl Fn(&str) -> bool) -> Option<Import> {
    let is_machinery = |frame: &Frame| frame.file.starts_with("<frozen importlib");
    let at = frames.iter().rposition(is_machinery)?;
    let asks = frames.get(at + 1).filter(|frame| frame.line > 0 && is_own(&frame.file))?;
    let runs = frames.get(..at)?.iter().rfind(|frame| !is_machinery(frame));
    Some(Import {
        file: asks.file.clone(),
        line: asks.line,
        of_part: frames.get(at)?.function.rsplit('.').next() == Some("_handle_fromlist"),
        module_file: runs.map_or(String::new(), |frame| frame.file.clone()),
    })
}

/// The module that an import loads, by the text of its line. `None` if the line does not say, or names several and the file does not tell
/// which.
pub fn module(import: &Import, line: &str) -> Option<String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    // Text in quotes or behind a semicolon may be anything.
    if line.contains([';', '"', '\'']) {
        return None;
    }
    let names = |list: &str| {
        let list = list.trim().trim_matches(['(', ')', '\\']);
        let bare = list.split(',').map(|name| name.split(" as ").next().unwrap_or_default().trim());
        bare.filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let found = if let Some(list) = line.strip_prefix("import ") {
        names(list)
    } else {
        let (package, list) = line.strip_prefix("from ")?.split_once(" import ")?;
        match import.of_part {
            true => names(list).into_iter().map(|name| format!("{}.{name}", package.trim())).collect(),
            false => vec![package.trim().to_owned()],
        }
    };
    let is_name = |name: &String| {
        let part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_');
        name.split('.').all(part)
    };
    if !found.iter().all(is_name) {
        return None;
    }
    let mut fitting = found.iter().filter(|name| found.len() == 1 || is_loaded_from(name, &import.module_file));
    fitting.next().filter(|_| fitting.next().is_none()).cloned()
}

/// Tells whether loading this module runs this file: its own, or that of a package that it lies in.
fn is_loaded_from(name: &str, file: &str) -> bool {
    let ends = name.match_indices('.').map(|(at, _)| at).chain([name.len()]);
    ends.filter_map(|end| name.get(..end)).map(|name| name.replace('.', "/")).any(|path| {
        let names = |file: &str| file == path || file.ends_with(&format!("/{path}"));
        file.strip_suffix("/__init__.py").or(file.strip_suffix(".py")).is_some_and(names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str, line: i32) -> Frame {
        Frame { function: function.to_owned(), file: file.to_owned(), line }
    }

    fn import(of_part: bool, module_file: &str) -> Import {
        Import { file: "/srv/app.py".to_owned(), line: 3, of_part, module_file: module_file.to_owned() }
    }

    #[test]
    fn the_outermost_import_of_the_users_own_is_told() {
        let machinery = |function| frame(function, "<frozen importlib._bootstrap>", 1);
        let frames = [
            frame("<module>", "/lib/python3.11/heavy/core.py", 9),
            machinery("_find_and_load"),
            frame("<module>", "/lib/python3.11/heavy/__init__.py", 2),
            machinery("_call_with_frames_removed"),
            machinery("_find_and_load"),
            frame("work", "/srv/app.py", 3),
            frame("worker", "/lib/python3.11/multiprocessing/pool.py", 125),
        ];
        let own = |file: &str| file.starts_with("/srv/");
        assert_eq!(outermost(&frames, own), Some(import(false, "/lib/python3.11/heavy/__init__.py")));
        assert_eq!(outermost(&frames[..2], own), None, "nobody of the user's own");
        assert_eq!(outermost(&frames[5..], own), None, "no import");
    }

    #[test]
    fn a_line_names_the_module_or_nothing_is_said() {
        let plain = |line| module(&import(false, "/lib/heavy/__init__.py"), line);
        for (line, due) in [
            ("import heavy", Some("heavy")),
            ("import heavy as h  # 80 MB", Some("heavy")),
            ("import heavy.core, json", Some("heavy.core")),
            ("from heavy import (", Some("heavy")),
            ("from heavy.core import a, b as c", Some("heavy.core")),
            ("import json, csv", None),
            ("from . import heavy", None),
            ("import heavy; import json", None),
            ("heavy = __import__('heavy')", None),
            ("x = 1", None),
        ] {
            assert_eq!(plain(line).as_deref(), due, "{line}");
        }
        // A part of a package that is a module itself is not loaded with the package.
        let part = import(true, "/lib/heavy/core.py");
        assert_eq!(module(&part, "from heavy import core").as_deref(), Some("heavy.core"));
        assert_eq!(module(&part, "from heavy import light, core").as_deref(), Some("heavy.core"));
        assert_eq!(module(&part, "from heavy import *"), None);
    }
}
