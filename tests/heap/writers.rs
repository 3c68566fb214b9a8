//! Writers of ten kinds, planted in a frozen heap.

use cowbell::heap::{Generation, Heap};
use cowbell::report::Cause;
use std::cell::{Cell, LazyCell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::mem::forget;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, OnceLock, RwLock};

/// Objects of one kind that fill some pages, and the line that allocated them.
///
/// No two groups are made by the same instructions, and no two writers have the same: of such the compiler makes one, and nobody can tell which line it was.
pub struct Group<T> {
    objects: Vec<T>,
    line: u32,
}

/// This number of objects fills whole pages, whatever their size is.
const OBJECTS: usize = 1500;

#[track_caller]
pub fn grow<T>(make: impl FnMut() -> T) -> Group<T> {
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
    // The rare one of the two kinds comes first, and is looked at.
    let rare: Vec<T> = (0..5).rev().map(|n| objects.swap_remove(300 * n + 150)).collect();
    objects.splice(0..0, rare);
    Group { objects, line: Location::caller().line() }
}

pub fn at<T: ?Sized>(object: &T) -> usize {
    std::ptr::from_ref(object).cast::<u8>().addr()
}

impl<T> Group<T> {
    /// One whose memory, of which this is an address, is far from its page's ends.
    pub fn take(mut self, address: impl Fn(&T) -> usize) -> Planted<T> {
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

pub struct Planted<T> {
    pub object: T,
    address: usize,
    line: u32,
    _rest: Vec<T>,
}

/// A writer and what is to be said of it.
pub struct Writer<'a> {
    pub cause: Cause,
    pub address: usize,
    pub allocated: u32,
    pub line: u32,
    pub is_same: bool,
    pub write: Box<dyn FnOnce() + 'a>,
}

#[derive(Default)]
pub struct Writers<'a>(pub Vec<Writer<'a>>, pub Vec<Box<dyn FnOnce() + 'a>>);

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

pub type Line = [Cell<u64>; 8];

pub fn line(value: u64) -> Line {
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

/// Plants fifty writers, and freezes the heap.
pub fn plant<'a>() -> (Generation, Writers<'a>) {
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

    // An allocator would write this.
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
    (generation, writers)
}
