//! Page faults told with an interval become events once its verdict is known.

use crate::record::{Event, Fault, PageRun, UNKNOWN_CALL, WriteClass};

/// An event of each page of the verdict that a fault is told of.
pub fn events(mut rows: Vec<Fault>, runs: &[PageRun], page_size: u64) -> Vec<Event> {
    rows.sort_by_key(|row| (row.page, row.time_ns));
    let mut left = runs.iter().peekable();
    let end = |run: &PageRun| run.start.saturating_add(run.pages.saturating_mul(page_size));
    let mut events = Vec::new();
    for same in rows.chunk_by(|a, b| a.page == b.page) {
        let (Some(first), Some(last)) = (same.first(), same.last()) else { continue };
        while left.next_if(|run| end(run) <= first.page).is_some() {}
        let Some(run) = left.peek().filter(|run| run.start <= first.page) else { continue };
        // A page that was there took its first fault for its write; any other may have been read before.
        let was_there = matches!(run.class, WriteClass::Copy | WriteClass::Reuse | WriteClass::CopyOrReuse);
        let Fault { time_ns, page, tid, code, by_kernel, stack, byte } = *if was_there { first } else { last };
        let syscall = by_kernel.then_some(UNKNOWN_CALL);
        events.push(Event { time_ns, page, tid, pc: 0, code, class: run.class, syscall, stack, caller: 0, byte });
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_of_a_page_that_was_there_and_the_last_of_others_wrote_it() {
        const PAGE: u64 = 4096;
        let row = |page: u64, time_ns: u64, by_kernel: bool| Fault {
            time_ns,
            page: page * PAGE,
            tid: time_ns as i32,
            code: 3,
            by_kernel,
            stack: None,
            byte: None,
        };
        let rows = vec![row(7, 2, false), row(1, 9, false), row(1, 5, true), row(4, 1, false), row(7, 8, false)];
        let run = |page: u64, pages, class| PageRun { start: page * PAGE, pages, class };
        let runs = [run(0, 2, WriteClass::Copy), run(6, 3, WriteClass::PrivateFile)];
        let found = events(rows, &runs, PAGE);
        let told: Vec<_> = found.iter().map(|e| (e.page / PAGE, e.time_ns, e.class, e.syscall)).collect();
        let expected = [(1, 5, WriteClass::Copy, Some(UNKNOWN_CALL)), (7, 8, WriteClass::PrivateFile, None)];
        assert_eq!(told, expected, "page 4 is not in the verdict");
    }
}
