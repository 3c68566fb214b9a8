//! All the memory of a process, page by page, when it ends or is let go: where each resident page comes from.
//!
//! Page tables say which pages there are and which are files'. The closed intervals say which of the others the process
//! copied or allocated; what is left it had when it was first watched. So the parts add up to what the kernel calls resident.

use super::baseline::{self, page_bytes};
use super::maps::{self, BackedMapping, Backing};
use super::tables::PageTables;
use super::tree::Tracee;
use super::{Tracer, growth};
use crate::record::{Looks, Memory, PageRun, Record, Resident, Sums, Together, WatchReason, WriteClass};
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Categories, Entry, Pagemap, Query};
use cowbell::sys::procfs::{self, smaps, status::Status};
use cowbell::sys::{self, Errno};

/// The time that the tracer may run for it in any case. The time that goes by says nothing of its work on a busy machine.
const FREE_NS: u64 = 100_000_000;
/// And this part of the time that went by.
const SHARE: u64 = 100;
/// Sharing is not looked at where all take less than this, in bytes.
const TOGETHER_MIN: u64 = 128 << 20;

impl Tracer {
    /// Writes down all the memory of a process that stands still, unless that has taken too much of the time already.
    pub(super) fn weigh(&mut self, pid: i32) {
        if self.weighing_ran_ns > FREE_NS + self.now() / SHARE {
            self.unweighed += 1;
            return;
        }
        let (started, ran) = (sys::monotonic_ns(), sys::ran_ns());
        let known = self.tree.processes.get_mut(&pid).map(|process| match (process.was_watched, process.role) {
            (true, _) => Known::Since(std::mem::take(&mut process.known)),
            // The process began with nothing, when it executed its program.
            (false, WatchReason::Parent) => Known::All,
            _ => Known::Nothing,
        });
        let looks = self.end_growth(pid);
        let stood_in = self.leave_to_stand_in(pid);
        let mut memory = memory(pid, self.now(), &known.unwrap_or(Known::Nothing));
        self.take_back(stood_in);
        self.weighing_ran_ns += sys::ran_ns() - ran;
        if let Ok(memory) = &mut memory {
            memory.looks = looks.map(|looks| {
                // The last look was a while ago.
                let now = memory.pages.unwrap_or_default();
                Looks {
                    most: looks.most.max(now.anonymous()),
                    files_most: looks.files_most.max(now.file + now.shared_mapping),
                    ..looks
                }
            });
            let ran = sys::ran_ns();
            memory.together = memory.kernel.and_then(|own| self.together(pid, &own));
            self.together_ran_ns += sys::ran_ns() - ran;
        }
        self.spent.weighing_ns += sys::monotonic_ns() - started;
        // The process can be gone: then there is nothing to tell.
        if let Ok(memory) = memory {
            self.say(Record::Memory(memory));
        }
    }

    /// The memory of all processes together as this one ends, of which these are the sums: the first time that so many live. `None` also if it is
    /// little, which is cheap to see, or cannot be read soon.
    fn together(&mut self, pid: i32, own: &Sums) -> Option<Together> {
        let has_memory = |process: &Tracee| !process.shares && !process.is_ending();
        let others = self.tree.processes.iter().filter(|&(&other, process)| other != pid && has_memory(process));
        let others: Vec<i32> = others.map(|(&other, _)| other).collect();
        let memories = others.len() as u64 + 1;
        let is_affordable = self.together_ran_ns <= FREE_NS + self.now() / SHARE;
        // A process that has much in common with others has much.
        let is_little = own.rss < TOGETHER_MIN / 4;
        if is_little || memories <= self.most_together.max(1) || self.leaving || !is_affordable {
            return None;
        }
        let pages = others.iter().filter_map(|&other| growth::resident(other));
        let pages = pages.fold(0, |sum, (private, of_files)| sum + private + of_files);
        if own.rss + pages * page_bytes() < TOGETHER_MIN {
            return None;
        }
        let (started, ran) = (sys::monotonic_ns(), sys::ran_ns());
        let mut sums = Together { memories, took_ns: 0, rss: own.rss, pss: own.pss };
        for other in others {
            let figures = smaps::rollup(procfs::living(other)).ok()?;
            (sums.rss, sums.pss) = (sums.rss + figures.rss, sums.pss + figures.pss);
            sums.took_ns = sys::monotonic_ns() - started;
            // On a busy machine it may be due a processor for much longer.
            if sys::ran_ns() - ran > FREE_NS {
                return None;
            }
        }
        self.most_together = memories;
        Some(sums)
    }
}

/// The knowledge about a process' private pages.
enum Known {
    /// The pages that it copied and allocated since it was first watched.
    Since(Vec<PageRun>),
    /// All are its own: nobody handed it any.
    All,
    /// Nothing: it was forked and not watched.
    Nothing,
}

fn memory(pid: i32, time_ns: u64, known: &Known) -> Result<Memory, Errno> {
    let living = procfs::living(pid);
    let status = Status::of(living)?;
    let sums = |all: smaps::MappingFigures| Sums {
        rss: all.rss,
        pss: all.pss,
        private_clean: all.private - all.private_dirty,
        private_dirty: all.private_dirty,
        shared_clean: all.rss - all.private - all.shared_dirty,
        shared_dirty: all.shared_dirty,
        anonymous: all.anonymous,
        swap: all.swap,
    };
    Ok(Memory {
        pid,
        time_ns,
        name: status.field("Name").unwrap_or_default().to_owned(),
        command: procfs::command(living)?,
        pages: match known {
            Known::Since(known) => resident(living, known).ok(),
            Known::All => resident(living, &[]).ok().map(|all| Resident {
                new: all.anonymous(),
                file: all.file,
                shared_mapping: all.shared_mapping,
                ..Resident::default()
            }),
            Known::Nothing => None,
        },
        kernel: smaps::rollup(living).ok().map(sums),
        page_tables: status.bytes("VmPTE").unwrap_or(0),
        resident_max: status.bytes("VmHWM").unwrap_or(0),
        looks: None,
        together: None,
    })
}

/// Adds the verdict of an interval to what is known of a process' pages: the newest word on a page counts.
pub fn add(known: &mut Vec<PageRun>, newer: impl Iterator<Item = PageRun>) {
    let newer: Vec<PageRun> = newer.collect();
    let older = std::mem::take(known);
    let covered: Vec<(u64, u64)> = newer.iter().map(|run| (run.start, end(run))).collect();
    for run in older {
        let mut from = run.start;
        let first = covered.partition_point(|&(_, to)| to <= run.start);
        let over = covered.iter().skip(first).take_while(|&&(start, _)| start < end(&run));
        for &(start, to) in over.chain([&(end(&run), end(&run))]) {
            if from < start {
                known.push(PageRun { start: from, pages: (start - from) / page_bytes(), class: run.class });
            }
            from = from.max(to);
        }
    }
    known.extend(newer);
    known.sort_by_key(|run| run.start);
}

fn end(run: &PageRun) -> u64 {
    run.start + run.pages * page_bytes()
}

/// The resident pages of a process by where they come from.
fn resident(pid: i32, known: &[PageRun]) -> Result<Resident, Errno> {
    let pagemap = PageTables::open(pid)?;
    let maps = maps::read(pid)?;
    let query = Query {
        all: Categories::PRESENT,
        none: Categories::PFN_ZERO,
        any: Categories::PRESENT | Categories::FILE | Categories::HUGE,
        rearm: false,
    };
    let mut found = Vec::new();
    pagemap.runs(baseline::user_space(), &query, |run, categories| found.push((run, categories)))?;
    let mut resident = Resident::default();
    let mut known = known;
    for (run, categories) in found {
        let ranges = if categories.contains(Categories::FILE) {
            vec![run]
        } else {
            baseline::without_zeroes(&pagemap, run, categories)
        };
        for range in ranges {
            for (map, start, end) in inside(&maps, range) {
                let pages = (end - start) / page_bytes();
                match (map.backing, categories.contains(Categories::FILE)) {
                    // The kernel's own pages, and those of devices, are nobody's memory.
                    (Backing::HugePages, _) | (Backing::Shared, false) => {}
                    (Backing::Shared, true) => *shared(&mut resident, map) += pages,
                    (_, true) => resident.file += pages,
                    (_, false) => private(&mut resident, &pagemap, &mut known, start, end)?,
                }
            }
        }
    }
    Ok(resident)
}

/// The sum in which pages of a mapping count whose writes copy nothing: the code that the kernel gives each process is mapped so,
/// too.
fn shared<'a>(resident: &'a mut Resident, map: &BackedMapping) -> &'a mut u64 {
    let is_shared = map.mapping.permissions.ends_with('s');
    if is_shared { &mut resident.shared_mapping } else { &mut resident.file }
}

/// The mappings that a range lies in, and the part of it in each.
fn inside(maps: &[BackedMapping], range: Range) -> impl Iterator<Item = (&BackedMapping, u64, u64)> {
    let (start, end) = (range.start as u64, range.end() as u64);
    let first = maps.partition_point(|map| map.mapping.end <= start);
    let reaching = maps.iter().skip(first).take_while(move |map| map.mapping.start < end);
    reaching.map(move |map| (map, map.mapping.start.max(start), map.mapping.end.min(end)))
}

/// Counts private pages, all of them there. `known`: the runs that do not end before; it moves on.
fn private(
    resident: &mut Resident,
    pagemap: &Pagemap,
    known: &mut &[PageRun],
    start: u64,
    stop: u64,
) -> Result<(), Errno> {
    *known = known.get(known.partition_point(|run| end(run) <= start)..).unwrap_or_default();
    let mut had = Vec::new();
    let mut from = start;
    for run in known.iter().take_while(|run| run.start < stop) {
        let (start, end) = (run.start.max(start), end(run).min(stop));
        if from < start {
            had.push((from, start));
        }
        from = end;
        let sum = match run.class {
            WriteClass::Copy => &mut resident.copied,
            WriteClass::CopyOrReuse => &mut resident.copied_or_reused,
            WriteClass::PrivateFile => &mut resident.copied_of_file,
            WriteClass::FirstTouch | WriteClass::ZeroPage => &mut resident.new,
            // The process had the page, and nobody else has it.
            WriteClass::Reuse => &mut resident.inherited_alone,
        };
        *sum += (end - start) / page_bytes();
    }
    if from < stop {
        had.push((from, stop));
    }
    inherited(resident, pagemap, &had)
}

/// Counts pages that the process had when it was first watched: those that others have too, and those that nobody has. They
/// are read in one go where few others lie between them.
fn inherited(resident: &mut Resident, pagemap: &Pagemap, had: &[(u64, u64)]) -> Result<(), Errno> {
    let (Some(first), Some(last)) = (had.first(), had.last()) else { return Ok(()) };
    let mut ranges = had.iter().peekable();
    let whole = Range { start: first.0 as usize, len: (last.1 - first.0) as usize };
    pagemap.read(whole, |address, entry| {
        let address = address as u64;
        while ranges.next_if(|range| range.1 <= address).is_some() {}
        if ranges.peek().is_some_and(|range| range.0 <= address) {
            let alone = entry.contains(Entry::EXCLUSIVE);
            *(if alone { &mut resident.inherited_alone } else { &mut resident.inherited }) += 1;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, pages: u64, class: WriteClass) -> PageRun {
        PageRun { start: start * page_bytes(), pages, class }
    }

    #[test]
    fn the_newest_word_on_a_page_counts() {
        let mut known = Vec::new();
        add(&mut known, [run(10, 10, WriteClass::Copy), run(30, 2, WriteClass::FirstTouch)].into_iter());
        add(
            &mut known,
            [run(5, 6, WriteClass::Reuse), run(14, 2, WriteClass::FirstTouch), run(31, 4, WriteClass::Copy)]
                .into_iter(),
        );
        let expected = [
            run(5, 6, WriteClass::Reuse),
            run(11, 3, WriteClass::Copy),
            run(14, 2, WriteClass::FirstTouch),
            run(16, 4, WriteClass::Copy),
            run(30, 1, WriteClass::FirstTouch),
            run(31, 4, WriteClass::Copy),
        ];
        assert_eq!(known, expected);
    }

    #[test]
    fn this_process_adds_up_to_what_the_kernel_calls_resident() {
        let memory = memory(sys::process::pid(), 0, &Known::All).expect("ours");
        let (pages, sums) = (memory.pages.expect("page tables"), memory.kernel.expect("smaps"));
        let all = pages.anonymous() + pages.file + pages.shared_mapping;
        // The test itself allocates between the two readings.
        let close = |pages: u64, bytes: u64| (pages * page_bytes()).abs_diff(bytes) <= bytes / 20;
        assert!(close(all, sums.rss) && close(pages.anonymous(), sums.anonymous), "{pages:?} {sums:?}");
        assert!(memory.resident_max >= sums.rss && memory.page_tables > 0, "{memory:?}");
    }
}
