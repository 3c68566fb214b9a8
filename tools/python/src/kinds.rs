//! Facts that the walk must know of each type it meets, looked up once.

use std::collections::HashMap;

use crate::layout::{self, Layout, flag, slot};
use crate::python::{Builtins, Gil, Hash, Object, Traverse, types_of_programs};

/// The size of an instance, as `sys.getsizeof` counts.
enum Size {
    /// The size is so many bytes, and so many more for each item.
    Items(usize, usize),
    /// An int: digits of four bytes, at least one.
    Int,
    /// A str, of a type whose instances have this size.
    Str(usize),
    /// A list, of a type whose instances have this size.
    List(usize),
    /// The size is as much as this `__sizeof__` written in C says.
    Asked(Object),
}

/// The arrays and tables that an instance has elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A list's items.
    List,
    /// A dict's table.
    Dict,
    /// The table of a set that is not small.
    Set,
    /// The content of a bytearray.
    ByteArray,
    /// The text of a subclass' str, and the UTF-8 form of one that is not ASCII.
    Str,
    /// None that are known.
    Other,
}

/// The hash that an instance keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// No hash that the walk may compute.
    Nothing,
    /// The hash of the text, in a field of its own.
    Text,
    /// The hashes of the members, who have kept theirs.
    Members,
    /// The hashes of the items, which must be looked at first.
    Items,
}

/// A type, and what became of its instances.
pub struct Kind {
    /// The type; the table owns a reference.
    pub of: Object,
    /// Why instances are not entered: a number of the Python side's; 0 if they are.
    pub why_not: u8,
    /// Bits of the type.
    pub flags: u64,
    /// The function by which instances show what they hold.
    pub traverse: Option<Traverse>,
    /// Hash function of a built-in type.
    pub hash: Option<Hash>,
    /// The hash that instances keep.
    pub keeps: Keeps,
    /// True if hashing an instance needs nothing kept and runs no code of users.
    pub is_plain: bool,
    /// True if instances have a `__del__`, or the like in C, which never runs for an immortal object.
    pub has_finalizer: bool,
    /// True if instances may hold objects that they do not show.
    pub is_opaque: bool,
    /// True if the Python side is asked what an instance holds.
    pub is_asked: bool,
    /// Instances made immortal.
    pub objects: u64,
    /// The objects' size, bytes.
    pub bytes: u64,
    /// References to instances that were not followed.
    pub left_out: u64,
    /// The shape of what instances have elsewhere.
    pub shape: Shape,
    /// The size of an instance without items, bytes.
    pub basic: usize,
    size: Size,
}

impl Kind {
    /// The size of an instance, bytes.
    pub fn size_of(&self, object: Object, is_collected: bool, gil: Gil) -> usize {
        let body = match &self.size {
            Size::Items(basic, item) => basic + if *item == 0 { 0 } else { item * object.items() },
            // Sign and digits share the field: three bits, then the number of digits.
            Size::Int => 24 + 4 * (object.items() >> 3).max(1),
            Size::Str(basic) => layout::str_bytes(object.str_state(), object.items(), *basic),
            Size::List(basic) => basic + size_of::<usize>() * object.list_room(),
            Size::Asked(method) => gil.call_for_size(*method, object).unwrap_or(0),
        };
        body + self.bytes_before(is_collected)
    }

    /// Bytes that an instance has before the place where it is referred to.
    pub fn bytes_before(&self, is_collected: bool) -> usize {
        let header = if is_collected { layout::GC_HEADER_BYTES } else { 0 };
        let managed = self.flags & (flag::MANAGED_DICT | flag::MANAGED_WEAKREF);
        header + if managed == 0 { 0 } else { layout::MANAGED_BYTES }
    }

    /// Bytes of an instance from there on, without what it has elsewhere.
    pub fn body_of(&self, object: Object) -> usize {
        match &self.size {
            Size::Int => 24 + 4 * (object.items() >> 3).max(1),
            Size::Str(basic) if layout::str_is_compact(object.str_state()) => {
                layout::str_bytes(object.str_state(), object.items(), *basic)
            }
            Size::Items(basic, item) if *item != 0 => basic + item * object.items(),
            _ => self.basic,
        }
    }
}

/// All types met so far.
pub struct Kinds {
    /// The built-in types.
    pub builtins: Builtins,
    known: HashMap<Object, usize>,
    all: Vec<Kind>,
    last: Option<(Object, usize)>,
    stops: Vec<(Object, u8)>,
    asked: Vec<Object>,
    sized: Vec<(Object, Object)>,
    keeps_tuples: bool,
    gil: Gil,
}

impl Kinds {
    /// None yet.
    pub fn new(layout: Layout, gil: Gil) -> Self {
        let builtins = Builtins::find();
        let sized = builtins.sized.iter().filter_map(|of| Some((*of, gil.size_method(*of)?))).collect();
        Self {
            builtins,
            known: HashMap::new(),
            all: Vec::new(),
            last: None,
            stops: types_of_programs().to_vec(),
            asked: Vec::new(),
            sized,
            keeps_tuples: layout.keeps_tuple_hash(),
            gil,
        }
    }

    /// Instances of the type and of types below it are not entered, for this reason.
    pub fn stop_at(&mut self, of: Object, why: u8) {
        self.gil.retain(of);
        self.stops.push((of, why));
    }

    /// The Python side is asked what instances hold.
    pub fn ask_about(&mut self, of: Object) {
        self.gil.retain(of);
        self.asked.push(of);
    }

    /// The place of a type.
    pub fn find(&mut self, of: Object) -> usize {
        if let Some((last, at)) = self.last
            && last == of
        {
            return at;
        }
        let at = match self.known.get(&of) {
            Some(at) => *at,
            None => self.add(of),
        };
        self.last = Some((of, at));
        at
    }

    /// The type at a place that [`Kinds::find`] gave.
    pub fn at(&mut self, at: usize) -> &mut Kind {
        &mut self.all[at]
    }

    /// The type at a place, if there are so many.
    pub fn get(&self, at: usize) -> Option<&Kind> {
        self.all.get(at)
    }

    fn add(&mut self, of: Object) -> usize {
        // A type whose instances stay mortal could die between two steps, and its address be another's.
        self.gil.retain(of);
        let kind = self.look_up(of);
        self.all.push(kind);
        self.known.insert(of, self.all.len() - 1);
        self.all.len() - 1
    }

    fn look_up(&self, of: Object) -> Kind {
        let flags = of.flags();
        let traverse = of.traverse_slot();
        let (keeps, hash) = self.hash_of(of, flags);
        let holds_nothing = flags & (flag::INT | flag::BYTES | flag::STR | flag::TYPE) != 0
            || self.builtins.plain.iter().any(|plain| of.is_subtype(*plain));
        let is_asked = self.asked.iter().any(|asked| of.is_subtype(*asked));
        Kind {
            of,
            why_not: self.why_not(of, flags),
            flags,
            traverse,
            hash,
            keeps,
            is_plain: self.builtins.plain.contains(&of),
            has_finalizer: of.has_slot(slot::FINALIZE) || of.has_slot(slot::DEL),
            // A class without slots of its own has no room to hold anything.
            is_opaque: flags & flag::HAVE_GC == 0 && !holds_nothing && !is_asked,
            is_asked,
            objects: 0,
            bytes: 0,
            left_out: 0,
            shape: self.shape_of(of, flags),
            basic: of.sizes().0,
            size: self.size_of(of, flags),
        }
    }

    fn shape_of(&self, of: Object, flags: u64) -> Shape {
        let shapes = [Shape::Dict, Shape::Set, Shape::Set, Shape::ByteArray];
        match self.builtins.sized.iter().zip(shapes).find(|(sized, _)| of.is_subtype(**sized)) {
            Some((_, shape)) => shape,
            None if flags & flag::LIST != 0 => Shape::List,
            None if flags & flag::STR != 0 => Shape::Str,
            None => Shape::Other,
        }
    }

    fn why_not(&self, of: Object, flags: u64) -> u8 {
        const CLASS: u8 = 5;
        if flags & flag::TYPE != 0 {
            return CLASS;
        }
        self.stops.iter().find(|(stop, _)| of.is_subtype(*stop)).map_or(0, |(_, why)| *why)
    }

    fn hash_of(&self, of: Object, flags: u64) -> (Keeps, Option<Hash>) {
        let of_builtin = [
            (self.builtins.str, flag::STR, Keeps::Text),
            (self.builtins.bytes, flag::BYTES, Keeps::Text),
            (self.builtins.tuple, flag::TUPLE, Keeps::Items),
        ];
        let hash = of.hash_slot();
        for (builtin, bit, keeps) in of_builtin {
            // A subclass with a hash of its own would run code of users.
            let is_same = hash.map(|f| f as usize) == builtin.hash_slot().map(|f| f as usize);
            if flags & bit != 0 && is_same && (keeps != Keeps::Items || self.keeps_tuples) {
                return (keeps, hash);
            }
        }
        if of == self.builtins.frozenset { (Keeps::Members, hash) } else { (Keeps::Nothing, None) }
    }

    fn size_of(&self, of: Object, flags: u64) -> Size {
        let (basic, item) = of.sizes();
        if let Some((_, method)) = self.sized.iter().find(|(sized, _)| of.is_subtype(*sized)) {
            return Size::Asked(*method);
        }
        match flags & (flag::INT | flag::STR | flag::LIST) {
            flag::INT => Size::Int,
            flag::STR => Size::Str(basic),
            flag::LIST => Size::List(basic),
            _ => Size::Items(basic, item),
        }
    }
}

impl Drop for Kinds {
    fn drop(&mut self) {
        let programs = types_of_programs().len();
        self.stops.drain(programs..).for_each(|(of, _)| self.gil.release(of));
        self.asked.drain(..).for_each(|of| self.gil.release(of));
        self.sized.drain(..).for_each(|(_, method)| self.gil.release(method));
        self.all.drain(..).for_each(|kind| self.gil.release(kind.of));
    }
}
