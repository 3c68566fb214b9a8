//! Records as the kernel writes them into a ring: bytes in, meaning out.

use crate::sys::page_size;

/// A page fault as a ring tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// The address that was touched.
    pub address: u64,
    /// The instruction that touched it; the kernel's own if `by_kernel`.
    pub ip: u64,
    /// The process, as numbered where the event was opened.
    pub pid: i32,
    /// The thread, as numbered where the event was opened.
    pub tid: i32,
    /// When the fault began, `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// The kernel touched it on the thread's behalf.
    pub by_kernel: bool,
    /// The page frame that was mapped there before the fault, 0 if there was none: no page, one in swap, the page of zeroes, or one
    /// that may not be read just now. Only with [`super::Options::frames`].
    pub frame: Option<u64>,
    /// The program's registers: of a fault that the kernel took, those with which it made the system call. Only with
    /// [`super::Options::registers`], and not of the kernel's own threads.
    pub registers: Option<UserRegisters>,
}

/// Some of a program's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRegisters {
    /// The instruction; of a system call the one behind it.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, if the code keeps one.
    pub fp: u64,
    /// The place where instructions that copy strings read (`rsi`); 0 on other processors than x86-64.
    pub source: u64,
    /// The place where they write (`rdi`); likewise.
    pub destination: u64,
}

/// The bits of `enum perf_event_x86_regs`: SI, DI, BP, SP, IP. They are stored in this order.
#[cfg(target_arch = "x86_64")]
pub(super) const REGISTERS: u64 = 0b1_1111 << 4;
/// The bits of `enum perf_event_arm_regs`: X29, SP, PC. They are stored in this order.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const REGISTERS: u64 = 1 << 29 | 0b11 << 31;

/// Code was mapped, or mapped memory was made executable (`PERF_RECORD_MMAP2`): what was there before is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedCode<'a> {
    /// The process.
    pub pid: i32,
    /// When, `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Offset into the file.
    pub offset: u64,
    /// The file's device, major and minor.
    pub device: (u32, u32),
    /// The file's inode; 0 where there is no file.
    pub inode: u64,
    /// The file's path, or a name in brackets as in `/proc/PID/maps`; `//anon` where there is no file.
    pub name: &'a [u8],
}

/// An entry of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingRecord<'a> {
    /// A page fault.
    Fault(FaultRecord),
    /// Code was mapped. Only with [`super::Options::code`].
    Mapped(MappedCode<'a>),
    /// So many records did not fit into the ring. The last ones lost may never be told so: [`super::PerfEvent::counts`] is exact.
    Lost(u64),
    /// Anything else.
    Other,
    /// The ring holds what is no record, so the rest of it was passed over.
    Broken,
}

const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;
const RECORD_MMAP2: u32 = 10;
const CPUMODE_MASK: u16 = 7;
const CPUMODE_KERNEL: u16 = 1;
/// `struct perf_event_header`: `__u32 type; __u16 misc; __u16 size`.
const HEADER: usize = 8;
/// A sample's size.
const SAMPLE_SIZE: usize = 40;
/// And where it tells of frames.
const SAMPLE_FRAME_SIZE: usize = 48;
/// The size of one that tells of registers, behind a word that is 0 if there are none.
const SAMPLE_REGISTERS_SIZE: usize = 48 + 8 * REGISTERS.count_ones() as usize;
/// Longer records are passed over: only a path can make one so long.
const RECORD_MAX: usize = 1024;
/// The offset of a [`RECORD_MMAP2`]'s name; what stands behind the name are thread and time.
const NAME: usize = 72;
const NAME_TAIL: usize = 16;

/// The records between two positions of a ring of `len` bytes, of which `copy` copies bytes out.
pub(super) fn each(begin: u64, end: u64, len: u64, copy: impl Fn(u64, &mut [u8]), seen: &mut impl FnMut(RingRecord)) {
    if end.wrapping_sub(begin) > len {
        return seen(RingRecord::Broken);
    }
    let mut buffer = [0u8; RECORD_MAX];
    let mut at = begin;
    while at != end {
        let left = end.wrapping_sub(at);
        let (header, body) = buffer.split_at_mut(HEADER);
        if left < HEADER as u64 {
            return seen(RingRecord::Broken);
        }
        copy(at, header);
        let size = half(header, 6);
        if usize::from(size) < HEADER || u64::from(size) > left {
            return seen(RingRecord::Broken);
        }
        match body.get_mut(..usize::from(size) - HEADER) {
            Some(body) => {
                copy(at.wrapping_add(HEADER as u64), body);
                seen(parse(buffer.get(..usize::from(size)).unwrap_or_default()));
            }
            None => seen(RingRecord::Other),
        }
        at = at.wrapping_add(u64::from(size));
    }
}

/// The meaning of a whole record.
fn parse(record: &[u8]) -> RingRecord<'_> {
    match word(record, 0) as u32 {
        RECORD_SAMPLE if record.len() >= SAMPLE_SIZE => RingRecord::Fault(FaultRecord {
            ip: word(record, 8),
            pid: word(record, 16) as i32,
            tid: (word(record, 16) >> 32) as i32,
            time_ns: word(record, 24),
            address: word(record, 32),
            by_kernel: half(record, 4) & CPUMODE_MASK == CPUMODE_KERNEL,
            frame: (record.len() == SAMPLE_FRAME_SIZE).then(|| word(record, 40) / page_size().bytes() as u64),
            registers: (record.len() >= SAMPLE_REGISTERS_SIZE).then(|| registers(record)),
        }),
        RECORD_LOST if record.len() >= 24 => RingRecord::Lost(word(record, 16)),
        RECORD_MMAP2 if record.len() >= NAME + NAME_TAIL => {
            let name = record.get(NAME..record.len() - NAME_TAIL).unwrap_or_default();
            RingRecord::Mapped(MappedCode {
                pid: word(record, 8) as i32,
                time_ns: word(record, record.len() - 8),
                start: word(record, 16),
                len: word(record, 24),
                offset: word(record, 32),
                device: (word(record, 40) as u32, (word(record, 40) >> 32) as u32),
                inode: word(record, 48),
                name: name.split(|&byte| byte == 0).next().unwrap_or_default(),
            })
        }
        RECORD_SAMPLE | RECORD_LOST | RECORD_MMAP2 => RingRecord::Broken,
        _ => RingRecord::Other,
    }
}

/// The registers of a sample that has them.
fn registers(sample: &[u8]) -> UserRegisters {
    let register = |nth: usize| word(sample, 48 + 8 * nth);
    if cfg!(target_arch = "x86_64") {
        let [source, destination, fp, sp, pc] = [0, 1, 2, 3, 4].map(register);
        UserRegisters { pc, sp, fp, source, destination }
    } else {
        let [fp, sp, pc] = [0, 1, 2].map(register);
        UserRegisters { pc, sp, fp, source: 0, destination: 0 }
    }
}

/// Eight bytes as the kernel stores a number; 0 beyond the end.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |&chunk| u64::from_le_bytes(chunk))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |&chunk| u16::from_le_bytes(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u64 = 128;

    /// The records that a ring of 128 bytes tells between two positions.
    fn told(ring: &[u8], begin: u64, end: u64) -> Vec<RingRecord<'static>> {
        let mut seen = Vec::new();
        let copy = |at: u64, into: &mut [u8]| {
            for (nth, byte) in (0..).zip(into) {
                *byte = ring.get((at.wrapping_add(nth) % LEN) as usize).copied().unwrap_or(0);
            }
        };
        each(begin, end, LEN, copy, &mut |record| {
            seen.push(match record {
                RingRecord::Fault(fault) => RingRecord::Fault(fault),
                RingRecord::Lost(count) => RingRecord::Lost(count),
                RingRecord::Mapped(_) | RingRecord::Other => RingRecord::Other,
                RingRecord::Broken => RingRecord::Broken,
            });
        });
        seen
    }

    fn put(ring: &mut [u8], at: u64, record: &[u8]) {
        for (nth, &byte) in (0..).zip(record) {
            ring[(at.wrapping_add(nth) % LEN) as usize] = byte;
        }
    }

    fn header(kind: u32, misc: u16, size: u16) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &misc.to_le_bytes(), &size.to_le_bytes()].concat()
    }

    fn sample(misc: u16, fault: FaultRecord) -> Vec<u8> {
        let thread = fault.pid as u64 | (fault.tid as u64) << 32;
        let words = [fault.ip, thread, fault.time_ns, fault.address];
        [header(RECORD_SAMPLE, misc, SAMPLE_SIZE as u16), words.map(u64::to_le_bytes).concat()].concat()
    }

    const FAULT: FaultRecord = FaultRecord {
        address: 0x7000_0123,
        ip: 0x40_1000,
        pid: 7,
        tid: 9,
        time_ns: 1 << 40,
        by_kernel: false,
        frame: None,
        registers: None,
    };

    #[test]
    fn a_sample_over_the_end_of_the_ring_is_read_whole() {
        let mut ring = [0; LEN as usize];
        let begin = 5 * LEN - 16;
        put(&mut ring, begin, &sample(2, FAULT));
        put(&mut ring, begin + 40, &sample(1, FAULT));
        let expected = [FAULT, FaultRecord { by_kernel: true, ..FAULT }].map(RingRecord::Fault);
        assert_eq!(told(&ring, begin, begin + 80), expected);
    }

    #[test]
    fn a_longer_sample_tells_the_frame() {
        let mut ring = [0; LEN as usize];
        let frame = 0x12_3456 * page_size().bytes() as u64 + 0x123;
        let mut record = sample(2, FAULT);
        record.extend(frame.to_le_bytes());
        record[6..8].copy_from_slice(&(SAMPLE_FRAME_SIZE as u16).to_le_bytes());
        put(&mut ring, 0, &record);
        assert_eq!(told(&ring, 0, 48), [RingRecord::Fault(FaultRecord { frame: Some(0x12_3456), ..FAULT })]);
    }

    #[test]
    fn a_sample_with_registers_tells_them() {
        let words = 1..=u64::from(REGISTERS.count_ones());
        let mut record = sample(2, FAULT);
        record.extend([2u64].into_iter().chain(words).flat_map(u64::to_le_bytes));
        let expected = if cfg!(target_arch = "x86_64") {
            UserRegisters { source: 1, destination: 2, fp: 3, sp: 4, pc: 5 }
        } else {
            UserRegisters { source: 0, destination: 0, fp: 1, sp: 2, pc: 3 }
        };
        assert_eq!(parse(&record), RingRecord::Fault(FaultRecord { registers: Some(expected), ..FAULT }));
    }

    #[test]
    fn lost_records_are_counted_and_unknown_ones_passed() {
        let mut ring = [0; LEN as usize];
        put(
            &mut ring,
            0,
            &[header(RECORD_LOST, 0, 24), 3u64.to_le_bytes().to_vec(), 77u64.to_le_bytes().to_vec()].concat(),
        );
        put(&mut ring, 24, &header(5, 0, 64));
        put(&mut ring, 88, &sample(2, FAULT));
        assert_eq!(told(&ring, 0, 128), [RingRecord::Lost(77), RingRecord::Other, RingRecord::Fault(FAULT)]);
    }

    #[test]
    fn a_mapping_has_its_name_and_its_time() {
        let words = [7 | 9 << 32, 0x7000_0000, 0x2000, 0x1000, 8 | 1 << 32, 77, 0, 5 | 2 << 32];
        let mut record = header(RECORD_MMAP2, 2, 104);
        record.extend(words.map(u64::to_le_bytes).concat());
        record.extend(b"/lib/x.so\0\0\0\0\0\0\0");
        record.extend([7u64 | 9 << 32, 1 << 40].map(u64::to_le_bytes).concat());
        let expected = MappedCode {
            pid: 7,
            time_ns: 1 << 40,
            start: 0x7000_0000,
            len: 0x2000,
            offset: 0x1000,
            device: (8, 1),
            inode: 77,
            name: b"/lib/x.so",
        };
        assert_eq!(parse(&record), RingRecord::Mapped(expected));
        assert_eq!(parse(&record[..80]), RingRecord::Broken, "too short");
    }

    #[test]
    fn positions_go_on_behind_the_largest_number() {
        let mut ring = [0; LEN as usize];
        let begin = u64::MAX - 15;
        put(&mut ring, begin % LEN, &sample(2, FAULT));
        assert_eq!(told(&ring, begin, begin.wrapping_add(40)), [RingRecord::Fault(FAULT)]);
    }

    #[test]
    fn what_is_no_record_ends_the_reading() {
        let ring = [0; LEN as usize];
        assert_eq!(told(&ring, 0, 64), [RingRecord::Broken], "a record of no length");
        assert_eq!(told(&ring, 0, 3 * LEN), [RingRecord::Broken], "more than the ring holds");
        let mut short = [0; LEN as usize];
        put(&mut short, 0, &header(RECORD_SAMPLE, 0, 16));
        put(&mut short, 16, &header(RECORD_LOST, 0, 200));
        assert_eq!(told(&short, 0, 64), [RingRecord::Broken, RingRecord::Broken], "too short, and too long");
        assert_eq!(told(&short, 0, 4), [RingRecord::Broken], "less than a header");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(ring in prop::collection::vec(any::<u8>(), LEN as usize), begin: u64, len in 0..300u64) {
            let records = told(&ring, begin, begin.wrapping_add(len));
            prop_assert!(records.len() as u64 <= len.div_ceil(HEADER as u64));
        }
    }
}
