//! The places where CPython keeps what this crate reads and writes, by version. Facts and arithmetic only: no pointer is followed
//! here.
//!
//! They hold for 64-bit little-endian builds with the GIL and without `Py_DEBUG` or `Py_TRACE_REFS`. The Python side
//! refuses every other build, and `cowbell_fork_probe` has them compared with a living interpreter at import.
//!
//! ```text
//!  0       4      6      8            16           24
//!  | count        ...    | type       | ob_size    |      3.12, 3.13: the count is the whole first word
//!  | count | over | flag | type       | ob_size    |      3.14, 3.15: the count is its lower half
//! ```

/// Offset of the pointer to an object's type.
pub const TYPE: usize = 8;
/// Offset of the number of items in an object of variable size; negative in integers before 3.12.
pub const ITEMS: usize = 16;
/// Offset of the number of items for which a list has room, each of a pointer's size.
pub const LIST_ROOM: usize = 32;
/// Offsets of the size of a type's instances, and of one item, in the type object.
pub const BASIC_SIZE: usize = 32;
/// See [`BASIC_SIZE`].
pub const ITEM_SIZE: usize = 40;
/// Offset of the hash that str and bytes keep, and tuples from 3.14 on; -1 before it is computed.
pub const KEPT_HASH: usize = 24;
/// Offset of the bits that say how a str is stored: two or more for interning, then three for the width.
pub const STR_STATE: usize = 32;
/// Size of the header that the collector puts before each object it knows, bytes.
pub const GC_HEADER_BYTES: usize = 16;
/// Size of what stands before that where an instance's dict or weak references are managed, bytes.
pub const MANAGED_BYTES: usize = 16;

/// Offset of the pointer to a list's array of items.
pub const LIST_ARRAY: usize = 24;
/// Offset of the number of slots in a set's table, less one.
pub const SET_MASK: usize = 32;
/// Offset of the pointer to a set's table, which is the place [`SET_SMALL_TABLE`] in the set where it has few members.
pub const SET_TABLE: usize = 40;
/// See [`SET_TABLE`].
pub const SET_SMALL_TABLE: usize = 64;
/// Size of a slot of a set's table, bytes.
pub const SET_ENTRY_BYTES: usize = 16;
/// Offset of the number of bytes for which a bytearray has room.
pub const BYTEARRAY_ROOM: usize = 24;
/// Offset of the pointer to them.
pub const BYTEARRAY_DATA: usize = 32;
/// Offset of the pointer to the bytes object that has the content; 3.15 only.
pub const BYTEARRAY_BYTES: usize = 56;
/// Size of a bytes object without its content and with the zero behind it, bytes.
pub const BYTES_HEAD: usize = 33;
/// Offset of the length of a str's UTF-8 form, where it is not ASCII.
pub const STR_UTF8_LENGTH: usize = 40;
/// Offset of the pointer to that form; 0 before somebody asks for it.
pub const STR_UTF8: usize = 48;
/// Offset of the pointer to the text, where it lies elsewhere.
pub const STR_DATA: usize = 56;
/// Offset of the pointer to a dict's table of keys, which has the values, too, unless it is split.
pub const DICT_KEYS: usize = 32;
/// Offset of the pointer to the values of a split dict.
pub const DICT_VALUES: usize = 40;
/// Offset, in a table of keys, of the logarithm of its size.
pub const KEYS_LOG2_SIZE: usize = 8;
/// Offset of the logarithm of the size of its indices in bytes.
pub const KEYS_LOG2_INDEX_BYTES: usize = 9;
/// Offset of its kind.
pub const KEYS_KIND: usize = 10;
/// The kind with entries of hash, key and value; the others do without the hash.
pub const KEYS_GENERAL: u8 = 0;
/// The kind that a class has for its instances.
pub const KEYS_SPLIT: u8 = 2;
/// Offset of the number of entries that can be added.
pub const KEYS_USABLE: usize = 16;
/// Offset of the number of entries.
pub const KEYS_ENTRIES: usize = 24;
/// Offset of the pointer to the keys of instances in a class; 3.12 only.
pub const CACHED_KEYS: usize = 880;
/// Offset before an instance of the pointer to its values or dict; 3.12 only.
pub const MANAGED_VALUES_BEFORE: usize = 24;
/// Offset, in the values of an instance, of the number of values for which there is room; from 3.13 on.
pub const VALUES_CAPACITY: usize = 0;
/// Offset of the byte that is not 0 where the values lie in the instance; from 3.13 on.
pub const VALUES_EMBEDDED: usize = 2;

/// Bits of a type's flags (`Include/object.h`).
pub mod flag {
    /// The values of an instance lie behind it, in the same block; from 3.13 on.
    pub const INLINE_VALUES: u64 = 1 << 2;
    /// Instances have the collector's header and `tp_traverse`.
    pub const HAVE_GC: u64 = 1 << 14;
    /// The type itself was allocated, and is counted.
    pub const HEAP_TYPE: u64 = 1 << 9;
    /// The weak references' head stands before the object.
    pub const MANAGED_WEAKREF: u64 = 1 << 3;
    /// The instance's dict is made when first asked for.
    pub const MANAGED_DICT: u64 = 1 << 4;
    /// int and its subclasses; so with the next ones.
    pub const INT: u64 = 1 << 24;
    /// list
    pub const LIST: u64 = 1 << 25;
    /// tuple
    pub const TUPLE: u64 = 1 << 26;
    /// bytes
    pub const BYTES: u64 = 1 << 27;
    /// str
    pub const STR: u64 = 1 << 28;
    /// dict
    pub const DICT: u64 = 1 << 29;
    /// type: the instances are classes
    pub const TYPE: u64 = 1 << 31;
}

/// Numbers of slots for `PyType_GetSlot` (`Include/typeslots.h`), part of the stable ABI.
pub mod slot {
    /// `tp_finalize`: what runs before an object dies.
    pub const FINALIZE: i32 = 80;
    /// `tp_hash`
    pub const HASH: i32 = 59;
    /// `tp_traverse`
    pub const TRAVERSE: i32 = 71;
    /// `tp_del`, the older finalizer
    pub const DEL: i32 = 53;
}

/// The way a version marks an object as immortal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 3.12 and 3.13: the whole word is 2³²−1.
    Whole,
    /// 3.14 and 3.15: the lower half is 3·2³⁰, and bit 0 of the flags at offset 6 is set.
    Flagged,
}

impl Layout {
    /// The layout of a `Py_Version`, and nothing for a version whose layout was not looked at.
    pub const fn of_version(version: u64) -> Option<Self> {
        match version >> 16 {
            0x030c | 0x030d => Some(Self::Whole),
            0x030e | 0x030f => Some(Self::Flagged),
            _ => None,
        }
    }

    /// Tells whether an object with this first word is immortal: the interpreter asks for the sign of the lower half.
    pub const fn is_immortal(word: u64) -> bool {
        word & (1 << 31) != 0
    }

    /// An object's first word once it is immortal. Flags that it had stay.
    pub const fn immortal(self, word: u64) -> u64 {
        match self {
            Self::Whole => u32::MAX as u64,
            Self::Flagged => (word & !(u32::MAX as u64)) | (3 << 30) | (1 << 48),
        }
    }

    /// Tells whether a tuple keeps its hash.
    pub const fn keeps_tuple_hash(self) -> bool {
        matches!(self, Self::Flagged)
    }
}

/// The ways in which versions keep things in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// 3.12: the values of an instance lie elsewhere, behind a prefix. Later they lie in the instance, behind a head of four bytes, and
    /// those of a dict that lost its instance elsewhere in the same form.
    pub values_have_prefix: bool,
    /// 3.15: a bytearray's content is that of a bytes object, which it has alone.
    pub bytearray_has_bytes: bool,
}

impl Ways {
    /// Those of a `Py_Version` that [`Layout::of_version`] knows.
    pub const fn of_version(version: u64) -> Self {
        Self { values_have_prefix: version >> 16 == 0x030c, bytearray_has_bytes: version >> 16 == 0x030f }
    }
}

/// Tells whether a str holds only ASCII, by its state.
pub const fn str_is_ascii(state: u32) -> bool {
    state & (1 << 6) != 0
}

/// Bytes of a str of this length; `head` is the size of the type's instances, which subclasses put before a text
/// that lies elsewhere.
pub const fn str_bytes(state: u32, length: usize, head: usize) -> usize {
    // The head of a compact ASCII str has no room for a UTF-8 copy.
    let head = match (str_is_compact(state), str_is_ascii(state)) {
        (true, true) => 40,
        (true, false) => 56,
        (false, _) => head,
    };
    head + str_text_bytes(state, length)
}

/// Bytes of a text of this length, which ends with a zero.
pub const fn str_text_bytes(state: u32, length: usize) -> usize {
    (length + 1) * (state >> 2 & 7) as usize
}

/// Tells whether a str has its text behind its head.
pub const fn str_is_compact(state: u32) -> bool {
    state & (1 << 5) != 0
}

/// Bytes of a dict's table of keys: a head of 32, the indices, and entries for two thirds of its size.
pub const fn keys_bytes(log2_size: u8, log2_index_bytes: u8, is_text: bool) -> usize {
    32 + (1 << log2_index_bytes) + (2usize << log2_size) / 3 * if is_text { 16 } else { 24 }
}

/// Bytes of the values of an instance, from 3.13 on: a head, the values, and the order in which they came, a byte each.
pub const fn values_bytes(capacity: u8) -> usize {
    (capacity as usize + 1) * 8 + (capacity as usize).next_multiple_of(8)
}

/// The address of the values of an instance of 3.12, of the word that is its dict's address otherwise.
pub const fn tagged_values(word: u64) -> Option<usize> {
    if word & 1 == 1 { Some(word as usize + 1) } else { None }
}
