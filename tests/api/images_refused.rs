//! Arena images that are refused, for every reason there is, and damaged ones, which never harm.
#![expect(unsafe_code, reason = "images are opened in place and released")]

use crate::apart::apart;
use crate::case::{Outcome, passed};
use crate::images::{DATA, Folder, Graph, HEADER, Node, check, graph, open, release};
use crate::look::{descriptors, mapped_files};
use bytemuck::Pod;
use cowbell::arena::{Arena, Frozen, ImageOptions, Span};
use cowbell::sys::{self};
use libtest_mimic::{Failed, Trial};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// The answers of loading and opening about a file.
fn refusals<T: Pod>(path: &Path) -> Result<[String; 2], Failed> {
    let before = (descriptors(), mapped_files().len());
    let loaded = Frozen::<T>::load(path).err().ok_or("it was loaded")?;
    let opened = open::<T>(path).err().ok_or("it was opened")?;
    assert_eq!((descriptors(), mapped_files().len()), before, "nothing is left of the attempt");
    for e in [&loaded, &opened] {
        assert!(e.to_string().contains(&*path.to_string_lossy()), "{e}");
    }
    Ok([loaded.to_string(), opened.to_string()])
}

fn refused<T: Pod>(path: &Path, why: &str) -> Result<(), Failed> {
    for said in refusals::<T>(path)? {
        assert!(said.contains(why), "{said}, and not {why}");
    }
    Ok(())
}

fn what_is_no_image_is_refused() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    refused::<Graph>(&path, "No such file")?;
    refused::<Graph>(&folder, "directory")?;
    fs::write(&path, "")?;
    refused::<Graph>(&path, "empty")?;
    fs::write(&path, "COWBELL\n")?;
    refused::<Graph>(&path, "cut off")?;
    fs::write(&path, vec![b'x'; 2 * DATA])?;
    refused::<Graph>(&path, "no arena image")?;
    let pipe = folder.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)?;
    refused::<Graph>(&pipe, "not an ordinary file")?;
    refused::<Graph>(Path::new("/dev/zero"), "not an ordinary file")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000))?;
    let left = apart(|| {
        if rustix::process::geteuid().is_root() {
            // SAFETY: this process has one thread and gives its rights up.
            assert_eq!(unsafe { libc::setuid(65534) }, 0);
        }
        for said in refusals::<Graph>(&path)? {
            assert!(said.contains("Permission denied"), "{said}");
        }
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    passed()
}

/// An image with other bytes in its header, whose sum is right again.
fn with(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = crc32fast::hash(&image[..HEADER - 4]);
    image[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
    image
}

fn an_image_of_another_machine_version_or_type_is_refused() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    graph("foreign")?.save(&path)?;
    let image = fs::read(&path)?;
    refused::<Node>(&path, "holds `api::images::Graph`, not `api::images::Node`")?;
    refused::<u8>(&path, "not `u8`")?;
    let version = ImageOptions::new().version(3);
    assert!(Frozen::<Graph>::load_with(&path, &version).is_err_and(|e| e.to_string().contains("version 0")));
    let other = graph("other version")?;
    other.save_with(folder.join("3"), &version)?;
    check(&Frozen::load_with(folder.join("3"), &version)?)?;
    refused::<Graph>(&folder.join("3"), "version 3")?;
    let little = cfg!(target_endian = "little");
    let cases: [(usize, &[u8], &str); 9] = [
        (8, &[2, 0, 0, 0], "newer"),
        (12, &[if little { 2 } else { 1 }], "another machine"),
        (13, &[4], "another machine"),
        (40, &[48], "48 bytes"),
        (48, &[16], "aligned to 16"),
        (16, &[0, 6], "inside a page"),
        (72, &[0, 0], "makes no sense"),
        (32, &[0xff; 8], "makes no sense"),
        (24, &[0xff; 8], "makes no sense"),
    ];
    for (at, bytes, why) in cases {
        fs::write(&path, with(&image, at, bytes))?;
        refused::<Graph>(&path, why)?;
    }
    fs::write(&path, &image)?;
    check(&Frozen::load(&path)?)?;
    passed()
}

fn a_truncated_or_prolonged_image_is_refused() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    graph("short")?.save(&path)?;
    let file = fs::File::options().read(true).write(true).open(&path)?;
    let len = file.metadata()?.len();
    file.set_len(len + 1)?;
    refused::<Graph>(&path, "follows")?;
    let page = sys::page_size().bytes() as u64;
    for shorter in [len - 1, len - page, DATA as u64 + 1, DATA as u64, HEADER as u64] {
        file.set_len(shorter)?;
        refused::<Graph>(&path, "truncated")?;
    }
    for shorter in [HEADER as u64 - 1, 100, 1, 0] {
        file.set_len(shorter)?;
        assert_eq!(refusals::<Graph>(&path)?.len(), 2);
    }
    passed()
}

fn every_changed_byte_of_the_header_is_refused() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    graph("flipped")?.save(&path)?;
    let image = fs::read(&path)?;
    let file = fs::File::options().write(true).open(&path)?;
    for (at, &byte) in image[..HEADER].iter().enumerate() {
        file.write_all_at(&[byte ^ 0x40], at as u64)?;
        assert!(Frozen::<Graph>::load(&path).is_err_and(|e| e.is_invalid()), "byte {at}");
        file.write_all_at(&[byte], at as u64)?;
    }
    check(&Frozen::load(&path)?)?;
    passed()
}

/// Everything is asked of a damaged graph that can be; it answers with values or errors.
fn walk(graph: &Frozen<Graph>) -> u64 {
    let mut sum = graph.count;
    for node in graph.slice(graph.nodes).unwrap_or_default() {
        sum = sum.wrapping_add(graph.slice(node.edges).map_or(1, |edges| edges.iter().copied().map(u64::from).sum()));
        sum ^= node.weight.to_bits();
    }
    sum ^ graph.slice(graph.names).map_or(1, |names| names.iter().copied().map(u64::from).sum())
}

fn damaged_data_is_found_when_verified_and_never_harms() -> Outcome {
    let folder = Folder::new()?;
    let path = folder.image();
    let saved = graph("damaged")?;
    saved.save(&path)?;
    let used = saved.image().used() as u64;
    let image = fs::read(&path)?;
    let file = fs::File::options().write(true).open(&path)?;
    let good = walk(&saved);
    // xorshift: the same damage in each run.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let unverified = ImageOptions::new().verify(false);
    let verified = ImageOptions::new().verify(true);
    let mut other = 0;
    // The root lies at the end: it is damaged in half of the cases.
    for case in 0..300 {
        let begin = if case % 2 == 0 { 0 } else { used - 40 };
        let damage: Vec<(u64, u8)> =
            (0..1 + random() % 4).map(|_| (begin + random() % (used - begin), random() as u8 | 1)).collect();
        let at = |offset: u64| DATA as u64 + offset;
        let mut changed = image.clone();
        for &(offset, bits) in &damage {
            changed[at(offset) as usize] ^= bits;
            file.write_all_at(&changed[at(offset) as usize..][..1], at(offset))?;
        }
        if changed != image {
            let damaged = |e: cowbell::Error| assert!(e.to_string().contains("data is damaged"), "{e}");
            damaged(Frozen::<Graph>::load(&path).err().ok_or("damage is found")?);
            // SAFETY: as in `open`.
            damaged(unsafe { Frozen::<Graph>::open_with(&path, &verified) }.err().ok_or("damage is found")?);
        }
        let loaded = Frozen::<Graph>::load_with(&path, &unverified)?;
        let opened = open::<Graph>(&path)?;
        assert_eq!(walk(&loaded), walk(&opened));
        other += u32::from(walk(&loaded) != good);
        release(loaded)?;
        release(opened)?;
        for (offset, _) in damage {
            file.write_all_at(&image[at(offset) as usize..][..1], at(offset))?;
        }
    }
    assert!(other > 100, "most damage shows in the values: {other}");
    // SAFETY: as in `open`.
    check(&unsafe { Frozen::open_with(&path, &verified) }?)?;
    passed()
}

fn a_span_is_checked_wherever_it_comes_from() -> Outcome {
    let graph = graph("spans")?;
    let used = graph.image().used() as u64;
    let span = |offset: u64, len: u64| bytemuck::cast::<[u64; 2], Span<u32>>([offset, len]);
    for (offset, len) in [(used, 1), (used - 4, 2), (u64::MAX, 1), (0, u64::MAX), (u64::MAX - 3, 1), (4, u64::MAX / 4)]
    {
        assert!(graph.slice(span(offset, len)).is_err_and(|e| e.is_bad_handle()), "{offset}, {len}");
    }
    assert!(graph.slice(span(2, 1)).is_err_and(|e| e.to_string().contains("misaligned")));
    assert_eq!(graph.slice(span(u64::MAX, 0))?, [] as [u32; 0]);
    assert_eq!(graph.slice(bytemuck::cast::<[u64; 2], Span<()>>([3, u64::MAX]))?.len(), usize::MAX);
    assert_eq!(graph.slice(Span::<Graph>::EMPTY)?, []);
    // In an arena that holds more than plain data, a span might lead to a lock.
    let arena = Arena::builder("mixed").capacity(1 << 20).build()?;
    arena.alloc(std::sync::Mutex::new(5u64))?;
    let mixed = arena.freeze(span(0, 1))?;
    assert!(mixed.slice(*mixed).is_err_and(|e| e.hint().is_some_and(|hint| hint.contains("plain"))));
    let e = mixed.save("nowhere").err().ok_or("it cannot be saved")?;
    assert!(e.to_string().contains("`plain`"), "{e}");
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        what_is_no_image_is_refused,
        an_image_of_another_machine_version_or_type_is_refused,
        a_truncated_or_prolonged_image_is_refused,
        every_changed_byte_of_the_header_is_refused,
        damaged_data_is_found_when_verified_and_never_harms,
        a_span_is_checked_wherever_it_comes_from,
    ]
}
