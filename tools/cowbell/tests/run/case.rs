//! A random case: memory, and what a family of processes does with it, step by step.

use std::fmt::{self, Write as _};

/// A small generator of random numbers, so that a case is its seed (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The numbers of a seed, always the same.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// The memory that backs a region. `Late`, `LateFile` and `Grown` come into being after the fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Anon,
    Huge,
    Shared,
    File,
    Memfd,
    Heap,
    Data,
    Bss,
    Late,
    LateFile,
    Grown,
}

impl Kind {
    /// Tells whether an untouched page is one of a file.
    pub fn is_file(self) -> bool {
        matches!(self, Self::File | Self::Memfd | Self::Data | Self::LateFile)
    }

    /// Tells whether it comes into being by a step.
    pub fn is_late(self) -> bool {
        matches!(self, Self::Late | Self::LateFile | Self::Grown)
    }

    fn is_mapped_by_itself(self) -> bool {
        matches!(self, Self::Anon | Self::File | Self::Memfd)
    }
}

/// Memory of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// The memory that backs it.
    pub kind: Kind,
    /// The region's length.
    pub pages: usize,
}

/// The act of a step; the words are those of writer.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write,
    Read,
    Kwrite,
    Threads,
    Dontneed,
    Unmap,
    Move,
    Protect,
    Unlock,
    Map,
    Fork,
    Vfork,
    Spawn,
    Settle,
    Exit,
    Quit,
    Kill,
    Segv,
    Exec,
    Stats,
}

impl Op {
    /// Tells whether it stores to the pages.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Kwrite | Self::Threads)
    }

    /// Tells whether the process is gone after it, or another program.
    pub fn ends(self) -> bool {
        matches!(self, Self::Exit | Self::Quit | Self::Kill | Self::Segv | Self::Exec)
    }
}

/// One process does one thing to some pages of one region.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The process that does it: 0 is the first process.
    pub actor: usize,
    /// The act.
    pub op: Op,
    /// To which region.
    pub region: usize,
    /// From which page of it.
    pub page: usize,
    /// The number of pages.
    pub pages: usize,
    /// The number of threads, the actor forked, the exit code.
    pub value: usize,
}

impl Step {
    /// A step that is not about pages.
    pub fn of(actor: usize, op: Op, value: usize) -> Self {
        Self { actor, op, region: 0, page: 0, pages: 0, value }
    }

    /// A step on pages.
    pub fn on(actor: usize, op: Op, region: usize, page: usize, pages: usize) -> Self {
        Self { actor, op, region, page, pages, value: 3 }
    }
}

/// Memory and steps.
#[derive(Clone, Debug)]
pub struct Case {
    /// The memory.
    pub regions: Vec<Region>,
    /// The steps, in the order in which they happen.
    pub steps: Vec<Step>,
}

/// The script that writer.c reads.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, region) in self.regions.iter().enumerate() {
            writeln!(f, "region {id} {} {}", format!("{:?}", region.kind).to_lowercase(), region.pages)?;
        }
        for s in &self.steps {
            let mut op = String::new();
            write!(op, "{:?}", s.op)?;
            op.make_ascii_lowercase();
            writeln!(f, "step {} {op} {} {} {} {}", s.actor, s.region, s.page, s.pages, s.value)?;
        }
        Ok(())
    }
}

/// The things that a process may do to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct May {
    mapped: bool,
    writable: bool,
    /// Part of it is gone: it can be neither moved nor protected as a whole.
    torn: bool,
    moved: bool,
}

struct Builder {
    random: Random,
    regions: Vec<Region>,
    steps: Vec<Step>,
    /// The things that each living actor may do to each region; `None` once it has ended.
    actors: Vec<Option<Vec<May>>>,
    /// The pages that each actor unmapped.
    unmapped: Vec<Vec<Vec<bool>>>,
}

const ACTORS_MAX: usize = 6;

impl Case {
    /// The case of a seed.
    pub fn random(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let regions = regions(&mut random);
        let mut build = Builder { random, regions, steps: Vec::new(), actors: Vec::new(), unmapped: Vec::new() };
        build.first_process();
        let children = 1 + build.random.below(3);
        for _ in 0..children {
            build.fork(0);
        }
        for _ in 0..20 + build.random.below(80) {
            build.any_step();
        }
        while let Some(last) = build.living().into_iter().rfind(|&actor| actor != 0) {
            build.end(last);
        }
        Self { regions: build.regions, steps: build.steps }
    }
}

fn regions(random: &mut Random) -> Vec<Region> {
    let mut once = vec![Kind::Heap, Kind::Data, Kind::Bss, Kind::Huge];
    let mut regions = vec![Region { kind: Kind::Anon, pages: 8 + random.below(40) }];
    for _ in 0..1 + random.below(5) {
        let mut kind = random.pick(&[Kind::Anon, Kind::File, Kind::Memfd, Kind::Shared, Kind::Late, Kind::LateFile]);
        if random.chance(50) && !once.is_empty() {
            let at = random.below(once.len());
            kind = once.swap_remove(at);
        } else if random.chance(10) {
            kind = Kind::Grown;
        }
        regions.push(Region { kind, pages: 4 + random.below(40) });
    }
    regions
}

impl Builder {
    fn living(&self) -> Vec<usize> {
        (0..self.actors.len()).filter(|&actor| self.actors[actor].is_some()).collect()
    }

    /// Builds what the others inherit: pages written, only read, and never touched.
    fn first_process(&mut self) {
        let fresh = |r: &Region| May { mapped: !r.kind.is_late(), writable: true, torn: false, moved: false };
        self.actors.push(Some(self.regions.iter().map(fresh).collect()));
        self.unmapped.push(self.regions.iter().map(|r| vec![false; r.pages]).collect());
        for (id, region) in self.regions.clone().into_iter().enumerate().filter(|(_, r)| !r.kind.is_late()) {
            if region.kind == Kind::Huge {
                // The first store brings in all of a huge page.
                self.whole(0, id, Op::Write);
            }
            let mut page = 0;
            while page < region.pages {
                let run = (1 + self.random.below(6)).min(region.pages - page);
                match self.random.below(4) {
                    0 => {}
                    1 => self.steps.push(Step::on(0, Op::Read, id, page, run)),
                    _ => self.steps.push(Step::on(0, Op::Write, id, page, run)),
                }
                page += run;
            }
            if self.random.chance(15) {
                self.whole(0, id, Op::Protect);
            }
        }
    }

    fn fork(&mut self, parent: usize) {
        let child = self.actors.len();
        self.actors.push(self.actors[parent].clone());
        self.unmapped.push(self.unmapped[parent].clone());
        self.steps.push(Step::of(parent, Op::Fork, child));
        self.steps.push(Step::of(child, Op::Settle, 0));
    }

    fn end(&mut self, actor: usize) {
        let op = self.random.pick(&[Op::Exit, Op::Quit, Op::Kill, Op::Segv, Op::Exec]);
        let code = self.random.below(120);
        self.steps.push(Step::of(actor, op, code));
        self.actors[actor] = None;
    }

    /// A step on a whole region.
    fn whole(&mut self, actor: usize, id: usize, op: Op) {
        self.steps.push(Step::on(actor, op, id, 0, self.regions[id].pages));
        let may = &mut self.actors[actor].as_mut().expect("it lives")[id];
        match op {
            Op::Protect => may.writable = false,
            Op::Unlock => may.writable = true,
            Op::Move => may.moved = true,
            _ => may.mapped = true,
        }
    }

    fn any_step(&mut self) {
        let living = self.living();
        let mut actor = self.random.pick(&living);
        if actor == 0 && self.random.chance(50) {
            actor = self.random.pick(&living);
        }
        match self.random.below(100) {
            0..4 if self.actors.len() < ACTORS_MAX => self.fork(actor),
            4 => self.steps.push(Step::of(actor, Op::Vfork, 0)),
            5 => self.steps.push(Step::of(actor, Op::Spawn, 0)),
            6 if actor != 0 && living.len() > 2 => self.end(actor),
            _ => self.memory_step(actor),
        }
    }

    fn memory_step(&mut self, actor: usize) {
        let id = self.random.below(self.regions.len());
        let Region { kind, pages: len } = self.regions[id];
        let may = self.actors[actor].as_ref().expect("it lives")[id];
        if !may.mapped {
            // Inherited by later children like anything else.
            self.whole(actor, id, Op::Map);
            // The case cannot know whether the kernel made it one mapping with what lies before it, which may have been written: so
            // it is written.
            return self.steps.push(Step::on(actor, Op::Write, id, 0, 1));
        }
        // The first process keeps its memory as it is: it is what the others are compared with.
        if actor != 0 && !may.torn && self.random.chance(8) {
            match kind {
                _ if !may.writable => return self.whole(actor, id, Op::Unlock),
                _ if kind.is_mapped_by_itself() && !may.moved => return self.whole(actor, id, Op::Move),
                _ => return self.whole(actor, id, Op::Protect),
            }
        }
        let page = self.random.below(len);
        let pages = (1 + self.random.below(6)).min(len - page);
        let gone = |p: &bool| *p;
        if self.unmapped[actor][id][page..page + pages].iter().any(gone) {
            return;
        }
        let mut op = match self.random.below(20) {
            0..4 => Op::Read,
            4..7 => Op::Kwrite,
            7 => Op::Threads,
            8 if actor != 0 && may.writable => Op::Dontneed,
            9 if actor != 0 && kind.is_mapped_by_itself() => Op::Unmap,
            _ => Op::Write,
        };
        if op.writes() && !may.writable || kind == Kind::Huge && op == Op::Dontneed {
            op = Op::Read;
        }
        if op == Op::Unmap {
            self.actors[actor].as_mut().expect("it lives")[id].torn = true;
            self.unmapped[actor][id][page..page + pages].fill(true);
        }
        // Only one side writes huge pages: whether the other side's base page is then reused depends on the kernel.
        if kind == Kind::Huge && actor == 0 {
            op = Op::Read;
        }
        self.steps.push(Step::on(actor, op, id, page, pages));
    }
}
