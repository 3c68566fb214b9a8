//! Frozen arenas that may not be adopted, and data that may not go into one.
#![expect(unsafe_code, reason = "arenas are adopted and released")]

use crate::case::{Outcome, passed};
use crate::transfer::{Kind, Nobody, Town, before, receive_export, send_arena, settle, town};
use cowbell::arena::{Arena, Box, Contained, Export, HashMap, Vec};
use cowbell::sys::{self, map};
use libtest_mimic::Trial;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;

fn addresses_that_are_taken_are_an_error_that_names_them() -> Outcome {
    settle()?;
    before(
        |socket| {
            let (export, file) = receive_export(socket)?;
            map::fence(export.range())?;
            // SAFETY: as in `receive_arena`.
            let e = unsafe { export.adopt::<Town>(file) }.err().ok_or("they are taken")?;
            assert_eq!(e.errno(), Some(libc::EEXIST), "{e}");
            assert!(e.to_string().contains(&format!("{:#x}", export.range().start)), "{e}");
            Ok(())
        },
        |socket| send_arena(socket, &town("late")?),
    )
}

/// A reference into it from the time when it grew must never see other objects in its place.
fn an_arena_that_grew_when_this_process_was_forked_is_not_adopted() -> Outcome {
    let arena = Arena::builder("early").capacity(1 << 20).build()?;
    let mut arena = Some(arena);
    before(
        |socket| {
            let (export, file) = receive_export(socket)?;
            // SAFETY: as in `receive_arena`.
            let e = unsafe { export.adopt::<u64>(file) }.err().ok_or("it is fenced off")?;
            assert!(e.hint().is_some(), "{e}");
            Ok(())
        },
        |socket| send_arena(socket, &arena.take().ok_or("once")?.freeze(5u64)?),
    )
}

fn only_a_sealed_file_of_the_right_length_and_type_is_adopted() -> Outcome {
    settle()?;
    before(
        |socket| {
            let (export, file) = receive_export(socket)?;
            let refused = |file: OwnedFd, why: &str| {
                // SAFETY: it is refused before anything is mapped.
                let e = unsafe { export.adopt::<u64>(file) }.expect_err(why);
                assert!(e.to_string().contains(why), "{e}");
            };
            let copy = sys::memfd::create("not sealed")?;
            sys::memfd::set_len(copy.as_fd(), export.range().len as u64)?;
            refused(copy, "not sealed");
            refused(std::fs::File::open("/dev/null")?.into(), "not sealed");
            let short = sys::memfd::create("short")?;
            sys::memfd::seal(short.as_fd(), sys::memfd::SEALS_FINAL)?;
            refused(short, "length");
            // SAFETY: as above.
            let e = unsafe { export.adopt::<i64>(file.try_clone()?) }.err().ok_or("another type")?;
            assert!(e.is_bad_handle() && e.to_string().contains("i64"), "{e}");
            // None of it left anything in the way.
            // SAFETY: the sender froze a u64.
            assert_eq!(*unsafe { export.adopt::<u64>(file.try_clone()?) }?, 5);
            // SAFETY: as above.
            let e = unsafe { export.adopt::<u64>(file) }.err().ok_or("it is here already")?;
            assert!(e.errno() == Some(libc::EEXIST), "{e}");
            Ok(())
        },
        |socket| {
            let arena = Arena::builder("typed").capacity(1 << 20).build()?;
            send_arena(socket, &arena.freeze(5u64)?)
        },
    )
}

fn an_export_is_read_from_its_own_bytes_only() -> Outcome {
    let export = Arena::builder("bytes").capacity(1 << 20).build()?.freeze(1u8)?.export()?;
    let bytes = export.to_bytes();
    assert_eq!(Export::from_bytes(&bytes)?, export);
    for len in 0..bytes.len() {
        // A shorter name is a name.
        assert!(Export::from_bytes(&bytes[..len]).map_or(true, |other| other != export), "{len} bytes");
    }
    // Each changed byte is refused, or leads to another arena, whose adoption the caller answers for.
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x55;
        assert!(Export::from_bytes(&bytes).map_or(true, |other| other != export), "byte {at}");
    }
    passed()
}

fn what_points_out_of_its_arena_is_not_contained() -> Outcome {
    let arena = || Arena::builder("strict").capacity(1 << 20).build();
    let other = arena()?;
    let elsewhere = |e: Option<cowbell::Error>| assert!(e.is_some_and(|e| e.to_string().contains("points out of it")));
    let mut list: Vec<u32> = Vec::new_in(*other);
    list.push(1);
    elsewhere(arena()?.freeze_unchecked(list)?.check_contained().err());
    let own = arena()?;
    let mut lists: Vec<Vec<u8>> = Vec::new_in(*own);
    lists.push(Vec::new_in(*own));
    lists.push(Vec::new_in(*other));
    let good = own.freeze_unchecked((lists, ()))?;
    good.check_contained()?;
    let own = arena()?;
    let mut lists: Vec<Vec<u32>> = Vec::new_in(*own);
    for n in 0..100 {
        let mut list = if n == 70 { Vec::new_in(*other) } else { Vec::new_in(*own) };
        list.push(n);
        lists.push(list);
    }
    elsewhere(own.freeze_unchecked(lists)?.check_contained().err());
    let mut map: HashMap<u32, u32> = HashMap::new_in(*other);
    arena()?.freeze_unchecked(map.clone())?.check_contained()?;
    map.insert(1, 1);
    elsewhere(arena()?.freeze_unchecked(map)?.check_contained().err());
    elsewhere(arena()?.freeze_unchecked(Some(Box::new_in(5u32, *other)))?.check_contained().err());
    let leaked: &'static AtomicU64 = std::boxed::Box::leak(std::boxed::Box::new(AtomicU64::new(1)));
    elsewhere(arena()?.freeze_unchecked((1u8, [leaked; 2]))?.check_contained().err());
    let odd = Kind::Other(String::from("of this process").leak());
    elsewhere(arena()?.freeze_unchecked(odd)?.check_contained().err());
    arena()?.freeze_unchecked((Kind::Hamlet, Nobody))?.check_contained()?;
    // An object without size lies nowhere: that there is one here says nothing of another process.
    let near = arena()?.freeze(7u32)?;
    arena()?.freeze_unchecked(Some(near.handle(near.root())?))?.check_contained()?;
    elsewhere(arena()?.freeze_unchecked([near.handle(&())?; 2])?.check_contained().err());
    const { assert!(!Nobody::POINTS && Kind::POINTS && !<[(u8, f64); 3]>::POINTS) };
    passed()
}

pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        addresses_that_are_taken_are_an_error_that_names_them,
        an_arena_that_grew_when_this_process_was_forked_is_not_adopted,
        only_a_sealed_file_of_the_right_length_and_type_is_adopted,
        an_export_is_read_from_its_own_bytes_only,
        what_points_out_of_its_arena_is_not_contained,
    ]
}
