//! A thread's general registers, as ptrace shows them, for the two architectures.

/// The kernel's `struct user_regs_struct` of this architecture.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct UserRegs(libc::user_regs_struct);

impl std::fmt::Debug for UserRegs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserRegs {{ pc: {:#x}, sp: {:#x} }}", self.pc(), self.sp())
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::UserRegs;

    /// The system call instruction: `syscall`.
    pub const CALL: [u8; 2] = [0x0f, 0x05];

    impl UserRegs {
        pub(in super::super) const fn zeroed() -> Self {
            Self(libc::user_regs_struct {
                r15: 0,
                r14: 0,
                r13: 0,
                r12: 0,
                rbp: 0,
                rbx: 0,
                r11: 0,
                r10: 0,
                r9: 0,
                r8: 0,
                rax: 0,
                rcx: 0,
                rdx: 0,
                rsi: 0,
                rdi: 0,
                orig_rax: 0,
                rip: 0,
                cs: 0,
                eflags: 0,
                rsp: 0,
                ss: 0,
                fs_base: 0,
                gs_base: 0,
                ds: 0,
                es: 0,
                fs: 0,
                gs: 0,
            })
        }

        /// The instruction about to run.
        pub fn pc(&self) -> u64 {
            self.0.rip
        }

        /// The stack pointer.
        pub fn sp(&self) -> u64 {
            self.0.rsp
        }

        /// The frame pointer, where the code keeps one.
        pub fn bp(&self) -> u64 {
            self.0.rbp
        }

        /// The return address in a register: this architecture keeps it on the stack.
        pub fn link(&self) -> u64 {
            0
        }

        /// The address of the thread's own data.
        pub fn thread_pointer(&self) -> u64 {
            self.0.fs_base
        }

        /// The number of the system call that the thread is in, or came from.
        pub fn call_number(&self) -> i64 {
            self.0.orig_rax as i64
        }

        /// The first argument of that system call.
        pub fn call_argument(&self) -> u64 {
            self.0.rdi
        }

        /// The result of the last system call: minus errno if negative.
        pub fn result(&self) -> i64 {
            self.0.rax as i64
        }

        /// Does this run 64-bit code?
        pub fn is_native(&self) -> bool {
            const USER_CODE_64: u64 = 0x33;
            self.0.cs == USER_CODE_64
        }

        /// These, about to make a system call with the instruction at `at`.
        pub(in super::super) fn calling(mut self, at: u64, number: i64, arguments: [u64; 3]) -> Self {
            self.0.rip = at;
            self.0.rax = number as u64;
            // No system call is to be restarted before ours.
            self.0.orig_rax = u64::MAX;
            [self.0.rdi, self.0.rsi, self.0.rdx] = arguments;
            self
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::Registers;

    /// The system call instruction: `svc #0`.
    pub const CALL: [u8; 4] = [0x01, 0x00, 0x00, 0xd4];

    impl UserRegs {
        pub(in super::super) const fn zeroed() -> Self {
            Self(libc::user_regs_struct { regs: [0; 31], sp: 0, pc: 0, pstate: 0 })
        }

        /// The instruction about to run.
        pub fn pc(&self) -> u64 {
            self.0.pc
        }

        /// The stack pointer.
        pub fn sp(&self) -> u64 {
            self.0.sp
        }

        /// The frame pointer, where the code keeps one.
        pub fn bp(&self) -> u64 {
            self.0.regs[29]
        }

        /// The return address, where the function has not saved it yet.
        pub fn link(&self) -> u64 {
            self.0.regs[30]
        }

        /// The address of the thread's own data: not among these registers.
        pub fn thread_pointer(&self) -> u64 {
            0
        }

        /// The number of the system call that the thread is in, or came from.
        pub fn call_number(&self) -> i64 {
            self.0.regs[8] as i64
        }

        /// The first argument of that system call; overwritten by its result once it returns.
        pub fn call_argument(&self) -> u64 {
            self.0.regs[0]
        }

        /// The result of the last system call: minus errno if negative.
        pub fn result(&self) -> i64 {
            self.0.regs[0] as i64
        }

        /// Does this run 64-bit code?
        pub fn is_native(&self) -> bool {
            const MODE_32: u64 = 0x10;
            self.0.pstate & MODE_32 == 0
        }

        /// These, about to make a system call with the instruction at `at`.
        pub(in super::super) fn calling(mut self, at: u64, number: i64, arguments: [u64; 3]) -> Self {
            // Set after an indirect jump: where the page is guarded, what is jumped to must then be a landing pad.
            const BRANCH_TYPE: u64 = 3 << 10;
            self.0.pstate &= !BRANCH_TYPE;
            self.0.pc = at;
            self.0.regs[8] = number as u64;
            self.0.regs[..3].copy_from_slice(&arguments);
            self
        }
    }
}

pub use arch::CALL;
