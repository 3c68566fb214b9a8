//! The watches, answered from the features. No system call: features in, verdict out.

use super::features::{Availability, Feature, Missing, Support};
use crate::facts::Door;
use crate::watch::Watch;

impl Watch {
    /// The watch's name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Census => "Census",
            Self::Async => "Async",
            Self::Faults => "Faults",
            Self::Trap => "Trap",
            Self::Monitor => "Monitor",
        }
    }

    /// The facts that it tells.
    pub fn tells(self) -> &'static str {
        match self {
            Self::Census => "which pages were copied, and how many bytes differ",
            Self::Async => "which pages were written since the last look",
            Self::Faults => "the first write to each page: order, thread, code; nothing is armed",
            Self::Trap => "each first write to a page: order, thread, code",
            Self::Monitor => "each first write to a page: order, thread, code; programs unchanged",
        }
    }

    /// The time that writes take under it.
    pub fn costs(self) -> &'static str {
        match self {
            Self::Census => "writes take as long as without it",
            Self::Async => "a write that copies a page takes about 1.5 times as long",
            Self::Faults => "a write that copies a page takes 1.5 to 1.8 times as long",
            Self::Trap => "a write that copies a page takes 3.5 to 4 times as long",
            Self::Monitor => {
                "a write that copies a page takes 7 to 9 times as long beside busy processes, about 30 times on an idle machine"
            }
        }
    }

    /// A warning that holds even where it works.
    pub fn note(self) -> Option<&'static str> {
        match self {
            Self::Trap => Some("a read(2) or recv(2) into a page that is armed fails with EFAULT"),
            Self::Census | Self::Async | Self::Faults | Self::Monitor => None,
        }
    }

    /// The first Linux on which everything it needs exists.
    fn since(self) -> &'static str {
        match self {
            Self::Census => Feature::Pagemap.since(),
            Self::Async => Feature::UffdAsync.since(),
            Self::Faults => Feature::PageFaults.since(),
            Self::Trap | Self::Monitor => Feature::UffdMemfd.since(),
        }
    }

    fn feature(self) -> &'static str {
        match self {
            Self::Census => "watch Census",
            Self::Async => "watch Async",
            Self::Faults => "watch Faults",
            Self::Trap => "watch Trap",
            Self::Monitor => "watch Monitor",
        }
    }

    /// Missing, because it needs what is missing.
    fn stopped_by(self, need: &Missing) -> Availability {
        Availability::Missing(Missing {
            feature: self.feature(),
            since: self.since(),
            why: format!("it needs {}, but {}", need.feature, need.why),
            fix: need.fix.clone(),
        })
    }
}

impl Support {
    /// Any watch's verdict.
    pub fn watch(&self, watch: Watch) -> Availability {
        match watch {
            Watch::Census => self.census(),
            Watch::Async => self.asynchronous(),
            Watch::Faults => self.faults(),
            Watch::Trap => self.trap(),
            Watch::Monitor => self.monitor(),
        }
    }

    /// The census: works by `PAGEMAP_SCAN`, limited by reading `/proc/PID/pagemap` word by word.
    pub fn census(&self) -> Availability {
        let Some(scan) = self.pagemap_scan.missing() else { return Availability::Works };
        if let Some(pagemap) = self.pagemap.missing() {
            return Watch::Census.stopped_by(pagemap);
        }
        let why = format!("slower: it reads a word for every page, copied or not, because {} is missing", scan.feature);
        Availability::Limited { why, fix: scan.fix.clone() }
    }

    /// The asynchronous watch: `WP_ASYNC` through any door, and `PAGEMAP_SCAN`. Writes by the kernel
    /// are recorded through every door.
    pub fn asynchronous(&self) -> Availability {
        self.armed(Watch::Async, &[Feature::UffdAsync, Feature::PagemapScan])
    }

    /// Page faults by perf events, and page tables as for the census. Limited where faults that the kernel takes for the program are not told.
    pub fn faults(&self) -> Availability {
        match (&self.page_faults, self.census()) {
            (Availability::Missing(need), _) => Watch::Faults.stopped_by(need),
            (_, Availability::Missing(need)) => Watch::Faults.stopped_by(&need),
            (Availability::Works, census) => census,
            (limited, _) => limited.clone(),
        }
    }

    /// The trap: armed memfd pages and `SIGBUS` through any door. A write by the kernel into an armed
    /// page fails with EFAULT, through every door.
    pub fn trap(&self) -> Availability {
        self.armed(Watch::Trap, &[Feature::UffdMemfd, Feature::UffdSigbus])
    }

    /// The monitor: armed memfd pages and `THREAD_ID`. Limited through the door for user mode only,
    /// and where the place of a blocked thread cannot be read.
    pub fn monitor(&self) -> Availability {
        self.armed(Watch::Monitor, &[Feature::UffdMemfd, Feature::UffdThreadId])
    }

    /// The most powerful way to a userfaultfd that is open here.
    pub fn best_door(&self) -> Option<Door> {
        let open = |door: &Door| self.verdict(Feature::of_door(*door)).is_available();
        Door::ALL.into_iter().find(open)
    }

    /// A watch by userfaultfd, which needs a door and these features.
    fn armed(&self, watch: Watch, needs: &[Feature]) -> Availability {
        let Some(door) = self.best_door() else {
            let last = self.uffd_user_mode_only.missing();
            return last.map_or(Availability::Works, |missing| watch.stopped_by(missing));
        };
        if let Some(need) = needs.iter().find_map(|&feature| self.verdict(feature).missing()) {
            return watch.stopped_by(need);
        }
        self.losses(watch, door)
    }

    /// Works, or what the watch loses here, the worst first.
    fn losses(&self, watch: Watch, door: Door) -> Availability {
        let mut losses: Vec<(String, Option<&str>)> = Vec::new();
        if let Availability::Limited { why, fix } = &self.unmerged {
            losses.push((why.clone(), fix.as_deref()));
        }
        if watch.is_answered_by_keeper() && !door.sees_kernel_writes() {
            let why = "a read(2) or recv(2) into a page that is armed fails with EFAULT, \
                       because only the user-mode-only userfaultfd is open to this user";
            losses.push((why.to_owned(), self.more_powerful_door()));
        }
        // Where Yama lets only a parent trace, the keeper is let by its child.
        if watch.is_answered_by_keeper()
            && let Availability::Missing(Missing { why, fix, .. }) = &self.blocked_pc
        {
            losses.push((format!("it cannot tell which code wrote: {why}"), fix.as_deref()));
        }
        let Some(fix) = losses.first().map(|(_, fix)| fix.map(str::to_owned)) else { return Availability::Works };
        let whys: Vec<String> = losses.into_iter().map(|(why, _)| why).collect();
        Availability::Limited { why: whys.join("; "), fix }
    }

    /// The command that opens a door that sees writes by the kernel, too.
    fn more_powerful_door(&self) -> Option<&str> {
        [&self.uffd_system_call, &self.uffd_device].into_iter().find_map(|door| door.missing()?.fix.as_deref())
    }
}

impl Feature {
    /// The feature that a door is.
    pub fn of_door(door: Door) -> Self {
        match door {
            Door::Device => Self::UffdDevice,
            Door::SystemCall => Self::UffdSystemCall,
            Door::UserModeOnly => Self::UffdUserModeOnly,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::probe;

    /// A machine on which everything works, but for what is named.
    fn without(features: &[Feature]) -> Support {
        let everything = Support::ask(probe::machine(), |_| Availability::Works);
        features.iter().fold(everything, |support, &feature| support.without(feature))
    }

    fn verdicts(support: &Support) -> String {
        let letter = |watch| match support.watch(watch) {
            Availability::Works => 'W',
            Availability::Limited { .. } => 'L',
            Availability::Missing(_) => '-',
        };
        Watch::ALL.map(letter).into_iter().collect()
    }

    #[test]
    fn each_absence_changes_the_watches_that_need_it() {
        use Feature::*;
        // In the order Census, Async, Faults, Trap, Monitor.
        let expected = |feature| match feature {
            PagemapScan => "L-LWW",
            UffdMemfd => "WWW--",
            UffdAsync => "W-WWW",
            UffdSigbus => "WWW-W",
            UffdThreadId => "WWWW-",
            PageFaults => "WW-WW",
            BlockedPc => "WWWWL",
            Unmerged => "WLWLL",
            SealedMemfd | Fork | ProcessDescriptors | CloseRange | Pagemap | UffdDevice | UffdSystemCall
            | UffdUserModeOnly | UffdExactAddress | UffdEventFork | Mseal | Populate | Collapse | HugeMemfd
            | Overcommit => "WWWWW",
        };
        assert_eq!(verdicts(&without(&[])), "WWWWW");
        for &feature in Feature::ALL {
            assert_eq!(verdicts(&without(&[feature])), expected(feature), "without {feature:?}");
        }
        for (features, left) in [
            (&[Pagemap, PagemapScan][..], "---WW"),
            (&[UffdDevice, UffdSystemCall], "WWWWL"),
            (&[UffdDevice, UffdUserModeOnly], "WWWWW"),
            (&[UffdDevice, UffdSystemCall, UffdUserModeOnly], "W-W--"),
            (&[UffdDevice, UffdSystemCall, BlockedPc, Unmerged], "WLWLL"),
        ] {
            assert_eq!(verdicts(&without(features)), left, "without {features:?}");
        }
    }

    #[test]
    fn the_best_door_is_the_most_powerful_one_left() {
        use Feature::*;
        assert_eq!(without(&[]).best_door(), Some(Door::Device));
        assert_eq!(without(&[UffdDevice]).best_door(), Some(Door::SystemCall));
        assert_eq!(without(&[UffdDevice, UffdSystemCall]).best_door(), Some(Door::UserModeOnly));
        assert_eq!(without(&[UffdDevice, UffdSystemCall, UffdUserModeOnly]).best_door(), None);
    }

    #[test]
    fn what_is_missing_has_a_name_a_version_and_a_remedy() {
        use Feature::*;
        for &feature in Feature::ALL {
            let support = without(&[feature]);
            let mut answers = vec![support.verdict(feature).clone()];
            answers.extend(Watch::ALL.map(|watch| support.watch(watch)));
            for missing in answers.iter().filter_map(Availability::missing) {
                let error = crate::Error::from(missing.clone());
                assert!(error.is_unsupported());
                let said = error.to_string();
                for part in [missing.feature, missing.since, missing.why.as_str()] {
                    assert!(!part.is_empty() && said.contains(part), "{part} in {said}");
                }
                assert!(error.hint().is_some_and(|hint| said.contains(hint)), "{said}");
            }
        }
        let said = without(&[PagemapScan]).asynchronous().require().expect_err("missing").to_string();
        assert!(said.contains("watch Async") && said.contains("PAGEMAP_SCAN") && said.contains("6.7"), "{said}");
    }

    #[test]
    fn a_keeper_sees_where_its_child_waits_though_yama_keeps_others_out() {
        let mut support = without(&[]);
        support.blocked_pc = Availability::Limited { why: "kernel.yama.ptrace_scope is 1".to_owned(), fix: None };
        assert_eq!(support.monitor(), Availability::Works);
    }

    #[test]
    fn what_is_lost_comes_with_the_command_that_brings_it_back() {
        use Feature::*;
        let Availability::Limited { why, fix } = without(&[UffdDevice, UffdSystemCall]).monitor() else {
            panic!("limited")
        };
        assert!(why.contains("a page that is armed fails with EFAULT") && fix.is_some(), "{why}, {fix:?}");
        let Availability::Limited { why, fix } = without(&[PagemapScan]).census() else { panic!("limited") };
        assert!(why.contains("slower") && fix.is_some(), "{why}, {fix:?}");
    }
}
