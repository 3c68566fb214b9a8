//! The holes of a watch, where it does not see what happens: same-page merging. Pinned pages are in `io_ring`.

use crate::claim::{ADMIN, Claim, Need, Skip, Verdict, claim};
use crate::evidence::{self, pages};
use crate::memory::{Kind, Memory};
use crate::watcher::{self, ASYNC, Monitor, SYNC};
use std::time::{Duration, Instant};

pub const CLAIMS: &[Claim] = &[claim!(
    same_page_merging_drops_the_protection,
    "KSM drops the write-protect bit of the pages it merges (all but the one whose frame they get): a synchronous watch misses the next write, an asynchronous one reports a write that nobody made."
)
.needs(&[Need::WpAsync, Need::Scan, ADMIN])
.restores(&[
    "/sys/kernel/mm/ksm/sleep_millisecs",
    "/sys/kernel/mm/ksm/pages_to_scan",
    "/sys/kernel/mm/ksm/run",
])
.limit_s(90)];

const MERGED_WITHIN: Duration = Duration::from_secs(40);
/// Pages with the same content in the two memories together.
const ALIKE: u64 = 12;

/// The number of pages of this process are merged.
fn merging() -> u64 {
    let text = std::fs::read_to_string("/proc/self/ksm_merging_pages").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn same_page_merging_drops_the_protection() -> Verdict {
    let set = |file: &str, value: &str| {
        std::fs::write(format!("/sys/kernel/mm/ksm/{file}"), value).map_err(|e| Skip(format!("KSM {file}: {e}")))
    };
    set("sleep_millisecs", "5")?;
    set("pages_to_scan", "5000")?;
    let armed = |memory: &Memory, page| evidence::entry(memory, page).contains(evidence::WP_BIT);
    let mut watched = Vec::new();
    for (other, features) in [(1, ASYNC), (10, SYNC)] {
        let memory = Memory::new(Kind::Anonymous, 8)?;
        // Pages 1 to 6 alike, the outer ones different.
        (0..8).for_each(|page| memory.store(page, if (1..7).contains(&page) { 77 } else { other + page as u8 }));
        let uffd = watcher::any(features).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        assert!((0..8).all(|page| armed(&memory, page)));
        memory.advise(memory.range, libc::MADV_MERGEABLE).map_err(|e| Skip(format!("MADV_MERGEABLE: {e}")))?;
        watched.push((uffd, memory));
    }
    set("run", "1")?;
    let start = Instant::now();
    // No event tells that ksmd has come by.
    while merging() < ALIKE {
        if start.elapsed() > MERGED_WITHIN {
            return Err(Skip(format!("{} of {ALIKE} pages merged in {} s", merging(), MERGED_WITHIN.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let [(_armed, by_async), (uffd, by_sync)] =
        <[_; 2]>::try_from(watched).unwrap_or_else(|_| unreachable!("two of them"));
    let still = |memory: &Memory| (1..7).filter(|&page| armed(memory, page)).count();
    assert_eq!(still(&by_async) + still(&by_sync), 1, "the page whose frame all of them have now");
    let dropped = pages((1..7).filter(|&page| !armed(&by_async, page)));
    assert_eq!(evidence::written(&by_async), dropped, "asynchronous: nobody wrote");
    assert!(armed(&by_sync, 0) && armed(&by_sync, 7), "what is not alike stays armed");
    let missed = (1..7).find(|&page| !armed(&by_sync, page)).expect("at most one is armed still");
    let monitor = Monitor::start(uffd);
    by_sync.store(missed, 5);
    by_sync.store(7, 5);
    assert_eq!(monitor.stop(), [by_sync.at(7).start], "synchronous: the write to a merged page is missed");
    Ok(())
}
