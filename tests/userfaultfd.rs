//! Our userfaultfd beside the userfaultfd crate's: each watches what the other armed.
//!
//! Built with the feature `userfaultfd` only, which needs libclang.
#![expect(unsafe_code, reason = "pages are armed and written")]

use cowbell::sys::map::{self, Range};
use cowbell::sys::uffd::{Door, Features, Uffd, UffdMessage};
use std::os::fd::AsFd;
use std::time::Duration;
use userfaultfd::{FeatureFlags, RegisterMode, UffdBuilder};

/// Writes to the first byte of a range from another thread; the write waits until the page is let go.
fn write_elsewhere(range: Range) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let byte = map::pointer_at(range.start).expect("an address");
        // SAFETY: the range is mapped read-write, and nobody else uses it.
        unsafe { byte.write_volatile(1) };
    })
}

fn touched_page() -> Range {
    let range = map::anonymous(cowbell::sys::page_size().bytes()).expect("memory");
    let byte = map::pointer_at(range.start).expect("an address");
    // SAFETY: the range was just mapped read-write. A page must be there before it can be armed.
    unsafe { byte.write_volatile(0) };
    range
}

#[test]
fn the_crate_reads_the_write_to_a_page_that_we_armed() {
    let range = touched_page();
    let ours = Uffd::open(Door::UserModeOnly, Features::PAGEFAULT_FLAG_WP).expect("userfaultfd");
    // SAFETY: the page is ours; its writer waits for us.
    unsafe { ours.register(range) }.expect("register");
    // SAFETY: as above.
    unsafe { ours.write_protect(range, true) }.expect("arm");
    let theirs = userfaultfd::Uffd::from(ours);
    let writer = write_elsewhere(range);
    assert!(cowbell::sys::pidfd::readable(theirs.as_fd(), Some(Duration::from_secs(10))).expect("poll"));
    let event = theirs.read_event().expect("an event").expect("a message");
    let userfaultfd::Event::Pagefault { addr, .. } = event else { panic!("{event:?}") };
    assert_eq!(addr.addr(), range.start);
    theirs.remove_write_protection(addr, range.len, true).expect("let go");
    writer.join().expect("the write went on");
}

#[test]
fn we_read_the_write_to_a_page_that_the_crate_armed() {
    let range = touched_page();
    let theirs = UffdBuilder::new()
        .non_blocking(true)
        .user_mode_only(true)
        .require_features(FeatureFlags::PAGEFAULT_FLAG_WP)
        .create();
    let theirs = match theirs {
        Ok(theirs) => theirs,
        // The crate opens the device where there is one, and this user may not.
        Err(e) => return println!("skipped: the userfaultfd crate: {e}"),
    };
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    theirs.register_with_mode(start, range.len, RegisterMode::WRITE_PROTECT).expect("register");
    theirs.write_protect(start, range.len).expect("arm");
    let ours = Uffd::try_from(theirs).expect("a descriptor");
    let writer = write_elsewhere(range);
    assert!(cowbell::sys::pidfd::readable(ours.as_fd(), Some(Duration::from_secs(10))).expect("poll"));
    let mut faults = Vec::new();
    ours.read(|event| faults.push(event)).expect("events");
    let [UffdMessage::Fault(fault)] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!((fault.address, fault.write_protect), (range.start, true));
    // SAFETY: the page is ours.
    unsafe { ours.write_protect(range, false) }.expect("let go");
    writer.join().expect("the write went on");
}
