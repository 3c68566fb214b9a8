//! Facts that the bytes of an instruction tell of it.

/// No instruction is longer.
pub const BYTES_MAX: usize = 15;

/// Tells whether the instruction that begins with these bytes counts, or sets or clears bits, atomically. Counters and flags that
/// threads share are written so. An atomic exchange or comparison is none: any value may be stored so. Known of x86-64.
pub fn is_atomic(code: &[u8]) -> bool {
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    let (prefixes, rest) = split(code);
    let is_exchange = matches!(rest, [0x86 | 0x87, ..] | [0x0f, 0xb0 | 0xb1 | 0xc7, ..]);
    prefixes.contains(&LOCK) && !is_exchange
}

/// Tells whether the instruction that begins with these bytes adds one to a single byte. Known of x86-64.
pub fn adds_to_byte(code: &[u8]) -> bool {
    let (_, rest) = split(code);
    let (modrm, behind) = match rest {
        [0x80, modrm, behind @ ..] => (modrm, Some(behind)),
        [0xfe, modrm, ..] => (modrm, None),
        _ => return false,
    };
    let (is_addition, is_memory) = (modrm >> 3 & 7 == 0, modrm >> 6 != 3);
    // The number to add stands behind the address, which is an index' byte, if there is one, and then as many bytes as the mode says.
    let added = behind.map(|behind| {
        let index = usize::from(modrm & 7 == 4);
        let far = match modrm >> 6 {
            0 if modrm & 7 == 5 || index == 1 && behind.first().is_some_and(|index| index & 7 == 5) => 4,
            0 => 0,
            1 => 1,
            _ => 4,
        };
        behind.get(index + far).copied()
    });
    cfg!(target_arch = "x86_64") && is_addition && is_memory && added.unwrap_or(Some(1)) == Some(1)
}

/// Tells whether the memory that the instruction works at may be addressed from the stack pointer: also true where that is not certain, as
/// of instructions with a VEX prefix. Known of x86-64.
pub fn counts_from_stack_pointer(code: &[u8]) -> bool {
    let (_, rest) = split(code);
    let operand = match rest {
        [0xc4 | 0xc5 | 0x62, ..] | [] => return true,
        [0x0f, 0x38 | 0x3a, _, operand @ ..] | [0x0f, _, operand @ ..] | [_, operand @ ..] => operand,
    };
    // ModR/M with a SIB byte behind it, whose base is the stack pointer.
    let by_modrm = matches!(operand, [modrm, sib, ..] if modrm >> 6 != 3 && modrm & 7 == 4 && sib & 7 == 4);
    // Pushes and calls, which write at the stack pointer by themselves.
    let by_itself = matches!(rest, [0x50..=0x57 | 0x68 | 0x6a | 0x9c | 0xe8 | 0xff | 0xc8, ..]);
    !cfg!(target_arch = "x86_64") || by_modrm || by_itself
}

const LOCK: u8 = 0xf0;

/// The prefixes of an instruction, without REX, and what follows on them and it.
fn split(code: &[u8]) -> (&[u8], &[u8]) {
    const PREFIXES: [u8; 11] = [LOCK, 0x66, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    let prefixes = code.iter().take_while(|byte| PREFIXES.contains(byte)).count();
    let (prefixes, rest) = code.split_at(prefixes);
    match rest {
        [0x40..=0x4f, rest @ ..] => (prefixes, rest),
        rest => (prefixes, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn an_addition_to_one_byte_is_told_by_its_bytes() {
        for (code, due) in [
            (&[0x80, 0x44, 0x10, 0xff, 0x01][..], true),   // addb $1,-1(%rax,%rdx)
            (&[0x80, 0x80, 0x54, 0x01, 0, 0, 0x01], true), // addb $1,0x154(%rax)
            (&[0x41, 0x80, 0x40, 0x01, 0x01], true),       // addb $1,1(%r8)
            (&[0x80, 0x04, 0x05, 1, 0, 0, 0, 0x01], true), // addb $1,1(,%rax)
            (&[0x80, 0x05, 1, 0, 0, 0, 0x01], true),       // addb $1,1(%rip)
            (&[0xfe, 0x00], true),                         // incb (%rax)
            (&[0x41, 0x80, 0x40, 0x01, 0x02], false),      // addb $2,1(%r8)
            (&[0x80, 0x6c, 0x24, 0x38, 0x01], false),      // subb $1,0x38(%rsp)
            (&[0x80, 0xc0, 0x01], false),                  // addb $1,%al
            (&[0x83, 0x44, 0x10, 0xff, 0x01], false),      // addl $1,-1(%rax,%rdx)
            (&[0x80], false),
            (&[], false),
        ] {
            assert_eq!(adds_to_byte(code), due, "{code:x?}");
        }
    }

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

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn operands_counted_from_the_stack_pointer_are_told_by_their_bytes() {
        for (code, due) in [
            (&[0x48, 0x83, 0x0c, 0x24, 0][..], true),            // orq $0,(%rsp)
            (&[0x83, 0x8c, 0x24, 0, 0xf0, 0xff, 0xff, 0], true), // orl $0,-4096(%rsp)
            (&[0x89, 0x84, 0x24, 0, 0xc0, 0xfe, 0xff], true),    // mov %eax,-81920(%rsp)
            (&[0x41, 0x54], true),                               // push %r12
            (&[0xe8, 1, 0, 0, 0], true),                         // call
            (&[0xc5, 0xf8, 0x11, 0x00], true),                   // vmovups %xmm0,(%rax), not looked into
            (&[0x0f, 0x11, 0x04, 0x24], true),                   // movups %xmm0,(%rsp)
            (&[0xc6, 0x07, 2], false),                           // movb $2,(%rdi)
            (&[0x48, 0x89, 0x04, 0xcb], false),                  // mov %rax,(%rbx,%rcx,8)
            (&[0x41, 0x89, 0x04, 0x24], true),                   // mov %eax,(%r12): REX.B is not asked
            (&[0xf3, 0x48, 0xab], false),                        // rep stos
            (&[], true),
        ] {
            assert_eq!(counts_from_stack_pointer(code), due, "{code:x?}");
        }
    }
}
