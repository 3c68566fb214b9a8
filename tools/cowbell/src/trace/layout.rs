//! What a word of a process' memory is, by the layout of what it lies in, and what an instruction does to it.
//!
//! A reference count is called one only where the layout proves it: CPython's objects begin with their count and a pointer
//! to their type, and every chain of types ends at the type of types, which is its own type and is named `type`. Nothing
//! else is taken for an object, so an interpreter of another layout (free-threaded, or built to trace references) has
//! none here.

use super::baseline;
use crate::record::Wrote;
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::remote::Memory;
use std::collections::HashMap;

/// Byte offsets in a type object (Include/cpython/object.h), the same in every CPython 3 with the usual layout.
const TYPE: u64 = 8;
const NAME: u64 = 24;
const FLAGS: u64 = 168;
/// The collector knows the instances: two words of its own lie before each (`Py_TPFLAGS_HAVE_GC`).
const HAVE_GC: u64 = 1 << 14;
/// The instances are types (`Py_TPFLAGS_TYPE_SUBCLASS`).
const TYPE_SUBCLASS: u64 = 1 << 31;
/// A metaclass may have a metaclass, and so on; chains in use are shorter.
const CHAIN_MAX: usize = 4;
/// So many pointers that lead to no type are followed in a process in which none has led to one.
const VAIN_MAX: usize = 4096;
/// So many pages are remembered.
const PAGES_MAX: usize = 64;
/// So many answers are remembered.
const KNOWN_MAX: usize = 1 << 16;

/// A type object that was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    /// Do its instances have the collector's two words before them?
    pub is_collected: bool,
}

/// The type objects of one process. `W` reads a word of it.
pub struct Types<W> {
    word: W,
    known: HashMap<u64, Option<Type>>,
    any: bool,
}

/// Reads words of a process, those of pages that are there: reading others would bring them in. Pages are read whole and
/// remembered, because most pointers lead to few pages and each read is a system call.
pub fn words<'a>(memory: &'a Memory, pagemap: &'a Pagemap) -> impl FnMut(u64) -> Option<u64> + 'a {
    let bytes = baseline::page_bytes();
    let mut pages: HashMap<u64, Option<Box<[u8]>>> = HashMap::new();
    move |address| {
        let page = address / bytes * bytes;
        if pages.len() >= PAGES_MAX && !pages.contains_key(&page) {
            pages.clear();
        }
        let read = || {
            let is_there = baseline::entry(pagemap, page).is_ok_and(|entry| entry.contains(Entry::PRESENT));
            let mut held = vec![0; bytes as usize];
            (is_there && memory.read(page, &mut held) == Ok(held.len())).then(|| held.into())
        };
        let held = pages.entry(page).or_insert_with(read).as_ref()?;
        let word = held.get((address - page) as usize..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*word))
    }
}

impl<W: FnMut(u64) -> Option<u64>> Types<W> {
    /// None known yet.
    pub fn new(word: W) -> Self {
        Self { word, known: HashMap::new(), any: false }
    }

    /// The type of an object that begins with these two words, if it is one.
    pub fn of_object(&mut self, count: u64, of: u64) -> Option<Type> {
        // Counts of objects in use are small; immortal ones (since 3.12) fill 32 bits, and since 3.14 have flags above.
        let is_count = count & 0xffff_ffff != 0 && count >> 32 & 0xffff == 0;
        if !is_count || !of.is_multiple_of(8) || of < 1 << 16 || of >> 47 != 0 {
            return None;
        }
        if let Some(&known) = self.known.get(&of) {
            return known;
        }
        if !self.any && self.known.len() >= VAIN_MAX {
            return None;
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let found = self.look(of);
        self.any |= found.is_some();
        self.known.insert(of, found);
        found
    }

    /// Follows the chain of types from a pointer.
    fn look(&mut self, of: u64) -> Option<Type> {
        let flags = (self.word)(of.checked_add(FLAGS)?)?;
        let mut meta = (self.word)(of.checked_add(TYPE)?)?;
        for _ in 0..CHAIN_MAX {
            // An instance has a type, too; but only a type's type makes types.
            if (self.word)(meta.checked_add(FLAGS)?)? & TYPE_SUBCLASS == 0 {
                return None;
            }
            let next = (self.word)(meta.checked_add(TYPE)?)?;
            if next == meta {
                let name = (self.word)(meta.checked_add(NAME)?)?;
                let is_type = (self.word)(name)? & 0xff_ffff_ffff == u64::from_le_bytes(*b"type\0\0\0\0");
                return is_type.then_some(Type { is_collected: flags & HAVE_GC != 0 });
            }
            meta = next;
        }
        None
    }

    /// What the word at an address is, as it is before it is written.
    pub fn wrote(&mut self, address: u64) -> Wrote {
        let first = address / 8 * 8;
        let Some(a) = (self.word)(first) else { return Wrote::Unknown };
        // Behind the end of what is mapped there is no object.
        let mut next = |nth: u64| first.checked_add(8 * nth).and_then(&mut self.word).unwrap_or(0);
        let (b, c, d) = (next(1), next(2), next(3));
        if self.of_object(a, b).is_some() {
            return Wrote::ReferenceCount;
        }
        let is_collected = |found: Option<Type>| found.is_some_and(|found| found.is_collected);
        if is_collected(self.of_object(b, c)) || is_collected(self.of_object(c, d)) {
            return Wrote::CollectorHeader;
        }
        Wrote::Other
    }

    /// Does a page hold an object?
    pub fn any_in(&mut self, page: &[u8]) -> bool {
        let (words, _) = page.as_chunks::<8>();
        words.windows(2).any(|pair| {
            let [count, of] = pair else { return false };
            self.of_object(u64::from_le_bytes(*count), u64::from_le_bytes(*of)).is_some()
        })
    }
}

/// Is the instruction that begins with these bytes an atomic read, change and write of memory? Counters, locks and flags
/// that threads share are written so. Known of x86-64.
pub fn is_atomic(code: &[u8]) -> bool {
    const LOCK: u8 = 0xf0;
    const PREFIXES: [u8; 11] = [LOCK, 0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    let prefixes = code.iter().take_while(|byte| PREFIXES.contains(byte)).count();
    let (prefixes, rest) = code.split_at(prefixes);
    if prefixes.contains(&LOCK) {
        return true;
    }
    let rest = match rest {
        [0x40..=0x4f, rest @ ..] => rest,
        rest => rest,
    };
    // An exchange with memory is atomic without being told so.
    matches!(rest, [0x86 | 0x87, operands, ..] if operands >> 6 != 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const TYPE_OF_TYPES: u64 = 0x10_0000;
    const STR: u64 = 0x10_1000;
    const LIST: u64 = 0x10_2000;
    const META: u64 = 0x10_3000;
    const CLASS: u64 = 0x10_4000;
    const NAMED: u64 = 0x10_5000;

    /// Memory that holds what a CPython has: types, one of them with a metaclass, and objects from `HEAP` on.
    fn memory() -> HashMap<u64, u64> {
        let mut memory = HashMap::from([(NAMED, u64::from_le_bytes(*b"type\0str"))]);
        for (at, of, flags) in [
            (TYPE_OF_TYPES, TYPE_OF_TYPES, TYPE_SUBCLASS | HAVE_GC),
            (STR, TYPE_OF_TYPES, 0),
            (LIST, TYPE_OF_TYPES, HAVE_GC),
            (META, TYPE_OF_TYPES, TYPE_SUBCLASS | HAVE_GC),
            (CLASS, META, HAVE_GC),
        ] {
            memory.extend([(at, 1), (at + TYPE, of), (at + NAME, NAMED), (at + FLAGS, flags)]);
        }
        memory
    }

    const HEAP: u64 = 0x20_0000;

    fn with(objects: &[u64]) -> HashMap<u64, u64> {
        let mut memory = memory();
        memory.extend((HEAP..).step_by(8).zip(objects.iter().copied()));
        memory
    }

    #[test]
    fn only_what_leads_to_the_type_of_types_is_an_object() {
        let mut memory = memory();
        // An instance of str, and a list head that points to itself, as empty lists in C do.
        memory.extend([(HEAP, 1), (HEAP + TYPE, STR), (HEAP + FLAGS, 0), (HEAP + 0x1000 + TYPE, HEAP + 0x1000)]);
        let mut types = Types::new(|address| memory.get(&address).copied());
        let mut is_object = |count, of| types.of_object(count, of).is_some();
        assert!(is_object(1, STR) && is_object(70_000, LIST) && is_object(2, CLASS) && is_object(1, TYPE_OF_TYPES));
        assert!(is_object(0xffff_ffff, STR) && is_object(3 << 30 | 1 << 48, STR), "immortal ones");
        assert!(!is_object(0, STR), "a freed block");
        assert!(!is_object(0x7f12_3456_7890, STR), "a pointer is no count");
        assert!(!is_object(1, HEAP), "a pointer to an object is no pointer to a type");
        assert!(!is_object(1, HEAP + 0x1000) && !is_object(1, STR + 4) && !is_object(1, 0) && !is_object(1, u64::MAX));
    }

    #[test]
    fn a_word_is_told_by_what_follows_it() {
        let pointer = 0x7f00_0000_1000;
        // A str of four words; a list behind its collector's header; plain numbers.
        let memory = with(&[2, STR, 5, 6, pointer, pointer + 8, 1, LIST, 3, pointer, 1, 2, 3, 4, 5, 6, 7]);
        let mut types = Types::new(|address| memory.get(&address).copied());
        let told: Vec<_> = (0..13).map(|nth| types.wrote(HEAP + 8 * nth)).collect();
        let (count, header, other) = (Wrote::ReferenceCount, Wrote::CollectorHeader, Wrote::Other);
        let due = [count, other, other, other, header, header, count, other, other, other, other, other, other];
        assert_eq!(told, due);
        assert_eq!(types.wrote(HEAP + 4), Wrote::ReferenceCount, "the upper half of the word");
    }

    #[test]
    fn what_precedes_an_object_that_is_not_collected_is_no_header() {
        let memory = with(&[7, 8, 1, STR, 9]);
        let mut types = Types::new(|address| memory.get(&address).copied());
        assert_eq!([types.wrote(HEAP), types.wrote(HEAP + 8)], [Wrote::Other, Wrote::Other]);
    }

    #[test]
    fn a_process_without_objects_is_not_searched_for_ever() {
        let asked = Cell::new(0);
        let mut types = Types::new(|_| {
            asked.set(asked.get() + 1);
            Some(0)
        });
        for nth in 0..100_000 {
            assert_eq!(types.of_object(1, 0x10_0000 + 16 * nth), None);
        }
        assert!(asked.get() < 5 * VAIN_MAX, "{}", asked.get());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn atomic_instructions_are_told_by_their_bytes() {
        for (code, due) in [
            (&[0xf0, 0x48, 0xff, 0x00][..], true),   // lock incq (%rax)
            (&[0x66, 0xf0, 0x0f, 0xc1, 0x07], true), // lock xadd %ax,(%rdi)
            (&[0xf0, 0x0f, 0xb1, 0x0f], true),       // lock cmpxchg %ecx,(%rdi)
            (&[0x87, 0x07], true),                   // xchg %eax,(%rdi)
            (&[0x48, 0x87, 0x07], true),             // xchg %rax,(%rdi)
            (&[0x48, 0x87, 0xc7], false),            // xchg %rax,%rdi
            (&[0x48, 0xff, 0x00], false),            // incq (%rax)
            (&[0xf3, 0x48, 0xab], false),            // rep stos
            (&[0x48, 0xf0], false),                  // REX must come last
            (&[], false),
        ] {
            assert_eq!(is_atomic(code), due, "{code:x?}");
        }
    }
}
