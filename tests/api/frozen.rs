//! Frozen arenas: sealed, private, marked as asked; and handles into them.
#![expect(unsafe_code, reason = "arenas are released, handles are forged")]

use crate::arena::place_of;
use crate::case::{Outcome, child_that_waits, passed, skipped};
use crate::look::{Bytes, first_byte, frozen_pages, frozen_pages_with, original, wait, write};
use cowbell::arena::{Arena, Collapsed, FreezeOptions, Frozen, Handle, HugePages};
use cowbell::fork::{self, ForkOptions};
use cowbell::support::{Availability, Feature, Support};
use cowbell::sys::procfs::smaps::{self, MappingFigures};
use cowbell::sys::{self, Errno, descriptor, page_size, pipe, process};
use libtest_mimic::{Failed, Trial};
use rustix::fs::{FallocateFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

fn nobody_can_write_the_file_of_a_frozen_arena() -> Outcome {
    let frozen = frozen_pages("sealed", 3)?;
    let file = frozen.image().file();
    let len = rustix::fs::fstat(file)?.st_size as u64;
    assert_eq!(len, frozen.image().range().len as u64, "cut to what is used");
    let refused = |file: &dyn Fn() -> rustix::io::Result<()>| assert_eq!(file(), Err(Errno::PERM));
    let reopened =
        File::options().read(true).write(true).open(format!("/proc/self/fd/{}", descriptor::number(&file)))?;
    for file in [file, reopened.as_fd()] {
        refused(&|| rustix::io::write(file, b"x").map(drop));
        refused(&|| rustix::io::pwrite(file, b"x", 4096).map(drop));
        refused(&|| rustix::fs::ftruncate(file, 0));
        refused(&|| rustix::fs::ftruncate(file, len + 4096));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        refused(&|| rustix::fs::fallocate(file, punch, 0, 4096));
        refused(&|| rustix::fs::fallocate(file, FallocateFlags::empty(), len, 4096));
        refused(&|| rustix::fs::fcntl_add_seals(file, SealFlags::FUTURE_WRITE));
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses addresses nobody uses.
        let shared = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, MapFlags::SHARED, file, 0) };
        assert_eq!(shared.err(), Some(Errno::PERM), "no writable shared mapping");
    }
    let mut content = Vec::new();
    File::from(file.try_clone_to_owned()?).read_to_end(&mut content)?;
    assert!(content.iter().zip(0..3 * sys::page_size().bytes()).all(|(&byte, at)| byte == original(at)));
    passed()
}

/// The one mapping of a frozen arena in a process.
fn mapping(pid: i32, frozen: &Frozen<Bytes>) -> Result<MappingFigures, Failed> {
    let mut mappings = smaps::mappings(pid, frozen.image().range())?;
    assert_eq!(mappings.len(), 1, "one mapping for the whole arena: {mappings:?}");
    Ok(mappings.remove(0))
}

fn the_mapping_is_private_and_read_only_here_and_writable_in_a_child() -> Outcome {
    let frozen = frozen_pages("private", 8)?;
    let here = mapping(process::pid(), &frozen)?;
    assert_eq!(here.mapping.permissions, "r--p");
    assert!(!["dd", "lo", "sh", "dc"].iter().any(|flag| here.flags.iter().any(|f| f == flag)), "{:?}", here.flags);
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| write(*frozen, 2))?;
    assert_eq!(mapping(child.pid(), &frozen)?.mapping.permissions, "rw-p");
    assert_eq!(mapping(process::pid(), &frozen)?.mapping.permissions, "r--p", "the child's change is its own");
    assert_eq!(mapping(process::pid(), &frozen)?.anonymous, 0, "no page of the parent is a copy");
    turns.give();
    assert!(wait(&mut child)?.success());
    passed()
}

fn an_arena_is_left_out_of_core_dumps_when_asked() -> Outcome {
    let frozen = frozen_pages_with("undumped", 2, FreezeOptions::new().dump(false))?;
    assert!(mapping(process::pid(), &frozen)?.flags.iter().any(|flag| flag == "dd"));
    passed()
}

fn pages_are_locked_when_asked_and_allowed() -> Outcome {
    let frozen = match frozen_pages_with("locked", 2, FreezeOptions::new().lock(true)) {
        Ok(frozen) => frozen,
        Err(e) if e.is_permission() || e.is_out_of_memory() => return skipped(e.to_string()),
        Err(e) => return Err(e.into()),
    };
    assert!(mapping(process::pid(), &frozen)?.flags.iter().any(|flag| flag == "lo"));
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| write(*frozen, 1))?;
    assert!(!mapping(child.pid(), &frozen)?.flags.iter().any(|flag| flag == "lo"), "a child does not inherit it");
    turns.give();
    assert_eq!(wait(&mut child)?.report.copied_pages().0, 1);
    passed()
}

fn collapsed_pages_are_mapped_by_huge_entries_and_copies_stay_small() -> Outcome {
    let Some(huge) = sys::map::huge_page_size() else { return skipped("this kernel has no huge pages") };
    let pages = 3 * huge / sys::page_size().bytes() - 1;
    let frozen = match frozen_pages_with("huge", pages, FreezeOptions::new().huge_pages(HugePages::Collapse)) {
        Ok(frozen) => frozen,
        Err(e) if e.is_unsupported() => return skipped(e.to_string()),
        Err(e) => return Err(e.into()),
    };
    match frozen.image().collapsed() {
        Collapsed::Whole => {}
        Collapsed::Partly(why) => return skipped(format!("no huge page to be had: {why}")),
        Collapsed::NotAsked => return Err("it was asked".into()),
    }
    assert_eq!(frozen.image().range().start % huge, 0);
    let data: Bytes = frozen.root();
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| {
        assert!(data.iter().enumerate().all(|(at, byte)| byte.load(Ordering::Relaxed) == original(at)));
        write(data, 5);
    })?;
    let there = mapping(child.pid(), &frozen)?;
    assert_eq!(there.huge_file, 2 * huge as u64, "all but the huge page that was split by a write");
    assert_eq!(there.anonymous, sys::page_size().bytes() as u64);
    turns.give();
    assert_eq!(wait(&mut child)?.report.copied_pages().0, 1);
    passed()
}

/// The kernel says EINVAL where one range cannot be collapsed, as it does where none can.
fn a_range_that_does_not_collapse_stays_in_ordinary_pages_and_the_image_says_why() -> Outcome {
    if Support::get().verdict(Feature::Collapse) != &Availability::Works {
        return skipped("MADV_COLLAPSE does not work here, or not now");
    }
    let arena = Arena::builder("kept small").capacity(8 << 20).build()?;
    let value = arena.alloc(7u64)?;
    let range = place_of("kept small").ok_or("its mapping")?;
    // SAFETY: the advice changes no content.
    unsafe { madvise(std::ptr::with_exposed_provenance_mut(range.start), range.len, Advice::LinuxNoHugepage) }?;
    let frozen = arena.freeze_with(&*value, FreezeOptions::new().huge_pages(HugePages::Collapse))?;
    let collapsed = frozen.image().collapsed();
    assert!(matches!(collapsed, Collapsed::Partly(why) if why.contains("MADV_COLLAPSE")), "{collapsed:?}");
    assert_eq!(**frozen, 7);
    passed()
}

fn nothing_is_allocated_from_a_frozen_arena() -> Outcome {
    let arena = Arena::builder("full stop").capacity(1 << 20).build()?;
    let handle = *arena;
    let frozen = arena.freeze(1u8)?;
    let used = frozen.image().used();
    let e = handle.alloc(1u8).err().ok_or("it is frozen")?;
    assert!(e.is_frozen() && e.to_string().contains("`full stop`"), "{e}");
    assert!(handle.alloc_str("x").is_err_and(|e| e.is_frozen()));
    assert!(handle.alloc_iter([1, 2, 3]).is_err_and(|e| e.is_frozen()));
    handle.alloc(())?;
    assert_eq!((handle.used(), handle.is_frozen()), (used, true));
    passed()
}

fn the_original_is_intact_after_children_wrote_everywhere() -> Outcome {
    let frozen = frozen_pages("original", 40)?;
    let data: Bytes = frozen.root();
    let intact = || data.iter().enumerate().all(|(at, byte)| byte.load(Ordering::Relaxed) == original(at));
    for _ in 0..3 {
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            assert!(intact(), "a child begins with the original");
            data.iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
            assert!(data.iter().all(|byte| byte.load(Ordering::Relaxed) == 0), "and sees its own writes");
        })?;
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{:?}", exit.panic);
        assert_eq!(exit.report.copied_pages().0, 40);
        assert!(intact());
    }
    let mut byte = [0];
    File::from(frozen.image().file().try_clone_to_owned()?).read_exact_at(&mut byte, 4096)?;
    assert_eq!(byte[0], original(4096));
    passed()
}

fn a_handle_is_16_bytes_and_means_the_same_object_in_every_child() -> Outcome {
    assert_eq!(size_of::<Handle<[u64; 100]>>(), 16);
    let arena = Arena::builder("handles").capacity(1 << 20).build()?;
    let names = arena.alloc_iter(["a", "b", "c"].map(str::to_owned))?;
    let frozen = arena.freeze_unchecked(&*names)?;
    let handle = frozen.handle(&frozen[1])?;
    let copy = handle;
    assert_eq!((handle.get()?, handle, handle == frozen.handle(&frozen[2])?), (&names[1], copy, false));
    let (from, to) = pipe::pair()?;
    let bytes: [u8; 16] = bytes_of(handle);
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        assert_eq!(handle.get().expect("the same arena"), "b");
        let mut received = [0u8; 16];
        assert_eq!(rustix::io::read(&from, &mut received), Ok(16));
        let received: Handle<String> = handle_of(received);
        assert_eq!(received.get().expect("bytes through a pipe"), "b");
    })?;
    rustix::io::write(&to, &bytes)?;
    let exit = wait(&mut child)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(exit.report.copied_pages().0, 0);
    passed()
}

fn bytes_of<T>(handle: Handle<T>) -> [u8; 16] {
    // SAFETY: a handle is 16 bytes of numbers without padding.
    unsafe { std::mem::transmute(handle) }
}

fn handle_of<T>(bytes: [u8; 16]) -> Handle<T> {
    // SAFETY: any bytes are a handle; a bad one is refused when it is used.
    unsafe { std::mem::transmute(bytes) }
}

fn a_handle_is_refused_after_release_and_on_the_slots_next_arena() -> Outcome {
    let freeze = |value: u64| Arena::builder("again").capacity(1 << 20).build()?.freeze(value);
    let frozen = freeze(1)?;
    let stale = frozen.handle(frozen.root())?;
    assert_eq!(*stale.get()?, 1);
    // SAFETY: nothing in the arena is used any more, but for the handle, which may be.
    unsafe { frozen.release() }?;
    let refused = |handle: Handle<u64>| handle.get().is_err_and(|e| e.is_bad_handle());
    assert!(refused(stale));
    // Places are taken in turn.
    let slot = |handle: Handle<u64>| [bytes_of(handle)[8], bytes_of(handle)[9]];
    let next = loop {
        let next = freeze(2)?;
        if slot(next.handle(next.root())?) == slot(stale) {
            break next;
        }
        assert!(refused(stale));
        // SAFETY: nothing in the arena is used any more.
        unsafe { next.release() }?;
    };
    assert_eq!(*next.handle(next.root())?.get()?, 2);
    assert!(refused(stale), "the arena that took its place is another generation");
    let mut child = fork::spawn(&ForkOptions::new(), |_| assert!(refused(stale)))?;
    assert!(wait(&mut child)?.success(), "a child refuses it, too");
    passed()
}

fn an_object_that_lies_elsewhere_gets_no_handle() -> Outcome {
    static ELSEWHERE: u64 = 1;
    let freeze = |name: &str| Arena::builder(name).capacity(1 << 20).build()?.freeze(7u64);
    let (one, other) = (freeze("one")?, freeze("other")?);
    let heap: &'static u64 = Box::leak(Box::new(3));
    for object in [&ELSEWHERE, heap, other.root()] {
        assert!(one.handle(object).is_err_and(|e| e.is_bad_handle()));
    }
    assert!(one.handle(one.root()).is_ok() && other.handle(other.root()).is_ok());
    passed()
}

fn a_forged_handle_of_another_type_or_place_is_refused() -> Outcome {
    let arena = Arena::builder("forged").capacity(1 << 20).build()?;
    let numbers = arena.alloc_slice(&[1u64, 2, 3])?;
    let frozen = arena.freeze(&*numbers)?;
    let [first, second] = [0, 1].map(|at| frozen.handle(&frozen.root()[at]));
    let [first, second] = [bytes_of(first?), bytes_of(second?)];
    let why = |bytes: [u8; 16]| handle_of::<u64>(bytes).get().err().map(|e| (e.is_bad_handle(), e.to_string()));
    assert_eq!(why(second), None);

    let as_float = handle_of::<f64>(first).get().err().ok_or("it was made for u64")?;
    assert!(as_float.is_bad_handle() && as_float.to_string().contains("type"), "{as_float}");
    assert!(handle_of::<[u8; 8]>(first).get().is_err_and(|e| e.is_bad_handle()));

    // The byte in which the handles differ is the lowest of the offset.
    let offset = first.iter().zip(second).position(|(a, b)| *a != b).ok_or("they mean two places")?;
    let forge = |change: &dyn Fn(u64) -> u64| {
        let mut bytes = first;
        let word: &mut [u8] = &mut bytes[offset..offset + 8];
        let old = u64::from_le_bytes(word.try_into().expect("8 bytes"));
        word.copy_from_slice(&change(old).to_le_bytes());
        bytes
    };
    assert_eq!(why(forge(&|offset| offset + 8)), None, "the forger knows where the offset is");
    for (bytes, word) in [
        (forge(&|offset| offset + 1), "misaligned"),
        (forge(&|offset| offset + (1 << 20)), "bounds"),
        (forge(&|_| u64::MAX), "bounds"),
        (forge(&|_| u64::MAX - 7), "bounds"),
    ] {
        assert!(why(bytes).is_some_and(|(bad, text)| bad && text.contains(word)), "{word}: {:?}", why(bytes));
    }
    passed()
}

fn a_child_forked_before_a_freeze_is_not_touched_by_it() -> Outcome {
    let early = frozen_pages("early", 4)?;
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| write(*early, 1))?;
    let late = frozen_pages("late", 4)?;
    let mut second = fork::spawn(&ForkOptions::new(), |_| {
        write(*early, 2);
        write(*late, 3);
    })?;
    let second = wait(&mut second)?.report;
    assert_eq!(second.arenas.iter().map(|arena| arena.name.as_str()).collect::<Vec<_>>(), ["early", "late"]);
    assert_eq!(second.arenas.iter().map(|arena| arena.copied_pages.0).collect::<Vec<_>>(), [1, 1]);
    turns.give();
    let first = wait(&mut child)?.report;
    assert_eq!((first.arenas.len(), first.copied_pages().0), (1, 1));
    assert_eq!(first_byte(*late, 3).load(Ordering::Relaxed), original(3 * sys::page_size().bytes()));
    passed()
}

/// Reads each page, and tells how many faults that took.
fn faults_of_reading(bytes: &[u8]) -> u64 {
    let before = fork::page_faults();
    let sum = bytes.iter().step_by(page_size().bytes()).fold(0u64, |sum, byte| sum.wrapping_add(u64::from(*byte)));
    std::hint::black_box(sum);
    fork::page_faults() - before
}

fn a_child_that_populates_reads_without_a_fault_and_copies_nothing() -> Outcome {
    const PAGES: usize = 4096;
    let arena = Arena::builder("populated").capacity(PAGES * page_size().bytes() + (1 << 20)).build()?;
    let bytes: &'static [u8] = arena.alloc_slice(&vec![7u8; PAGES * page_size().bytes()])?;
    let frozen = arena.freeze(bytes)?;
    for populate in [false, true] {
        let mut child = fork::spawn(&ForkOptions::new(), |_| {
            if populate {
                frozen.populate().expect("Linux 5.14");
            }
            // Sixteen at a time are mapped by a fault, at the most; a few faults are the program's own.
            i32::from((faults_of_reading(&frozen) < 16) != populate)
        })?;
        let exit = wait(&mut child)?;
        assert!(exit.success(), "{populate}: {exit:?}");
        assert_eq!(exit.report.copied_pages().0, 0);
    }
    passed()
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    claims![
        a_child_that_populates_reads_without_a_fault_and_copies_nothing,
        nobody_can_write_the_file_of_a_frozen_arena,
        the_mapping_is_private_and_read_only_here_and_writable_in_a_child,
        an_arena_is_left_out_of_core_dumps_when_asked,
        pages_are_locked_when_asked_and_allowed,
        collapsed_pages_are_mapped_by_huge_entries_and_copies_stay_small,
        a_range_that_does_not_collapse_stays_in_ordinary_pages_and_the_image_says_why,
        nothing_is_allocated_from_a_frozen_arena,
        the_original_is_intact_after_children_wrote_everywhere,
        a_handle_is_16_bytes_and_means_the_same_object_in_every_child,
        a_handle_is_refused_after_release_and_on_the_slots_next_arena,
        an_object_that_lies_elsewhere_gets_no_handle,
        a_forged_handle_of_another_type_or_place_is_refused,
        a_child_forked_before_a_freeze_is_not_touched_by_it,
    ]
}
