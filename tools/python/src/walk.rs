//! The walk over a data set: what is reached is made immortal, what leads out of the data is left out.
//!
//! ```text
//! reach(object): left out?   -> counted, not followed
//!                mortal?     -> immortal, its hash computed, counted
//!                holds some? -> on the stack, once
//! step:          take from the stack, reach all that it shows
//! ```
//!
//! An explicit stack, since data nests millions deep. What waits on it is immortal, so it outlives whatever other
//! threads do between two steps; and no code of users runs within a step.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::extents::pieces;
use crate::kinds::{Keeps, Kinds};
use crate::layout::{self, Layout, Ways, flag};
use crate::python::{Gil, Object};
use crate::sink::Sink;

/// Addresses are spread by one multiplication: there may be fifty million of them.
#[derive(Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_usize(&mut self, address: usize) {
        self.write_u64(address as u64);
    }

    fn write_u64(&mut self, address: u64) {
        let product = (self.0 ^ address).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Tables take a bucket from the low bits and a tag from the high ones.
        self.0 = product ^ product >> 32;
    }
}

type Objects = HashSet<Object, BuildHasherDefault<Spread>>;

/// The wishes for a walk.
#[derive(Clone, Copy)]
pub struct Options {
    /// Hashes are computed where objects keep them.
    pub hashes: bool,
    /// Each instance gets its `__dict__`.
    pub dicts: bool,
}

/// The totals of what was done, apart from the counts of each type.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Totals {
    /// Objects made immortal.
    pub objects: u64,
    /// The objects' size, bytes.
    pub bytes: u64,
    /// Containers that had been immortal before, and were entered.
    pub already: u64,
    /// Hashes computed.
    pub hashes: u64,
    /// Texts made immortal without a hash.
    pub unhashed_texts: u64,
    /// Tuples whose hash would run code of users, or cannot be computed.
    pub unhashed_tuples: u64,
    /// Texts made immortal that are not ASCII: the UTF-8 form is made when first asked for, and kept.
    pub wide_texts: u64,
    /// Instances whose `__dict__` is made when first asked for, if nobody has asked yet.
    pub without_dict: u64,
    /// Dicts made.
    pub dicts: u64,
    /// Classes of instances, themselves made immortal.
    pub classes: u64,
    /// Work that is left: objects on the stack, and tuples to be hashed.
    pub left: u64,
}

/// A walk under way.
pub struct Walk {
    /// The types met.
    pub kinds: Kinds,
    options: Options,
    layout: Layout,
    totals: Totals,
    stack: Vec<Object>,
    entered: Objects,
    tuples: Vec<Object>,
    hopeless: Objects,
    asked: Vec<Object>,
    sink: Option<Sink>,
    ways: Ways,
    gil: Gil,
}

impl Walk {
    /// Nothing reached yet; nothing at all for a version that is not known. With a sink, the walk changes nothing, and tells where
    /// the immortal objects of the data lie.
    pub fn new(options: Options, sink: Option<Sink>, gil: Gil) -> Option<Self> {
        let layout = Layout::of_version(gil.version())?;
        Some(Self {
            kinds: Kinds::new(layout, gil),
            options,
            layout,
            totals: Totals::default(),
            stack: Vec::new(),
            entered: Objects::default(),
            tuples: Vec::new(),
            hopeless: Objects::default(),
            asked: Vec::new(),
            sink,
            ways: Ways::of_version(gil.version()),
            gil,
        })
    }

    /// The totals so far.
    pub fn totals(&self) -> Totals {
        let left = (self.stack.len() + self.tuples.len()) as u64;
        Totals { left, unhashed_tuples: self.hopeless.len() as u64, ..self.totals }
    }

    /// An object whose content only the Python side knows.
    pub fn take_asked(&mut self) -> Option<Object> {
        self.asked.pop()
    }

    /// Makes an object immortal, unless it leads out of the data, and has what it holds looked at by later steps.
    pub fn reach(&mut self, object: Object) {
        let of = object.type_of();
        let at = self.kinds.find(of);
        let kind = self.kinds.at(at);
        if kind.why_not != 0 {
            kind.left_out += 1;
            return;
        }
        let was_immortal = Layout::is_immortal(object.word());
        let is_collected = object.is_collected(kind.flags);
        if let Some(sink) = self.sink {
            // Objects that were put into the data after it was frozen are ordinary.
            if !was_immortal {
                return;
            }
            pieces(object, kind, is_collected, self.ways, &mut |kind, at, bytes| sink.tell(kind, at, bytes));
        } else if !was_immortal {
            object.make_immortal(self.layout, self.gil);
            let bytes = kind.size_of(object, is_collected, self.gil) as u64;
            kind.objects += 1;
            kind.bytes += bytes;
            self.totals.objects += 1;
            self.totals.bytes += bytes;
            self.make_class_immortal(of, at);
        }
        if self.sink.is_none() {
            self.look_at_hash(object, at, was_immortal);
        }
        let is_asked = self.kinds.at(at).is_asked;
        if (is_collected || is_asked) && self.entered.insert(object) {
            self.totals.already += u64::from(was_immortal);
            if is_asked {
                self.asked.push(object);
            }
            if is_collected {
                self.stack.push(object);
            }
        }
    }

    /// Looks at what waits, until `budget` containers and hashes are done or nothing is left.
    pub fn step(&mut self, budget: usize) {
        for _ in 0..budget {
            if let Some(object) = self.stack.pop() {
                self.enter(object);
            } else if let Some(tuple) = self.tuples.pop() {
                self.hash_tuple(tuple);
            } else {
                return;
            }
        }
    }

    /// The class is counted with each instance that is made or let go; what it holds is program, and stays as it is.
    fn make_class_immortal(&mut self, of: Object, at: usize) {
        let is_counted = self.kinds.at(at).flags & flag::HEAP_TYPE != 0;
        if is_counted && !Layout::is_immortal(of.word()) {
            of.make_immortal(self.layout, self.gil);
            self.totals.classes += 1;
        }
    }

    fn look_at_hash(&mut self, object: Object, at: usize, was_immortal: bool) {
        let kind = self.kinds.at(at);
        match (kind.keeps, kind.hash) {
            (Keeps::Text, Some(hash)) => {
                // Each object is counted once, however often it is referred to: where it was made immortal.
                let is_wide = kind.flags & flag::STR != 0 && !layout::str_is_ascii(object.str_state());
                self.totals.wide_texts += u64::from(is_wide && !was_immortal);
                let is_hashed = object.is_hashed();
                if !is_hashed && self.options.hashes {
                    self.gil.hash(object, hash);
                    self.totals.hashes += 1;
                } else {
                    self.totals.unhashed_texts += u64::from(!is_hashed && !was_immortal);
                }
            }
            // The set's table has the hashes of the members: no code of theirs runs.
            (Keeps::Members, Some(hash)) if self.options.hashes => self.gil.hash(object, hash),
            _ => {}
        }
    }

    fn enter(&mut self, object: Object) {
        let of = object.type_of();
        let at = self.kinds.find(of);
        let kind = self.kinds.at(at);
        let (flags, traverse, keeps) = (kind.flags, kind.traverse, kind.keeps);
        let is_dict_only = of == self.kinds.builtins.dict;
        let gil = self.gil;
        if flags & flag::MANAGED_DICT != 0 && self.sink.is_none() {
            self.look_at_dict(object);
        }
        // `dict_traverse` leaves out keys that are str, and shows nothing else that the items do not.
        if flags & flag::DICT != 0 {
            gil.items(object, &mut |found| self.reach(found));
        }
        if let Some(traverse) = traverse
            && !is_dict_only
        {
            // An instance of a heap type shows its class, which was taken care of.
            gil.traverse(object, traverse, &mut |found| {
                if found != of {
                    self.reach(found)
                }
            });
        }
        if keeps == Keeps::Items && self.options.hashes && self.sink.is_none() {
            self.tuples.push(object);
        }
    }

    fn look_at_dict(&mut self, object: Object) {
        if !self.options.dicts {
            self.totals.without_dict += 1;
        } else if let Some(dict) = self.gil.instance_dict(object) {
            self.totals.dicts += 1;
            self.reach(dict);
        }
    }

    /// Lets a tuple's hash be computed and kept, after those of the tuples in it: each computes its items' without limit
    /// of depth otherwise. A tuple waits among the hopeless, where one that contains itself is found.
    fn hash_tuple(&mut self, tuple: Object) {
        let mut open = vec![(tuple, 0)];
        if tuple.is_hashed() || !self.hopeless.insert(tuple) {
            return;
        }
        while let Some((tuple, at)) = open.last_mut() {
            if *at == tuple.items() {
                let tuple = *tuple;
                let kind = self.kinds.find(tuple.type_of());
                if let Some(hash) = self.kinds.at(kind).hash {
                    self.gil.hash(tuple, hash);
                }
                self.totals.hashes += 1;
                self.hopeless.remove(&tuple);
                open.pop();
                continue;
            }
            let Some(item) = self.gil.tuple_item(*tuple, *at) else { return };
            let kind = self.kinds.find(item.type_of());
            let kind = self.kinds.at(kind);
            let is_ready = kind.is_plain
                || match kind.keeps {
                    Keeps::Nothing => false,
                    Keeps::Text | Keeps::Members => true,
                    Keeps::Items => item.is_hashed(),
                };
            if is_ready {
                *at += 1;
            } else if kind.keeps == Keeps::Items && self.hopeless.insert(item) {
                open.push((item, 0));
            } else {
                return;
            }
        }
    }
}
