//! Types as they lie in memory: sizes, and the field that a byte belongs to.

use super::{AllocatedType, DEPTH_MAX, DebugTypes, Form, Place};

/// Hash tables look at so many control bytes at once, by what the processor can.
const GROUPS: [u64; 2] = [16, 8];

impl DebugTypes {
    /// The name of what a block was allocated for, as Rust would spell it: `shop::Node`, `[u64]`; of a hash table the type of its entries.
    pub fn type_name(&mut self, allocated: AllocatedType) -> Option<String> {
        let element = self.full_name(allocated.element)?;
        Some(match allocated.form {
            Form::One => element,
            Form::Many => format!("[{element}]"),
            Form::Table => format!("hash table of {element}"),
        })
    }

    /// The field that a byte of a block of so many bytes belongs to: `inner.count`, `[3].links[1]`. `None` where the type has no fields, or it lies
    /// between them.
    pub fn field(&mut self, allocated: AllocatedType, len: u64, at: u64) -> Option<String> {
        let size = self.size(allocated.element)?;
        let mut path = String::new();
        let offset = match allocated.form {
            Form::One => at,
            Form::Many => {
                path = format!("[{}]", at.checked_div(size)?);
                at.checked_rem(size)?
            }
            Form::Table => {
                let control = control_bytes(size, len)?;
                if at >= control.start {
                    return Some("control bytes".to_owned());
                }
                path.push_str("entry");
                // The last entry ends where the control bytes begin.
                at.checked_sub(control.start - control.buckets * size)?.checked_rem(size)?
            }
        };
        self.descend(allocated.element, offset, &mut path)?;
        let path = path.strip_prefix('.').unwrap_or(&path);
        (!path.is_empty()).then(|| path.to_owned())
    }

    /// Tells whether a block of so many bytes can hold what it is said to.
    pub(super) fn fits(&self, allocated: AllocatedType, len: u64) -> bool {
        let Some(size) = self.size(allocated.element) else { return false };
        match allocated.form {
            Form::One => size == len,
            Form::Many => len.checked_rem(size) == Some(0),
            Form::Table => control_bytes(size, len).is_some(),
        }
    }

    pub(super) fn full_name(&mut self, at: Place) -> Option<String> {
        let (path, name) = (self.path(at)?, self.name(at)?);
        Some(if path.is_empty() { name } else { format!("{path}::{name}") })
    }

    fn size(&self, at: Place) -> Option<u64> {
        self.size_within(at, DEPTH_MAX)
    }

    /// The same, of arrays of arrays only so deep: a file may say that an array is its own element.
    fn size_within(&self, at: Place, depth: usize) -> Option<u64> {
        let depth = depth.checked_sub(1)?;
        let entry = self.entry(at)?;
        if let Some(size) = entry.attr_value(gimli::DW_AT_byte_size) {
            return size.udata_value();
        }
        match entry.tag() {
            gimli::DW_TAG_array_type => {
                let element = self.referred(at.unit, entry.attr_value(gimli::DW_AT_type)?)?;
                self.size_within(element, depth)?.checked_mul(self.count(at)?)
            }
            _ => None,
        }
    }

    /// The number of an array's elements.
    fn count(&self, array: Place) -> Option<u64> {
        let mut tree = self.units.get(array.unit)?.entries_tree(Some(array.offset)).ok()?;
        let mut children = tree.root().ok()?.children();
        while let Some(child) = children.next().ok()? {
            if let Some(count) = child.entry().attr_value(gimli::DW_AT_count) {
                return count.udata_value();
            }
        }
        None
    }

    /// Adds to `path` the fields that lead to a byte of a value. `None` if none does.
    fn descend(&mut self, mut at: Place, mut offset: u64, path: &mut String) -> Option<()> {
        for _ in 0..DEPTH_MAX {
            let entry = self.entry(at)?;
            match entry.tag() {
                gimli::DW_TAG_structure_type => {
                    // Only the value of an enum says which of its variants is there.
                    if self.is_enum(at)? {
                        return Some(());
                    }
                    let Some((name, member, start)) = self.member(at, offset)? else {
                        // The first step must lead somewhere; further in, what was found stays true.
                        return (!path.is_empty()).then_some(());
                    };
                    if !self.is_wrapper(at)? {
                        path.push('.');
                        path.push_str(name.strip_prefix("__").unwrap_or(&name));
                    }
                    (at, offset) = (member, offset - start);
                }
                // A `MaybeUninit` holds a value of its type, if any.
                gimli::DW_TAG_union_type if self.name(at)?.starts_with("MaybeUninit<") => {
                    let Some((_, member, start)) = self.member(at, offset)? else { return Some(()) };
                    (at, offset) = (member, offset - start);
                }
                gimli::DW_TAG_array_type => {
                    let element = self.referred(at.unit, entry.attr_value(gimli::DW_AT_type)?)?;
                    let size = self.size(element)?;
                    path.push_str(&format!("[{}]", offset.checked_div(size)?));
                    (at, offset) = (element, offset.checked_rem(size)?);
                }
                _ => return Some(()),
            }
        }
        None
    }

    fn is_enum(&self, structure: Place) -> Option<bool> {
        let mut tree = self.units.get(structure.unit)?.entries_tree(Some(structure.offset)).ok()?;
        let mut children = tree.root().ok()?.children();
        while let Some(child) = children.next().ok()? {
            if child.entry().tag() == gimli::DW_TAG_variant_part {
                return Some(true);
            }
        }
        Some(false)
    }

    /// The member of a structure that a byte belongs to: its name, its type and where it begins.
    fn member(&self, structure: Place, offset: u64) -> Option<Option<(String, Place, u64)>> {
        let mut tree = self.units.get(structure.unit)?.entries_tree(Some(structure.offset)).ok()?;
        let mut children = tree.root().ok()?.children();
        while let Some(child) = children.next().ok()? {
            let entry = child.entry();
            if entry.tag() != gimli::DW_TAG_member {
                continue;
            }
            let of = self.referred(structure.unit, entry.attr_value(gimli::DW_AT_type)?)?;
            let start = entry.attr_value(gimli::DW_AT_data_member_location)?.udata_value()?;
            if (start..start.checked_add(self.size(of)?)?).contains(&offset) {
                let name = self.name(Place { offset: entry.offset(), ..structure })?;
                return Some(Some((name, of, start)));
            }
        }
        Some(None)
    }

    /// Tells whether the fields of a structure are the standard library's own, which nobody wants to read: `Cell`'s `value.value`.
    fn is_wrapper(&mut self, structure: Place) -> Option<bool> {
        let (path, name) = (self.path(structure)?, self.name(structure)?);
        const TOLD: [&str; 5] = ["ArcInner<", "RcInner<", "RcBox<", "LeafNode<", "InternalNode<"];
        let is_told = TOLD.iter().any(|told| name.starts_with(told));
        let is_std = ["core", "alloc", "std", "hashbrown"]
            .iter()
            .any(|room| path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")));
        Some(is_std && !is_told)
    }
}

/// The end of a hash table's block.
struct Control {
    /// Where its control bytes begin.
    start: u64,
    /// The number of its buckets.
    buckets: u64,
}

/// Where the control bytes of a table begin whose entries have `size` bytes, and whose block has `len`.
fn control_bytes(size: u64, len: u64) -> Option<Control> {
    let fits = |&(group, buckets): &(u64, u64)| -> bool {
        let data = buckets.checked_mul(size).and_then(|data| data.checked_next_multiple_of(group));
        data.and_then(|data| data.checked_add(buckets + group)) == Some(len)
    };
    let of = |group| (1..48).map(move |power| (group, 1 << power));
    let (group, buckets) = GROUPS.into_iter().flat_map(of).find(fits)?;
    Some(Control { start: (buckets * size).next_multiple_of(group), buckets })
}
