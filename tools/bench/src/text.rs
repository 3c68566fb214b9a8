//! The results as tables for people: medians, the ratios of each round's middle, and the goals beside them.

use crate::{Arming, Cost, ForkCost, Forks, Spread, Writes};
use std::fmt;

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "First write to a page: {} pages, {} children each, medians", self.pages, self.repeats)?;
        writeln!(f, "{:<10} {:>22} {:>22} {:>10}", "", "untouched before", "read before", "")?;
        writeln!(
            f,
            "{:<10} {:>11} {:>10} {:>11} {:>10} {:>10}",
            "watch", "ns/page", "ratio", "ns/page", "ratio", "goal"
        )?;
        let native = &self.native;
        let (untouched, read) = (native.untouched_ns_per_page.median, native.read_before_ns_per_page.median);
        writeln!(f, "{:<10} {untouched:>11.0} {:>10} {read:>11.0} {:>10} {:>10}", "native", "1.00x", "1.00x", "")?;
        for watch in &self.watches {
            write!(f, "{:<10}", watch.watch)?;
            match &watch.error {
                Some(error) => writeln!(f, " {error}")?,
                None => {
                    cost(f, watch.untouched.as_ref())?;
                    cost(f, watch.read_before.as_ref())?;
                    writeln!(f, " {:>9.1}x", watch.goal_ratio)?;
                }
            }
        }
        Ok(())
    }
}

fn cost(f: &mut fmt::Formatter<'_>, cost: Option<&Cost>) -> fmt::Result {
    match cost {
        Some(cost) => write!(f, " {:>11.0} {:>9.2}x", cost.ns_per_page.median, cost.ratio_to_native.median),
        None => write!(f, " {:>11} {:>10}", "-", "-"),
    }
}

impl fmt::Display for Forks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        writeln!(f, "Fork over {mib:.0} MiB: {} forks each, medians; ratio to an empty process", self.repeats)?;
        let row = |f: &mut fmt::Formatter<'_>, name: &str, cells: [String; 4]| {
            write!(f, "{name:<18}")?;
            cells.iter().try_for_each(|cell| write!(f, " {cell:>20}"))?;
            writeln!(f)
        };
        let heads = ["clone3", "clone3 and wait", "spawn", "spawn and wait"].map(str::to_owned);
        row(f, "", heads)?;
        for over in &self.over {
            if let Some(error) = &over.error {
                writeln!(f, "{:<18} {error}", over.memory.name())?;
                continue;
            }
            let cells = [
                (over.clone3_us, over.clone3_ratio_to_empty),
                (over.clone3_and_wait_us, over.clone3_and_wait_ratio_to_empty),
                (over.spawn_us, over.spawn_ratio_to_empty),
                (over.spawn_and_wait_us, over.spawn_and_wait_ratio_to_empty),
            ];
            row(f, over.memory.name(), cells.map(|(us, ratio)| pair(us, "us", ratio)))?;
        }
        writeln!(f, "goal for a frozen arena: at most {:.1}x\n", self.goal_ratio_to_empty_max)?;
        writeln!(f, "The child's first read of all of it: {} children each; ratio to the anonymous heap", self.reads)?;
        row(f, "", ["read", "page tables", "after the read", ""].map(str::to_owned))?;
        self.over
            .iter()
            .filter(|over| over.error.is_none())
            .try_for_each(|over| row(f, over.memory.name(), reads(over)))?;
        writeln!(f, "goal for a collapsed arena: below 1x")
    }
}

fn reads(over: &ForkCost) -> [String; 4] {
    let kib = |kib: Option<u64>| kib.map_or_else(|| "-".to_owned(), |kib| format!("{kib} KiB"));
    let read = pair(over.first_read_ms, "ms", over.first_read_ratio_to_anonymous);
    [read, kib(over.page_tables_kib), kib(over.page_tables_after_read_kib), String::new()]
}

fn pair(time: Option<Spread>, unit: &str, ratio: Option<Spread>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let ratio = ratio.map_or_else(String::new, |ratio| format!(" {:>7.2}x", ratio.median));
    format!("{:.1} {unit}{ratio}", time.median)
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
                Some(us) => writeln!(f, " {:>11.2} us/MiB", us.median)?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
