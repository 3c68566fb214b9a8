//! From a trial's outcome to a verdict: the reason in words, and the one command that helps.

use super::features::{Availability, Feature, Machine, Missing, Support};
use crate::error::{Error, Result};
use crate::facts::{Door, Limit};
use crate::sys::limits;
use crate::sys::perf::rings::RingsRefused;
use crate::sys::uffd::Features;
use crate::sys::{Errno, probe as trial};
use std::path::Path;

/// The place of this process, with what decides only how a refusal is explained.
#[derive(Clone)]
struct Here {
    machine: Machine,
    is_dumpable: bool,
    /// Some capabilities are of use only if they are held in the first user namespace.
    is_in_first_namespace: bool,
    has_sys: bool,
    /// By `PR_SET_THP_DISABLE`.
    is_kept_from_huge_pages: bool,
}

pub(super) fn probe() -> Support {
    let here = Here {
        machine: machine(),
        is_dumpable: limits::is_dumpable(),
        is_in_first_namespace: limits::is_in_first_user_namespace(),
        has_sys: Path::new("/sys/kernel").exists(),
        is_kept_from_huge_pages: limits::is_kept_from_huge_pages(),
    };
    let door = Door::ALL.into_iter().find(|&door| trial::userfaultfd(door, Features::empty()).is_ok());
    Support::ask(here.machine.clone(), |feature| verdict(feature, door, &here))
}

pub(super) fn machine() -> Machine {
    let user = limits::user();
    Machine {
        kernel: limits::kernel_release(),
        arch: std::env::consts::ARCH,
        page_size: crate::sys::page_size().bytes(),
        uid: user.uid,
        may_trace: user.may_trace,
        may_administer: user.may_administer,
        has_seccomp_filter: limits::has_seccomp_filter(),
        unprivileged_userfaultfd: limits::sysctl("vm/unprivileged_userfaultfd"),
        mappings_max: limits::sysctl("vm/max_map_count"),
        memory: limits::memory_headroom(),
    }
}

fn verdict(feature: Feature, door: Option<Door>, here: &Here) -> Availability {
    let open = |door| trial::userfaultfd(door, Features::empty()).map(drop);
    let through_door = |tried: fn(Door) -> Result<()>| match door {
        Some(door) => judge(feature, tried(door), here),
        None => doorless(feature, open(Door::UserModeOnly), here),
    };
    match feature {
        Feature::SealedMemfd => judge(feature, trial::sealed_memfd(), here),
        Feature::Fork => judge(feature, trial::fork(), here),
        Feature::ProcessDescriptors => judge(feature, trial::process_descriptors(), here),
        Feature::CloseRange => judge(feature, trial::close_range(), here),
        Feature::Pagemap => judge(feature, trial::pagemap(), here),
        Feature::PagemapScan => judge(feature, trial::pagemap_scan(), here),
        Feature::UffdDevice => judge(feature, open(Door::Device), here),
        Feature::UffdSystemCall => judge(feature, open(Door::SystemCall), here),
        Feature::UffdUserModeOnly => judge(feature, open(Door::UserModeOnly), here),
        Feature::UffdMemfd => through_door(trial::write_protect_memfd),
        Feature::UffdAsync => through_door(trial::write_is_recorded),
        Feature::UffdSigbus => through_door(|door| match trial::write_protect_memfd(door) {
            Ok(()) => trial::write_is_refused(door),
            // There is nothing to arm: then all that can be asked is whether it is known.
            Err(_) => trial::userfaultfd(door, Features::SIGBUS).map(drop),
        }),
        Feature::UffdThreadId => through_door(|door| trial::userfaultfd(door, Features::THREAD_ID).map(drop)),
        Feature::UffdExactAddress => through_door(|door| trial::userfaultfd(door, Features::EXACT_ADDRESS).map(drop)),
        Feature::UffdEventFork => through_door(|door| trial::userfaultfd(door, Features::EVENT_FORK).map(drop)),
        Feature::BlockedPc => blocked_pc(limits::sysctl("kernel/yama/ptrace_scope"), here),
        Feature::PageFaults => page_faults(trial::page_faults(), limits::sysctl("kernel/perf_event_paranoid"), here),
        Feature::Mseal => judge(feature, trial::seal_mapping(), here),
        Feature::Populate => judge(feature, trial::populate(), here),
        Feature::Collapse => collapse(here),
        Feature::HugeMemfd => huge_memfd(limits::huge_page_setting("shmem_enabled").as_deref(), here),
        Feature::Unmerged => {
            if limits::merging() == Some(true) {
                merged()
            } else {
                Availability::Works
            }
        }
        Feature::Overcommit => match limits::sysctl("vm/overcommit_memory") {
            Some(2) => strict_overcommit(),
            _ => Availability::Works,
        },
    }
}

fn judge(feature: Feature, tried: Result<()>, here: &Here) -> Availability {
    match tried {
        Ok(()) => Availability::Works,
        Err(error) => {
            let (why, fix) = explain(feature, &error, here);
            missing(feature, why, fix)
        }
    }
}

fn missing(feature: Feature, why: impl Into<String>, fix: Option<String>) -> Availability {
    let (feature, since) = (feature.title(), feature.since());
    Availability::Missing(Missing { feature, since, why: why.into(), fix })
}

fn limited(why: impl Into<String>, fix: impl Into<String>) -> Availability {
    Availability::Limited { why: why.into(), fix: Some(fix.into()) }
}

/// A feature of userfaultfd where there is no userfaultfd to be had.
fn doorless(feature: Feature, refused: Result<()>, here: &Here) -> Availability {
    let fix = refused.err().and_then(|error| explain(Feature::UffdUserModeOnly, &error, here).1);
    missing(feature, "no userfaultfd at all can be had here", fix)
}

/// The meaning of an errno for a feature, and what helps.
fn explain(feature: Feature, error: &Error, here: &Here) -> (String, Option<String>) {
    let Some(errno) = error.errno().map(Errno::from_raw_os_error) else { return (error.to_string(), None) };
    // A capability that is held in another user namespace than the first one is none here.
    let lacks_trace = !here.machine.may_trace || !here.is_in_first_namespace;
    let of_first = if here.machine.may_trace { " in the first user namespace" } else { "" };
    match (feature, errno) {
        (Feature::UffdDevice, Errno::NOENT) if !here.has_sys => (
            "there is no /dev/userfaultfd here, and without /sys it is not known whether this kernel has it".to_owned(),
            Some(MOUNT_SYS.to_owned()),
        ),
        (Feature::UffdDevice, Errno::NOENT) if Path::new("/sys/class/misc/userfaultfd").exists() => (
            "this kernel has it, but there is no /dev/userfaultfd here".to_owned(),
            Some("docker run --device=/dev/userfaultfd".to_owned()),
        ),
        (Feature::UffdDevice, Errno::ACCESS) => (
            format!("uid {} may not open /dev/userfaultfd", here.machine.uid),
            Some(format!("setfacl -m u:{}:rw /dev/userfaultfd", here.machine.uid)),
        ),
        (Feature::UffdSystemCall, Errno::PERM) if lacks_trace && here.machine.unprivileged_userfaultfd == Some(0) => (
            format!("it takes CAP_SYS_PTRACE{of_first}, or vm.unprivileged_userfaultfd set to 1"),
            Some("sysctl vm.unprivileged_userfaultfd=1".to_owned()),
        ),
        (Feature::UffdEventFork, Errno::PERM) if lacks_trace => {
            let fix = (!here.machine.may_trace).then(|| "setcap cap_sys_ptrace+ep PROGRAM".to_owned());
            (format!("it takes CAP_SYS_PTRACE{of_first}"), fix)
        }
        // The trials of these begin with files of this process in /proc.
        (
            Feature::Pagemap | Feature::PagemapScan | Feature::UffdMemfd | Feature::UffdAsync | Feature::BlockedPc,
            Errno::ACCESS,
        ) if !here.is_dumpable => closed(),
        (_, Errno::NOENT) if !Path::new("/proc/self/stat").exists() => {
            ("/proc is not mounted".to_owned(), Some("mount -t proc proc /proc".to_owned()))
        }
        (_, Errno::NOSYS) if here.machine.has_seccomp_filter && is_older(&here.machine, feature) => (
            format!("this kernel does not have it, or the seccomp filter this process runs under hides it: {error}"),
            Some(other_kernel(feature, &here.machine)),
        ),
        (_, Errno::PERM | Errno::ACCESS | Errno::NOSYS) if here.machine.has_seccomp_filter => (
            format!("it is refused, perhaps by the seccomp filter this process runs under: {error}"),
            Some("docker run --security-opt seccomp=PROFILE, with a profile that allows it".to_owned()),
        ),
        (_, Errno::PERM | Errno::ACCESS) => {
            (format!("a security module or this container forbids it: {error}"), Some(look_for_denials()))
        }
        (_, Errno::NOSYS | Errno::INVAL | Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOENT) => {
            (format!("this kernel does not have it: {error}"), Some(other_kernel(feature, &here.machine)))
        }
        _ => (error.to_string(), None),
    }
}

const MOUNT_SYS: &str = "mount -t sysfs sysfs /sys";

/// The reason, and the help, where files of this process in `/proc` are root's.
fn closed() -> (String, Option<String>) {
    let why = "this process is closed to others of its user: it was started set-user-id, with capabilities of its file or \
               from a file it may not read, or asked for it";
    (why.to_owned(), Some("chmod u-s,g-s,a+r PROGRAM".to_owned()))
}

fn look_for_denials() -> String {
    "journalctl -k --grep=denied, to see which rule".to_owned()
}

/// The kernel that would help. Versions decide nothing but this sentence.
fn other_kernel(feature: Feature, machine: &Machine) -> String {
    let since = feature.since();
    match feature.config() {
        Some(config) if !is_older(machine, feature) => format!("boot a kernel built with {config}"),
        _ => format!("boot Linux {since} or later"),
    }
}

/// Is this kernel older than the first that has a feature?
fn is_older(machine: &Machine, feature: Feature) -> bool {
    release(&machine.kernel) < release(feature.since())
}

/// The first two numbers of a kernel's release.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn blocked_pc(yama_scope: Option<u64>, here: &Here) -> Availability {
    let feature = Feature::BlockedPc;
    if !here.is_dumpable && !here.machine.may_trace {
        let (why, fix) = closed();
        return missing(feature, why, fix);
    }
    let shown = judge(feature, trial::program_counter(), here);
    if shown != Availability::Works || here.machine.may_trace && yama_scope != Some(3) {
        return shown;
    }
    match yama_scope {
        None | Some(0) => Availability::Works,
        Some(1) => limited(
            "kernel.yama.ptrace_scope is 1: only in workers forked by cowbell, not in programs that run already",
            "sysctl kernel.yama.ptrace_scope=0",
        ),
        Some(2) => missing(
            feature,
            "kernel.yama.ptrace_scope is 2: it takes CAP_SYS_PTRACE",
            Some("sysctl kernel.yama.ptrace_scope=1".to_owned()),
        ),
        Some(scope) => missing(
            feature,
            format!("kernel.yama.ptrace_scope is {scope}: nobody may, until the next boot"),
            Some("reboot without kernel.yama.ptrace_scope=3".to_owned()),
        ),
    }
}

fn page_faults(tried: std::result::Result<bool, RingsRefused>, paranoid: Option<u64>, here: &Here) -> Availability {
    let feature = Feature::PageFaults;
    match (tried, paranoid) {
        (Ok(true), _) => Availability::Works,
        (Ok(false), _) => limited(
            "page faults that the kernel takes in a system call, read(2) for example, are not told: it takes CAP_PERFMON, \
             or kernel.perf_event_paranoid at most 1",
            "sysctl kernel.perf_event_paranoid=1",
        ),
        (Err(RingsRefused { errno: Errno::PERM | Errno::ACCESS, .. }), Some(paranoid @ 3..)) => missing(
            feature,
            format!("kernel.perf_event_paranoid is {paranoid}: it takes CAP_PERFMON"),
            Some("sysctl kernel.perf_event_paranoid=2".to_owned()),
        ),
        (Err(RingsRefused { call, errno: Errno::PERM }), _) if call.starts_with("mmap") => missing(
            feature,
            "no memory may be locked for the records (RLIMIT_MEMLOCK, kernel.perf_event_mlock_kb)",
            Some("ulimit -l unlimited".to_owned()),
        ),
        (Err(RingsRefused { call, errno }), _) => judge(feature, Err(Error::os(call, errno)), here),
    }
}

/// Huge pages up to this size are tried; 512 MiB, as with arm64's large pages, would be rude.
const COLLAPSE_BYTES_MAX: usize = 32 << 20;

fn collapse(here: &Here) -> Availability {
    let feature = Feature::Collapse;
    let Some(size) = crate::sys::map::huge_page_size() else {
        return no_huge_pages(feature, here);
    };
    if size > COLLAPSE_BYTES_MAX {
        return Availability::Limited { why: format!("not tried: a huge page is {size} bytes here"), fix: None };
    }
    if let Some(memory) = here.machine.memory.as_ref().filter(|memory| memory.bytes < 16 * size as u64) {
        let fix = match memory.limit {
            Limit::Machine => None,
            Limit::ControlGroup { .. } => Some("systemctl set-property UNIT MemoryMax=MORE".to_owned()),
        };
        return Availability::Limited { why: format!("not tried, for want of memory: {memory}"), fix };
    }
    collapsed(trial::collapse(size), limits::huge_page_setting("shmem_enabled").as_deref(), here)
}

/// The verdict on a trial of `MADV_COLLAPSE`.
fn collapsed(tried: Result<()>, setting: Option<&str>, here: &Here) -> Availability {
    let feature = Feature::Collapse;
    match tried {
        // The memory to try it on could not be had.
        Err(error) if !error.is_of("madvise(MADV_COLLAPSE)") => {
            Availability::Limited { why: format!("not tried: {error}"), fix: None }
        }
        Err(error) if is_momentary(&error) => {
            limited(format!("no huge page was free just now ({error})"), "sysctl vm.compact_memory=1")
        }
        Err(_) if setting == Some("deny") => denied(feature),
        Err(error) if here.is_kept_from_huge_pages && error.errno() == Some(Errno::INVAL.raw_os_error()) => {
            missing(feature, "this process is kept from huge pages (PR_SET_THP_DISABLE)", None)
        }
        tried => judge(feature, tried, here),
    }
}

fn is_momentary(error: &Error) -> bool {
    let errno = error.errno().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::NOMEM | Errno::NOSPC | Errno::AGAIN | Errno::BUSY))
}

/// The verdict where `/sys` tells of no huge pages.
fn no_huge_pages(feature: Feature, here: &Here) -> Availability {
    if here.has_sys {
        return missing(feature, "this kernel has no huge pages", Some(other_kernel(feature, &here.machine)));
    }
    limited("not known: /sys is not mounted", MOUNT_SYS)
}

fn huge_memfd(setting: Option<&str>, here: &Here) -> Availability {
    let feature = Feature::HugeMemfd;
    match setting {
        None => no_huge_pages(feature, here),
        Some("deny") => denied(feature),
        Some("never") => limited("shmem_enabled is never: only by MADV_COLLAPSE, after a freeze", ALLOW_HUGE),
        Some(_) => Availability::Works,
    }
}

const ALLOW_HUGE: &str = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled";

fn denied(feature: Feature) -> Availability {
    missing(feature, "shmem_enabled is deny", Some(ALLOW_HUGE.to_owned()))
}

pub(super) fn merged() -> Availability {
    limited(
        "KSM may merge pages of this process: a merged page loses its protection, so writes are missed or made up",
        "systemctl edit UNIT, and there MemoryKSM=no under [Service]",
    )
}

pub(super) fn strict_overcommit() -> Availability {
    limited(
        "vm.overcommit_memory is 2: a fork counts all private writable memory a second time, shared or not, \
         and fails with ENOMEM above the limit",
        "sysctl vm.overcommit_memory=0",
    )
}

pub(super) fn taken_away(feature: Feature, machine: &Machine) -> Availability {
    missing(feature, "it was taken away to see what happens without it", Some(other_kernel(feature, machine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Here {
        let machine = Machine {
            kernel: "6.1.0-9-amd64".to_owned(),
            unprivileged_userfaultfd: Some(0),
            uid: 65534,
            may_trace: false,
            has_seccomp_filter: false,
            ..machine()
        };
        Here { machine, is_dumpable: true, is_in_first_namespace: true, has_sys: true, is_kept_from_huge_pages: false }
    }

    fn on(change: impl Fn(&mut Machine)) -> Here {
        let mut here = nobody();
        change(&mut here.machine);
        here
    }

    #[test]
    fn an_errno_becomes_a_reason_and_a_command() {
        use Feature::*;
        let seccomp = on(|machine| machine.has_seccomp_filter = true);
        let root = on(|machine| (machine.may_trace, machine.uid) = (true, 0));
        let root_inside = Here { is_in_first_namespace: false, ..root.clone() };
        let old = on(|machine| (machine.has_seccomp_filter, machine.kernel) = (true, "4.19.0".to_owned()));
        let closed = || Here { is_dumpable: false, ..nobody() };
        let without_sys = Here { has_sys: false, ..nobody() };
        let table = [
            (PagemapScan, Errno::NOTTY, nobody(), "does not have it", "boot Linux 6.7 or later"),
            (Pagemap, Errno::NOENT, nobody(), "does not have it", "boot a kernel built with CONFIG_PROC_PAGE_MONITOR"),
            (UffdDevice, Errno::ACCESS, nobody(), "uid 65534 may not open", "setfacl -m u:65534:rw /dev/userfaultfd"),
            (UffdSystemCall, Errno::PERM, nobody(), "CAP_SYS_PTRACE", "sysctl vm.unprivileged_userfaultfd=1"),
            (UffdSystemCall, Errno::PERM, root, "security module", "journalctl"),
            (UffdUserModeOnly, Errno::PERM, seccomp.clone(), "seccomp filter", "profile that allows it"),
            (Fork, Errno::NOSYS, seccomp, "seccomp filter", "profile that allows it"),
            (Fork, Errno::NOSYS, nobody(), "clone3", "CONFIG_CHECKPOINT_RESTORE"),
            (UffdEventFork, Errno::PERM, nobody(), "CAP_SYS_PTRACE", "setcap"),
            (UffdSystemCall, Errno::PERM, root_inside, "CAP_SYS_PTRACE in the first user namespace", "sysctl"),
            (Fork, Errno::NOSYS, old, "does not have it, or the seccomp filter", "boot Linux"),
            (Pagemap, Errno::ACCESS, closed(), "this process is closed", "chmod u-s,g-s,a+r"),
            (BlockedPc, Errno::ACCESS, closed(), "from a file it may not read", "chmod u-s,g-s,a+r"),
            (UffdMemfd, Errno::ACCESS, nobody(), "security module", "journalctl"),
            (UffdDevice, Errno::NOENT, without_sys, "not known whether this kernel has it", "mount -t sysfs"),
        ];
        for (feature, errno, here, why, fix) in table {
            let verdict = judge(feature, Err(Error::os("clone3", errno)), &here);
            let missing = verdict.missing().expect("missing");
            assert_eq!((missing.feature, missing.since), (feature.title(), feature.since()));
            assert!(missing.why.contains(why), "{missing:?}");
            assert!(missing.fix.as_ref().is_some_and(|said| said.contains(fix)), "{missing:?}");
        }
    }

    #[test]
    fn yama_decides_who_may_see_where_a_thread_waits() {
        let root = on(|machine| machine.may_trace = true);
        assert_eq!(blocked_pc(None, &nobody()), Availability::Works);
        assert_eq!(blocked_pc(Some(0), &nobody()), Availability::Works);
        assert!(matches!(blocked_pc(Some(1), &nobody()), Availability::Limited { .. }));
        assert!(!blocked_pc(Some(2), &nobody()).is_available());
        assert_eq!(blocked_pc(Some(2), &root), Availability::Works);
        assert!(!blocked_pc(Some(3), &root).is_available());
        let closed = blocked_pc(Some(0), &Here { is_dumpable: false, ..nobody() });
        assert!(closed.missing().is_some_and(|missing| missing.why.contains("closed to others")), "{closed:?}");
    }

    #[test]
    fn a_collapse_that_was_not_tried_or_was_kept_from_is_told_as_that() {
        let tried = |operation, errno, here: &Here| collapsed(Err(Error::os(operation, errno)), Some("never"), here);
        let said = |verdict| match verdict {
            Availability::Limited { why, fix } => (why, fix),
            Availability::Missing(missing) => (format!("missing: {}", missing.why), missing.fix),
            Availability::Works => panic!("it was refused"),
        };
        let madvise = "madvise(MADV_COLLAPSE)";
        let (why, fix) = said(tried("mmap(memfd)", Errno::NOMEM, &nobody()));
        assert!(why.contains("not tried: mmap(memfd)") && fix.is_none(), "RLIMIT_AS, say: {why}");
        let (why, fix) = said(tried(madvise, Errno::NOMEM, &nobody()));
        assert!(why.contains("no huge page was free") && fix.is_some(), "{why}");
        let kept = Here { is_kept_from_huge_pages: true, ..nobody() };
        let (why, _) = said(tried(madvise, Errno::INVAL, &kept));
        assert!(why.contains("missing: this process is kept from huge pages"), "{why}");
        let (why, _) = said(tried(madvise, Errno::INVAL, &nobody()));
        assert!(why.contains("this kernel does not have it"), "{why}");
        let without_sys = Here { has_sys: false, ..nobody() };
        assert!(said(huge_memfd(None, &without_sys)).0.starts_with("not known: /sys"));
        assert!(said(huge_memfd(None, &nobody())).0.contains("has no huge pages"));
    }

    #[test]
    fn refused_page_faults_name_the_setting_that_refuses_them() {
        let refused = |call, errno| Err(RingsRefused { call, errno });
        let tried = |tried, paranoid| page_faults(tried, paranoid, &nobody());
        assert_eq!(tried(Ok(true), Some(2)), Availability::Works);
        assert!(
            matches!(tried(Ok(false), Some(2)), Availability::Limited { why, .. } if why.contains("perf_event_paranoid"))
        );
        let other = tried(refused("mmap(perf event)", Errno::NOMEM), Some(2));
        let other = other.missing().expect("missing");
        assert!(!other.why.contains("RLIMIT_MEMLOCK") && other.fix.is_none(), "no room for it: {other:?}");
        for (verdict, why, fix) in [
            (tried(refused("perf_event_open", Errno::ACCESS), Some(3)), "perf_event_paranoid is 3", "paranoid=2"),
            (tried(refused("mmap(perf event)", Errno::PERM), Some(2)), "RLIMIT_MEMLOCK", "ulimit -l"),
            (tried(refused("perf_event_open", Errno::INVAL), Some(2)), "does not have it", "CONFIG_PERF_EVENTS"),
            (tried(refused("perf_event_open", Errno::PERM), Some(2)), "security module", "journalctl"),
        ] {
            let missing = verdict.missing().expect("missing");
            assert!(missing.why.contains(why), "{missing:?}");
            assert!(missing.fix.as_ref().is_some_and(|said| said.contains(fix)), "{missing:?}");
        }
    }

    #[test]
    fn releases_compare_by_number() {
        assert!(release("6.18.44-x") > release("6.7"));
        assert_eq!(release("5.10.0-33-amd64"), Some((5, 10)));
        assert_eq!(release(""), None);
    }
}
