//! Arenas: what a closure allocates, in an image of its own that goes with its value.
//!
//! Each that is being built has a kind of its own, and so chunks of its own. Nothing here trusts that all of an arena's blocks are the value's: what the
//! closure allocated for others (a lazy static, a thread-local, a logger's buffer) is frozen along, stays where it is while it is in use, and keeps
//! the image until it is freed.

use super::claim;
use super::generation::{self, Generation};
use super::handle::{Heap, not_in_use};
use super::hot::{self, FIRST_SCOPE, KindGuard};
use super::state::KINDS;
use crate::error::{Error, Result};
use crate::fork;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Kinds that arenas are being built of, a bit each.
static BUILDING: AtomicU32 = AtomicU32::new(0);
/// For each kind, the number of the arena that is being built of it, or was.
static NUMBERS: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];
/// Arenas so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// A value and all that it leads to, built by [`arena`] and frozen.
///
/// The value is owned as a `Box` owns its value: dropping this drops the value, in whichever thread that is, and frees all that it owns. That writes to no
/// frozen page but where the value's own destructors do (counts of references), and when the last object of the arena is freed its memory goes back,
/// but for what children that are still alive have of it.
///
/// This is `Send` and `Sync` where the value is. A value whose fields can change behind a shared reference may be changed still: this process gets a
/// copy of the page, and children forked later inherit it.
pub struct Frozen<T> {
    // First: its blocks are freed while the images are known.
    root: Box<T>,
    generation: Generation,
}

impl<T> Frozen<T> {
    /// The images that it lies in, and what became of their blocks.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Drops the value. What is left tells whether the memory went back ([`Generation::gone`]), or how many blocks others have
    /// ([`Generation::live_blocks`]).
    pub fn release(self) -> Generation {
        let Self { root, generation } = self;
        drop(root);
        generation
    }
}

impl<T> Deref for Frozen<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.root
    }
}

impl<T: fmt::Debug> fmt::Debug for Frozen<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").field("root", &self.root).field("generation", &self.generation).finish()
    }
}

/// Runs `build`, and freezes what it allocated in this thread, and in threads that [join](Scope::join), as an arena of its own: reports of children call it by
/// `name`. [`Heap`] must be the global allocator.
///
/// ```no_run
/// use cowbell::heap::{self, Heap};
///
/// #[global_allocator]
/// static HEAP: Heap = Heap;
///
/// let mut index = heap::arena("index", || (0..1_000_000).map(|n| n.to_string()).collect::<Vec<_>>())?;
/// let mut worker = cowbell::fork::spawn(&Default::default(), |_| println!("{}", index[7]))?;
/// worker.wait()?;
/// // New data: the old one is dropped, and its memory goes back.
/// index = heap::arena("index", || (0..2_000_000).map(|n| n.to_string()).collect())?;
/// # Ok::<(), cowbell::Error>(())
/// ```
///
/// Memory that `build` allocates for others (a lazy static, a thread-local, a logger's buffer) is frozen along. It can be used, written, grown and freed as ever:
/// who writes to it gets a copy of the page, who grows it moves it out. While it is in use it keeps the arena's memory; what is to
/// stay is better made before, or under [`hot`](super::hot()). What `build` moves into its value from outside is not in the arena, and stays shared only if
/// it was frozen otherwise.
///
/// Arenas may be built inside of each other; each has what is allocated while it is the innermost. Should `build` panic, what it has allocated is freed as
/// ever, and what is left stays unfrozen.
///
/// # Errors
/// Those of [`Heap::freeze`]; [`Error::threads`] before `build` is run, too. The value is dropped. Invalid when 14 arenas are being built at once.
pub fn arena<T>(name: &str, build: impl FnOnce() -> T) -> Result<Frozen<T>> {
    fork::wait_until_alone(fork::PATIENCE)?;
    if !Heap::is_in_use() {
        return Err(not_in_use());
    }
    hot::warm();
    let building = Building::begin()?;
    let root = {
        let _kind = KindGuard::of(building.0);
        Box::new(build())
    };
    let generation = generation::freeze(building.0, name)?;
    Ok(Frozen { root, generation })
}

/// A kind that an arena is being built of. Ends when dropped.
struct Building(u8);

impl Building {
    fn begin() -> Result<Self> {
        let free = |taken: u32| (FIRST_SCOPE..KINDS as u8).find(|kind| taken >> kind & 1 == 0);
        let taken = BUILDING
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| free(taken).map(|kind| taken | 1 << kind));
        let kind =
            taken.ok().and_then(free).ok_or_else(|| Error::invalid("too many arenas are being built at once"))?;
        if let Some(number) = NUMBERS.get(usize::from(kind)) {
            number.store(COUNT.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Release);
        }
        Ok(Self(kind))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if let Some(number) = NUMBERS.get(usize::from(self.0)) {
            number.store(0, Ordering::Release);
        }
        BUILDING.fetch_and(!(1 << self.0), Ordering::AcqRel);
    }
}

/// An arena that is being built: with it other threads join.
///
/// ```no_run
/// use cowbell::heap::{self, Scope};
///
/// let halves = heap::arena("halves", || {
///     let scope = Scope::current();
///     let half = |from: u32| scope.map(|scope| scope.join(|| (from..from + 500).map(|n| n.to_string()).collect::<Vec<_>>()));
///     std::thread::scope(|threads| {
///         let second = threads.spawn(|| half(500));
///         (half(0), second.join().ok())
///     })
/// });
/// ```
/// A pool of threads joins for good when each of its threads runs under [`Self::join`], as with `ThreadPoolBuilder::spawn_handler` of rayon, and must end
/// before the closure does: a freeze demands one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    kind: u8,
    number: u64,
}

impl Scope {
    /// The arena that this thread builds now; `None` outside of [`arena`], and under [`hot`](super::hot()).
    pub fn current() -> Option<Self> {
        let kind = claim::kind();
        let number = NUMBERS.get(usize::from(kind))?.load(Ordering::Acquire);
        (number != 0).then_some(Self { kind, number })
    }

    /// Runs `body`; what it allocates in this thread goes to the arena. Once the arena is built this just runs it.
    pub fn join<R>(self, body: impl FnOnce() -> R) -> R {
        let now = NUMBERS.get(usize::from(self.kind)).map_or(0, |number| number.load(Ordering::Acquire));
        let _kind = (now == self.number).then(|| KindGuard::of(self.kind));
        body()
    }
}
