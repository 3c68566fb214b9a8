//! Words of a process' memory, and what an instruction does to one. How objects lie there, languages know
//! (`stacks/languages`).

use super::baseline;
use cowbell::sys::pagemap::{Entry, Pagemap};
use cowbell::sys::remote::Memory;
use std::collections::HashMap;

/// So many pages are remembered.
const PAGES_MAX: usize = 64;

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
