//! The effect of an instruction on memory: a read or a write. Pure: bytes in, meaning out.
//!
//! A page fault does not say which of them it was. The opcode does, and only that much of x86-64 is known here: an opcode that is not known to do
//! the one or the other alone is [`Does::Unknown`], and so is each on other processors.

use crate::sys::perf::record::UserRegisters;
use Does::{Load, Move, Store, Unknown};

/// The longest instruction that x86-64 has.
pub(in crate::watch) const BYTES_MAX: usize = 15;

/// The effect of an instruction on the memory that its operand names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) enum Does {
    /// The instruction only reads.
    Load,
    /// The instruction writes, perhaps after reading.
    Store,
    /// The instruction reads at one place and writes at another: `movs`.
    Move,
    /// The instruction is not known, or touches more than its operand.
    Unknown,
}

impl Does {
    /// The effect at `address`: of a copy the registers tell.
    pub(in crate::watch) fn at(self, address: u64, registers: Option<UserRegisters>) -> Self {
        /// Processors copy so many bytes in one step.
        const STEP: u64 = 64;
        let (Move, Some(registers)) = (self, registers) else { return self };
        let page = |address: u64| address & !(crate::sys::page_size().bytes() as u64 - 1);
        let is_at = |begin: u64| {
            [begin.wrapping_sub(STEP), begin, begin.wrapping_add(STEP)].into_iter().any(|at| page(at) == page(address))
        };
        match (is_at(registers.source), is_at(registers.destination)) {
            (true, false) => Load,
            (false, true) => Store,
            _ => Unknown,
        }
    }
}

/// The instruction at the begin of `code`.
pub(in crate::watch) fn does(code: &[u8]) -> Does {
    if cfg!(target_arch = "x86_64") { read(code).unwrap_or(Does::Unknown) } else { Does::Unknown }
}

/// The same; `None` where there are too few bytes.
fn read(mut code: &[u8]) -> Option<Does> {
    let mut repeat = 0;
    let mut next = || {
        let (&first, rest) = code.split_first()?;
        code = rest;
        Some(first)
    };
    let mut byte = next()?;
    // These are prefixes: of the segment, the sizes, the lock, and repetition, which also chooses among opcodes.
    while matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) {
        if byte >= 0xf2 {
            repeat = byte;
        }
        byte = next()?;
    }
    if byte & 0xf0 == 0x40 {
        byte = next()?;
    }
    let (found, modrm) = match byte {
        // These have no operand in a byte of its own.
        0xa4 | 0xa5 => return Some(Move),
        0xa0 | 0xa1 | 0xa6 | 0xa7 | 0xac..=0xaf => return Some(Load),
        0xa2 | 0xa3 | 0xaa | 0xab => return Some(Store),
        0x0f => match next()? {
            0x38 => (three_38(next()?, repeat), next()?),
            0x3a => (three_3a(next()?), next()?),
            opcode => {
                let modrm = next()?;
                (two(opcode, repeat, modrm >> 3 & 7), modrm)
            }
        },
        0xc5 => {
            let simd = next()? & 3;
            (vector(1, simd, next()?), next()?)
        }
        0xc4 => {
            let map = next()? & 0x1f;
            let simd = next()? & 3;
            (vector(map, simd, next()?), next()?)
        }
        0x62 => {
            let map = next()? & 7;
            let simd = next()? & 3;
            next()?;
            (vector(map, simd, next()?), next()?)
        }
        opcode => {
            let modrm = next()?;
            (one(opcode, modrm >> 3 & 7), modrm)
        }
    };
    // Where both operands are registers, none is in memory.
    Some(if modrm >> 6 == 3 { Unknown } else { found })
}

/// Opcodes of one byte, with the operation that their operand's byte chooses.
fn one(opcode: u8, chosen: u8) -> Does {
    match (opcode, chosen) {
        // Arithmetic: seven kinds, and the comparison.
        (0x38 | 0x39, _) | (0x80 | 0x81 | 0x83, 7) => Load,
        (0x00..=0x3f, _) if opcode & 7 < 2 => Store,
        (0x00..=0x3f, _) if opcode & 7 < 4 => Load,
        (0x80 | 0x81 | 0x83, _) => Store,
        (0x63 | 0x69 | 0x6b | 0x84 | 0x85 | 0x8a | 0x8b | 0x8e, _) => Load,
        (0x86..=0x89 | 0x8c | 0xc0 | 0xc1 | 0xd0..=0xd3, _) | (0xc6 | 0xc7, 0) => Store,
        (0xf6 | 0xf7, 2 | 3) | (0xfe | 0xff, 0 | 1) => Store,
        (0xf6 | 0xf7, _) => Load,
        _ => Unknown,
    }
}

/// Opcodes behind 0F.
fn two(opcode: u8, repeat: u8, chosen: u8) -> Does {
    match (opcode, chosen) {
        (0x7e, _) if repeat == 0xf3 => Load,
        (0x11 | 0x13 | 0x17 | 0x29 | 0x2b | 0x7e | 0x7f | 0xd6 | 0xe7, _) => Store,
        (0x90..=0x9f | 0xa4 | 0xa5 | 0xab..=0xad | 0xb0 | 0xb1 | 0xb3 | 0xbb | 0xc0 | 0xc1 | 0xc3, _) => Store,
        (0xba, 5..=7) | (0xc7, 1) => Store,
        (0x40..=0x4f | 0x60..=0x6b | 0xa3 | 0xaf | 0xb6..=0xb8 | 0xbc..=0xbf, _) | (0xba, 4) => Load,
        _ if reads_vector(opcode) => Load,
        _ => Unknown,
    }
}

/// Opcodes behind 0F 38.
fn three_38(opcode: u8, repeat: u8) -> Does {
    match opcode {
        0xf1 if repeat != 0xf2 => Store,
        0xf0
        | 0xf1
        | 0x00..=0x0b
        | 0x10
        | 0x14
        | 0x15
        | 0x17
        | 0x1c..=0x1e
        | 0x20..=0x25
        | 0x28..=0x2b
        | 0x30..=0x41 => Load,
        _ => Unknown,
    }
}

/// Opcodes behind 0F 3A.
fn three_3a(opcode: u8) -> Does {
    match opcode {
        0x14..=0x17 => Store,
        0x08..=0x0f | 0x20..=0x22 | 0x60..=0x63 => Load,
        _ => Unknown,
    }
}

/// Opcodes behind VEX and EVEX, of which `simd` says what a prefix says of others: 0 none, 1 66, 2 F3, 3 F2.
fn vector(map: u8, simd: u8, opcode: u8) -> Does {
    match (map, opcode) {
        (1, 0x7e) if simd == 2 => Load,
        (1, 0x11 | 0x13 | 0x17 | 0x29 | 0x2b | 0x7e | 0x7f | 0x91 | 0xd6 | 0xe7) => Store,
        (1, 0x60..=0x6b | 0x90) => Load,
        (1, _) if reads_vector(opcode) => Load,
        (2, 0x2e | 0x2f | 0x8e) if simd == 1 => Store,
        (2, 0x00..=0x0f | 0x18..=0x1a | 0x1c..=0x1e | 0x20..=0x25 | 0x28..=0x2d | 0x30..=0x47) if simd == 1 => Load,
        (2, 0x58..=0x5a | 0x78 | 0x79 | 0x8c | 0x96..=0x9f | 0xa6..=0xaf | 0xb6..=0xbf) if simd == 1 => Load,
        (3, 0x14..=0x17 | 0x19 | 0x1b | 0x1d | 0x39 | 0x3b) => Store,
        (3, 0x00..=0x0f | 0x18 | 0x1a | 0x20..=0x22 | 0x38 | 0x3a | 0x46 | 0x4a..=0x4c) => Load,
        _ => Unknown,
    }
}

/// Opcodes on vectors that are the same behind 0F, VEX and EVEX.
fn reads_vector(opcode: u8) -> bool {
    matches!(
        opcode,
        0x10 | 0x12
            | 0x14..=0x16
            | 0x28
            | 0x2a
            | 0x2c..=0x2f
            | 0x51..=0x5f
            | 0x6c..=0x70
            | 0x74..=0x76
            | 0x7c
            | 0x7d
            | 0xc2
            | 0xc4
            | 0xc6
            | 0xd0..=0xd5
            | 0xd8..=0xdf
            | 0xe0..=0xe6
            | 0xe8..=0xef
            | 0xf0..=0xf6
            | 0xf8..=0xfe
    )
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Instructions as an assembler writes them.
    const KNOWN: &[(&str, &[u8], Does)] = &[
        ("mov [rdi], rax", &[0x48, 0x89, 0x07], Store),
        ("mov rax, [rdi]", &[0x48, 0x8b, 0x07], Load),
        ("mov byte [rdi], 7", &[0xc6, 0x07, 0x07], Store),
        ("mov word [r8], 7", &[0x66, 0x41, 0xc7, 0x00, 0x07, 0x00], Store),
        ("lock add [rdi], rax", &[0xf0, 0x48, 0x01, 0x07], Store),
        ("lock xadd [rdi], al", &[0xf0, 0x0f, 0xc0, 0x07], Store),
        ("lock cmpxchg16b [rdi]", &[0xf0, 0x48, 0x0f, 0xc7, 0x0f], Store),
        ("xchg [rdi], al", &[0x86, 0x07], Store),
        ("inc dword [rdi]", &[0xff, 0x07], Store),
        ("jmp [rdi]", &[0xff, 0x27], Unknown),
        ("not byte [rdi]", &[0xf6, 0x17], Store),
        ("test byte [rdi], 1", &[0xf6, 0x07, 0x01], Load),
        ("cmp [rdi], rax", &[0x48, 0x39, 0x07], Load),
        ("cmp byte [rdi], 1", &[0x80, 0x3f, 0x01], Load),
        ("or byte [rdi], 1", &[0x80, 0x0f, 0x01], Store),
        ("add rax, [rdi]", &[0x48, 0x03, 0x07], Load),
        ("movzx eax, byte [rdi]", &[0x0f, 0xb6, 0x07], Load),
        ("sete [rdi]", &[0x0f, 0x94, 0x07], Store),
        ("bt [rdi], eax", &[0x0f, 0xa3, 0x07], Load),
        ("bts [rdi], eax", &[0x0f, 0xab, 0x07], Store),
        ("bt dword [rdi], 1", &[0x0f, 0xba, 0x27, 0x01], Load),
        ("btr dword [rdi], 1", &[0x0f, 0xba, 0x37, 0x01], Store),
        ("movups [rdi], xmm0", &[0x0f, 0x11, 0x07], Store),
        ("movdqu xmm0, [rdi]", &[0xf3, 0x0f, 0x6f, 0x07], Load),
        ("movq [rdi], xmm0", &[0x66, 0x0f, 0xd6, 0x07], Store),
        ("movq xmm0, [rdi]", &[0xf3, 0x0f, 0x7e, 0x07], Load),
        ("movd [rdi], xmm0", &[0x66, 0x0f, 0x7e, 0x07], Store),
        ("movbe [rdi], eax", &[0x0f, 0x38, 0xf1, 0x07], Store),
        ("crc32 eax, dword [rdi]", &[0xf2, 0x0f, 0x38, 0xf1, 0x07], Load),
        ("pextrb [rdi], xmm0, 0", &[0x66, 0x0f, 0x3a, 0x14, 0x07, 0x00], Store),
        ("vmovdqu [rdi], ymm0", &[0xc5, 0xfe, 0x7f, 0x07], Store),
        ("vmovdqu ymm0, [rdi]", &[0xc5, 0xfe, 0x6f, 0x07], Load),
        ("vmovdqu [r8], ymm0", &[0xc4, 0xc1, 0x7e, 0x7f, 0x00], Store),
        ("vextractf128 [rdi], ymm0, 1", &[0xc4, 0xe3, 0x7d, 0x19, 0x07, 0x01], Store),
        ("vpbroadcastb ymm0, [rdi]", &[0xc4, 0xe2, 0x7d, 0x78, 0x07], Load),
        ("vmovdqu64 [rdi], zmm0", &[0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x07], Store),
        ("vmovdqu64 zmm0, [rdi]", &[0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x07], Load),
        ("vpmovwb [rdi], zmm0", &[0x62, 0xf2, 0x7e, 0x48, 0x30, 0x07], Unknown),
        ("rep stosb", &[0xf3, 0xaa], Store),
        ("rep movsb", &[0xf3, 0xa4], Move),
        ("push qword [rdi]", &[0xff, 0x37], Unknown),
        ("mov rax, rdi", &[0x48, 0x89, 0xf8], Unknown),
        ("lea rax, [rdi]", &[0x48, 0x8d, 0x07], Unknown),
        ("fxsave [rdi]", &[0x0f, 0xae, 0x07], Unknown),
        ("cut short", &[0x48, 0x89], Unknown),
        ("nothing", &[], Unknown),
    ];

    #[test]
    fn opcodes_are_told_apart() {
        for (name, code, expected) in KNOWN {
            assert_eq!(does(code), *expected, "{name}");
        }
    }

    #[test]
    fn registers_tell_the_two_ends_of_a_copy_apart() {
        let page = crate::sys::page_size().bytes() as u64;
        let registers = |source, destination| {
            Some(UserRegisters { pc: 0, sp: 0, fp: 0, source: source * page, destination: destination * page })
        };
        assert_eq!(Move.at(5 * page + 8, registers(5, 9)), Load);
        assert_eq!(Move.at(9 * page + 8, registers(5, 9)), Store);
        assert_eq!(Move.at(9 * page, registers(9, 9)), Unknown, "both ends are there");
        assert_eq!(Move.at(12 * page, registers(5, 9)), Unknown, "neither is");
        assert_eq!(Move.at(9 * page, None), Move);
        assert_eq!(Load.at(9 * page, registers(5, 9)), Load);
    }
}
