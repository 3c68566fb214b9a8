//! The pools' results as tables for people.

use super::{Contender, Goal, Pool, PoolMemory, Race, Work};
use std::fmt;

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, processors, rounds, races } = self;
        writeln!(f, "Pools of {workers} workers on {processors} processors: {rounds} runs each, medians")?;
        races.iter().try_for_each(|race| write!(f, "\n{race}"))
    }
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.bytes >> 10;
        let size = if kib < 1024 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) };
        match self.work {
            Work::Empty => writeln!(f, "Empty jobs: each gives its number back")?,
            Work::RoundTrip => writeln!(f, "One empty job at a time, on an idle pool: the median of its round trip")?,
            Work::Busy => writeln!(f, "Jobs of 100 us of processor time")?,
            Work::Lookup => writeln!(f, "Lookups in a data set of {size}, one a job")?,
            Work::Large => writeln!(f, "Results of {size}, each copied from the data set by its job")?,
        }
        let heads = ["jobs", "a job", "jobs/s", "to cowbell"];
        writeln!(f, "{:<28} {:>10} {:>11} {:>12} {:>27}", "", heads[0], heads[1], heads[2], heads[3])?;
        self.contenders.iter().try_for_each(|contender| row(f, self.work, contender))?;
        self.goal.as_ref().map_or(Ok(()), |goal| writeln!(f, "{goal}"))
    }
}

fn row(f: &mut fmt::Formatter<'_>, work: Work, contender: &Contender) -> fmt::Result {
    write!(f, "{:<28} {:>10}", contender.peer.name(work), grouped(contender.jobs as f64))?;
    let Some(ns) = contender.ns_per_job else {
        return writeln!(f, " {}", contender.error.as_deref().unwrap_or("-"));
    };
    let ratio = contender.ratio_to_cowbell.map_or_else(|| "-".to_owned(), |ratio| ratio.times());
    let per_second = grouped(1e9 / ns.median);
    writeln!(f, " {:>8.3} us {per_second:>12} {ratio:>27}", ns.median / 1e3)
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = |number: f64| if number >= 1000.0 { grouped(number) } else { format!("{number:.2}") };
        let bound = if self.at_least { "at least" } else { "at most" };
        write!(f, "goal: {bound} {} {}", figure(self.bound), self.figure)?;
        match (self.measured, self.met()) {
            (Some(measured), Some(true)) => write!(f, "; measured {}: reached", figure(measured)),
            (Some(measured), _) => write!(f, "; measured {}: MISSED", figure(measured)),
            (None, _) => write!(f, "; not measured"),
        }
    }
}

/// A whole number with commas.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|part| str::from_utf8(part).unwrap_or("")).collect();
    parts.join(",")
}

impl fmt::Display for PoolMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        writeln!(f, "Workers that have each read all of {mib:.0} MiB: what is their own")?;
        writeln!(
            f,
            "{:>8} {:<10} {:>14} {:>14} {:>14} {:>12} {:>12} {:>12} {:>10}",
            "workers",
            "pages",
            "sum of USS",
            "USS a worker",
            "the largest",
            "its stack",
            "goal",
            "page tables",
            "reading"
        )?;
        for cost in &self.costs {
            let pages = if cost.huge_pages { "collapsed" } else { "ordinary" };
            write!(f, "{:>8} {pages:<10}", cost.workers)?;
            if let Some(error) = &cost.error {
                writeln!(f, " {error}")?;
                continue;
            }
            let met = if cost.met() { "reached" } else { "MISSED" };
            let kib = |bytes: u64| format!("{} KiB", grouped(bytes.div_ceil(1024) as f64));
            writeln!(
                f,
                " {:>14} {:>14} {:>14} {:>12} {met:>12} {:>12} {:>8.1} s",
                kib(cost.uss_bytes),
                kib(cost.uss_bytes / cost.workers.max(1) as u64),
                kib(cost.uss_bytes_max),
                kib(cost.stack_bytes_max),
                kib(cost.page_tables_bytes_max),
                cost.seconds
            )?;
        }
        let limit = self.goal_bytes_per_worker >> 20;
        writeln!(f, "goal: a sum of USS of at most {limit} MiB a worker plus its own stack")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0.0, 999.4, 1000.0, 1_234_567.0].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_goal_says_whether_it_was_reached() {
        let goal = |measured| Goal { figure: "jobs/s".to_owned(), at_least: true, bound: 500_000.0, measured };
        assert_eq!(goal(Some(6e5)).to_string(), "goal: at least 500,000 jobs/s; measured 600,000: reached");
        assert_eq!(goal(Some(4e5)).to_string(), "goal: at least 500,000 jobs/s; measured 400,000: MISSED");
        assert_eq!(goal(None).to_string(), "goal: at least 500,000 jobs/s; not measured");
    }
}
