//! Giving copies back: which, what the report says of them, when it is refused, and that nothing is lost.

use crate::apart::Process;
use crate::case::{Outcome, Turns, child_that_waits, passed, skipped};
use crate::look::{Bytes, anonymous_pages, first_byte, frozen_pages, original, set, usable, wait, write};
use cowbell::arena::Frozen;
use cowbell::fork::{self, Context, ForkOptions, Reshared, copied_now, page_faults};
use cowbell::page::{PageCount, PageSet};
use cowbell::sys::{self, map, process, signal};
use cowbell::watch::Watch;
use libtest_mimic::Trial;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn counts(looked_at: u64, reshared: u64) -> Reshared {
    let [looked_at, reshared, kept] = [looked_at, reshared, looked_at - reshared].map(PageCount);
    Reshared { looked_at, reshared, kept }
}

/// Puts a page back to what it was.
fn restore(data: Bytes, page: u64) {
    let at = page as usize * sys::page_size().bytes();
    first_byte(data, page).store(original(at), Ordering::SeqCst);
}

fn copied(context: &Context) -> PageSet {
    context.census().expect("census").remove(0).copied
}

/// Spawns a child that must end well.
fn in_a_child(watch: Watch, body: impl FnOnce(&Context)) -> Result<cowbell::report::Report, libtest_mimic::Failed> {
    let exit = wait(&mut fork::spawn(&ForkOptions::new().watch(watch), body)?)?;
    assert!(exit.success(), "{watch}: {:?} {:?}", exit.ended, exit.panic);
    Ok(exit.report)
}

fn copies_that_are_the_original_again_are_given_back(watch: Watch) -> Outcome {
    if let Err(why) = usable(watch)? {
        return skipped(why);
    }
    let frozen = frozen_pages("reshared", 100)?;
    let report = in_a_child(watch, |context| {
        let data = *frozen;
        (10..60).for_each(|page| write(data, page));
        assert_eq!(copied(context), set(10..60));
        assert_eq!(frozen.reshare().expect("reshare"), counts(50, 0), "all of them differ");
        (10..50).for_each(|page| restore(data, page));
        assert_eq!(frozen.reshare().expect("reshare"), counts(50, 40));
        assert_eq!(copied(context), set(50..60));
        assert_eq!(anonymous_pages(process::pid(), frozen.image().range()).expect("smaps"), 10);
        let seen: Vec<u8> = (0..100).map(|page| first_byte(data, page).load(Ordering::SeqCst)).collect();
        for page in 0..100 {
            let first = original(page as usize * sys::page_size().bytes());
            let expected = if (50..60).contains(&page) { first.wrapping_add(2) } else { first };
            assert_eq!(seen[page as usize], expected, "page {page}");
        }
        assert_eq!(frozen.reshare().expect("reshare"), counts(10, 0));
        // Copied again, one of them never read since.
        write(data, 10);
        write(data, 49);
        assert_eq!(copied(context), set([10].into_iter().chain(49..60)));
    })?;
    let arena = &report.arenas[0];
    assert_eq!(arena.copied_set(), set([10].into_iter().chain(49..60)));
    assert_eq!((report.reshared_pages, arena.identical_pages), (PageCount(40), PageCount(0)));
    assert!(report.to_string().contains("40 copies were given back"), "{report}");
    if watch != Watch::Census {
        assert_eq!(arena.observed_set(), set(10..60), "what was written was written");
        assert_eq!(arena.copied_unobserved, PageCount(0));
    }
    passed()
}

fn what_is_copied_again_is_seen_again(watch: Watch) -> Outcome {
    if let Err(why) = usable(watch)? {
        return skipped(why);
    }
    let frozen = frozen_pages("again", 20)?;
    let (mine, theirs) = Turns::new()?;
    let mut child = fork::spawn(&ForkOptions::new().watch(watch), |_| {
        let data = *frozen;
        (1..6).for_each(|page| write(data, page));
        theirs.give();
        theirs.take();
        (1..5).for_each(|page| restore(data, page));
        assert_eq!(frozen.reshare().expect("reshare"), counts(5, 4));
        theirs.give();
        theirs.take();
        (0..20).for_each(|page| assert_ne!(first_byte(data, page).load(Ordering::SeqCst), 0));
        theirs.give();
        theirs.take();
        write(data, 2);
        theirs.give();
        theirs.take();
    })?;
    drop(theirs);
    assert!(mine.take());
    let arena = |child: &mut fork::Child| child.report().map(|report| report.arenas[0].copied_set());
    assert_eq!(arena(&mut child)?, set(1..6), "{watch}");
    assert_eq!(child.end_epoch()?[0].pages, set(1..6), "{watch}");
    mine.give();
    assert!(mine.take());
    assert_eq!(arena(&mut child)?, set([5]), "{watch}: a report that is asked for later does not count them");
    assert_eq!(child.census()?[0].copied, set([5]), "{watch}");
    let restored = if watch.arms() { set(1..5) } else { set([]) };
    assert_eq!(child.end_epoch()?[0].pages, restored, "{watch}");
    mine.give();
    assert!(mine.take());
    assert_eq!(child.end_epoch()?[0].pages, set([]), "{watch}: they were only read since");
    mine.give();
    assert!(mine.take());
    // Without arming an epoch has the pages that were copied for the first time.
    let again = if watch.arms() { set([2]) } else { set([]) };
    assert_eq!(child.end_epoch()?[0].pages, again, "{watch}");
    assert_eq!(arena(&mut child)?, set([2, 5]), "{watch}");
    mine.give();
    let exit = wait(&mut child)?;
    assert!(exit.success(), "{:?}", exit.panic);
    assert_eq!(exit.report.arenas[0].copied_unobserved, PageCount(0), "{watch}");
    assert_eq!(exit.report.events_lost, 0, "{watch}");
    passed()
}

fn other_threads_forbid_it() -> Outcome {
    let frozen = frozen_pages("threads", 10)?;
    in_a_child(Watch::Census, |context| {
        write(*frozen, 3);
        restore(*frozen, 3);
        let (tell, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let before = signal::mask();
        let error = frozen.reshare().expect_err("another thread is alive");
        assert_eq!(error.threads().map(<[_]>::len), Some(2), "{error}");
        assert_eq!((copied(context), signal::mask()), (set([3]), before));
        drop(tell);
        other.join().expect("the thread").expect_err("the channel was closed");
        // At once: the kernel's list may still have it.
        assert_eq!(frozen.reshare().expect("alone again"), counts(1, 1));
        assert_eq!(signal::mask(), before);
    })?;
    passed()
}

fn where_nothing_can_be_given_back_nothing_is_done() -> Outcome {
    let frozen = frozen_pages("parent", 10)?;
    assert_eq!((frozen.reshare()?, copied_now()?), (counts(0, 0), PageCount(0)), "in the parent");
    in_a_child(Watch::Census, |_| {
        assert_eq!(frozen.reshare().expect("reshare"), counts(0, 0), "nothing is copied");
        let own = frozen_pages("own", 10).expect("an arena");
        assert_eq!(own.reshare().expect("reshare"), counts(0, 0), "it is read-only here");
        write(*frozen, 1);
        restore(*frozen, 1);
        let process = Process::start(|| {
            assert_eq!(frozen.reshare().expect("reshare"), counts(0, 0), "nobody counts here");
            assert_eq!(copied_now().expect("count"), PageCount(0));
            0
        });
        let ended = process.end_within(Duration::from_secs(20));
        assert_eq!(ended, Some(fork::Ended::Exited(0)));
        assert_eq!(frozen.reshare().expect("reshare"), counts(1, 1));
    })?;
    passed()
}

fn locked_pages_are_an_error_with_a_remedy(watch: Watch) -> Outcome {
    if let Err(why) = usable(watch)? {
        return skipped(why);
    }
    let frozen = frozen_pages("locked", 10)?;
    let page = map::Range { start: frozen.image().range().start, len: sys::page_size().bytes() };
    if let Err(e) = map::lock(page).and_then(|()| map::unlock(page)) {
        return skipped(format!("mlock2: {e}"));
    }
    let report = in_a_child(watch, |context| {
        (0..3).for_each(|page| write(*frozen, page));
        (0..3).for_each(|page| restore(*frozen, page));
        map::lock(page).expect("mlock2");
        let error = frozen.reshare().expect_err("the page is locked");
        assert!(error.hint().is_some_and(|hint| hint.contains("munlock")), "{error}");
        assert!(copied(context).contains(cowbell::page::PageIndex(0)));
        map::unlock(page).expect("munlock");
        let left = copied(context).count().0;
        assert_eq!(frozen.reshare().expect("reshare"), counts(left, left));
    })?;
    assert_eq!((report.copied_pages(), report.reshared_pages), (PageCount(0), PageCount(3)));
    passed()
}

fn a_childs_child_gives_back_what_it_inherited() -> Outcome {
    let frozen = frozen_pages("inherited", 10)?;
    in_a_child(Watch::Census, |_| {
        let data = *frozen;
        (1..5).for_each(|page| write(data, page));
        (1..4).for_each(|page| restore(data, page));
        let report = in_a_child(Watch::Census, |context| {
            assert_eq!(copied_now().expect("count"), PageCount(0));
            write(data, 7);
            restore(data, 7);
            assert_eq!(copied_now().expect("count"), PageCount(1));
            assert_eq!(frozen.reshare().expect("reshare"), counts(5, 4));
            write(data, 2);
            assert_eq!((copied(context), copied_now().expect("count")), (set([2]), PageCount(1)));
        })
        .expect("the child's child");
        let arena = &report.arenas[0];
        assert_eq!((arena.copied_set(), arena.inherited_pages), (set([2]), PageCount(1)));
        assert_eq!(copied_now().expect("count"), PageCount(4), "the child has its own still");
        assert_eq!(frozen.reshare().expect("reshare"), counts(4, 3));
    })?;
    passed()
}

fn copies_are_counted_cheaply_and_are_no_more_than_faults(watch: Watch) -> Outcome {
    if let Err(why) = usable(watch)? {
        return skipped(why);
    }
    let (one, other) = (frozen_pages("one", 300)?, frozen_pages("other", 300)?);
    in_a_child(watch, |_| {
        let begun = page_faults();
        assert_eq!(copied_now().expect("count"), PageCount(0));
        (0..200).for_each(|page| write(*one, page));
        (250..300).for_each(|page| write(*other, page));
        (0..300).for_each(|page| assert_ne!(first_byte(*other, page).load(Ordering::SeqCst), 0));
        assert_eq!(copied_now().expect("count"), PageCount(250));
        assert!(page_faults() - begun >= 250, "{begun}, {}", page_faults());
    })?;
    passed()
}

/// Small, and the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        // Steele, Lea, Flood: SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

const PAGES: usize = 40;

/// The content of the pages, and those that are copies, as they should be.
struct Model {
    /// Offset and value of the bytes that differ, for each page.
    changed: Vec<Vec<(usize, u8)>>,
    copied: PageSet,
    given_back: u64,
}

/// One random step, in the data and in the model.
fn step(dice: &mut Dice, data: Bytes, frozen: &Frozen<Bytes>, model: &mut Model) {
    let size = sys::page_size().bytes();
    let page = dice.below(PAGES);
    match dice.below(10) {
        // Any byte, the first and the last more often.
        0..4 => {
            let within = [0, size - 1, dice.below(size), dice.below(size)][dice.below(4)];
            let at = page * size + within;
            let value = dice.below(256) as u8;
            data[at].store(value, Ordering::SeqCst);
            model.changed[page].retain(|&(offset, _)| offset != within);
            if value != original(at) {
                model.changed[page].push((within, value));
            }
            model.copied.insert(cowbell::page::PageIndex(page as u64));
        }
        4..8 => {
            for (within, _) in model.changed[page].drain(..) {
                let at = page * size + within;
                data[at].store(original(at), Ordering::SeqCst);
            }
        }
        8 => assert_ne!(data[page * size].load(Ordering::SeqCst) as usize, 256),
        _ => {
            let same: Vec<_> = model.copied.iter().filter(|page| model.changed[page.0 as usize].is_empty()).collect();
            let expected = counts(model.copied.count().0, same.len() as u64);
            assert_eq!(frozen.reshare().expect("reshare"), expected);
            model.copied = model.copied.difference(&same.iter().copied().collect());
            model.given_back += same.len() as u64;
        }
    }
}

fn random_patterns_agree_with_a_model(watch: Watch) -> Outcome {
    if let Err(why) = usable(watch)? {
        return skipped(why);
    }
    let frozen = frozen_pages("model", PAGES)?;
    let size = sys::page_size().bytes();
    let report = in_a_child(watch, |context| {
        let data = *frozen;
        let mut model = Model { changed: vec![Vec::new(); PAGES], copied: PageSet::new(), given_back: 0 };
        for seed in 0..1000 {
            let mut dice = Dice(seed);
            for _ in 0..10 + dice.below(40) {
                step(&mut dice, data, &frozen, &mut model);
            }
            assert_eq!(copied(context), model.copied, "pattern {seed}");
            assert_eq!(copied_now().expect("count"), model.copied.count(), "pattern {seed}");
            for (page, changed) in model.changed.iter().enumerate() {
                for at in [0, size / 2, size - 1] {
                    let expected = changed.iter().find(|(within, _)| *within == at).map(|(_, value)| *value);
                    let expected = expected.unwrap_or_else(|| original(page * size + at));
                    assert_eq!(data[page * size + at].load(Ordering::SeqCst), expected, "pattern {seed}, {page}");
                }
            }
        }
        assert!(model.given_back > 1000, "{}", model.given_back);
        // The parent looks at the end.
        let left = frozen.reshare().expect("reshare");
        assert_eq!(left.looked_at, model.copied.count());
    })?;
    let arena = &report.arenas[0];
    assert_eq!((arena.identical_pages, arena.copied_unobserved), (PageCount(0), PageCount(0)));
    assert!(report.reshared_pages.0 > 1000);
    passed()
}

fn a_child_that_is_asked_from_outside_tells_the_same() -> Outcome {
    let frozen = frozen_pages("outside", 50)?;
    let (mut child, turns) = child_that_waits(&ForkOptions::new(), |_| {
        (0..40).for_each(|page| write(*frozen, page));
        (0..30).for_each(|page| restore(*frozen, page));
        assert_eq!(frozen.reshare().expect("reshare"), counts(40, 30));
    })?;
    assert_eq!(child.census()?[0].copied, set(30..40));
    assert_eq!(anonymous_pages(child.pid(), frozen.image().range())?, 10);
    assert_eq!(child.report()?.reshared_pages, PageCount(30));
    turns.give();
    assert_eq!(wait(&mut child)?.report.copied_pages(), PageCount(10));
    passed()
}

pub fn trials() -> Vec<Trial> {
    let mut trials = claims![
        other_threads_forbid_it,
        where_nothing_can_be_given_back_nothing_is_done,
        a_childs_child_gives_back_what_it_inherited,
        a_child_that_is_asked_from_outside_tells_the_same,
    ];
    for watch in Watch::ALL {
        for (name, test) in [
            (
                "copies_that_are_the_original_again_are_given_back",
                copies_that_are_the_original_again_are_given_back as fn(Watch) -> Outcome,
            ),
            ("what_is_copied_again_is_seen_again", what_is_copied_again_is_seen_again),
            ("locked_pages_are_an_error_with_a_remedy", locked_pages_are_an_error_with_a_remedy),
            (
                "copies_are_counted_cheaply_and_are_no_more_than_faults",
                copies_are_counted_cheaply_and_are_no_more_than_faults,
            ),
            ("random_patterns_agree_with_a_model", random_patterns_agree_with_a_model),
        ] {
            trials.push(crate::apart::claim(&format!("reshare::{name} ({watch})"), move || test(watch)));
        }
    }
    trials
}
