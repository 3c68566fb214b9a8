//! Writers that are planted: of each the report names page, object, cause and line.

use crate::cases;
use addr2line::Loader;
use cowbell::fork::{self, ForkOptions};
use cowbell::heap::Heap;
use cowbell::report::{Cause, Explained, Frame, Report};
use cowbell::watch::Watch;
use std::cell::{Cell, LazyCell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::mem::forget;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, OnceLock, RwLock};

pub const CASES: &[crate::Case] = cases![
    fifty_planted_writers_are_each_explained,
    what_is_not_known_is_said_to_be_unknown,
    objects_are_named_by_the_line_that_allocated_them,
    what_is_recorded_beside_threads_is_what_is_in_use,
    one_in_so_many_is_recorded,
];

/// Reads this program's debug information.
struct Names(Loader);

impl Names {
    fn new() -> Self {
        Self(Loader::new(std::env::current_exe().expect("a path")).expect("this program's debug information"))
    }

    fn of(&self, address: u64, start: u64) -> Vec<Frame> {
        let mut found = Vec::new();
        let Some(Ok(mut frames)) = address.checked_sub(start).map(|at| self.0.find_frames(at)) else { return found };
        while let Ok(Some(frame)) = frames.next() {
            let location = frame.location.as_ref();
            let function = frame.function.as_ref().and_then(|name| name.demangle().ok()).map(|name| name.into_owned());
            let file = location.and_then(|location| location.file).map(str::to_owned);
            found.push(Frame {
                function: function.unwrap_or_default(),
                file,
                line: location.and_then(|location| location.line),
            });
        }
        found
    }
}

fn explain(report: &Report) -> Vec<Explained> {
    let names = Names::new();
    report.explain(|address| names.of(address, report.executable.start))
}

/// Objects of one kind that fill some pages, and the line that allocated them.
///
/// No two groups are made by the same instructions, and no two writers have the same: of such the compiler makes one, and nobody can tell which line it was.
struct Group<T> {
    objects: Vec<T>,
    line: u32,
}

/// So many objects fill whole pages, whatever their size is.
const OBJECTS: usize = 1500;

#[track_caller]
fn grow<T>(make: impl FnMut() -> T) -> Group<T> {
    let mut make = make;
    Group { objects: (0..OBJECTS).map(|_| make()).collect(), line: Location::caller().line() }
}

/// An object that lies among objects of another line.
#[track_caller]
fn mix<T>(make: impl Fn() -> T, other: impl Fn() -> T) -> Group<T> {
    // The compiler is not to make one allocation of the two.
    let (make, other): (&dyn Fn() -> T, &dyn Fn() -> T) = black_box((&make, &other));
    let place = |n| if n % 300 == 150 { make() } else { other() };
    let mut objects: Vec<T> = (0..OBJECTS).map(place).collect();
    // Of the two kinds the rare one comes first, and is looked at.
    let rare: Vec<T> = (0..5).rev().map(|n| objects.swap_remove(300 * n + 150)).collect();
    objects.splice(0..0, rare);
    Group { objects, line: Location::caller().line() }
}

fn at<T: ?Sized>(object: &T) -> usize {
    std::ptr::from_ref(object).cast::<u8>().addr()
}

impl<T> Group<T> {
    /// One whose memory, of which this is an address, is far from its page's ends.
    fn take(mut self, address: impl Fn(&T) -> usize) -> Planted<T> {
        let is_inside = |object: &T| (1200..2900).contains(&(address(object) % 4096));
        let middle = self.objects.len() / 2;
        let place = |from: usize| (from..self.objects.len()).find(|&at| is_inside(&self.objects[at]));
        let place = place(middle).expect("an object");
        let object = self.objects.swap_remove(place);
        Planted { address: address(&object), object, line: self.line, _rest: self.objects }
    }

    /// The same among the first few.
    fn take_rare(mut self, address: impl Fn(&T) -> usize) -> Planted<T> {
        let object = self.objects.swap_remove(2);
        Planted { address: address(&object), object, line: self.line, _rest: self.objects }
    }
}

struct Planted<T> {
    object: T,
    address: usize,
    line: u32,
    _rest: Vec<T>,
}

/// A writer and what is to be said of it.
struct Writer<'a> {
    cause: Cause,
    address: usize,
    allocated: u32,
    line: u32,
    is_same: bool,
    write: Box<dyn FnOnce() + 'a>,
}

#[derive(Default)]
struct Writers<'a>(Vec<Writer<'a>>, Vec<Box<dyn FnOnce() + 'a>>);

impl<'a> Writers<'a> {
    /// The page stays changed.
    #[track_caller]
    fn add<T>(&mut self, cause: Cause, planted: Planted<T>, write: impl FnOnce(&mut T) + 'a)
    where
        T: 'a,
    {
        self.put(cause, planted, false, Location::caller().line(), write);
    }

    /// The page is the same again in the end.
    #[track_caller]
    fn same<T>(&mut self, cause: Cause, planted: Planted<T>, write: impl FnOnce(&mut T) + 'a)
    where
        T: 'a,
    {
        self.put(cause, planted, true, Location::caller().line(), write);
    }

    fn put<T: 'a>(
        &mut self,
        cause: Cause,
        planted: Planted<T>,
        is_same: bool,
        line: u32,
        write: impl FnOnce(&mut T) + 'a,
    ) {
        let Planted { mut object, address, line: allocated, _rest } = planted;
        let write = Box::new(move || {
            write(&mut object);
            forget((object, _rest));
        });
        self.0.push(Writer { cause, address, allocated, line, is_same, write });
    }

    /// One that frees, and writes nothing.
    fn frees<T: 'a>(&mut self, planted: Planted<T>, free: impl FnOnce(T) + 'a) {
        self.1.push(Box::new(move || free(planted.object)));
    }
}

type Line = [Cell<u64>; 8];

fn line(value: u64) -> Line {
    std::array::from_fn(|_| Cell::new(value))
}

/// Far from being in order.
const NUMBERS: [u64; 48] = {
    let mut numbers = [0; 48];
    let mut at = 0;
    while at < 48 {
        numbers[at] = at as u64 * 7919 % 101;
        at += 1;
    }
    numbers
};

fn fifty_planted_writers_are_each_explained() {
    Heap::record_sites(1).expect("this heap");
    let arcs: [_; 5] = [
        grow(|| Arc::new([101u64; 8])),
        grow(|| Arc::new([102u64; 8])),
        grow(|| Arc::new([103u64; 8])),
        grow(|| Arc::new([104u64; 8])),
        grow(|| Arc::new([105u64; 8])),
    ];
    let rcs: [_; 5] = [
        grow(|| Rc::new(line(106))),
        grow(|| Rc::new(line(107))),
        grow(|| Rc::new(line(108))),
        grow(|| Rc::new(line(109))),
        grow(|| Rc::new(line(110))),
    ];
    let mutexes = grow(|| Box::new(Mutex::new(line(111))));
    let rwlocks = grow(|| Box::new(RwLock::new(1u64)));
    let cells = grow(|| Box::new(RefCell::new(line(113))));
    let atomics = grow(|| Box::new(AtomicU64::new(1)));
    let flags = grow(|| Box::new(AtomicBool::new(false)));
    let freed = (grow(|| Box::new(line(116))), grow(|| vec![1u8; 100]), grow(|| String::from("a few letters")));
    let (freed_map, pushed) = (grow(|| HashMap::from([(1, 117)])), grow(|| vec![1u64; 8]));
    let among_lines: [_; 3] = [
        mix(|| Box::new(line(118)), || Box::new(line(618))),
        mix(|| Box::new(line(119)), || Box::new(line(619))),
        mix(|| Box::new(line(120)), || Box::new(line(620))),
    ];
    let among_atomics = mix(|| Box::new(AtomicU64::new(1)), || Box::new(AtomicU64::new(2)));
    let among_mutexes = mix(|| Box::new(Mutex::new(1u64)), || Box::new(Mutex::new(2u64)));
    let lines: [_; 5] = [
        grow(|| Box::new(line(123))),
        grow(|| Box::new(line(124))),
        grow(|| Box::new(line(125))),
        grow(|| Box::new(line(126))),
        grow(|| Box::new(line(127))),
    ];
    let sorted: [_; 5] = [
        grow(|| NUMBERS[..38].to_vec()),
        grow(|| NUMBERS[..39].to_vec()),
        grow(|| NUMBERS[..40].to_vec()),
        grow(|| NUMBERS[..41].to_vec()),
        grow(|| NUMBERS[..42].to_vec()),
    ];
    let maps: [_; 4] = [
        grow(|| HashMap::from([(1, 133)])),
        grow(|| HashMap::from([(1, 134)])),
        grow(|| HashMap::from([(1, 135)])),
        grow(|| HashMap::from([(1, 136)])),
    ];
    let set = grow(|| HashSet::<u64>::from_iter(0..10));
    let once_cells = grow(|| Box::new(OnceCell::new()));
    let once_locks = grow(|| Box::new(OnceLock::<[u64; 2]>::new()));
    let lazy_cells = grow(|| Box::new(LazyCell::new(|| [5u64; 3])));
    let lazy_locks = grow(|| Box::new(LazyLock::new(|| [5u64; 4])));
    let onces = grow(|| Box::new(Once::new()));
    let same: [_; 5] = [
        grow(|| Box::new(line(143))),
        grow(|| Box::new(line(144))),
        grow(|| Box::new(line(145))),
        grow(|| Box::new(line(146))),
        grow(|| Box::new(line(147))),
    ];
    let generation = Heap::freeze().expect("one thread");

    let mut writers = Writers::default();
    // References that stay counted, and such that are counted for a while.
    let [a, b, c, d, e] = arcs.map(|group| group.take(|arc| at(&**arc)));
    writers.add(Cause::ReferenceCount, a, |arc| forget(arc.clone()));
    writers.add(Cause::ReferenceCount, b, |arc| forget(Arc::downgrade(arc)));
    writers.same(Cause::ReferenceCount, c, |arc| drop(arc.clone()));
    writers.same(Cause::ReferenceCount, d, |arc| drop(Arc::downgrade(arc)));
    writers.same(Cause::ReferenceCount, e, |arc| drop(black_box(arc.clone())));
    let [a, b, c, d, e] = rcs.map(|group| group.take(|rc| at(&**rc)));
    writers.add(Cause::ReferenceCount, a, |rc| forget(rc.clone()));
    writers.add(Cause::ReferenceCount, b, |rc| forget(Rc::downgrade(rc)));
    writers.add(Cause::ReferenceCount, c, |rc| forget([rc.clone(), rc.clone()]));
    writers.same(Cause::ReferenceCount, d, |rc| drop(black_box(rc.clone())));
    writers.same(Cause::ReferenceCount, e, |rc| drop(black_box(Rc::downgrade(rc))));

    writers.same(Cause::Lock, mutexes.take(|each| at(&**each)), |mutex| drop(Mutex::lock(mutex)));
    writers.same(Cause::Lock, rwlocks.take(|each| at(&**each)), |lock| drop(lock.read()));
    writers.same(Cause::Lock, cells.take(|each| at(&**each)), |cell| drop(black_box(cell.borrow_mut())));
    writers.add(Cause::Atomic, atomics.take(|each| at(&**each)), |n| _ = n.fetch_add(1, Ordering::SeqCst));
    writers.add(Cause::Atomic, flags.take(|each| at(&**each)), |flag| flag.store(true, Ordering::SeqCst));

    // What an allocator would write.
    writers.frees(freed.0.take(|each| at(&**each)), drop);
    writers.frees(freed.1.take(|each| at(&each[0])), drop);
    writers.frees(freed.2.take(|each| at(each.as_str())), |text| {
        forget(text + " and some more of them, so that it moves")
    });
    writers.frees(freed_map.take(|each| at(&each[&1])), drop);
    writers.frees(pushed.take(|each| at(&each[0])), |mut list| forget((list.push(1), list)));

    let [a, b, c] = among_lines.map(|group| group.take_rare(|each| at(&**each)));
    writers.add(Cause::FalseSharing, a, |line| line[0].set(21));
    writers.add(Cause::FalseSharing, b, |line| line[7].set(22));
    writers.add(Cause::FalseSharing, c, |line| line.iter().for_each(|each| each.set(23)));
    let (a, b) = (among_atomics.take_rare(|each| at(&**each)), among_mutexes.take_rare(|each| at(&**each)));
    writers.add(Cause::FalseSharing, a, |n| _ = n.fetch_add(2, Ordering::SeqCst));
    writers.add(Cause::FalseSharing, b, |mutex| _ = Mutex::lock(mutex).map(|mut n| *n = 24).is_ok());

    let [a, b, c, d, e] = lines.map(|group| group.take(|each| at(&**each)));
    writers.add(Cause::Write, a, |line| line[3].set(25));
    writers.add(Cause::Write, b, |line| _ = line[4].replace(26));
    writers.add(Cause::Write, c, |line| line.fill(Cell::new(27)));
    writers.add(Cause::Write, d, |line| line.iter().for_each(|each| each.set(28)));
    writers.add(Cause::Write, e, |each| **each = line(29));

    let [a, b, c, d, e] = sorted.map(|group| group.take(|each| at(&each[0])));
    writers.add(Cause::Sort, a, |list| list.sort());
    writers.add(Cause::Sort, b, |list| list.sort_unstable());
    writers.add(Cause::Sort, c, |list| list.sort_by_key(|&n| u64::MAX - n));
    writers.add(Cause::Sort, d, |list| list.sort_unstable_by(|a, b| b.cmp(a)));
    writers.add(Cause::Sort, e, |list| list.sort_by(|a, b| b.cmp(a)));

    let [a, b, c, d] = maps.map(|group| group.take(|each| at(&each[&1])));
    writers.add(Cause::Collection, a, |map| _ = map.insert(2, 2));
    writers.add(Cause::Collection, b, |map| _ = *map.entry(3).or_insert(3));
    writers.add(Cause::Collection, c, |map| map.extend([(4, 4)]));
    writers.add(Cause::Collection, d, |map| _ = map.remove(&1));
    let set = set.take(|each| each.get(&3).map_or(0, at));
    writers.add(Cause::Collection, set, |set| _ = set.insert(77));

    writers.add(Cause::LazyCell, once_cells.take(|each| at(&**each)), |cell| _ = *cell.get_or_init(|| 5u64));
    writers.add(Cause::LazyCell, once_locks.take(|each| at(&**each)), |cell| _ = cell.set([5; 2]));
    writers.add(Cause::LazyCell, lazy_cells.take(|each| at(&**each)), |cell| _ = ***cell);
    writers.add(Cause::LazyCell, lazy_locks.take(|each| at(&**each)), |cell| _ = ***cell);
    writers.add(Cause::LazyCell, onces.take(|each| at(&**each)), |once| once.call_once(|| ()));

    let [a, b, c, d, e] = same.map(|group| group.take(|each| at(&**each)));
    writers.same(Cause::SameAgain, a, |line| line[3].set(black_box(143)));
    writers.same(Cause::SameAgain, b, |line| _ = line[4].replace(black_box(144)));
    writers.same(Cause::SameAgain, c, |line| line.fill(black_box(Cell::new(145))));
    writers.same(Cause::SameAgain, d, |line| line.iter().for_each(|each| each.set(black_box(146))));
    writers.same(Cause::SameAgain, e, |each| **each = black_box(line(147)));

    let Writers(writers, freeing) = writers;
    assert_eq!(writers.len() + freeing.len(), 50);
    let told: Vec<_> = writers.iter().map(|w| (w.cause, w.address, w.allocated, w.line, w.is_same)).collect();
    let options = ForkOptions::new().watch(Watch::Trap).callers(true);
    let mut child = fork::spawn(&options, move |_| {
        writers.into_iter().for_each(|writer| (writer.write)());
        freeing.into_iter().for_each(|free| free());
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    let explained = explain(&exit.report);
    let start = |arena: &Explained| {
        let image = generation.images().iter().find(|image| image.name() == arena.arena).expect("an image");
        image.range().start
    };
    let mut wrong = Vec::new();
    for (cause, address, allocated, line, is_same) in told {
        let page = exit.report.page_size as usize;
        let of_page = |each: &&Explained| address / page == start(each) / page + each.page.0 as usize;
        let Some(found) = explained.iter().find(of_page) else {
            wrong.push(format!("line {line}: its page is not told as copied"));
            continue;
        };
        let of_line = |told: &Option<String>, line: u32| {
            told.as_ref().is_some_and(|told| told.ends_with(&format!("planted.rs:{line}")))
        };
        let object = found.objects.first();
        let holds = object
            .is_some_and(|each| (each.object.start..each.object.start + each.object.len).contains(&(address as u64)));
        let is_right = found.cause == cause
            && holds
            && of_line(&object.and_then(|object| object.line.clone()), allocated)
            && found.writer.as_ref().is_some_and(|writer| of_line(&writer.line, line))
            && found.address / page as u64 == address as u64 / page as u64
            && found.changed.is_some_and(|changed| (changed.bytes == 0) == is_same);
        if !is_right {
            wrong.push(format!("line {line}, {cause}, object of line {allocated}, same {is_same}:\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(explained.len(), 45, "{explained:?}");
    assert_eq!(exit.report.copied_pages().0, 45, "those that free copied nothing: {}", exit.report);
}

fn what_is_not_known_is_said_to_be_unknown() {
    let lines = grow(|| Box::new(line(1))).take(|each| at(&**each));
    let _generation = Heap::freeze().expect("one thread");
    for watch in [Watch::Census, Watch::Trap] {
        let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| lines.object[3].set(9)).expect("a child");
        let report = child.wait().expect("its end").report;
        // Without names, or without the first write, nobody knows.
        let explained = if watch == Watch::Census { explain(&report) } else { report.explain(|_| Vec::new()) };
        let [one] = explained.as_slice() else { panic!("{report}") };
        assert_eq!(one.cause, Cause::Unknown, "{one}");
        assert_eq!(one.changed.map(|changed| changed.bytes), Some(1));
        let [object] = one.objects.as_slice() else { panic!("{one}") };
        assert_eq!((object.object.type_name.as_str(), &object.line), ("a block of 64 bytes", &None), "not recorded");
        assert!(one.to_string().contains("allocated at an unknown line"), "{one}");
        // The fourth word.
        assert!(one.to_string().contains("changed  1 byte, byte 24 of the object\n"), "{one}");
        assert_eq!(one.to_string().contains("first byte 24 of the object"), watch == Watch::Trap, "{one}");
    }
    let refused = fork::spawn(&ForkOptions::new().callers(true), |_| ()).expect_err("a census sees no caller");
    assert!(refused.to_string().contains("census"), "{refused}");
}

/// Allocations that were moved, grown in place, freed, and made by a child.
fn objects_are_named_by_the_line_that_allocated_them() {
    assert!(Heap::record_sites(0).is_err());
    Heap::record_sites(1).expect("this heap");
    drop((0..3000).map(|_| Box::new(line(3))).collect::<Vec<_>>());
    let mut large: Vec<u8> = vec![1; 2 << 20];
    large.reserve_exact(100 << 20);
    let line_of_growth = line!() - 1;
    let mut zeroed = vec![0u8; 70_000];
    let line_of_zeroed = line!() - 1;
    let generation = Heap::freeze().expect("one thread");
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        // It records nothing, and frees what is its parent's.
        let own: Vec<_> = (0..1000).map(|_| Box::new(line(4))).collect();
        drop(own);
        (large[5], zeroed[66_000]) = (9, 9);
        forget((large, zeroed));
    })
    .expect("a child");
    let report = child.wait().expect("its end").report;
    let mut lines: Vec<_> =
        explain(&report).iter().flat_map(|each| each.objects.clone()).map(|each| each.line).collect();
    lines.sort_unstable();
    let mut right = [line_of_growth, line_of_zeroed].map(|line| Some(format!("{}:{line}", file!())));
    right.sort_unstable();
    assert_eq!(lines.len(), 2, "{report}");
    assert!(
        lines
            .iter()
            .zip(&right)
            .all(|(is, right)| is.as_ref().zip(right.as_ref()).is_some_and(|(is, right)| is.ends_with(right))),
        "{lines:?} {right:?}"
    );
    let recorded: usize = generation.images().iter().map(|image| image.allocations().count()).sum();
    assert!(recorded < 500, "those that were freed are not there: {recorded}");
}

/// The allocations that are recorded in what a freeze makes now, and the blocks that are in use there.
fn recorded() -> (usize, usize) {
    let generation = Heap::freeze().expect("one thread");
    let recorded = generation.images().iter().map(|image| image.allocations().count()).sum();
    (recorded, generation.live_blocks())
}

fn what_is_recorded_beside_threads_is_what_is_in_use() {
    let before = {
        let generation = Heap::freeze().expect("one thread");
        generation.live_blocks()
    };
    Heap::record_sites(1).expect("this heap");
    let mut kept: Vec<Vec<u8>> = Vec::new();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
        for lane in 0..4 {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut numbers = crate::Numbers(lane + 1);
                let mut own: Vec<Vec<u8>> = Vec::new();
                for _ in 0..5000 {
                    let mut block = vec![1; 1 + numbers.below(3000)];
                    block.resize(1 + numbers.below(200_000), 2);
                    match numbers.below(3) {
                        0 => own.push(block),
                        1 => sender.send(block).expect("there is a receiver"),
                        _ => own.clear(),
                    }
                }
            });
        }
        drop(sender);
        // Others' blocks are freed here, but for some. Children that are forked meanwhile record nothing.
        for (nth, block) in receiver.into_iter().enumerate() {
            if nth % 10 == 0 {
                kept.push(block);
            }
            if nth % 500 == 0 {
                let ended = std::process::Command::new("true").status();
                assert!(ended.is_ok_and(|status| status.success()));
            }
        }
    });
    let (recorded, live) = recorded();
    // What threads and the library keep for themselves may be hot, or older than the record.
    assert!(recorded <= live && recorded + 50 > live, "{recorded} recorded, {live} in use, {before} before");
    assert!(recorded > kept.len());
}

fn one_in_so_many_is_recorded() {
    Heap::record_sites(10).expect("this heap");
    let lines: Vec<Box<Line>> = (0..20_000).map(|n| Box::new(line(n))).collect();
    let (recorded, live) = recorded();
    assert!(live > 20_000 && (1900..2200).contains(&recorded), "{recorded} of {live}");
    assert_eq!(lines[7][0].get(), 7);
}
