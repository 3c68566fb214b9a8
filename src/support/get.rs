//! Asking for the features, once or anew, and all answers as one record.

use super::features::{Feature, Support};
use super::probe;
use std::sync::OnceLock;

impl Support {
    /// The version of the JSON form.
    pub const VERSION: u32 = 1;

    /// Tries every feature now. Takes a few milliseconds, two huge pages of memory for a moment and
    /// a few descriptors; forks nothing and changes nothing.
    pub fn probe() -> Self {
        probe::probe()
    }

    /// The answer of [`Support::probe`] when it was first asked in this process.
    pub fn get() -> &'static Self {
        static KNOWN: OnceLock<Support> = OnceLock::new();
        KNOWN.get_or_init(Self::probe)
    }

    /// The same machine without one feature, to test what becomes of its absence.
    #[must_use]
    pub fn without(mut self, feature: Feature) -> Self {
        *self.verdict_mut(feature) = match feature {
            // Settings are never missing, only wrong.
            Feature::Unmerged => probe::merged(),
            Feature::Overcommit => probe::strict_overcommit(),
            _ => probe::taken_away(feature, &self.machine),
        };
        self
    }
}

/// `version`, `machine`, `watches` and `features`, each verdict under its name.
#[cfg(feature = "serde")]
impl serde::Serialize for Support {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        use std::collections::BTreeMap;
        let watches: BTreeMap<_, _> =
            crate::watch::Watch::ALL.iter().map(|&watch| (watch.name(), self.watch(watch))).collect();
        let features: BTreeMap<_, _> = Feature::ALL.iter().map(|&f| (f.name(), self.verdict(f))).collect();
        let mut record = serializer.serialize_struct("Support", 5)?;
        record.serialize_field("version", &Self::VERSION)?;
        record.serialize_field("machine", &self.machine)?;
        record.serialize_field("door", &self.best_door())?;
        record.serialize_field("watches", &watches)?;
        record.serialize_field("features", &features)?;
        record.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::Availability;
    use crate::sys::probe as trial;
    use crate::sys::uffd::Features;

    #[test]
    fn two_probes_agree() {
        let (first, second) = (Support::probe(), Support::probe());
        for &feature in Feature::ALL {
            // A huge page may be had now and not a moment later.
            if feature != Feature::Collapse {
                assert_eq!(first.verdict(feature), second.verdict(feature), "{feature:?}");
            }
        }
    }

    #[test]
    fn probing_leaves_no_descriptor_and_no_mapping_behind() {
        const PROBES: usize = 50;
        let descriptors = || std::fs::read_dir("/proc/self/fd").expect("/proc").count();
        let mappings = || std::fs::read_to_string("/proc/self/maps").expect("/proc").matches("cowbell:probe").count();
        let (descriptors_before, mappings_before) = (descriptors(), mappings());
        for _ in 0..PROBES {
            drop(Support::probe());
        }
        // Other tests of this process may hold a few meanwhile, but not one for each probe.
        assert!(descriptors() < descriptors_before + PROBES);
        assert!(mappings() < mappings_before + PROBES);
    }

    #[test]
    fn what_is_said_to_work_does() {
        let support = Support::get();
        if let Some(door) = support.best_door() {
            trial::userfaultfd(door, Features::empty()).expect("the door is open");
            if support.asynchronous() == Availability::Works {
                trial::write_is_recorded(door).expect("asynchronous watches work");
            }
            if support.trap() == Availability::Works {
                trial::write_is_refused(door).expect("traps work");
            }
        }
        if support.census() == Availability::Works {
            trial::pagemap_scan().expect("the census works");
        }
    }

    #[test]
    fn the_report_says_what_is_missing_and_what_helps() {
        let text = Support::probe().without(Feature::PagemapScan).to_string();
        for said in ["kernel  Linux", "Census   LIMITED", "Async    MISSING", "PAGEMAP_SCAN", "why   ", "try   "] {
            assert!(text.contains(said), "`{said}` in\n{text}");
        }
        for &feature in Feature::ALL {
            assert!(text.contains(feature.title()), "{}", feature.title());
        }
    }
}
