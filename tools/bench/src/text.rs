//! The results as tables for people: medians, the ratios of the rounds one by one (the middle, and in brackets the smallest
//! and the largest), and the goals beside them.

use crate::{Arming, Cost, Forks, Spread, Writes};
use std::fmt;

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "First write to a page: {} pages, {} children each, medians", self.pages, self.repeats)?;
        writeln!(f, "{:<10} {:>34} {:>34} {:>7}", "", "untouched before", "read before", "")?;
        let (time, ratio) = ("ns/page", "to native");
        writeln!(f, "{:<10} {time:>9} {ratio:>24} {time:>9} {ratio:>24} {:>7}", "watch", "goal")?;
        let native = &self.native;
        let (untouched, read) = (native.untouched_ns_per_page.median, native.read_before_ns_per_page.median);
        writeln!(f, "{:<10} {untouched:>9.0} {:>24} {read:>9.0}", "native", "")?;
        for watch in &self.watches {
            write!(f, "{:<10}", watch.watch)?;
            match &watch.error {
                Some(error) => writeln!(f, " {error}")?,
                None => {
                    cost(f, watch.untouched.as_ref())?;
                    cost(f, watch.read_before.as_ref())?;
                    writeln!(f, " {:>6.1}x", watch.goal_ratio)?;
                }
            }
        }
        Ok(())
    }
}

fn cost(f: &mut fmt::Formatter<'_>, cost: Option<&Cost>) -> fmt::Result {
    match cost {
        Some(cost) => write!(f, " {:>9.0} {:>24}", cost.ns_per_page.median, cost.ratio_to_native.times()),
        None => write!(f, " {:>9} {:>24}", "-", "-"),
    }
}

impl fmt::Display for Forks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        writeln!(f, "Fork over {mib:.0} MiB: {} forks each, medians; ratio to an empty process", self.repeats)?;
        for over in &self.over {
            if let Some(error) = &over.error {
                writeln!(f, "{:<18} {error}", over.memory.name())?;
                continue;
            }
            for (way, us, ratio) in [
                ("clone3", over.clone3_us, over.clone3_ratio_to_empty),
                ("clone3 and wait", over.clone3_and_wait_us, over.clone3_and_wait_ratio_to_empty),
                ("spawn", over.spawn_us, over.spawn_ratio_to_empty),
                ("spawn and wait", over.spawn_and_wait_us, over.spawn_and_wait_ratio_to_empty),
            ] {
                writeln!(f, "{:<18} {way:<16} {}", over.memory.name(), pair(us, "us", ratio))?;
            }
        }
        writeln!(f, "goal for a frozen arena: at most {:.1}x\n", self.goal_ratio_to_empty_max)?;
        writeln!(f, "The child's first read of all of it: {} children each; ratio to the anonymous heap", self.reads)?;
        writeln!(
            f,
            "{:<18} {:<38} {:<38} {:>12} {:>15}",
            "", "", "      with the fork", "page tables", "after the read"
        )?;
        let kib = |kib: Option<u64>| kib.map_or_else(|| "-".to_owned(), |kib| format!("{kib} KiB"));
        for over in self.over.iter().filter(|over| over.error.is_none()) {
            let read = pair(over.first_read_ms, "ms", over.first_read_ratio_to_anonymous);
            let forked = pair(over.read_since_fork_ms, "ms", over.read_since_fork_ratio_to_anonymous);
            let tables = [over.page_tables_kib, over.page_tables_after_read_kib].map(kib);
            writeln!(f, "{:<18} {read:<38} {forked:<38} {:>12} {:>15}", over.memory.name(), tables[0], tables[1])?;
            if let Some(populate) = over.populate_ms {
                let read = pair(over.populated_read_ms, "ms", over.populated_read_ratio_to_anonymous);
                let forked = pair(over.populated_since_fork_ms, "ms", over.populated_since_fork_ratio_to_anonymous);
                writeln!(
                    f,
                    "{:<18} {read:<38} {forked:<38} with {:.1} ms to populate",
                    "  populated", populate.median
                )?;
            }
        }
        writeln!(f, "goal for huge pages, and for an arena that was populated: at most 1x\n")?;
        let mib = self.built_bytes as f64 / f64::from(1 << 20);
        writeln!(f, "Building {mib:.0} MiB: {} times each, medians; ratio to the anonymous heap", self.builds)?;
        writeln!(f, "{:<18} {:>12} {:>12}", "", "filling", "freezing")?;
        for over in &self.over {
            let (Some(fill), Some(freeze)) = (over.fill_ms, over.freeze_ms) else { continue };
            let ratio = over.build_ratio_to_anonymous.map_or_else(String::new, |ratio| ratio.times());
            let (fill, freeze) = (fill.median, freeze.median);
            writeln!(f, "{:<18} {fill:>9.1} ms {freeze:>9.1} ms {ratio:>24}", over.memory.name())?;
        }
        Ok(())
    }
}

fn pair(time: Option<Spread>, unit: &str, ratio: Option<Spread>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let ratio = ratio.map_or_else(String::new, |ratio| ratio.times());
    format!("{:>9.1} {unit} {ratio:>24}", time.median)
}

impl fmt::Display for Arming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        writeln!(f, "Spawn over a frozen arena of {mib:.0} MiB: {} children each, medians", self.repeats)?;
        writeln!(f, "{:<10} {:>12} {:>18}", "watch", "spawn", "arming")?;
        for watch in &self.watches {
            write!(f, "{:<10}", watch.watch)?;
            match (&watch.error, watch.spawn_us) {
                (Some(error), _) => write!(f, " {error}")?,
                (None, Some(us)) => write!(f, " {:>9.0} us", us.median)?,
                (None, None) => {}
            }
            match watch.arming_us_per_mib {
                Some(us) => writeln!(f, " {:>11.2} us/MiB ({:.2} to {:.2})", us.median, us.min, us.max)?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
