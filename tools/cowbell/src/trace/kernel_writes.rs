//! The kernel's writes into a thread's own data when it makes the thread and when the thread ends.

use super::baseline::{Was, page_bytes};
use super::entries;
use super::watch::{OpenInterval, Written};
use crate::record::{Event, Mode, WriteClass};
use crate::stacks::instruction;
use cowbell::sys::pagemap::Entry;
use cowbell::sys::remote::RemoteMemory;
use cowbell::sys::{procfs, tracing};

/// The bytes that a C library keeps of a thread from its thread pointer on: glibc's `struct pthread` has 0x900 bytes.
pub const THREAD_DATA: u64 = 0x900;

/// The bytes below its stack pointer that a function may use without saying so (the psABI's red zone; none on aarch64).
const RED_ZONE: u64 = if cfg!(target_arch = "x86_64") { 128 } else { 0 };
/// The frame that the kernel writes for a signal is no larger: with all registers of the largest x86-64 processors 11 KiB.
const SIGNAL_FRAME_MAX: u64 = 16 << 10;

impl OpenInterval {
    /// Tells whether a thread that waits for a page at `address`, with this stack pointer, does so for the kernel, which writes a signal's
    /// frame: no code writes to its own stack below the red zone, but for what asks whether the stack may grow, by an address counted from
    /// the stack pointer. The instruction then is the one that was interrupted. Known of the first thread's stack: other memory may
    /// lie below a stack that a program made for itself.
    pub fn is_signal_frame(&self, pc: u64, sp: u64, address: u64) -> bool {
        let below = sp.saturating_sub(RED_ZONE).saturating_sub(address);
        let map = self.space.find(sp).filter(|map| map.contains(address) && map.mapping.name == "[stack]");
        let mut code = [0; instruction::BYTES_MAX];
        let read = self.memory.read(pc, &mut code).unwrap_or(0);
        map.is_some()
            && (1..=SIGNAL_FRAME_MAX).contains(&below)
            && !instruction::counts_from_stack_pointer(code.get(..read).unwrap_or_default())
    }

    /// Notes pages that the kernel itself wrote while it made the child: those at `from..to` that are no longer shared.
    pub fn written_at_birth(&mut self, from: u64, to: u64, tid: i32, syscall: i32) {
        let page = page_bytes();
        for address in (from / page * page..to).step_by(page as usize) {
            let exclusive = entries::entry(&self.pagemap, address).is_ok_and(|entry| entry.contains(Entry::EXCLUSIVE));
            if exclusive && self.base.at(address) == Some(Was::Private) {
                let (class, time_ns) = (WriteClass::Copy, self.begun_ns);
                self.written.insert(address, Written { class, frame: 0, time_ns });
                if self.mode == Mode::Trace {
                    let syscall = Some(syscall);
                    self.events.push(Event {
                        time_ns,
                        page: address,
                        tid,
                        pc: 0,
                        code: 0,
                        class,
                        syscall,
                        stack: None,
                        caller: 0,
                        byte: None,
                    });
                }
            }
        }
    }

    /// A thread ends, and the kernel will clear its id in the thread's own data and mark the robust mutexes that it holds:
    /// stores that are lost if the page is protected, and with them the wake-up of whoever waits. So these pages are
    /// counted as written (page faults tell it by themselves). Afterwards [`Self::release`] them.
    pub fn thread_ends(&mut self, thread_pointer: u64, tid: i32, time_ns: u64) -> Vec<u64> {
        if self.doors.events.is_none() {
            return Vec::new();
        }
        let page = page_bytes();
        let own = (thread_pointer / page * page..thread_pointer.saturating_add(THREAD_DATA)).step_by(page as usize);
        let mut pages: Vec<u64> = own.chain(robust_words(&self.memory, tid).map(|word| word / page * page)).collect();
        pages.sort_unstable();
        pages.dedup();
        pages.retain(|&page| {
            let protected = entries::entry(&self.pagemap, page).ok().filter(|entry| entry.contains(Entry::UFFD_WP));
            let Some(entry) = protected else { return false };
            if self.mode == Mode::Trace && !self.written.contains_key(&page) {
                let class = self.class_of_write(page, entry);
                self.written.insert(page, Written { class, frame: entry.frame(), time_ns });
                let syscall = Some(procfs::syscall::EXIT_CALL);
                self.events.push(Event {
                    time_ns,
                    page,
                    tid,
                    pc: 0,
                    code: 0,
                    class,
                    syscall,
                    stack: None,
                    caller: 0,
                    byte: None,
                });
            }
            true
        });
        pages
    }
}

/// The words that the kernel changes when a thread ends that holds robust mutexes.
fn robust_words(memory: &RemoteMemory, tid: i32) -> impl Iterator<Item = u64> {
    // The kernel looks at no more entries either: a list may be a ring.
    const ENTRIES_MAX: usize = 2048;
    let word = |address: u64| {
        let mut bytes = [0; 8];
        (memory.read(address, &mut bytes) == Ok(bytes.len())).then(|| u64::from_ne_bytes(bytes))
    };
    // `struct robust_list_head`: the list, the words' distance from its entries, the entry that is being changed. The
    // lowest bit of an entry says that the mutex inherits priority.
    let head = tracing::robust_list(tid).unwrap_or(0);
    let listed = std::iter::successors(word(head), move |&entry| word(entry & !1));
    let listed = listed.take_while(move |&entry| entry & !1 != head).take(ENTRIES_MAX);
    let pending = word(head.wrapping_add(16)).filter(|&entry| entry != 0);
    let offset = word(head.wrapping_add(8)).filter(|_| head != 0);
    let entries: Vec<u64> = listed.chain(pending).collect();
    entries.into_iter().filter_map(move |entry| Some((entry & !1).wrapping_add(offset?)))
}
