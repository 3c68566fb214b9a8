//! The pieces of memory that an object lies in: the object itself, and the arrays and tables that it alone has elsewhere.
//!
//! Nothing is written, and no function of the interpreter is called: a child could do it without a copy.

use crate::kinds::{Kind, Shape};
use crate::layout::{self, Ways, flag};
use crate::python::Object;

/// The number of a kind of memory, as the part that counts pages has it (`counter/src/frozen.rs`).
pub type Piece = u8;
/// An object: its header, and the values in it.
pub const OBJECT: Piece = 0;
/// A list's array of items, a table of a dict or set, the values of an instance that lie apart from it.
pub const ARRAY: Piece = 1;

/// Hands each piece to `found`: its kind, its address and its length in bytes.
pub fn pieces(
    object: Object,
    kind: &Kind,
    is_collected: bool,
    ways: Ways,
    found: &mut impl FnMut(Piece, usize, usize),
) {
    let at = object.pointer() as usize;
    let before = kind.bytes_before(is_collected);
    let inline = if !ways.values_have_prefix && kind.flags & flag::INLINE_VALUES != 0 {
        layout::values_bytes(object.byte(kind.basic))
    } else {
        0
    };
    found(OBJECT, at - before, before + kind.body_of(object) + inline);
    match kind.shape {
        Shape::List => found(ARRAY, object.pointer_field(layout::LIST_ARRAY), size_of::<usize>() * object.list_room()),
        Shape::Set => {
            let table = object.pointer_field(layout::SET_TABLE);
            if table != at + layout::SET_SMALL_TABLE {
                found(ARRAY, table, layout::SET_ENTRY_BYTES * (object.pointer_field(layout::SET_MASK) + 1));
            }
        }
        Shape::ByteArray => byte_array(object, ways, found),
        Shape::Dict => dict(object, ways, found),
        Shape::Str => text(object, found),
        Shape::Other => {}
    }
    if ways.values_have_prefix
        && kind.flags & flag::MANAGED_DICT != 0
        && kind.flags & flag::HEAP_TYPE != 0
        && let Some(table) = layout::tagged_values(object.word_before(layout::MANAGED_VALUES_BEFORE))
        && let Some(keys) = kind.of.object_field(layout::CACHED_KEYS)
    {
        prefixed_values(table, keys, found);
    }
}

fn byte_array(object: Object, ways: Ways, found: &mut impl FnMut(Piece, usize, usize)) {
    let room = object.pointer_field(layout::BYTEARRAY_ROOM);
    match ways.bytearray_has_bytes {
        false => found(ARRAY, object.pointer_field(layout::BYTEARRAY_DATA), room),
        // Without content it is the one that all have.
        true if room == 0 => {}
        true => found(ARRAY, object.pointer_field(layout::BYTEARRAY_BYTES), layout::BYTES_HEAD + room),
    }
}

/// A str whose text lies elsewhere, and the UTF-8 form that was once asked for.
fn text(object: Object, found: &mut impl FnMut(Piece, usize, usize)) {
    let state = object.str_state();
    let is_compact = layout::str_is_compact(state);
    if is_compact && layout::str_is_ascii(state) {
        return;
    }
    let utf8 = object.pointer_field(layout::STR_UTF8);
    found(OBJECT, utf8, if utf8 == 0 { 0 } else { object.pointer_field(layout::STR_UTF8_LENGTH) + 1 });
    if !is_compact {
        found(OBJECT, object.pointer_field(layout::STR_DATA), layout::str_text_bytes(state, object.items()));
    }
}

fn dict(object: Object, ways: Ways, found: &mut impl FnMut(Piece, usize, usize)) {
    let Some(keys) = object.object_field(layout::DICT_KEYS) else { return };
    let is_split = keys.byte(layout::KEYS_KIND) == layout::KEYS_SPLIT;
    if !is_split {
        let (size, index) = (keys.byte(layout::KEYS_LOG2_SIZE), keys.byte(layout::KEYS_LOG2_INDEX_BYTES));
        let is_text = keys.byte(layout::KEYS_KIND) != layout::KEYS_GENERAL;
        found(ARRAY, keys.pointer() as usize, layout::keys_bytes(size, index, is_text));
        return;
    }
    // The keys are the class's, and shared.
    let Some(table) = object.object_field(layout::DICT_VALUES) else { return };
    if ways.values_have_prefix {
        prefixed_values(table.pointer() as usize, keys, found);
    } else if table.byte(layout::VALUES_EMBEDDED) == 0 {
        found(ARRAY, table.pointer() as usize, layout::values_bytes(table.byte(layout::VALUES_CAPACITY)));
    }
}

/// 3.12: values behind a prefix, whose length stands in its last byte. There is room for at least as many as the class's keys have now, and
/// none is written behind these.
fn prefixed_values(values: usize, keys: Object, found: &mut impl FnMut(Piece, usize, usize)) {
    let Some(prefix) = Object::at(values).map(|values| usize::from(values.byte_before(1))) else { return };
    let count = keys.pointer_field(layout::KEYS_USABLE) + keys.pointer_field(layout::KEYS_ENTRIES);
    found(ARRAY, values - prefix, prefix + size_of::<usize>() * count);
}
