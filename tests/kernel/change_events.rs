//! Events of mappings that go: when they come, and of which mappings.

use crate::claim::{Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self};
use crate::memory::{Kind, Memory, mark};
use crate::watcher::{self, ASYNC, SYNC};
use cowbell::sys::change::{self, MemoryCall, Waits};
use cowbell::sys::pagemap::Entry;
use cowbell::sys::uffd::{Features, Uffd, UffdMessage};
use cowbell::sys::{Errno, pidfd, process, procfs};
use std::os::fd::AsFd;
use std::time::Duration;

pub const CLAIMS: &[Claim] = &[
    claim!(
        remove_event_comes_before_the_pages_go on [Anonymous, PrivateMemfd],
        "`EVENT_REMOVE` is readable while the pages that `MADV_DONTNEED` will drop are still there, and the call waits until it is read."
    )
    .needs(&[Need::Uffd]),
    claim!(
        reading_one_message_leaves_the_next,
        "A `read` of a userfaultfd with room for one message takes one where two wait; the call of the other waits on, and its pages are still there."
    )
    .needs(&[Need::Uffd]),
    claim!(
        unmap_event_comes_when_the_pages_are_gone on [Anonymous, PrivateMemfd],
        "`EVENT_UNMAP` is readable when the pages are gone, and the call waits until it is read."
    )
    .needs(&[Need::Uffd]),
    claim!(
        unmap_event_comes_of_what_was_registered_and_never_armed on [Anonymous, PrivateMemfd, PrivateFile],
        "With `WP_ASYNC`, `EVENT_UNMAP` comes of a mapping that was registered and never armed, an ordinary file's too, when it is unmapped or another is mapped over it, and the call waits until it is read."
    )
    .needs(&[Need::WpAsync]),
];

/// Waits for an event while `change` is under way, looks at page 1 before it is read, and returns it.
fn seen_before(memory: &Memory, feature: Features, change: impl FnOnce() + Send, look: impl FnOnce()) -> UffdMessage {
    let uffd = watcher::any(SYNC | feature).expect("userfaultfd");
    watcher::arm(&uffd, memory);
    told_before(&uffd, change, look)
}

/// The same, of a userfaultfd that has the memory already.
fn told_before(uffd: &Uffd, change: impl FnOnce() + Send, look: impl FnOnce()) -> UffdMessage {
    std::thread::scope(|scope| {
        let changer = scope.spawn(change);
        pidfd::readable(uffd.as_fd(), None).expect("poll");
        look();
        std::thread::sleep(Duration::from_millis(20));
        assert!(!changer.is_finished(), "it waits until the event is read");
        watcher::next_event(uffd)
    })
}

/// Memory whose pages are copies, or its own.
fn copies(kind: Kind) -> Result<Memory, Skip> {
    let memory = Memory::marked(kind, 4)?;
    (0..4).for_each(|page| memory.store(page, mark(page)));
    Ok(memory)
}

fn remove_event_comes_before_the_pages_go(kind: Kind) -> Verdict {
    let memory = copies(kind)?;
    let there = || evidence::entry(&memory, 1).contains(Entry::PRESENT);
    let event = seen_before(&memory, Features::EVENT_REMOVE, || memory.drop_pages(memory.at(1)), || assert!(there()));
    assert!(matches!(event, UffdMessage::Remove(range) if range == memory.at(1)), "{event:?}");
    assert!(!there(), "gone");
    Ok(())
}

fn reading_one_message_leaves_the_next() -> Verdict {
    let memory = copies(Kind::Anonymous)?;
    let uffd = watcher::any(SYNC | Features::EVENT_REMOVE).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let there = |page| evidence::entry(&memory, page).contains(Entry::PRESENT);
    std::thread::scope(|scope| {
        let (say, hear) = std::sync::mpsc::channel();
        for page in [1, 2] {
            let (say, memory) = (say.clone(), &memory);
            scope.spawn(move || {
                say.send(process::tid()).expect("somebody hears");
                memory.drop_pages(memory.at(page));
            });
        }
        for tid in [hear.recv(), hear.recv()].map(|tid| tid.expect("a thread")) {
            let syscall = procfs::syscall::open(process::pid(), tid).expect("/proc");
            while !matches!(change::waits(&syscall), Waits::ToChange(MemoryCall::Drops(_))) {
                process::yield_now();
            }
        }
        let mut told = Vec::new();
        assert_eq!(uffd.read_one(|event| told.push(event)), Ok(true));
        let [UffdMessage::Remove(first)] = told[..] else { panic!("{told:?}") };
        let (gone, left) = if first == memory.at(1) { (1, 2) } else { (2, 1) };
        // The call goes on that was told of, and the other does not.
        while there(gone) {
            process::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(there(left), "its call waits until its message is read");
        let next = watcher::next_event(&uffd);
        assert!(matches!(next, UffdMessage::Remove(range) if range == memory.at(left)), "{next:?}");
    });
    Ok(())
}

fn unmap_event_comes_of_what_was_registered_and_never_armed(kind: Kind) -> Verdict {
    for over in [false, true] {
        // Anonymous memory has nothing to be mapped over it.
        if over && kind == Kind::Anonymous {
            continue;
        }
        let memory = copies(kind)?;
        let uffd = watcher::any(ASYNC | Features::EVENT_UNMAP).expect("userfaultfd");
        watcher::register(&uffd, memory.range).expect("UFFDIO_REGISTER");
        let change = || {
            if over {
                memory.map(memory.at(1), 1).expect("mmap");
            } else {
                memory.unmap(memory.at(1)).expect("munmap");
            }
        };
        let event = told_before(&uffd, change, || {});
        assert!(matches!(event, UffdMessage::Unmap(range) if range == memory.at(1)), "{event:?}");
    }
    Ok(())
}

fn unmap_event_comes_when_the_pages_are_gone(kind: Kind) -> Verdict {
    let memory = copies(kind)?;
    let unmap = || memory.unmap(memory.at(1)).expect("munmap");
    let gone = || assert_eq!(evidence::mincore(memory.at(1)), Err(Errno::NOMEM));
    let event = seen_before(&memory, Features::EVENT_UNMAP, unmap, gone);
    assert!(matches!(event, UffdMessage::Unmap(range) if range == memory.at(1)), "{event:?}");
    Ok(())
}
