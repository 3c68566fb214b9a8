//! Pinned pages: a buffer registered with io_uring is written behind every watch.
//!
//! # Safety
//! The rings are the kernel's memory as io_uring_setup(2) describes it; one request is in flight
//! at a time, and the buffer is a page of a [`Memory`], which is never unmapped.
#![expect(unsafe_code, reason = "rings are shared with the kernel")]

use crate::child;
use crate::claim::{ADMIN, Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, last_errno, mark};
use crate::watcher;
use cowbell::sys::memfd;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        pinning_copies_a_clean_private_page,
        "Registering an I/O buffer on a clean private memfd page copies it at once."
    )
    .needs(&[Need::Scan]),
    claim!(
        pinned_write_goes_round_the_watch on [PrivateMemfd, Anonymous],
        "A write into a registered (pinned) buffer changes an armed page; the protection stays and WRITTEN stays clear."
    )
    .needs(&[Need::Scan, Need::WpAsync]),
    claim!(
        fork_copies_a_pinned_page on [PrivateMemfd, Anonymous],
        "Fork itself copies a pinned page: the child has another frame before anybody writes."
    )
    .needs(&[ADMIN]),
];

/// `struct io_uring_params` of linux/io_uring.h.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq: Offsets,
    cq: Offsets,
}

/// `struct io_sqring_offsets` and `io_cqring_offsets`; `array` is `cqes` in the latter's sixth place.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    fifth: u32,
    sixth: u32,
    seventh: u32,
    reserved: u32,
    user_addr: u64,
}

const _: () = assert!(size_of::<Params>() == 120);

const OFF_SQ_RING: i64 = 0;
const OFF_CQ_RING: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;
const REGISTER_BUFFERS: u32 = 0;
const ENTER_GETEVENTS: u32 = 1;
const OP_READ_FIXED: u8 = 4;
const SQE_BYTES: usize = 64;
const CQE_BYTES: usize = 16;

/// An io_uring that a thread of the kernel's own polls.
pub struct Polled(#[expect(dead_code, reason = "open as long as it lives")] OwnedFd);

impl Polled {
    pub fn new() -> Result<Self, Skip> {
        const SETUP_SQPOLL: u32 = 2;
        open_ring(&mut Params { flags: SETUP_SQPOLL, ..Params::default() }).map(Self)
    }
}

/// `io_uring_setup(1, params)`.
fn open_ring(params: &mut Params) -> Result<OwnedFd, Skip> {
    // SAFETY: the kernel reads and fills the parameters.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut *params) };
    if fd < 0 {
        return Err(Skip(format!("io_uring: {}", last_errno())));
    }
    // SAFETY: it was opened just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

struct Ring {
    fd: OwnedFd,
    params: Params,
    submit: usize,
    complete: usize,
    requests: usize,
}

impl Ring {
    fn new() -> Result<Self, Skip> {
        let mut params = Params::default();
        let fd = open_ring(&mut params)?;
        let submit_bytes = params.sq.seventh as usize + params.sq_entries as usize * size_of::<u32>();
        let complete_bytes = params.cq.sixth as usize + params.cq_entries as usize * CQE_BYTES;
        let submit = map(&fd, submit_bytes, OFF_SQ_RING);
        let complete = map(&fd, complete_bytes, OFF_CQ_RING);
        let requests = map(&fd, params.sq_entries as usize * SQE_BYTES, OFF_SQES);
        Ok(Self { fd, params, submit, complete, requests })
    }

    /// Pins one page.
    fn register(&self, memory: &Memory, page: usize) -> Verdict {
        let range = memory.at(page);
        let buffer = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(range.start), iov_len: range.len };
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel reads one iovec.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_BUFFERS, &raw const buffer, 1) };
        if done == 0 { Ok(()) } else { Err(Skip(format!("IORING_REGISTER_BUFFERS: {}", last_errno()))) }
    }

    /// Reads `file` from its start into the buffer registered; the bytes read.
    fn read_fixed(&self, file: &OwnedFd, memory: &Memory, page: usize) -> i32 {
        let range = memory.at(page);
        let mut request = [0u8; SQE_BYTES];
        request[0] = OP_READ_FIXED;
        request[4..8].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        request[16..24].copy_from_slice(&(range.start as u64).to_ne_bytes());
        request[24..28].copy_from_slice(&(range.len as u32).to_ne_bytes());
        let at = std::ptr::with_exposed_provenance_mut::<[u8; SQE_BYTES]>(self.requests);
        // SAFETY: the first request's place, which the kernel does not look at before it is told.
        unsafe { at.write_volatile(request) };
        self.word(self.submit, self.params.sq.seventh).store(0, Ordering::Release);
        self.word(self.submit, self.params.sq.tail).fetch_add(1, Ordering::Release);
        let fd = self.fd.as_raw_fd();
        // SAFETY: one request, one completion to wait for, no signal mask.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, ENTER_GETEVENTS, 0, 0) };
        assert_eq!(done, 1, "io_uring_enter: {}", last_errno());
        let head = self.word(self.complete, self.params.cq.head);
        let slot =
            head.load(Ordering::Acquire) & self.word(self.complete, self.params.cq.ring_mask).load(Ordering::Relaxed);
        // A completion is user_data (8 bytes), result, flags.
        let result = self.word(self.complete, self.params.cq.sixth + slot * CQE_BYTES as u32 + 8);
        let result = result.load(Ordering::Acquire) as i32;
        head.fetch_add(1, Ordering::Release);
        result
    }

    fn word(&self, ring: usize, offset: u32) -> &AtomicU32 {
        let at = std::ptr::with_exposed_provenance_mut(ring + offset as usize);
        // SAFETY: the kernel's offsets lie in the ring and are aligned; the ring is never unmapped.
        unsafe { AtomicU32::from_ptr(at) }
    }
}

fn map(fd: &OwnedFd, len: usize, offset: i64) -> usize {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: without MAP_FIXED the kernel chooses addresses nobody uses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd.as_raw_fd(), offset) };
    assert_ne!(at, libc::MAP_FAILED, "mmap of a ring: {}", last_errno());
    at.expose_provenance()
}

/// A file whose first page is full of 200.
fn source(memory: &Memory) -> OwnedFd {
    let fd = memfd::create("source").expect("memfd_create");
    rustix::io::pwrite(&fd, &vec![200; memory.page.bytes()], 0).expect("pwrite");
    fd
}

fn pinning_copies_a_clean_private_page() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    memory.load_all();
    let ring = Ring::new()?;
    assert_eq!(evidence::copied(&memory), pages([]), "before");
    ring.register(&memory, 1)?;
    assert_eq!(evidence::copied(&memory), pages([1]), "pinned");
    assert_eq!((memory.load(1), evidence::anonymous_pages(&memory)), (mark(1), 1), "not written");
    Ok(())
}

fn pinned_write_goes_round_the_watch(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 4)?;
    memory.load_all();
    let ring = Ring::new()?;
    ring.register(&memory, 1)?;
    let _uffd = watcher::arm_async(&memory);
    let source = source(&memory);
    assert_eq!(ring.read_fixed(&source, &memory, 1), memory.page.bytes() as i32, "READ_FIXED");
    assert_eq!(memory.load(1), 200, "the page is written");
    assert_eq!(evidence::written(&memory), pages([]), "and the watch saw nothing");
    assert!(evidence::entry(&memory, 1).contains(evidence::WP_BIT), "armed still");
    // The control: the same bytes by a store.
    memory.store(1, 201);
    assert_eq!(evidence::written(&memory), pages([1]));
    Ok(())
}

fn fork_copies_a_pinned_page(kind: Kind) -> Verdict {
    let memory = Memory::marked(kind, 4)?;
    (0..4).for_each(|page| memory.store(page, mark(page)));
    let ring = Ring::new()?;
    ring.register(&memory, 1)?;
    let frame = |page| evidence::entry(&memory, page).frame();
    let before = (frame(1), frame(2));
    child::spawn(|| {
        assert_ne!(frame(1), before.0, "pinned: another frame");
        assert_eq!(frame(2), before.1, "not pinned: the same");
        assert_eq!(memory.load(1), mark(1));
    })
    .finish();
    assert_eq!((frame(1), frame(2)), before, "the parent keeps its own");
    Ok(())
}
