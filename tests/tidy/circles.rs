//! No two files of the library use each other, directly or by way of others: each can be understood with those below it alone.
//!
//! A file uses another where it names it, or a thing that is defined there: in a `use`, or by a path in its code. What a file hands on by
//! `pub use` it uses only if its own code names it, too. Methods are not seen: a type may have some in a file above its own.

use super::{files_below, root};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by the names that lead to it from the crate's root.
type Module = Vec<String>;

/// A file of the library.
#[derive(Default)]
struct Source {
    /// The file's code without `use` declarations, comments and tests.
    code: String,
    /// The paths that it imports, those that it hands on included.
    imports: Vec<Import>,
}

struct Import {
    path: Vec<String>,
    /// The name that it has here.
    name: String,
    handed_on: bool,
}

/// The text without comments, and without the module of tests at its end.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        if line == "#[cfg(test)]" && rest.clone().find(|line| !line.starts_with("#[")).is_some_and(is_module) {
            break;
        }
        kept.push_str(line.split("//").next().unwrap_or_default());
        kept.push('\n');
    }
    kept
}

fn is_module(line: &str) -> bool {
    line.starts_with("mod ")
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else { return vec![tree.to_owned()] };
    let (before, group) = tree.split_at(open);
    let (mut depth, mut items) = (0, vec![String::new()]);
    for letter in group.chars() {
        match letter {
            '{' if depth == 0 => depth = 1,
            '}' if depth == 1 => break,
            ',' if depth == 1 => items.push(String::new()),
            _ => {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                items.last_mut().expect("one at least").push(letter);
            }
        }
    }
    let items = items.iter().filter(|item| !item.trim().is_empty()).flat_map(|item| expand(item));
    items.map(|item| format!("{before}{item}")).collect()
}

fn parse(text: &str) -> Source {
    let text = without_tests(text);
    let mut source = Source::default();
    let mut rest = text.as_str();
    while let Some(at) = find_use(rest) {
        let line = rest[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let handed_on = rest[line..at].contains("pub");
        source.code.push_str(&rest[..line]);
        let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
        for path in expand(&rest[at + "use ".len()..end]) {
            let (path, name) = path.split_once(" as ").map_or((path.as_str(), None), |(path, name)| (path, Some(name)));
            let mut path: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
            path.retain(|part| part != "self" || path_starts_with_self(rest, at));
            let name = name.map(str::trim).map(str::to_owned).or_else(|| path.last().cloned()).unwrap_or_default();
            source.imports.push(Import { path, name, handed_on });
        }
        rest = &rest[end..];
    }
    source.code.push_str(rest);
    source
}

fn path_starts_with_self(text: &str, at: usize) -> bool {
    text[at..].starts_with("use self::")
}

/// The place of the next `use` declaration: it begins a line, behind its visibility.
fn find_use(text: &str) -> Option<usize> {
    text.match_indices("use ").map(|(at, _)| at).find(|&at| {
        let line = text[..at].rsplit('\n').next().unwrap_or_default().trim();
        line.is_empty() || (line.starts_with("pub") && !line.contains(' '))
    })
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !(letter.is_alphanumeric() || letter == '_')).filter(|word| !word.is_empty())
}

/// The paths in code: words with `::` between them.
fn paths(code: &str) -> impl Iterator<Item = Vec<String>> + '_ {
    let parts = code.split(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':'));
    let parts = parts.filter(|part| part.contains("::"));
    parts.map(|part| part.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

struct Library {
    sources: BTreeMap<Module, Source>,
}

impl Library {
    fn read(folder: &Path) -> Self {
        let mut sources = BTreeMap::new();
        for path in files_below(folder, "rs").into_iter().filter(|path| !path.ends_with("tests.rs")) {
            let inside = path.strip_prefix(folder).expect("below the folder").with_extension("");
            let mut module: Module = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                module.pop();
            }
            sources.insert(module, parse(&fs::read_to_string(&path).expect("text")));
        }
        Self { sources }
    }

    /// The module whose file holds what a path names in `from`; `None` for what is not this crate's.
    fn find(&self, from: &[String], path: &[String], hops: usize) -> Option<Module> {
        let mut names = path.iter().peekable();
        let mut module = from.to_vec();
        match names.peek()?.as_str() {
            "crate" => {
                names.next();
                module.clear();
            }
            "self" => _ = names.next(),
            "super" => {
                while names.next_if(|name| *name == "super").is_some() {
                    module.pop();
                }
            }
            first if self.sources.contains_key(&[from, &[first.to_owned()]].concat()) => {}
            _ => return None,
        }
        while let Some(name) = names.peek() {
            let inner = [&module[..], &[(*name).clone()]].concat();
            if !self.sources.contains_key(&inner) {
                break;
            }
            module = inner;
            names.next();
        }
        let rest: Vec<String> = names.cloned().collect();
        let handed_on = rest.first().and_then(|name| {
            let imports = &self.sources.get(&module)?.imports;
            imports.iter().find(|import| import.handed_on && import.name == *name)
        });
        match handed_on {
            Some(import) if hops > 0 => {
                let path = [&import.path[..], &rest[1..]].concat();
                self.find(&module, &path, hops - 1).or(Some(module))
            }
            _ => Some(module),
        }
    }

    /// The modules that each module uses.
    fn arrows(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let used_by = |module: &Module, source: &Source| -> BTreeSet<Module> {
            let named: BTreeSet<&str> = words(&source.code).collect();
            let imports =
                source.imports.iter().filter(|import| !import.handed_on || named.contains(import.name.as_str()));
            let found = imports.filter_map(|import| self.find(module, &import.path, 8));
            let found = found.chain(paths(&source.code).filter_map(|path| self.find(module, &path, 8)));
            found.filter(|used| used != module && !used.is_empty()).collect()
        };
        let modules = self.sources.iter().filter(|(module, _)| !module.is_empty());
        modules.map(|(module, source)| (module.clone(), used_by(module, source))).collect()
    }
}

#[test]
fn no_files_of_the_library_use_each_other() {
    let mut left = Library::read(&root().join("src")).arrows();
    assert!(left.values().map(BTreeSet::len).sum::<usize>() > 400, "the arrows are found");
    // Files that use nothing more are taken away; then those that nobody uses. What is left goes round.
    while let Some(module) = left.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()) {
        left.remove(&module);
        left.values_mut().for_each(|used| _ = used.remove(&module));
    }
    while let Some(module) = left.keys().find(|&module| !left.values().any(|used| used.contains(module))).cloned() {
        left.remove(&module);
    }
    let lines = left.iter().map(|(module, used)| {
        let used: Vec<String> =
            used.iter().filter(|used| left.contains_key(*used)).map(|used| used.join("::")).collect();
        format!("{} uses {}", module.join("::"), used.join(", "))
    });
    assert!(left.is_empty(), "these files use each other:\n{}", lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_circle_is_found() {
    let source = |text: &str| parse(text);
    let sources = BTreeMap::from([
        (vec![], source("")),
        (vec!["a".to_owned()], source("mod b;\npub use b::Thing;\npub(crate) const ONE: u8 = 1;\n")),
        (vec!["a".to_owned(), "b".to_owned()], source("use super::{ONE};\npub struct Thing;\n")),
        (vec!["c".to_owned()], source("// use crate::d;\nfn f() { crate::a::Thing }\n")),
    ]);
    let arrows = Library { sources }.arrows();
    let used = |module: &[&str]| -> Vec<String> {
        let module: Module = module.iter().map(|&name| name.to_owned()).collect();
        arrows[&module].iter().map(|used| used.join("::")).collect()
    };
    assert_eq!(used(&["a"]), Vec::<String>::new(), "what is only handed on is not used");
    assert_eq!(used(&["a", "b"]), ["a"]);
    assert_eq!(used(&["c"]), ["a::b"], "what is handed on is found where it is defined");
}
