//! Genuine swap: what a swapped-out copy looks like, armed and not.
//!
//! # Safety
//! Swap space is a file of this case; the harness takes it out again, whatever happens.
#![expect(unsafe_code, reason = "swapon is a bare system call")]

use crate::case;
use crate::claim::{ADMIN, Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory, last_errno, mark};
use crate::watcher;
use cowbell::page::PageSet;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry, Pagemap, Query, WRITTEN};
use cowbell::sys::process;
use std::ffi::CString;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

pub const CLAIMS: &[Claim] = &[
    claim!(
        swapped_copies_are_counted on [PrivateMemfd, PrivateFile],
        "A swapped-out copy is SWAPPED and not FILE, in smaps Swap and no longer in Anonymous; the census counts it, and it keeps its content."
    )
    .needs(&[Need::Scan, ADMIN])
    .limit_s(120),
    claim!(
        swapped_file_pages_are_not_copies,
        "When a memfd's own page is swapped out, a mapping that only read it shows nothing there: no copy, and not SWAPPED."
    )
    .needs(&[Need::Scan, ADMIN])
    .limit_s(120),
    claim!(
        swapped_copies_in_an_armed_range_are_told_from_markers,
        "In an armed range a copy that was written and then swapped out is SWAPPED and WRITTEN, a marker only SWAPPED."
    )
    .needs(&[Need::Scan, Need::WpAsync, ADMIN])
    .limit_s(120),
    claim!(
        swapped_copies_armed_again_look_like_markers,
        "A copy that is armed again and then swapped out is SWAPPED and not WRITTEN, as a marker is; only smaps Swap and, for CAP_SYS_ADMIN, the swap entry in pagemap tell them apart."
    )
    .needs(&[Need::Scan, Need::WpAsync, ADMIN])
    .limit_s(120),
    claim!(
        proc_mem_reads_what_is_swapped_out,
        "A read of `/proc/self/mem` gives the content of a copy that was swapped out, in an armed range too."
    )
    .needs(&[Need::Scan, Need::WpAsync, ADMIN])
    .limit_s(120),
];

const SWAP_BYTES: usize = 64 << 20;

/// Gives the machine some swap space.
fn swap_on() -> Verdict {
    let path = case::swap_file();
    let page = cowbell::sys::page_size().bytes();
    // The header of mkswap(8): version 1, the last page's number, no bad pages; a magic at the end.
    let mut header = vec![0u8; page];
    header[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&((SWAP_BYTES / page - 1) as u32).to_ne_bytes());
    header[page - 10..].copy_from_slice(b"SWAPSPACE2");
    let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).expect("a file");
    let zeroes = vec![0u8; 1 << 20];
    for offset in (0..SWAP_BYTES).step_by(zeroes.len()) {
        if let Err(e) = file.write_all_at(&zeroes, offset as u64) {
            return Err(Skip(format!("no room for a swap file: {e}")));
        }
    }
    file.write_all_at(&header, 0).expect("write");
    file.sync_all().expect("fsync");
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL in a path");
    // SAFETY: the call takes a path.
    let done = unsafe { libc::swapon(path.as_ptr(), 0) };
    if done == 0 { Ok(()) } else { Err(Skip(format!("swapon: {}", last_errno()))) }
}

/// Pushes pages out until `gone` says they are.
fn push_out(memory: &Memory, range: Range, gone: impl Fn() -> bool) -> Verdict {
    for _ in 0..2000 {
        memory.advise(range, libc::MADV_PAGEOUT).map_err(|e| Skip(format!("MADV_PAGEOUT: {e}")))?;
        if gone() {
            return Ok(());
        }
        // Pages under writeback stay for a while, and nothing tells when it is over.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(Skip("the kernel does not push these pages out".to_owned()))
}

fn is_out(memory: &Memory, page: usize) -> bool {
    let entry = evidence::entry(memory, page);
    entry.contains(Entry::SWAPPED) && !entry.contains(Entry::PRESENT)
}

fn swapped_copies_are_counted(kind: Kind) -> Verdict {
    swap_on()?;
    let memory = Memory::marked(kind, 32)?;
    memory.load_all();
    for page in [1, 5, 6] {
        memory.store(page, 200);
    }
    assert_eq!((evidence::copied(&memory), evidence::anonymous_pages(&memory)), (pages([1, 5, 6]), 3));
    push_out(&memory, memory.span(5, 2), || is_out(&memory, 5) && is_out(&memory, 6))?;
    let seen = evidence::categories(&memory, 5);
    assert!(seen.contains(Categories::SWAPPED) && !seen.intersects(Categories::FILE | Categories::PRESENT), "{seen:?}");
    let smaps = evidence::smaps(process::pid(), &memory);
    let page = memory.page.bytes() as u64;
    assert_eq!((smaps.swap, smaps.anonymous), (2 * page, page), "smaps");
    assert_eq!(evidence::copied(&memory), pages([1, 5, 6]), "the census counts them");
    assert_eq!((memory.load(5), memory.load(6), memory.in_file(5)), (200, 200, mark(5)), "back from swap");
    assert_eq!(evidence::smaps(process::pid(), &memory).swap, 0);
    assert_eq!(evidence::copied(&memory), pages([1, 5, 6]));
    Ok(())
}

fn swapped_file_pages_are_not_copies() -> Verdict {
    swap_on()?;
    let memory = Memory::marked(Kind::PrivateMemfd, 32)?;
    memory.load_all();
    memory.store(1, 200);
    let none = Entry::PRESENT | Entry::SWAPPED;
    push_out(&memory, memory.span(5, 2), || !evidence::entry(&memory, 5).intersects(none))?;
    assert_eq!(evidence::copied(&memory), pages([1]));
    let smaps = evidence::smaps(process::pid(), &memory);
    assert!(smaps.rss < memory.range.len as u64, "smaps agrees: {} bytes are there", smaps.rss);
    assert_eq!(smaps.anonymous, memory.page.bytes() as u64);
    assert_eq!(memory.load(5), mark(5), "back from swap");
    assert_eq!(evidence::copied(&memory), pages([1]));
    Ok(())
}

fn swapped_copies_in_an_armed_range_are_told_from_markers() -> Verdict {
    swap_on()?;
    let memory = Memory::marked(Kind::PrivateMemfd, 32)?;
    let _uffd = watcher::arm_async(&memory);
    memory.store(5, 200);
    push_out(&memory, memory.at(5), || is_out(&memory, 5))?;
    let (copy, marker) = (evidence::categories(&memory, 5), evidence::categories(&memory, 6));
    assert!(copy.contains(Categories::SWAPPED | Categories::WRITTEN), "{copy:?}");
    assert!(marker.contains(Categories::SWAPPED) && !marker.contains(Categories::WRITTEN), "{marker:?}");
    assert_eq!(evidence::smaps(process::pid(), &memory).swap, memory.page.bytes() as u64, "smaps counts the copy");
    assert_eq!(evidence::copied_armed(&memory), pages([5]), "the census counts the copy");
    assert_eq!(evidence::written(&memory), pages([5]), "the watch still knows it");
    assert_eq!(memory.load(5), 200);
    assert_eq!(evidence::copied_armed(&memory), pages([5]));
    Ok(())
}

fn proc_mem_reads_what_is_swapped_out() -> Verdict {
    swap_on()?;
    for armed in [false, true] {
        let memory = Memory::marked(Kind::PrivateMemfd, 32)?;
        let _uffd = armed.then(|| watcher::arm_async(&memory));
        memory.store(5, 200);
        push_out(&memory, memory.at(5), || is_out(&memory, 5))?;
        assert_eq!(evidence::read_mem(&memory, 5), 200, "armed: {armed}");
    }
    Ok(())
}

fn swapped_copies_armed_again_look_like_markers() -> Verdict {
    swap_on()?;
    let memory = Memory::marked(Kind::PrivateMemfd, 32)?;
    let _uffd = watcher::arm_async(&memory);
    memory.store(5, 200);
    let mut rearmed = PageSet::new();
    let rearm = Query { rearm: true, ..WRITTEN };
    let pagemap = Pagemap::open_self().expect("pagemap");
    pagemap.scan(memory.range, &rearm, |run| evidence::insert(&mut rearmed, &memory, run)).expect("PAGEMAP_SCAN");
    assert_eq!(rearmed, pages([5]));
    assert_eq!(evidence::copied_armed(&memory), pages([5]), "in memory it is counted");
    push_out(&memory, memory.at(5), || is_out(&memory, 5))?;
    assert_eq!(evidence::categories(&memory, 5), evidence::categories(&memory, 6), "a copy and a marker");
    let (copy, marker) = (evidence::entry(&memory, 5), evidence::entry(&memory, 6));
    assert_ne!(copy.frame(), marker.frame(), "the swap entry, for CAP_SYS_ADMIN");
    assert_eq!(evidence::smaps(process::pid(), &memory).swap, memory.page.bytes() as u64, "smaps Swap");
    assert_eq!(evidence::copied_armed(&memory), pages([]), "out of the census' sight until it is read again");
    assert_eq!(memory.load(5), 200);
    assert_eq!(evidence::copied_armed(&memory), pages([5]), "back from swap");
    Ok(())
}
