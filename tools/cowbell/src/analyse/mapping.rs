//! The mapping that a page lies in, and the name under which mappings are counted together.

use super::unknown::Unknown;
use crate::record::{self, Watched};
use serde::Serialize;

/// Kinds of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingKind {
    /// The memory below `brk`.
    Heap,
    /// The stack of a main thread, and memory that is named so. Anonymous memory right above a guard may be a thread's, or
    /// anything else that is guarded.
    Stack,
    /// Memory of no file.
    Anonymous,
    /// Memory of no file that has a name.
    NamedAnonymous,
    /// Uninitialised data of a program or library: anonymous memory right above its data, as far as its headers say.
    Bss,
    /// A file.
    File,
    /// A memfd.
    Memfd,
    /// Not in any mapping the capture has: it came and went.
    Unknown,
}

/// The group in which mappings are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// The mappings' kind.
    pub kind: MappingKind,
    /// The mappings' name, empty for anonymous ones.
    pub name: String,
    /// The first address, for anonymous mappings without a name: those that touch are a group.
    pub start: Option<u64>,
}

impl Group {
    /// The group of pages that lie in no mapping.
    pub fn unknown() -> Self {
        Self { kind: MappingKind::Unknown, name: String::new(), start: None }
    }
}

/// A mapping and its group.
#[derive(Clone, Debug)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    pub group: Group,
    /// Why writes to it have no events, where they have none though others have.
    pub without_events: Option<Unknown>,
}

/// The mappings of an interval.
#[derive(Clone, Debug, Default)]
pub struct Areas(Vec<Area>);

impl Areas {
    /// Adds mappings, in order of address. What is known already stays: writes are counted where they were armed.
    pub fn add(&mut self, mappings: &[record::Mapping]) {
        let mut below: Option<(&record::Mapping, Group)> = None;
        for mapping in mappings {
            let touching = below.take().filter(|(below, _)| below.end == mapping.start);
            let group = match touching {
                // One piece of memory to whoever mapped it: where the kernel splits it is the kernel's affair.
                Some((below, group)) if is_anonymous(below, &group) && is_like(below, mapping) => group,
                _ => group(mapping),
            };
            let without_events = without_events(mapping, &group);
            self.insert(Area { start: mapping.start, end: mapping.end, group: group.clone(), without_events });
            below = Some((mapping, group));
        }
    }

    /// Adds what of `area` is not covered.
    fn insert(&mut self, area: Area) {
        let mut from = area.start;
        let first = self.0.partition_point(|known| known.end <= area.start);
        let mut gaps = Vec::new();
        for known in self.0.iter().skip(first).take_while(|known| known.start < area.end) {
            if from < known.start {
                gaps.push(Area { start: from, end: known.start, ..area.clone() });
            }
            from = known.end;
        }
        if from < area.end {
            gaps.push(Area { start: from, ..area });
        }
        for gap in gaps {
            let at = self.0.partition_point(|known| known.start < gap.start);
            self.0.insert(at, gap);
        }
    }

    /// Tells uninitialised data of files from the anonymous memory in which it lies.
    pub fn uninitialised(&mut self, data: &[record::Uninitialised]) {
        for record::Uninitialised { start, end, name } in data {
            let mut from = *start;
            while let Some(at) = self.0.iter().position(|area| area.start <= from && from < area.end) {
                let Some(area) = self.0.get_mut(at).filter(|area| area.group.kind == MappingKind::Anonymous) else {
                    break;
                };
                let (whole, rest_of, without_events) = (area.end, area.group.clone(), area.without_events);
                if area.start < from {
                    let below = Area { end: from, ..area.clone() };
                    area.start = from;
                    self.0.insert(at, below);
                    continue;
                }
                area.group = Group { kind: MappingKind::Bss, name: name.clone(), start: None };
                // A page holds what its first byte belongs to, so the areas need not end with a page.
                area.end = whole.min(*end);
                from = area.end;
                let rest = Group { start: Some(from), ..rest_of.clone() };
                if from < whole {
                    self.0.insert(at + 1, Area { start: from, end: whole, group: rest.clone(), without_events });
                }
                for area in self.0.iter_mut().skip(at + 1).filter(|area| area.group == rest_of) {
                    area.group = rest.clone();
                }
                if from >= *end {
                    break;
                }
            }
        }
    }

    /// All, ascending and disjoint.
    pub fn all(&self) -> &[Area] {
        &self.0
    }

    /// The area at or next above an address.
    pub fn from(&self, address: u64) -> Option<&Area> {
        self.0.get(self.0.partition_point(|known| known.end <= address))
    }
}

/// The group of a mapping by itself.
fn group(mapping: &record::Mapping) -> Group {
    let name = mapping.name.as_str();
    let named = |kind, name: &str| Group { kind, name: name.to_owned(), start: None };
    if name == "[heap]" {
        named(MappingKind::Heap, name)
    } else if name.starts_with("[stack") || (name.starts_with("[anon:") && name.contains("stack")) {
        named(MappingKind::Stack, name)
    } else if name.starts_with('[') {
        named(MappingKind::NamedAnonymous, name)
    } else if name.starts_with("/memfd:") {
        named(MappingKind::Memfd, name)
    } else if !name.is_empty() {
        named(MappingKind::File, name)
    } else {
        Group { kind: MappingKind::Anonymous, name: String::new(), start: Some(mapping.start) }
    }
}

/// Why writes to a mapping have no events, where each first write was to be one.
fn without_events(mapping: &record::Mapping, group: &Group) -> Option<Unknown> {
    match (&mapping.watched, group.kind) {
        (Watched::Events, _) => None,
        (Watched::Refused(_), _) => Some(Unknown::NotArmed),
        (_, MappingKind::File) => Some(Unknown::PrivateFileMapping),
        _ => Some(Unknown::MappedLater),
    }
}

fn is_anonymous(mapping: &record::Mapping, group: &Group) -> bool {
    mapping.name.is_empty() && group.kind == MappingKind::Anonymous
}

fn is_like(a: &record::Mapping, b: &record::Mapping) -> bool {
    (&a.name, &a.permissions) == (&b.name, &b.permissions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, permissions: &str, name: &str) -> record::Mapping {
        let watched = Watched::Events;
        record::Mapping { start, end, permissions: permissions.into(), offset: 0, name: name.into(), watched }
    }

    fn kinds(mappings: &[record::Mapping]) -> Vec<MappingKind> {
        let mut areas = Areas::default();
        areas.add(mappings);
        areas.all().iter().map(|area| area.group.kind).collect()
    }

    #[test]
    fn memory_is_a_stack_by_its_name_and_not_because_there_is_a_guard_or_data_below() {
        let found = kinds(&[
            mapping(0x1000, 0x2000, "rw-p", "/bin/x"),
            mapping(0x2000, 0x3000, "rw-p", ""),
            mapping(0x4000, 0x5000, "rw-p", "[heap]"),
            mapping(0x5000, 0x6000, "rw-p", ""),
            mapping(0x7000, 0x8000, "---p", ""),
            mapping(0x8000, 0x9000, "rw-p", ""),
            mapping(0xa000, 0xb000, "rw-p", "/memfd:arena (deleted)"),
            mapping(0xc000, 0xd000, "rw-p", "[stack]"),
        ]);
        let stack = MappingKind::Stack;
        let (anonymous, file) = (MappingKind::Anonymous, MappingKind::File);
        assert_eq!(
            found,
            [file, anonymous, MappingKind::Heap, anonymous, anonymous, anonymous, MappingKind::Memfd, stack]
        );
    }

    #[test]
    fn a_librarys_data_ends_where_its_headers_say_and_what_is_above_is_anonymous() {
        let mut areas = Areas::default();
        areas.add(&[
            mapping(0x1000, 0x2000, "rw-p", "/lib/x.so"),
            mapping(0x2000, 0x9000, "rw-p", ""),
            mapping(0x9000, 0xa000, "rw-p", ""),
            mapping(0xa000, 0xb000, "rw-p", "/dev/zero (deleted)"),
            mapping(0xb000, 0xc000, "rw-p", ""),
        ]);
        areas.uninitialised(&[record::Uninitialised { start: 0x2000, end: 0x3040, name: "/lib/x.so".into() }]);
        let found: Vec<_> = areas.all().iter().map(|a| (a.start, a.group.kind, a.group.start)).collect();
        let anonymous = |start, of| (start, MappingKind::Anonymous, Some(of));
        assert_eq!(
            found,
            [
                (0x1000, MappingKind::File, None),
                (0x2000, MappingKind::Bss, None),
                anonymous(0x3040, 0x3040),
                anonymous(0x9000, 0x3040),
                (0xa000, MappingKind::File, None),
                anonymous(0xb000, 0xb000),
            ]
        );
        assert_eq!(areas.from(0x3000).map(|area| area.group.name.as_str()), Some("/lib/x.so"), "the page it ends in");
    }

    #[test]
    fn touching_anonymous_memory_is_one_mapping_but_not_across_a_change_or_a_gap() {
        let mut areas = Areas::default();
        areas.add(&[
            mapping(0x1000, 0x2000, "rw-p", ""),
            mapping(0x2000, 0x3000, "rw-p", ""),
            mapping(0x3000, 0x4000, "rw-p", ""),
            mapping(0x4000, 0x5000, "rwxp", ""),
            mapping(0x6000, 0x7000, "rwxp", ""),
        ]);
        let starts: Vec<_> = areas.all().iter().filter_map(|area| area.group.start).collect();
        assert_eq!(starts, [0x1000, 0x1000, 0x1000, 0x4000, 0x6000]);
    }

    #[test]
    fn a_mapping_found_later_fills_only_what_was_not_known() {
        let mut areas = Areas::default();
        areas.add(&[mapping(0x3000, 0x4000, "rw-p", "[heap]"), mapping(0x6000, 0x7000, "rw-p", "/x")]);
        areas.add(&[mapping(0x2000, 0x8000, "rw-p", "")]);
        let found: Vec<_> = areas.all().iter().map(|area| (area.start, area.end, area.group.kind)).collect();
        let (a, heap, file) = (MappingKind::Anonymous, MappingKind::Heap, MappingKind::File);
        assert_eq!(
            found,
            [
                (0x2000, 0x3000, a),
                (0x3000, 0x4000, heap),
                (0x4000, 0x6000, a),
                (0x6000, 0x7000, file),
                (0x7000, 0x8000, a)
            ]
        );
        assert_eq!(areas.from(0x3800).map(|area| area.group.kind), Some(MappingKind::Heap));
        assert!(areas.from(0x8000).is_none());
    }
}
