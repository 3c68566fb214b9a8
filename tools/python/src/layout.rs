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

/// Bits of a type's flags (`Include/object.h`).
pub mod flag {
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

/// Tells whether a str holds only ASCII, by its state.
pub const fn str_is_ascii(state: u32) -> bool {
    state & (1 << 6) != 0
}

/// Bytes of a str of this length; `head` is the size of the type's instances, which subclasses put before a text
/// that lies elsewhere.
pub const fn str_bytes(state: u32, length: usize, head: usize) -> usize {
    let width = (state >> 2 & 7) as usize;
    let is_compact = state & (1 << 5) != 0;
    // The head of a compact ASCII str has no room for a UTF-8 copy. Each text ends with a zero.
    let head = match (is_compact, str_is_ascii(state)) {
        (true, true) => 40,
        (true, false) => 56,
        (false, _) => head,
    };
    head + (length + 1) * width
}
