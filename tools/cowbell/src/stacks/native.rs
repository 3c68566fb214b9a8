//! Native stacks of another process: by the unwind information in its files, else by frame pointers.
//!
//! Distributions compile without frame pointers, so what exceptions are unwound by (`.eh_frame`) is the rule and not
//! the exception. Files are read once, however many processes map them.

use super::FRAMES_MAX;
use super::elf::{self, ElfFile, LoadLayout, UnwindSections};
use framehop::{CacheNative, MayAllocateDuringUnwind, Module, Unwinder as _, UnwinderNative};
use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// The registers that unwinding starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwindRegisters {
    /// The instruction.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer, which is any other value in code that keeps none; `None` where it is not known.
    pub bp: Option<u64>,
    /// The address to which the function returns, on aarch64.
    pub lr: u64,
}

/// The value that stands for a frame pointer that is not known: no process has memory near it.
const NO_BP: u64 = 1 << 60;

/// A file's unwind information.
#[derive(Clone)]
pub struct Unwinding {
    layout: LoadLayout,
    sections: UnwindSections,
}

impl Unwinding {
    /// Reads a file, or the kernel's own code by its name in /proc/PID/maps.
    pub fn read(name: &str, file: Option<&File>) -> Option<Self> {
        if name == "[vdso]" {
            let bytes = elf::vdso()?;
            let image = ElfFile::parse(bytes.as_slice())?;
            return Some(Self { layout: image.layout(), sections: image.unwinding() });
        }
        elf::with_file(file?, |image| Some(Self { layout: image.layout(), sections: image.unwinding() }))
    }
}

/// Unwinds the stacks of one process, as long as it maps the code that was added here.
#[derive(Default)]
pub struct Unwinder {
    framehop: UnwinderNative<Arc<[u8]>, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
    /// The ranges in which code can be, ascending.
    code: Vec<Range<u64>>,
}

/// An unwound stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwound {
    /// The frames, the innermost first.
    pub frames: Vec<u64>,
    /// The address to which it leads on, if no code that was added lies there.
    pub beyond: Option<u64>,
}

impl Unwinder {
    /// Adds mapped code, in order of address. `offset`: where in its file it begins; `unwinding`: that of the file.
    pub fn add(&mut self, addresses: Range<u64>, offset: u64, name: &str, unwinding: Option<&Unwinding>) {
        self.code.push(addresses.clone());
        let module = unwinding.and_then(|Unwinding { layout, sections }| {
            let part = offset..offset.checked_add(addresses.end.checked_sub(addresses.start)?)?;
            let bias = layout.bias(addresses.start, part)?;
            Some(Module::new(name.to_owned(), addresses, bias, sections.clone()))
        });
        if let Some(module) = module {
            self.framehop.add_module(module);
        }
    }

    /// The place where the function at `pc` keeps the address it returns to, counted from the stack pointer, if unwind information
    /// says so without asking for another register.
    ///
    /// The machine that is unwound here is made up: each word of its memory holds its own address, so what is taken for the
    /// return address tells where that was read.
    pub fn return_slot(&mut self, pc: u64) -> Option<u64> {
        const SP: u64 = 1 << 40;
        const BP: u64 = 1 << 44;
        /// Frames are shorter.
        const SLOT_MAX: u64 = 1 << 20;
        let Self { framehop, cache, .. } = self;
        let from = native_registers(UnwindRegisters { ip: pc, sp: SP, bp: Some(BP), lr: 0 }, u64::MAX);
        let mut read = |address| Ok(address);
        let mut frames = framehop.iter_frames(pc, from, cache, &mut read);
        let _innermost = frames.next().ok()??;
        let slot = frames.next().ok()??.address().checked_sub(SP)?;
        (slot < SLOT_MAX && slot.is_multiple_of(8)).then_some(slot)
    }

    /// The stack of a thread that stands still, the innermost frame first: its instruction, then for each caller an
    /// address **within the call** rather than the one it returns to, which may belong to the next line or function.
    ///
    /// `read` reads an aligned word of the thread's memory. At most 64 frames; where the stack stops making sense, those
    /// up to there. `None` if it takes the frame pointer, and that is not known.
    pub fn stack(&mut self, registers: UnwindRegisters, read: &mut dyn FnMut(u64) -> Option<u64>) -> Option<Unwound> {
        let Self { framehop, cache, code } = self;
        let is_code = |address: u64| {
            let after = code.partition_point(|range| range.start <= address);
            after.checked_sub(1).and_then(|at| code.get(at)).is_some_and(|range| range.contains(&address))
        };
        let lacks_bp = Cell::new(false);
        let is_unknown = |address: u64| registers.bp.is_none() && address >= NO_BP / 2;
        // A read that fails would make the unwinder remember a rule without unwind information for this code; zero ends the stack.
        let mut read = |address: u64| {
            if is_unknown(address) {
                lacks_bp.set(true);
                return Ok(0);
            }
            read(address).ok_or(())
        };
        let from = native_registers(registers, framehop.max_known_code_address());
        let mut frames = framehop.iter_frames(registers.ip, from, cache, &mut read);
        let mut stack = Unwound::default();
        while let Ok(Some(frame)) = frames.next() {
            let address = frame.address_for_lookup();
            lacks_bp.set(lacks_bp.get() || is_unknown(address));
            if stack.frames.len() == FRAMES_MAX {
                break;
            }
            // A frame pointer that was none leads to what is no code. The instruction itself is beyond doubt.
            if !stack.frames.is_empty() && !is_code(address) {
                stack.beyond = Some(address);
                break;
            }
            stack.frames.push(address);
        }
        (!lacks_bp.get()).then_some(stack)
    }
}

#[cfg(target_arch = "x86_64")]
fn native_registers(registers: UnwindRegisters, _code_max: u64) -> framehop::UnwindRegsNative {
    framehop::UnwindRegsNative::new(registers.ip, registers.sp, registers.bp.unwrap_or(NO_BP))
}

#[cfg(target_arch = "aarch64")]
fn native_registers(registers: UnwindRegisters, code_max: u64) -> framehop::UnwindRegsNative {
    // Return addresses may be signed in the bits above those that addresses need.
    let mask = framehop::aarch64::PtrAuthMask::from_max_known_address(code_max);
    framehop::UnwindRegsNative::new_with_ptr_auth_mask(mask, registers.lr, registers.sp, registers.bp.unwrap_or(NO_BP))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Directory, Program, mappings};
    use super::*;
    use crate::record::Mapping;
    use cowbell::sys::{ptrace, remote};
    use std::path::Path;
    use std::process::Command;

    /// Says where its functions are, then waits for its input in the innermost.
    const NESTED: &str = r#"
#include <stdio.h>
#include <unistd.h>
int inner(char *room) { char c = 0; read(0, &c, 1); room[0] = c; return c + 1; }
#ifdef FAR_FRAME
int middle(int n);
__asm__(".globl middle\nmiddle:\n.cfi_startproc\nsub $24,%rsp\n.cfi_def_cfa_offset 32\nmov %rbp,16(%rsp)\n.cfi_offset rbp,-16\n"
        "mov %rsp,%rbp\n.cfi_def_cfa rbp,32\nsub $208,%rsp\nmov %rsp,%rdi\ncall inner\nmov %rbp,%rsp\nmov 16(%rsp),%rbp\n"
        ".cfi_def_cfa rsp,32\nadd $24,%rsp\n.cfi_def_cfa_offset 8\nret\n.cfi_endproc\n");
#else
int middle(int n) { char room[200]; room[1] = n; return inner(room) + room[1]; }
#endif
int outer(int n) { volatile int seven = 7; return middle(n) * seven; }
int main(void) {
    printf("%p %p %p %p\n", (void *)inner, (void *)middle, (void *)outer, (void *)main);
    fflush(stdout);
    return outer(3) > 5;
}
"#;

    /// The unwinder of a process that maps this.
    fn unwinder(mappings: &[Mapping]) -> Unwinder {
        let mut unwinder = Unwinder::default();
        for mapping in mappings.iter().filter(|mapping| mapping.permissions.contains('x')) {
            let unwinding = Unwinding::read(&mapping.name, elf::open(Path::new(&mapping.name)).as_ref());
            unwinder.add(mapping.start..mapping.end, mapping.offset, &mapping.name, unwinding.as_ref());
        }
        unwinder
    }

    /// Compiles and runs it, and tells which of its functions are on its stack, the innermost first.
    fn functions_on_the_stack(flags: &[&str], without_unwind_information: bool) -> Vec<usize> {
        let directory = Directory::new();
        let flags = [&["-O2", "-fno-inline", "-fno-ipa-icf"], flags].concat();
        let mut program = Program::start(&mut Command::new(directory.compile(NESTED, &flags)));
        let line = program.line();
        let functions: Vec<_> = line.split(' ').map(|f| u64::from_str_radix(&f[2..], 16).unwrap()).collect();
        let pid = program.pid();
        program.wait_until_reading(pid, pid);
        let (registers, memory) = (registers(pid), remote::RemoteMemory::open(pid).unwrap());
        let keeps_frames = flags.contains(&"-fno-omit-frame-pointer");
        let mut unwinder = unwinder(&mappings(pid));
        if without_unwind_information {
            unwinder.framehop = UnwinderNative::default();
        }
        // Asked first, so that what an unknown frame pointer leads to is not remembered.
        let unknown = UnwindRegisters { bp: None, ..registers };
        let without = unwinder.stack(unknown, &mut |address| read(&memory, address)).map(|unwound| unwound.frames);
        let stack = unwinder.stack(registers, &mut |address| read(&memory, address)).unwrap().frames;
        let unwound_again = unwinder.stack(registers, &mut |address| read(&memory, address)).unwrap().frames;
        assert_eq!(stack, unwound_again, "the rules are cached now");
        // Without the frame pointer the stack is the same, or there is none.
        assert!(without.as_ref().is_none_or(|without| *without == stack), "{without:x?} {stack:x?}");
        if cfg!(target_arch = "x86_64") {
            assert_eq!(without.is_some(), !keeps_frames, "{flags:?}");
        }
        assert_eq!(stack[0], registers.ip);
        // The functions are short, and main may be followed by the code that calls it.
        let starts_before = |pc: &u64, f: &usize| functions[*f] <= *pc && *pc < functions[*f] + 0x100;
        let function = |pc| (0..functions.len()).filter(|f| starts_before(pc, f)).max_by_key(|f| functions[*f]);
        let mut functions: Vec<_> = stack.iter().filter_map(function).collect();
        functions.dedup();
        functions
    }

    /// Stops a thread for a moment.
    fn registers(tid: i32) -> UnwindRegisters {
        ptrace::seize(tid, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(tid).unwrap();
        ptrace::wait(Some(tid), true).unwrap();
        let registers = ptrace::registers(tid).unwrap();
        ptrace::detach(tid, 0).unwrap();
        // The link register is not among what the library tells, and not needed on x86-64.
        UnwindRegisters { ip: registers.pc(), sp: registers.sp(), bp: Some(registers.bp()), lr: 0 }
    }

    fn read(memory: &remote::RemoteMemory, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        (memory.read(address, &mut word) == Ok(word.len())).then(|| u64::from_ne_bytes(word))
    }

    #[test]
    fn without_frame_pointers_every_caller_is_on_the_stack() {
        let flags = ["-fomit-frame-pointer"];
        assert_eq!(functions_on_the_stack(&flags, false), [0, 1, 2, 3]);
        assert_eq!(functions_on_the_stack(&[flags[0], "-no-pie"], false), [0, 1, 2, 3], "at fixed addresses");
        assert_eq!(functions_on_the_stack(&[flags[0], "-static"], false), [0, 1, 2, 3], "statically linked");
        assert_eq!(functions_on_the_stack(&[flags[0], "-s"], false), [0, 1, 2, 3], "stripped");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_stack_that_takes_a_frame_pointer_which_is_not_known_is_none() {
        // By unwind information of functions that keep frame pointers, and without any.
        assert_eq!(functions_on_the_stack(&["-fno-omit-frame-pointer"], false), [0, 1, 2, 3]);
        // By a rule that is worked out anew each time, as libffi's and libcrypto's assembler has it.
        assert_eq!(functions_on_the_stack(&["-fno-omit-frame-pointer", "-DFAR_FRAME"], false), [0, 1, 2, 3]);
        let mut unwinder = Unwinder { code: vec![0x1000..0x2000, 0x5000..0x6000], ..Unwinder::default() };
        let registers = UnwindRegisters { ip: 0x1004, sp: 0x8000, bp: None, lr: 0 };
        assert_eq!(unwinder.stack(registers, &mut |_| Some(0x1100)), None);
    }

    #[test]
    fn without_unwind_information_frame_pointers_lead_the_way() {
        // The C library's read() keeps no frame, so that the frame pointer is still its caller's and that one is missed.
        let functions = functions_on_the_stack(&["-fno-omit-frame-pointer"], true);
        assert!(functions.ends_with(&[1, 2, 3]), "{functions:?}");
    }

    #[test]
    fn a_stack_that_leads_to_itself_ends() {
        let mut unwinder = Unwinder { code: vec![0x1000..0x2000, 0x5000..0x6000], ..Unwinder::default() };
        for word in [0x1008, 0x1800, 0, u64::MAX] {
            let registers = UnwindRegisters { ip: 0x1004, sp: 0x1000, bp: Some(0x1008), lr: 0x1010 };
            assert!(unwinder.stack(registers, &mut |_| Some(word)).unwrap().frames.len() <= FRAMES_MAX);
        }
    }

    #[test]
    fn a_deep_stack_is_cut_and_one_in_no_code_ends() {
        // Each frame keeps its caller's frame pointer, and above that where it returns to.
        let mut deep = |address: u64| Some(if address.is_multiple_of(16) { address + 16 } else { 0x1100 });
        let registers = UnwindRegisters { ip: 0x1004, sp: 0x8000, bp: Some(0x8000), lr: 0x1010 };
        let mut unwinder = Unwinder { code: vec![0x1000..0x2000, 0x5000..0x6000], ..Unwinder::default() };
        let stack = unwinder.stack(registers, &mut deep).unwrap().frames;
        assert_eq!((stack.len(), stack[0], stack[2]), (FRAMES_MAX, 0x1004, 0x10ff));
        unwinder.code = vec![0x0..0x1000, 0x3000..0x4000];
        let stack = unwinder.stack(registers, &mut deep).unwrap();
        assert_eq!(stack, Unwound { frames: vec![0x1004], beyond: Some(0x10ff) }, "code that is not known may be new");
        assert_eq!(unwinder.stack(registers, &mut |_| None).unwrap().frames[0], 0x1004);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_function_without_a_frame_returns_to_the_word_at_the_stack_pointer() {
        let directory = Directory::new();
        let mut program = Program::start(&mut Command::new(directory.compile(NESTED, &["-O2", "-fno-inline"])));
        let inner = u64::from_str_radix(&program.line().split(' ').next().unwrap()[2..], 16).unwrap();
        let pid = program.pid();
        program.wait_until_reading(pid, pid);
        let mut unwinder = unwinder(&mappings(pid));
        assert_eq!(unwinder.return_slot(inner), Some(0), "at its first instruction each function has no frame");
        let slots: Vec<_> = (1..24).filter_map(|at| unwinder.return_slot(inner + at)).collect();
        assert!(slots.iter().any(|slot| *slot >= 16), "then one that is counted: {slots:?}");
        assert_eq!(unwinder.return_slot(0x1000), None, "no code");
        // With a frame pointer the stack pointer does not tell.
        unwinder.framehop = UnwinderNative::default();
        unwinder.cache = CacheNative::default();
        assert_eq!(unwinder.return_slot(inner), None);
    }

    #[test]
    fn files_that_are_gone_leave_their_code_to_frame_pointers() {
        let gone = super::super::fixture::code_at(0x1000, 0, 0x1000, Path::new("/nonexistent (deleted)"));
        let unwinder = unwinder(&[gone]);
        let [code] = &unwinder.code[..] else { panic!() };
        assert_eq!((code, unwinder.framehop.max_known_code_address()), (&(0x1000..0x2000), 0));
    }

    #[test]
    #[ignore = "measures, claims nothing"]
    fn costs() {
        let mut program = Program::start(Command::new("python3").args(["-c", "print(flush=True); input()"]));
        program.line();
        let pid = program.pid();
        program.wait_until_reading(pid, pid);
        let (registers, mappings) = (registers(pid), mappings(pid));
        let memory = remote::RemoteMemory::open(pid).unwrap();
        let time = |what: &str, n: u32, f: &mut dyn FnMut()| {
            let start = std::time::Instant::now();
            (0..n).for_each(|_| f());
            eprintln!("{what}: {:.1} µs", start.elapsed().as_secs_f64() * 1e6 / f64::from(n));
        };
        time("files read", 1, &mut || drop(unwinder(&mappings)));
        let mut unwinder = unwinder(&mappings);
        let mut reads = 0;
        let mut stack = || {
            unwinder
                .stack(registers, &mut |address| {
                    reads += 1;
                    read(&memory, address)
                })
                .unwrap()
        };
        time("first stack", 1, &mut || drop(stack()));
        time("stack", 1000, &mut || drop(stack()));
        eprintln!("{} frames, {} reads", stack().frames.len(), reads / 1002);
    }
}
