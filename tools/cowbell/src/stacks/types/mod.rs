//! The types of what a Rust program allocates, and the fields of a byte in it, by the program's debug information.
//!
//! A call that allocates lies in functions of the standard library that were compiled for one type: `Box<T>::new`, a method of
//! `RawVec<T>`, which vectors are made of, or of `RawTable<T>`, which hash tables are made of. Debug information tells `T`, unless
//! it is line tables only. Nothing is said of a block that any other function allocated.
//!
//! A compiler merges functions of equal code, and then one of them stands for those of several types. So a function of the standard library that is not inlined is
//! believed only where the first of its callers that is the program's own has the same type inlined. The program's own functions are believed, as for lines.

mod layout;

use super::elf;
use gimli::{AttributeValue, DebugInfoOffset, Dwarf, EndianArcSlice, LittleEndian, Reader, Unit, UnitOffset};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

type Bytes = EndianArcSlice<LittleEndian>;
type Entry = gimli::DebuggingInformationEntry<Bytes>;

/// Inlined functions, and references from one entry to another, are followed so far.
const DEPTH_MAX: usize = 64;

/// Files of more bytes are not read: all of their debug information is held in memory.
const BYTES_MAX: u64 = 1 << 30;

/// Trees are made of these, of a type for keys and one for values.
const NODES: [&str; 2] = ["alloc::collections::btree::node::LeafNode", "alloc::collections::btree::node::InternalNode"];

/// The debug information of a file.
pub struct DebugTypes {
    dwarf: Dwarf<Bytes>,
    units: Vec<Unit<Bytes>>,
    /// The code of units, ascending.
    code: Vec<(Range<u64>, usize)>,
    /// The indexes of those units that were looked into; `None` of one that cannot be read.
    indexes: HashMap<usize, Option<Index>>,
    /// The answers so far, by address.
    found: HashMap<u64, Step>,
}

/// A unit's entries that can be asked for.
#[derive(Default)]
struct Index {
    functions: Vec<(Range<u64>, UnitOffset)>,
    /// The namespaces, types and functions that entries of these kinds lie in.
    parents: HashMap<UnitOffset, UnitOffset>,
}

/// An entry of debug information.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    unit: usize,
    offset: UnitOffset,
}

/// The type that a block was allocated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocatedType {
    form: Form,
    element: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One value.
    One,
    /// Values side by side, as many as fit.
    Many,
    /// The entries of a hash table, and its control bytes behind them.
    Table,
}

/// The answer of one call about the block that it allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The type is this one.
    Is(AllocatedType),
    /// The same, by a function of the standard library that was not inlined.
    MayBe(AllocatedType),
    /// Nothing, and its caller may.
    Passes,
    /// Nothing, because it has no name.
    Unknown,
    /// Nothing, and what its callers are made of is not the block's type.
    Ends,
}

impl DebugTypes {
    /// Reads a file's debug information; `None` if it has none that this reads.
    pub fn read(file: &File) -> Option<Self> {
        if file.metadata().ok()?.len() > BYTES_MAX {
            return None;
        }
        let dwarf = elf::with_file(file, |image| {
            let section = |id: gimli::SectionId| -> Result<Bytes, ()> {
                let bytes = image.bytes(id.name().as_bytes()).unwrap_or_default();
                Ok(Bytes::new(Arc::from(bytes), LittleEndian))
            };
            Dwarf::load(section).ok()
        })?;
        Self::of(dwarf)
    }

    fn of(mut dwarf: Dwarf<Bytes>) -> Option<Self> {
        // Units that have a table of abbreviations in common share what was read of it.
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
        let (mut units, mut code) = (Vec::new(), Vec::new());
        let mut headers = dwarf.units();
        while let Some(header) = headers.next().ok()? {
            let unit = dwarf.unit(header).ok()?;
            let mut ranges = dwarf.unit_ranges(&unit).ok()?;
            while let Some(range) = ranges.next().ok()? {
                code.push((range.begin..range.end, units.len()));
            }
            units.push(unit);
        }
        code.sort_by_key(|(range, _)| range.start);
        (!units.is_empty()).then(|| Self { dwarf, units, code, indexes: HashMap::new(), found: HashMap::new() })
    }

    /// Tells what a block of so many bytes was allocated for: by the addresses of calls as the file counts them, from the allocator outwards.
    pub fn allocated(&mut self, calls: &[u64], len: u64) -> Option<AllocatedType> {
        let mut all_known = true;
        for (nth, &call) in calls.iter().enumerate() {
            let step = match self.found.get(&call) {
                Some(step) => *step,
                None => {
                    let step = self.step(call).unwrap_or(Step::Unknown);
                    self.found.insert(call, step);
                    step
                }
            };
            match step {
                // A table calls the hashes of its entries, and they may allocate; boxes and vectors call nothing but the allocator.
                Step::Is(AllocatedType { form: Form::Table, .. })
                | Step::MayBe(AllocatedType { form: Form::Table, .. })
                    if !all_known =>
                {
                    return None;
                }
                Step::Is(allocated) => return self.fits(allocated, len).then_some(allocated),
                Step::MayBe(allocated) => {
                    let is_it = self.fits(allocated, len) && self.confirms(calls.get(nth + 1..)?, allocated)?;
                    return is_it.then_some(allocated);
                }
                Step::Passes => {}
                Step::Unknown => all_known = false,
                Step::Ends => return None,
            }
        }
        None
    }

    /// The functions that a call lies in, the innermost inlined one first.
    fn functions(&mut self, call: u64) -> Option<Vec<Place>> {
        let (_, unit) = self.code.get(self.code.partition_point(|(range, _)| range.start <= call).checked_sub(1)?)?;
        let unit = *unit;
        self.index(unit)?;
        let index = self.indexes.get(&unit)?.as_ref()?;
        let (_, function) = index.functions.iter().find(|(range, _)| range.contains(&call))?;
        let mut functions = self.inlined(unit, *function, call)?;
        functions.reverse();
        Some(functions)
    }

    /// Tells what a call says of the block.
    fn step(&mut self, call: u64) -> Option<Step> {
        let functions = self.functions(call)?;
        let may_be_merged = self.is_std(*functions.last()?)?;
        let mut told = Step::Passes;
        for function in functions {
            match self.step_of(function)? {
                Step::Passes => {}
                Step::Unknown => told = Step::Unknown,
                Step::Is(AllocatedType { form: Form::Table, .. }) if told == Step::Unknown => return Some(Step::Ends),
                Step::Is(allocated) if may_be_merged => return Some(Step::MayBe(allocated)),
                step => return Some(step),
            }
        }
        Some(told)
    }

    /// Tells whether the first of these calls that lies in a function of the program's own has one of this type inlined.
    fn confirms(&mut self, calls: &[u64], told: AllocatedType) -> Option<bool> {
        let element = self.full_name(told.element)?;
        for &call in calls {
            let functions = self.functions(call)?;
            if self.is_std(*functions.last()?)? {
                continue;
            }
            for function in functions {
                for at in [function, self.origin(function)?] {
                    let mut named = |name| self.parameter(at, name).and_then(|of| self.full_name(of));
                    let (one, key, value) = (named("T"), named("K"), named("V"));
                    let pair = key.zip(value).map(|(key, value)| format!("{key}, {value}"));
                    let holds = |pair: String| {
                        element == format!("({pair})") || NODES.iter().any(|node| element == format!("{node}<{pair}>"))
                    };
                    if one.is_some_and(|one| one == element) || pair.is_some_and(holds) {
                        return Some(true);
                    }
                }
            }
            return Some(false);
        }
        Some(false)
    }

    /// Tells whether a function is the standard library's, of which programs have many for types of one size.
    fn is_std(&mut self, function: Place) -> Option<bool> {
        let origin = self.origin(function)?;
        let path = self.path(origin)?;
        Some(["alloc", "core", "std", "hashbrown"].contains(&path.split("::").next()?))
    }

    /// The functions that an address lies in, the outermost first.
    fn inlined(&self, unit: usize, function: UnitOffset, address: u64) -> Option<Vec<Place>> {
        let mut functions = vec![Place { unit, offset: function }];
        let of = self.units.get(unit)?;
        let mut cursor = of.entries_at_offset(function).ok()?;
        cursor.next_dfs().ok()?;
        // Entries below what does not hold the address cannot hold it.
        let mut inside = vec![cursor.depth()];
        while let Some(entry) = cursor.next_dfs().ok()? {
            let depth = entry.depth();
            if depth <= *inside.first()? || functions.len() > DEPTH_MAX {
                break;
            }
            let is_code = matches!(entry.tag(), gimli::DW_TAG_inlined_subroutine | gimli::DW_TAG_lexical_block);
            while inside.last().is_some_and(|last| depth <= *last) {
                inside.pop();
            }
            if !is_code || inside.last() != Some(&(depth - 1)) || !self.covers(of, entry, address)? {
                continue;
            }
            inside.push(depth);
            if entry.tag() == gimli::DW_TAG_inlined_subroutine {
                functions.push(Place { unit, offset: entry.offset() });
            }
        }
        Some(functions)
    }

    fn covers(&self, unit: &Unit<Bytes>, entry: &Entry, address: u64) -> Option<bool> {
        let mut ranges = self.dwarf.die_ranges(unit, entry).ok()?;
        while let Some(range) = ranges.next().ok()? {
            if (range.begin..range.end).contains(&address) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Tells what a function of this name and type says of the block.
    fn step_of(&mut self, function: Place) -> Option<Step> {
        let origin = self.origin(function)?;
        let (path, name) = (self.path(origin)?, self.name(origin)?);
        let of = |form| -> Option<Step> {
            let element = [function, origin].into_iter().find_map(|at| self.parameter(at, "T"))?;
            Some(Step::Is(AllocatedType { form, element }))
        };
        let is_in = |room: &str| path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        let makes = name.starts_with("new") || name.starts_with("try_new");
        Some(if path.is_empty() && !name.starts_with("__r") {
            // The function is C's, or the standard library's as it comes compiled.
            Step::Unknown
        } else if is_in("alloc::boxed") && makes {
            // The type is another for a slice, and for a box that was given an allocator.
            if name.contains("slice") { Step::Ends } else { of(Form::One).unwrap_or(Step::Ends) }
        } else if is_in("alloc::raw_vec") {
            of(Form::Many).unwrap_or(Step::Passes)
        } else if is_in("hashbrown::raw") {
            of(Form::Table).unwrap_or(Step::Passes)
        } else if ["alloc::alloc", "alloc::boxed", "cowbell::heap", "__rustc", "core"].into_iter().any(is_in)
            || name.starts_with("__r")
        {
            Step::Passes
        } else {
            Step::Ends
        })
    }

    /// The entry that a function was inlined, or made, from.
    fn origin(&self, function: Place) -> Option<Place> {
        let mut at = function;
        for _ in 0..DEPTH_MAX {
            let entry = self.entry(at)?;
            let next = [gimli::DW_AT_abstract_origin, gimli::DW_AT_specification];
            match next.into_iter().find_map(|name| entry.attr_value(name)) {
                Some(value) => at = self.referred(at.unit, value)?,
                None => return Some(at),
            }
        }
        None
    }

    fn entry(&self, at: Place) -> Option<Entry> {
        self.units.get(at.unit)?.entry(at.offset).ok()
    }

    /// The entry that an attribute of another in this unit refers to.
    fn referred(&self, unit: usize, value: AttributeValue<Bytes>) -> Option<Place> {
        match value {
            AttributeValue::UnitRef(offset) => Some(Place { unit, offset }),
            AttributeValue::DebugInfoRef(DebugInfoOffset(at)) => {
                let start = |unit: &Unit<Bytes>| unit.header.debug_info_offset().map_or(0, |start| start.0);
                let unit = self.units.partition_point(|unit| start(unit) <= at).checked_sub(1)?;
                let offset = UnitOffset(at - start(self.units.get(unit)?));
                Some(Place { unit, offset })
            }
            _ => None,
        }
    }

    fn name(&self, at: Place) -> Option<String> {
        let name = self.entry(at)?.attr_value(gimli::DW_AT_name)?;
        let bytes = self.dwarf.attr_string(self.units.get(at.unit)?, name).ok()?;
        Some(bytes.to_string_lossy().ok()?.into_owned())
    }

    /// The namespaces that an entry lies in, and the type, if it is a method: `alloc::vec::Vec<u8, alloc::alloc::Global>`.
    fn path(&mut self, at: Place) -> Option<String> {
        self.index(at.unit)?;
        let index = self.indexes.get(&at.unit)?.as_ref()?;
        let (mut names, mut offset) = (Vec::new(), at.offset);
        while let Some(&parent) = index.parents.get(&offset) {
            names.push(self.name(Place { offset: parent, ..at })?);
            offset = parent;
        }
        names.reverse();
        Some(names.join("::"))
    }

    /// The type that a generic function was compiled for.
    fn parameter(&self, function: Place, name: &str) -> Option<Place> {
        self.parameters(function)?.into_iter().find(|(known, _)| known == name).map(|(_, of)| of)
    }

    /// The types that a generic function was compiled for, by their names there.
    fn parameters(&self, function: Place) -> Option<Vec<(String, Place)>> {
        let mut tree = self.units.get(function.unit)?.entries_tree(Some(function.offset)).ok()?;
        let mut children = tree.root().ok()?.children();
        let mut found = Vec::new();
        while let Some(child) = children.next().ok()? {
            let entry = child.entry();
            if entry.tag() == gimli::DW_TAG_template_type_parameter {
                let name = self.name(Place { offset: entry.offset(), ..function })?;
                found.push((name, self.referred(function.unit, entry.attr_value(gimli::DW_AT_type)?)?));
            }
        }
        Some(found)
    }

    /// Looks into a unit, unless that was done.
    fn index(&mut self, unit: usize) -> Option<()> {
        if !self.indexes.contains_key(&unit) {
            let index = self.read_unit(unit);
            self.indexes.insert(unit, index);
        }
        self.indexes.get(&unit)?.as_ref().map(|_| ())
    }

    fn read_unit(&self, unit: usize) -> Option<Index> {
        let of = self.units.get(unit)?;
        let mut index = Index::default();
        let mut above: Vec<(isize, UnitOffset)> = Vec::new();
        let mut cursor = of.entries();
        while let Some(entry) = cursor.next_dfs().ok()? {
            while above.last().is_some_and(|(depth, _)| entry.depth() <= *depth) {
                above.pop();
            }
            let is_function = entry.tag() == gimli::DW_TAG_subprogram;
            let has_name = is_function
                || matches!(
                    entry.tag(),
                    gimli::DW_TAG_namespace
                        | gimli::DW_TAG_structure_type
                        | gimli::DW_TAG_union_type
                        | gimli::DW_TAG_enumeration_type
                );
            if !has_name {
                continue;
            }
            if let Some((_, parent)) = above.last() {
                index.parents.insert(entry.offset(), *parent);
            }
            above.push((entry.depth(), entry.offset()));
            if is_function {
                let mut ranges = self.dwarf.die_ranges(of, entry).ok()?;
                while let Some(range) = ranges.next().ok()? {
                    index.functions.push((range.begin..range.end, entry.offset()));
                }
            }
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests;
