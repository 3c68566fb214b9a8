//! Facts that the bytes of an instruction tell of it.

/// No instruction is longer.
pub const BYTES_MAX: usize = 15;

/// Tells whether the instruction that begins with these bytes counts, or sets or clears bits, atomically. Counters and flags that
/// threads share are written so. An atomic exchange or comparison is none: any value may be stored so. Known of x86-64.
pub fn is_atomic(code: &[u8]) -> bool {
    const LOCK: u8 = 0xf0;
    const PREFIXES: [u8; 11] = [LOCK, 0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    let prefixes = code.iter().take_while(|byte| PREFIXES.contains(byte)).count();
    let (prefixes, rest) = code.split_at(prefixes);
    let rest = match rest {
        [0x40..=0x4f, rest @ ..] => rest,
        rest => rest,
    };
    let is_exchange = matches!(rest, [0x86 | 0x87, ..] | [0x0f, 0xb0 | 0xb1 | 0xc7, ..]);
    prefixes.contains(&LOCK) && !is_exchange
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn atomic_instructions_are_told_by_their_bytes() {
        for (code, due) in [
            (&[0xf0, 0x48, 0xff, 0x00][..], true),      // lock incq (%rax)
            (&[0x66, 0xf0, 0x0f, 0xc1, 0x07], true),    // lock xadd %ax,(%rdi)
            (&[0xf0, 0x48, 0x0f, 0xba, 0x2f, 3], true), // lock btsq $3,(%rdi)
            (&[0xf0, 0x0f, 0xb1, 0x0f], false),         // lock cmpxchg %ecx,(%rdi)
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0f], false),   // lock cmpxchg16b (%rdi)
            (&[0x87, 0x07], false),                     // xchg %eax,(%rdi)
            (&[0x48, 0x87, 0x07], false),               // xchg %rax,(%rdi)
            (&[0x48, 0x87, 0xc7], false),               // xchg %rax,%rdi
            (&[0x48, 0xff, 0x00], false),               // incq (%rax)
            (&[0xf3, 0x48, 0xab], false),               // rep stos
            (&[0x48, 0xf0], false),                     // REX must come last
            (&[], false),
        ] {
            assert_eq!(is_atomic(code), due, "{code:x?}");
        }
    }
}
