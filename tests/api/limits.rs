//! Limits met while an arena is built: each is an error that says so, and no signal.
#![expect(unsafe_code, reason = "mappings are made by hand, rights given up")]

use crate::apart::{Process, apart};
use crate::arena::place_of;
use crate::case::{Outcome, passed, skipped};
use crate::look::{SOON, descriptors, maps};
use cowbell::arena::{Arena, ArenaRef, FreezeOptions, Vec};
use cowbell::sys::map::{self, Access};
use cowbell::sys::{page_size, pidfd::Ended};
use libtest_mimic::{Failed, Trial};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub fn limit(resource: Resource, current: u64) -> Result<(), Failed> {
    Ok(setrlimit(resource, Rlimit { current: Some(current), ..getrlimit(resource) })?)
}

fn addresses_that_cannot_be_had_are_an_error_and_nothing_is_left_of_the_attempt() -> Outcome {
    limit(Resource::As, 4 << 30)?;
    // The process has these once for all arenas.
    Arena::builder("first").capacity(1 << 20).build()?;
    let before = (descriptors(), maps().len());
    let e = Arena::builder("too wide").capacity(64 << 30).build().err().ok_or("64 GiB in 4 GiB of addresses")?;
    assert!(e.is_out_of_memory(), "{e}");
    assert_eq!((descriptors(), maps().len()), before);
    let frozen = Arena::builder("narrow").capacity(1 << 20).build()?.freeze(5u8)?;
    assert_eq!(*frozen, 5);
    passed()
}

fn a_limit_on_file_size_is_an_error_and_no_sigxfsz() -> Outcome {
    limit(Resource::Fsize, 1 << 20)?;
    let e = Arena::builder("too long").capacity(1 << 30).build().err().ok_or("1 GiB in a file of 1 MiB")?;
    assert!(e.is_invalid() && e.to_string().contains("file size") && e.hint().is_some(), "{e}");
    passed()
}

fn too_many_arenas_are_an_error_that_leaves_no_mapping() -> Outcome {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    let files = hard.min(4000);
    limit(Resource::Nofile, files)?;
    let mut arenas = std::vec::Vec::new();
    let e = loop {
        match Arena::builder("one of many").capacity(4096).build() {
            Ok(arena) => arenas.push(arena),
            Err(e) => break e,
        }
    };
    // Each has a descriptor, and they are what runs out.
    assert_eq!(e.errno(), Some(libc::EMFILE), "{e}");
    assert!(arenas.len() as u64 + 50 > files, "{}", arenas.len());
    // A child of such a process has none of them, and all that are frozen. Forking takes descriptors as well.
    limit(Resource::Nofile, files + 20)?;
    let frozen = arenas.pop().ok_or("there were some")?.freeze(7u64)?;
    let handle = frozen.handle(frozen.root())?;
    let mut child =
        cowbell::fork::spawn(&cowbell::fork::ForkOptions::new(), move |_| i32::from(handle.get().ok() != Some(&7)))?;
    assert!(child.wait()?.success());
    drop(child);
    limit(Resource::Nofile, files)?;
    while let Ok(arena) = Arena::builder("one of many").capacity(4096).build() {
        arenas.push(arena);
    }
    // Only arenas' mappings: the heap has its own, and a list of a thousand lines makes it map more.
    let mapped = || maps().iter().filter(|line| line.contains("memfd:cowbell")).count();
    // Looking takes a descriptor, too.
    let look = || -> Result<_, Failed> {
        limit(Resource::Nofile, files + 20)?;
        let seen = (descriptors(), mapped());
        limit(Resource::Nofile, files)?;
        Ok(seen)
    };
    let before = look()?;
    for _ in 0..3 {
        assert!(Arena::builder("one too many").capacity(4096).build().is_err());
    }
    assert_eq!(look()?, before, "a build that fails leaves nothing behind");
    let one = arenas.pop().ok_or("there were some")?;
    // SAFETY: nothing was put in.
    unsafe { one.release() }?;
    Arena::builder("in its place").capacity(4096).build()?;
    passed()
}

fn no_descriptor_left_is_an_error() -> Outcome {
    limit(Resource::Nofile, descriptors() as u64 + 10)?;
    let before = maps().len();
    let others: std::vec::Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    let e = Arena::builder("no file").build().err().ok_or("a memfd without a descriptor")?;
    assert_eq!(e.errno(), Some(libc::EMFILE), "{e}");
    drop(others);
    assert_eq!(maps().len(), before);
    Arena::builder("a file").build()?;
    passed()
}

/// The file of the arena of that name, opened anew.
fn file_of(name: &str) -> Result<fs::File, Failed> {
    let name = format!("cowbell:{name}");
    let open = fs::read_dir("/proc/self/fd")?.filter_map(Result::ok).map(|entry| entry.path());
    let mut named = open.filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains(&name)));
    Ok(fs::File::options().read(true).write(true).open(named.next().ok_or("the arena's file")?)?)
}

/// Compaction and reclaim take pages into their hands when they like. A pipe that pages were spliced into holds them
/// the same way, and for as long as a test wants.
fn a_freeze_waits_for_who_holds_a_page_for_a_moment() -> Outcome {
    /// More than the kernel waits by itself.
    const A_MOMENT: Duration = Duration::from_millis(400);
    let arena = Arena::builder("held").capacity(16 << 20).build()?;
    let list = arena.alloc_slice(&[7u64; 1000])?;
    let page = page_size().bytes();
    let (from, to) = pipe_with(PipeFlags::CLOEXEC)?;
    assert_eq!(splice(&file_of("held")?, None, &to, None, page, SpliceFlags::empty())?, page);
    // Nothing tells when the kernel has begun to wait, so it is time that passes.
    let holder = Process::start(|| {
        std::thread::sleep(A_MOMENT);
        i32::from(rustix::io::read(&from, &mut vec![0; page]) != Ok(page))
    });
    let frozen = arena.freeze(&*list)?;
    assert!(frozen.iter().all(|&n| n == 7));
    assert_eq!(holder.end_within(SOON), Some(Ended::Exited(0)));
    passed()
}

/// A freeze fails when somebody else maps the arena's file writable.
fn a_freeze_that_fails_leaves_an_arena_that_goes_on_growing() -> Outcome {
    let arena = Arena::builder("busy").capacity(16 << 20).build()?;
    let handle: ArenaRef = *arena;
    let list = handle.alloc_slice(&[7u64; 1000])?;
    let file = file_of("busy")?;
    let other = map::anonymous(4096)?;
    // SAFETY: the range is fresh memory of ours.
    unsafe { map::map_shared_at(other, Access::ReadWrite, file.as_fd(), 0) }?;

    let e = arena.freeze(1u8).err().ok_or("its file is mapped writable elsewhere")?;
    assert_eq!((e.errno(), e.hint().is_some()), (Some(libc::EBUSY), true), "{e}");
    assert!(!handle.is_frozen());
    assert!(list.iter().all(|&n| n == 7), "what was there is there");
    list[999] = 8;
    let mut more: Vec<u64> = Vec::new_in(handle);
    more.extend(0..1_000_000);
    assert_eq!((list[999], more[999_999]), (8, 999_999));
    assert!(place_of("busy").is_some_and(|range| range.len >= 16 << 20));
    passed()
}

fn a_lock_that_is_refused_leaves_an_arena_that_goes_on_growing() -> Outcome {
    limit(Resource::Memlock, 0)?;
    if rustix::process::geteuid().is_root() {
        // SAFETY: this process has one thread; it gives its rights up, and the limit holds for it.
        assert_eq!(unsafe { libc::setuid(65534) }, 0);
    }
    let arena = Arena::builder("unlocked").capacity(16 << 20).build()?;
    let handle = *arena;
    let value = handle.alloc(1u64)?;
    let e = arena.freeze_with(5u8, FreezeOptions::new().lock(true)).err().ok_or("nothing may be locked")?;
    assert!((e.is_permission() || e.is_out_of_memory()) && e.hint().is_some(), "{e}");
    assert!(!handle.is_frozen());
    *value += *handle.alloc(2u64)?;
    let mut more: Vec<u64> = Vec::new_in(handle);
    more.extend(0..1_000_000);
    assert_eq!((*value, more[999_999]), (3, 999_999));
    passed()
}

/// A directory that is a control group of our own with a memory limit; removed when dropped.
pub struct Group(pub PathBuf);

impl Group {
    /// Moves this process into it.
    pub fn enter(&self) -> std::io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), "0")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _left = fs::remove_dir(&self.0);
    }
}

/// A group below this process's own that allows `bytes`, in version 1 or 2; `Err` says why there can be none.
pub fn limited_group(bytes: u64) -> Result<Group, String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
    let mut why = "no control group hierarchy with memory is mounted".to_owned();
    for line in mounts.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let at = mount.split(' ').nth(4).unwrap_or_default();
        let (prefix, file) = match filesystem.split(' ').collect::<std::vec::Vec<_>>()[..] {
            ["cgroup", _, options] if options.split(',').any(|o| o == "memory") => {
                (":memory:", "memory.limit_in_bytes")
            }
            ["cgroup2", ..] => ("0::", "memory.max"),
            _ => continue,
        };
        let mine = own.lines().find_map(|line| Some(line.split_once(prefix)?.1)).unwrap_or("/");
        let group =
            Group(Path::new(at).join(mine.trim_start_matches('/')).join(format!("cowbell-{}", std::process::id())));
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(file), bytes.to_string()));
        match made {
            Ok(()) => return Ok(group),
            Err(e) => why = format!("{}: {e}", group.0.display()),
        }
    }
    Err(why)
}

fn a_memory_limit_met_in_the_middle_is_an_error_and_no_sigkill() -> Outcome {
    let group = match limited_group(64 << 20) {
        Ok(group) => group,
        Err(why) => return skipped(format!("needs a control group of its own: {why}")),
    };
    let left = apart(|| {
        group.enter()?;
        let arena = Arena::builder("limited").capacity(1 << 30).build()?;
        let chunk = vec![1u8; 1 << 20];
        let mut chunks = 0;
        let e = loop {
            match arena.alloc_slice(&chunk) {
                Ok(_) => chunks += 1,
                Err(e) => break e,
            }
            assert!(chunks < 64, "64 MiB are allowed in all");
        };
        assert!(e.is_out_of_memory() && !e.is_out_of_capacity(), "{e}");
        assert!(e.to_string().contains("control group"), "{e}");
        assert!(chunks >= 32, "half of what is allowed can be had: {chunks} MiB");
        let mut list: Vec<u8> = Vec::new_in(*arena);
        assert!(list.try_reserve(32 << 20).is_err());
        assert!(arena.take_failure().is_some_and(|e| e.is_out_of_memory()));
        arena.freeze(())?;
        Ok(())
    })?;
    assert!(left.success(), "{left:?}");
    passed()
}

/// The tests of this file.
pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        addresses_that_cannot_be_had_are_an_error_and_nothing_is_left_of_the_attempt,
        a_limit_on_file_size_is_an_error_and_no_sigxfsz,
        too_many_arenas_are_an_error_that_leaves_no_mapping,
        no_descriptor_left_is_an_error,
        a_freeze_waits_for_who_holds_a_page_for_a_moment,
        a_freeze_that_fails_leaves_an_arena_that_goes_on_growing,
        a_lock_that_is_refused_leaves_an_arena_that_goes_on_growing,
        a_memory_limit_met_in_the_middle_is_an_error_and_no_sigkill,
    ]
}
