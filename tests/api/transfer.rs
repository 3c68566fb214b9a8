//! Frozen arenas that reach a process which was forked before they were built, and what may go there.
#![expect(unsafe_code, reason = "arenas are adopted and released")]

use crate::apart::{Process, apart};
use crate::case::{Outcome, passed};
use crate::look::{SOON, anonymous_pages, wait};
use cowbell::arena::{Arena, Box, Export, FreezeOptions, Frozen, Handle, HashMap, OnWrite, Vec};
use cowbell::fork::{self, ForkOptions};
use cowbell::sys::pidfd::Ended;
use cowbell::sys::{self, map, process};
use libtest_mimic::{Failed, Trial};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

cowbell::contained! {
    /// The data that goes to the other process.
    pub struct Town {
        pub streets: Vec<Vec<u32>>,
        pub names: HashMap<u64, &'static str>,
        pub mayor: Option<Box<Person>>,
        pub visits: AtomicU64,
        pub kind: Kind,
    }

    pub struct Person(pub u32, &'static str);

    pub struct Nobody;

    pub enum Kind {
        Hamlet,
        City { districts: Vec<u8> },
        Other(&'static str),
    }
}

pub fn town(name: &str) -> Result<Frozen<Town>, Failed> {
    let arena = Arena::builder(name).capacity(8 << 20).build()?;
    let mut streets = Vec::new_in(*arena);
    for street in 0..100 {
        let mut houses = Vec::new_in(*arena);
        houses.extend(street..2 * street);
        streets.push(houses);
    }
    let mut names = HashMap::new_in(*arena);
    for n in 0..1000u64 {
        names.insert(n * n, &*arena.alloc_str(&format!("number {n}"))?);
    }
    let mayor = Some(Box::new_in(Person(50, arena.alloc_str("Ada")?), *arena));
    let mut districts = Vec::new_in(*arena);
    districts.extend([1, 2, 3]);
    let town = Town { streets, names, mayor, visits: AtomicU64::new(0), kind: Kind::City { districts } };
    Ok(arena.freeze(town)?)
}

fn is_whole(town: &Town) -> bool {
    let mut streets = town.streets.iter().zip(0..);
    let houses = streets.all(|(houses, n)| houses.iter().copied().eq(n..2 * n));
    let names = (0..1000u64).all(|n| town.names.get(&(n * n)) == Some(&format!("number {n}").as_str()));
    let mayor = town.mayor.as_ref().is_some_and(|mayor| (mayor.0, mayor.1) == (50, "Ada"));
    houses && names && mayor && matches!(&town.kind, Kind::City { districts } if districts[..] == [1, 2, 3])
}

/// A socket whose ends send whole messages.
fn sockets() -> Result<(OwnedFd, OwnedFd), Failed> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn send(socket: &OwnedFd, bytes: &[u8], file: BorrowedFd<'_>) -> Result<(), Failed> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// A message and its descriptor; `None` when the other side is gone.
fn receive(socket: &OwnedFd) -> Result<Option<(std::vec::Vec<u8>, OwnedFd)>, Failed> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 4096];
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    bytes.truncate(got.bytes);
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    Ok(file.map(|file| (bytes, file)))
}

pub fn send_arena<T>(socket: &OwnedFd, frozen: &Frozen<T>) -> Result<(), Failed> {
    send(socket, &frozen.export()?.to_bytes(), frozen.image().file())
}

pub fn receive_export(socket: &OwnedFd) -> Result<(Export, OwnedFd), Failed> {
    let (bytes, file) = receive(socket)?.ok_or("the other side is gone")?;
    Ok((Export::from_bytes(&bytes)?, file))
}

fn receive_arena<T: 'static>(socket: &OwnedFd) -> Result<Frozen<T>, Failed> {
    let (export, file) = receive_export(socket)?;
    // SAFETY: the sender froze a T, contained, and both are this program.
    Ok(unsafe { export.adopt(file) }?)
}

/// Runs `child` in a process that was forked before `parent` runs here.
pub fn before(
    child: impl FnOnce(&OwnedFd) -> Result<(), Failed>,
    parent: impl FnOnce(&OwnedFd) -> Result<(), Failed>,
) -> Outcome {
    let (here, there) = sockets()?;
    let process = Process::start(|| match child(&there) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{}", e.message().unwrap_or("failed"));
            1
        }
    });
    drop(there);
    let done = parent(&here);
    drop(here);
    let ended = process.end_within(SOON);
    done?;
    assert_eq!(ended, Some(Ended::Exited(0)), "the child");
    passed()
}

/// The fork is glibc's, but something of cowbell's came before it, as in any process that has a zygote.
pub fn settle() -> Result<(), Failed> {
    wait(&mut fork::spawn(&ForkOptions::new(), |_| ())?)?;
    Ok(())
}

fn an_arena_built_after_the_fork_is_adopted_whole() -> Outcome {
    settle()?;
    before(
        |socket| {
            let town = receive_arena::<Town>(socket)?;
            assert!(is_whole(&town), "collections, references and maps are what they were there");
            assert_eq!(town.image().name(), "late");
            let range = town.image().range();
            let maps = sys::procfs::smaps::mappings(process::pid(), range)?;
            assert!(maps.len() == 1 && maps[0].mapping.permissions == "r--p", "{maps:?}");
            // And it is forked over like any other.
            let mut worker = fork::spawn(&ForkOptions::new(), |_| {
                assert!(is_whole(&town));
                town.visits.store(1, Ordering::SeqCst);
            })?;
            let exit = wait(&mut worker)?;
            assert!(exit.success(), "{:?}", exit.panic);
            assert_eq!(exit.report.copied_pages().0, 1);
            assert_eq!(town.visits.load(Ordering::SeqCst), 0);
            Ok(())
        },
        |socket| {
            let town = town("late")?;
            town.check_contained()?;
            send_arena(socket, &town)
        },
    )
}

fn a_handle_made_there_finds_the_object_here() -> Outcome {
    settle()?;
    before(
        |socket| {
            let root = receive_arena::<(Vec<u64>, Option<Handle<u64>>)>(socket)?;
            let handle = root.1.ok_or("a handle")?;
            // Made of the first arena, which this process does not have.
            assert!(handle.get().is_err_and(|e| e.is_bad_handle()));
            let first = receive_arena::<(Vec<u64>, Option<Handle<u64>>)>(socket)?;
            assert_eq!((*handle.get()?, first.0.as_slice()), (14, [12, 13, 14].as_slice()));
            assert!(std::ptr::eq(handle.get()?, &first.0[2]));
            Ok(())
        },
        |socket| {
            let build = |numbers: [u64; 3], handle| {
                let arena = Arena::builder("numbers").capacity(1 << 20).build()?;
                let mut list = Vec::new_in(*arena);
                list.extend(numbers);
                arena.freeze((list, handle))
            };
            let first = build([12, 13, 14], None)?;
            let second = build([0, 0, 0], Some(first.handle_contained(&first.root().0[2])?))?;
            send_arena(socket, &second)?;
            send_arena(socket, &first)
        },
    )
}

/// The seed of the hashes is settled before the first fork, and not by whoever hashes first.
fn a_map_built_after_the_fork_is_searched_right_in_the_other_process() -> Outcome {
    settle()?;
    before(
        |socket| {
            let mut own = std::collections::HashMap::new();
            own.insert(1, 1);
            let map = receive_arena::<HashMap<u64, u64>>(socket)?;
            assert!((0..5000).all(|n| map.get(&n) == Some(&(n * 7))));
            assert!(!map.contains_key(&5000));
            Ok(())
        },
        |socket| {
            let arena = Arena::builder("map").capacity(1 << 20).build()?;
            let mut map = HashMap::new_in(*arena);
            map.extend((0..5000u64).map(|n| (n, n * 7)));
            send_arena(socket, &arena.freeze(map)?)
        },
    )
}

/// The allocators in the data are numbers: used here they are refused, as a frozen arena's are everywhere.
fn collections_that_were_adopted_cannot_grow_and_are_dropped_without_harm() -> Outcome {
    settle()?;
    before(
        |socket| {
            let town = receive_arena::<Town>(socket)?;
            let allocator = *town.streets.allocator();
            assert_eq!((allocator.name(), allocator.is_frozen()), ("late", true));
            assert_eq!(allocator.used(), town.image().used());
            assert!(allocator.alloc(1u8).is_err_and(|e| e.is_frozen()));
            let mut copy: Vec<u8> = Vec::new_in(allocator);
            assert!(copy.try_reserve(1).is_err());
            assert_eq!(format!("{allocator:?}"), "ArenaRef(late)");
            // SAFETY: nothing refers into it any more but the allocator, which is asked for nothing but its state.
            unsafe { town.release() }?;
            assert!(allocator.alloc(1u8).is_err_and(|e| e.is_invalid()));
            assert!(copy.try_reserve(1).is_err());
            assert!(allocator.is_frozen() && allocator.name() != "late");
            Ok(())
        },
        |socket| send_arena(socket, &town("late")?),
    )
}

fn an_arena_outlives_the_process_that_built_it_and_can_be_released() -> Outcome {
    settle()?;
    let (here, there) = sockets()?;
    let builder = Process::start(|| {
        let town = town("orphan").expect("built");
        send_arena(&there, &town).expect("sent");
        0
    });
    drop(there);
    assert_eq!(builder.end_within(SOON), Some(Ended::Exited(0)));
    let town = receive_arena::<Town>(&here)?;
    assert!(is_whole(&town));
    let range = town.image().range();
    assert_eq!(anonymous_pages(process::pid(), range)?, 0);
    let handle = town.handle(&town.root().visits)?;
    // SAFETY: nothing refers into it any more.
    unsafe { town.release() }?;
    assert!(handle.get().is_err_and(|e| e.is_bad_handle()));
    assert_eq!(map::fence(range), Ok(()), "the addresses are free again");
    passed()
}

fn a_clone_is_the_same_arena() -> Outcome {
    let town = town("twice")?;
    let again = town.clone();
    assert!(std::ptr::eq(town.root(), again.root()));
    assert_eq!(town.image().range(), again.image().range());
    drop(town);
    assert!(is_whole(&again));
    passed()
}

fn what_denies_writes_there_denies_them_here() -> Outcome {
    settle()?;
    before(
        |socket| {
            let number = receive_arena::<AtomicU64>(socket)?;
            assert_eq!(number.image().on_write(), OnWrite::Deny);
            let mut worker = fork::spawn(&ForkOptions::new(), |_| number.store(1, Ordering::SeqCst))?;
            assert_eq!(wait(&mut worker)?.ended, fork::Ended::Signaled(libc::SIGSEGV));
            Ok(())
        },
        |socket| {
            let arena = Arena::builder("denied").capacity(1 << 20).build()?;
            let options = FreezeOptions::new().on_write(OnWrite::Deny).dump(false);
            send_arena(socket, &arena.freeze_with(AtomicU64::new(7), options)?)
        },
    )
}

/// Arenas of both processes have numbers of their own, so that no handle or allocator means two of them.
fn an_arena_of_ones_own_does_not_stand_in_the_way_and_is_not_mistaken() -> Outcome {
    settle()?;
    before(
        |socket| {
            let (export, file) = receive_export(socket)?;
            let (bytes, _file) = receive(socket)?.ok_or("bytes")?;
            // SAFETY: a handle's bytes, sent by its own process.
            let handle = unsafe { bytes.as_ptr().cast::<Handle<u64>>().read_unaligned() };
            let own = Arena::builder("own").capacity(1 << 20).build()?.freeze(99u64)?;
            assert!(handle.get().is_err(), "the number of the other's arena is not this one's");
            // The own arena took the addresses of the hint; the other's lie where the other had its second.
            // SAFETY: as in `receive_arena`.
            let other = unsafe { export.adopt::<u64>(file) }?;
            assert_eq!((*own, *other, *handle.get()?), (99, 5, 5));
            Ok(())
        },
        |socket| {
            // Takes the addresses that the other's own arena will have.
            let _first = Arena::builder("first").capacity(1 << 20).build()?.freeze(4u64)?;
            let second = Arena::builder("second").capacity(1 << 20).build()?.freeze(5u64)?;
            send_arena(socket, &second)?;
            let handle = second.handle_contained(second.root())?;
            // SAFETY: a handle has no padding.
            let bytes = unsafe { std::mem::transmute::<Handle<u64>, [u8; 16]>(handle) };
            send(socket, &bytes, second.image().file())
        },
    )
}

fn many_arenas_built_after_the_fork_all_find_their_addresses_free() -> Outcome {
    settle()?;
    const MANY: u64 = 60;
    before(
        |socket| {
            for n in 0..MANY {
                let number = receive_arena::<u64>(socket)?;
                assert_eq!(*number, n);
            }
            Ok(())
        },
        |socket| {
            for n in 0..MANY {
                let capacity = if n % 10 == 0 { 1 << 40 } else { 1 << 20 };
                let noise = map::anonymous(1 << 20)?;
                assert!(noise.len > 0);
                let arena = Arena::builder(format!("number {n}")).capacity(capacity);
                let frozen = match arena.build() {
                    // A limit on file size, or on addresses.
                    Err(e) if capacity > 1 << 20 => Arena::builder(e.to_string()).capacity(1 << 20).build()?,
                    built => built?,
                }
                .freeze(n)?;
                send_arena(socket, &frozen)?;
                // SAFETY: nothing refers into it here; the other process has its own mapping.
                unsafe { frozen.release() }?;
            }
            Ok(())
        },
    )
}

/// A graph with far more paths than objects is looked at once an object.
fn shared_references_are_looked_at_once() -> Outcome {
    cowbell::contained! {
        struct Step {
            ways: [Option<&'static Step>; 2],
        }
    }
    let arena = Arena::builder("diamonds").capacity(1 << 20).build()?;
    let mut last: Option<&'static Step> = None;
    for _ in 0..500 {
        last = Some(arena.alloc(Step { ways: [last; 2] })?);
    }
    let frozen = arena.freeze(last)?;
    frozen.check_contained()?;
    assert!(frozen.root().is_some_and(|step| step.ways[1].is_some()));
    passed()
}

/// When the hints are used up or refused, arenas are built all the same.
fn arenas_lie_apart_and_a_limit_on_addresses_is_still_an_error() -> Outcome {
    let left = apart(|| {
        let places: Result<std::vec::Vec<_>, Failed> = (0..20)
            .map(|_| Ok(Arena::builder("apart").capacity(3 << 20).build()?.freeze(1u8)?.image().range().start))
            .collect();
        let places = places?;
        assert!(places.is_sorted() && places.windows(2).all(|two| two[1] - two[0] >= 3 << 20), "{places:x?}");
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    passed()
}

/// The tests of this file.
pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        an_arena_built_after_the_fork_is_adopted_whole,
        a_handle_made_there_finds_the_object_here,
        a_map_built_after_the_fork_is_searched_right_in_the_other_process,
        collections_that_were_adopted_cannot_grow_and_are_dropped_without_harm,
        an_arena_outlives_the_process_that_built_it_and_can_be_released,
        a_clone_is_the_same_arena,
        what_denies_writes_there_denies_them_here,
        an_arena_of_ones_own_does_not_stand_in_the_way_and_is_not_mistaken,
        many_arenas_built_after_the_fork_all_find_their_addresses_free,
        shared_references_are_looked_at_once,
        arenas_lie_apart_and_a_limit_on_addresses_is_still_an_error,
    ]
}
