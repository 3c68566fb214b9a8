//! A model of what Linux must do when a case's steps are taken, by its documented rules; no kernel is asked.
//!
//! A page of a process is one of: nothing, the page of zeroes, a page of the file, an anonymous frame. A write to
//! nothing is a first touch, to the page of zeroes or of a file makes a page of the process' own, and to a frame it is
//! a copy while another process maps the same frame, and a reuse when nobody else does any more.

use crate::case::{Case, Kind, Op};
use crate::record::WriteClass;
use std::collections::{BTreeMap, BTreeSet};

/// A page of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    Zero,
    File,
    Frame(usize),
    /// Unmapped, or shared memory: no write of it is anybody's copy.
    None,
}

/// The state of a page of one process.
#[derive(Clone, Copy, Debug)]
struct Page {
    slot: Slot,
    /// There was nothing when the interval opened, whatever has been read since.
    empty_at_fork: bool,
    /// There was the page of zeroes.
    zero_at_fork: bool,
    /// Given back by the process since the interval opened.
    dropped: bool,
    /// The first write of it in this interval, by its place among the faults.
    fault: Option<usize>,
}

/// The first write of a page in an interval.
#[derive(Clone, Debug)]
pub struct Fault {
    /// At which step.
    pub step: usize,
    /// The process.
    pub actor: usize,
    /// In which of its intervals, counted from 0.
    pub epoch: usize,
    /// The region and the page in it.
    pub place: (usize, usize),
    /// The kernel's act.
    pub kernel: WriteClass,
    /// The classes that the report may give it: one, unless the page was given back before.
    pub classes: Vec<WriteClass>,
    /// The process unmapped or dropped the page later and left it so: its page tables no longer tell.
    pub gone: bool,
    /// The process gave the page back at some time.
    pub dropped: bool,
    /// The mapping is younger than the interval: its writes are not events.
    pub late: bool,
    /// There was nothing, or nothing but a file's page, when the interval opened.
    pub empty_at_fork: bool,
    /// There was the page of zeroes when the interval opened.
    pub zero_at_fork: bool,
}

/// The effect of a write to a page, by the page's state before it, seen from the kernel's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The kernel did this.
    Fault(WriteClass),
    /// The page was the process' own already.
    Own,
    /// Shared memory, reads: nothing is claimed.
    Nothing,
}

/// The effects that a case must have.
#[derive(Debug, Default)]
pub struct Truth {
    /// Writes that made the kernel do something, in order.
    pub faults: Vec<Fault>,
    /// The effect that each step must have on each page that it touched.
    pub seen: BTreeMap<(usize, usize), Seen>,
    /// The end of each actor that ends.
    pub ends: BTreeMap<usize, Op>,
    /// The parent of each actor that was forked.
    pub parents: BTreeMap<usize, usize>,
    /// The number of times an actor called vfork or posix_spawn.
    pub sharing: usize,
    /// Regions that were moved.
    moves: Vec<Moved>,
    /// Pages that were given back, by actor, interval and place.
    given_back: BTreeSet<(usize, usize, (usize, usize))>,
}

/// A region that was moved.
#[derive(Debug)]
struct Moved {
    actor: usize,
    epoch: usize,
    region: usize,
    /// The moved pages that were still as when the interval opened: their frames can tell where they were.
    held: Vec<usize>,
}

impl Truth {
    /// Tells whether the region of this write was moved in the same interval, and no frame tells from where: each of its pages had been
    /// written or given back before it was moved, or was given back before it was written.
    pub fn is_moved_without_a_trace(&self, of: &Fault) -> bool {
        let region = of.place.0;
        let mut moves =
            self.moves.iter().filter(|m| (m.actor, m.epoch, m.region) == (of.actor, of.epoch, region)).peekable();
        let tells = |page: &usize| {
            let key = (of.actor, of.epoch, (region, *page));
            match self.faults.iter().find(|fault| (fault.actor, fault.epoch, fault.place) == key) {
                Some(fault) => matches!(fault.kernel, WriteClass::Copy | WriteClass::Reuse),
                None => !self.given_back.contains(&key),
            }
        };
        moves.peek().is_some() && moves.all(|moved| !moved.held.iter().any(tells))
    }
}

struct Actor {
    pages: Vec<Vec<Page>>,
    /// An interval is open: it was forked, or has forked and some of its descendants live.
    watched: bool,
    /// The number of the interval, counted from 0: each fork closes one and opens the next.
    epoch: usize,
    /// Regions mapped since the interval opened.
    late: Vec<bool>,
    /// Regions that have been written, here or before a fork, or lie in one mapping with what has been.
    written: Vec<bool>,
}

struct Model<'a> {
    case: &'a Case,
    actors: BTreeMap<usize, Actor>,
    /// By how many processes each frame is mapped.
    frames: Vec<usize>,
    truth: Truth,
}

/// Plays a case.
pub fn play(case: &Case) -> Truth {
    let empty = |kind: Kind| match kind {
        Kind::Shared => Slot::None,
        _ if kind.is_file() => Slot::File,
        _ => Slot::Empty,
    };
    let page = |kind| Page { empty_at_fork: true, ..opens(empty(kind)) };
    let pages = case.regions.iter().map(|r| vec![page(r.kind); r.pages]).collect();
    let late = vec![false; case.regions.len()];
    let written = case.regions.iter().map(|r| matches!(r.kind, Kind::Heap | Kind::Bss)).collect();
    let first = Actor { pages, watched: false, epoch: 0, late, written };
    let mut model = Model { case, actors: BTreeMap::from([(0, first)]), frames: Vec::new(), truth: Truth::default() };
    (0..case.steps.len()).for_each(|step| model.step(step));
    model.truth
}

impl Model<'_> {
    fn step(&mut self, index: usize) {
        let step = self.case.steps[index];
        let places = || (step.page..step.page + step.pages).map(|page| (step.region, page));
        match step.op {
            Op::Fork => self.fork(step.actor, step.value),
            Op::Vfork | Op::Spawn => self.truth.sharing += 1,
            Op::Move => self.move_region(step.actor, step.region),
            Op::Map => self.actor(step.actor).late[step.region] = true,
            op if op.ends() => self.end(step.actor, op),
            Op::Read => places().for_each(|place| self.read(index, step.actor, place)),
            Op::Dontneed | Op::Unmap => places().for_each(|place| self.drop_page(step.actor, place, step.op)),
            op if op.writes() => places().for_each(|place| self.write(index, step.actor, place)),
            _ => {}
        }
    }

    fn actor(&mut self, actor: usize) -> &mut Actor {
        self.actors.get_mut(&actor).expect("a case has no steps of the dead")
    }

    fn page(&mut self, actor: usize, (region, page): (usize, usize)) -> &mut Page {
        &mut self.actor(actor).pages[region][page]
    }

    fn fork(&mut self, parent: usize, child: usize) {
        for &Page { slot, .. } in self.actor(parent).pages.clone().iter().flatten() {
            if let Slot::Frame(frame) = slot {
                self.frames[frame] += 1;
            }
        }
        let old = self.actor(parent);
        let fresh = |region: &Vec<Page>| region.iter().map(|page| opens(page.slot)).collect();
        let fresh: Vec<Vec<Page>> = old.pages.iter().map(fresh).collect();
        // The parent's memory is shared anew: its own interval ends, and another opens at the same moment.
        old.pages.clone_from(&fresh);
        old.late.fill(false);
        old.epoch += usize::from(old.watched);
        old.watched = true;
        let late = vec![false; old.late.len()];
        let written = old.written.clone();
        let mut inherited = fresh;
        // Fork copies page tables of mappings that have been written; of others the child starts with none.
        for (region, _) in inherited.iter_mut().zip(&written).filter(|(_, written)| !**written) {
            for page in region.iter_mut().filter(|page| page.slot == Slot::Zero) {
                *page = opens(Slot::Empty);
            }
        }
        self.actors.insert(child, Actor { pages: inherited, watched: true, epoch: 0, late, written });
        self.truth.parents.insert(child, parent);
    }

    fn end(&mut self, actor: usize, op: Op) {
        let gone = self.actors.remove(&actor).expect("it lived");
        for page in gone.pages.iter().flatten() {
            if let Slot::Frame(frame) = page.slot {
                self.frames[frame] -= 1;
            }
        }
        self.truth.ends.insert(actor, op);
        // The first process is watched only because of the others; whoever lives was forked from it.
        if self.actors.len() == 1
            && let Some(first) = self.actors.get_mut(&0)
        {
            first.epoch += usize::from(first.watched);
            first.watched = false;
        }
    }

    fn read(&mut self, step: usize, actor: usize, place: (usize, usize)) {
        let page = self.page(actor, place);
        if page.slot == Slot::Empty {
            page.slot = Slot::Zero;
        }
        let _was = self.truth.seen.insert((step, place.1), Seen::Nothing);
    }

    fn move_region(&mut self, actor: usize, region: usize) {
        let me = self.actor(actor);
        let is_held = |page: &Page| {
            matches!(page.slot, Slot::Frame(_)) && !page.empty_at_fork && page.fault.is_none() && !page.dropped
        };
        let held = me.pages[region].iter().enumerate().filter(|(_, page)| is_held(page)).map(|(nth, _)| nth);
        let moved = Moved { actor, epoch: me.epoch, region, held: held.collect() };
        self.truth.moves.push(moved);
    }

    fn drop_page(&mut self, actor: usize, place: (usize, usize), op: Op) {
        let kind = self.case.regions[place.0].kind;
        let epoch = self.actor(actor).epoch;
        self.truth.given_back.insert((actor, epoch, place));
        let page = self.page(actor, place);
        let was = page.slot;
        page.dropped = true;
        page.slot = match was {
            _ if op == Op::Unmap => Slot::None,
            Slot::None => Slot::None,
            _ if kind.is_file() => Slot::File,
            _ => Slot::Empty,
        };
        if let Slot::Frame(frame) = was {
            self.frames[frame] -= 1;
        }
        if let Some(fault) = self.page(actor, place).fault {
            (self.truth.faults[fault].gone, self.truth.faults[fault].dropped) = (true, true);
        }
    }

    fn write(&mut self, step: usize, actor: usize, place: (usize, usize)) {
        let page = *self.page(actor, place);
        let (kernel, seen) = match page.slot {
            Slot::None => (None, Seen::Nothing),
            // The store to its first page brought in all of it.
            Slot::Empty if self.case.regions[place.0].kind == Kind::Huge => {
                (Some(WriteClass::FirstTouch), Seen::Nothing)
            }
            Slot::Empty => (Some(WriteClass::FirstTouch), Seen::Fault(WriteClass::FirstTouch)),
            Slot::Zero => (Some(WriteClass::ZeroPage), Seen::Fault(WriteClass::ZeroPage)),
            Slot::File => (Some(WriteClass::PrivateFile), Seen::Fault(WriteClass::PrivateFile)),
            Slot::Frame(frame) if self.frames[frame] > 1 => (Some(WriteClass::Copy), Seen::Fault(WriteClass::Copy)),
            Slot::Frame(_) if page.fault.is_some() => (None, Seen::Own),
            // Alone with it: the interval sees the first write, which copies nothing.
            Slot::Frame(_) => (Some(WriteClass::Reuse), Seen::Own),
        };
        self.truth.seen.insert((step, place.1), seen);
        let Some(kernel) = kernel else { return };
        if kernel != WriteClass::Reuse {
            if let Slot::Frame(frame) = page.slot {
                self.frames[frame] -= 1;
            }
            self.frames.push(1);
            self.page(actor, place).slot = Slot::Frame(self.frames.len() - 1);
        }
        self.actor(actor).written[place.0] = true;
        let me = &self.actors[&actor];
        if !me.watched {
            return;
        }
        if let Some(fault) = page.fault {
            // Written, given back, written again: there once more.
            self.truth.faults[fault].gone = false;
            return;
        }
        let (late, epoch) = (me.late[place.0], me.epoch);
        let Page { empty_at_fork, zero_at_fork, .. } = page;
        let (classes, dropped) = (classes(kernel, page), page.dropped);
        let fault = Fault {
            step,
            actor,
            epoch,
            place,
            kernel,
            classes,
            gone: false,
            dropped,
            late,
            empty_at_fork,
            zero_at_fork,
        };
        self.page(actor, place).fault = Some(self.truth.faults.len());
        self.truth.faults.push(fault);
    }
}

/// A page as it is when an interval opens.
fn opens(slot: Slot) -> Page {
    let empty_at_fork = matches!(slot, Slot::Empty | Slot::File);
    Page { slot, empty_at_fork, zero_at_fork: slot == Slot::Zero, dropped: false, fault: None }
}

/// The classes that the report may give to what the kernel did to a page in this state.
fn classes(kernel: WriteClass, page: Page) -> Vec<WriteClass> {
    match kernel {
        // A page is touched first if it was not there when the interval opened, though it was read since.
        WriteClass::ZeroPage if page.empty_at_fork => vec![WriteClass::FirstTouch],
        // Given back, then read, then written: nothing of what the interval opened with is left.
        WriteClass::ZeroPage if page.dropped => vec![WriteClass::FirstTouch, WriteClass::ZeroPage],
        kernel => vec![kernel],
    }
}
