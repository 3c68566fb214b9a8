use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

unsafe extern "C" {
    fn _Unwind_Backtrace(each: extern "C" fn(*mut c_void, *mut c_void) -> c_int, to: *mut c_void) -> c_int;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

static ON: AtomicBool = AtomicBool::new(false);
static LEN: AtomicUsize = AtomicUsize::new(0);
static CALLS: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
static DEPTH: AtomicUsize = AtomicUsize::new(0);

extern "C" fn each(frame: *mut c_void, _: *mut c_void) -> c_int {
    let at = DEPTH.fetch_add(1, SeqCst);
    if at < 64 { CALLS[at].store(unsafe { _Unwind_GetIP(frame) }.wrapping_sub(1), SeqCst); }
    0
}

struct Recorder;
unsafe impl GlobalAlloc for Recorder {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ON.swap(false, SeqCst) {
            LEN.store(layout.size(), SeqCst);
            DEPTH.store(0, SeqCst);
            unsafe { _Unwind_Backtrace(each, std::ptr::null_mut()) };
        }
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) { unsafe { System.dealloc(at, layout) } }
}
#[global_allocator]
static RECORDER: Recorder = Recorder;

mod shop {
    use super::*;
    #[repr(C)]
    pub struct Node { pub id: u64, pub links: [Cell<u32>; 4], pub weight: f64, pub inner: Inner, pub pair: (u16, u64) }
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Inner { pub flag: bool, pub count: u64 }
    /// Other lies in memory as Inner does, and vectors of the two grow by the same instructions.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Other { pub flag: bool, pub count: u64 }
    pub enum Shape { Round(u64), Square { side: u64, other: u64 } }
    pub struct Shared { pub hits: AtomicU64, pub name: &'static str }
}
use shop::*;

fn node() -> Node {
    Node { id: 1, links: Default::default(), weight: 1.0, inner: Inner { flag: true, count: 2 }, pair: (1, 2) }
}

#[inline(never)]
fn recorded<T>(name: &str, make: impl FnOnce() -> T) {
    ON.store(true, SeqCst);
    let made = black_box(make());
    ON.store(false, SeqCst);
    let depth = DEPTH.load(SeqCst).min(64);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let base = usize::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
    let calls: Vec<String> = CALLS[1..depth].iter().map(|call| call.load(SeqCst).wrapping_sub(base).to_string()).collect();
    println!("{name} {} {}", LEN.load(SeqCst), calls.join(","));
    std::mem::forget(made);
}

fn main() {
    recorded("box", || Box::new(node()));
    recorded("arc", || Arc::new(Shared { hits: AtomicU64::new(1), name: "x" }));
    recorded("rc", || Rc::new(RefCell::new(node())));
    recorded("vec", || (0..7).map(|_| node()).collect::<Vec<_>>());
    recorded("push", || { let mut v = Vec::new(); v.push(Inner { flag: true, count: 1 }); v });
    recorded("push_other", || { let mut v = Vec::new(); v.push(Other { flag: true, count: 1 }); v });
    recorded("map", || HashMap::<u32, Inner>::with_capacity(100));
    recorded("insert", || { let mut m = HashMap::<u32, Inner>::default(); m.insert(1, Inner { flag: true, count: 1 }); m });
    recorded("tree", || { let mut m = BTreeMap::<u32, Inner>::new(); m.insert(1, Inner { flag: true, count: 1 }); m });
    recorded("string", || String::from(black_box("abcdefgh")));
    recorded("enum", || Box::new(if black_box(true) { Shape::Square { side: 1, other: 2 } } else { Shape::Round(1) }));
    recorded("slice", || Arc::<[Inner]>::from(&black_box([Inner { flag: true, count: 1 }; 5])[..]));
    recorded("raw", || unsafe { std::alloc::alloc(Layout::new::<Node>()) });
}
