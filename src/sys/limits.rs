//! Limits: how much this process may still take, and the settings of this machine that decide what works.
//!
//! Read-only and without policy. A file that cannot be read is a limit that is not there.
#![expect(unsafe_code, reason = "one prctl has no safe wrapper")]

use super::procfs::{SELF, status::Status};
pub use crate::facts::{Headroom, Limit};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The nearest memory limit: the machine's (`MemAvailable` and `SwapFree`) or that of a control
/// group this process is in (version 1, 2 or both), at any level up to the root that can be seen.
///
/// A group's use counts without its inactive file cache, which the kernel drops first. Swap that a
/// group may use is not counted. `None` where neither `/proc` nor a control group says anything.
///
/// The mounts are looked for once; which group this process is in is asked each time, because a
/// forked worker may be put into another one. The cost is some 50 µs.
pub fn memory_headroom() -> Option<Headroom> {
    static HIERARCHIES: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    let hierarchies = HIERARCHIES.get_or_init(|| parse_mounts(&text("/proc/self/mountinfo")));
    let machine = parse_meminfo(&text("/proc/meminfo")).map(|bytes| Headroom { bytes, limit: Limit::Machine });
    let groups = text("/proc/self/cgroup");
    let of_groups = hierarchies.iter().filter_map(|hierarchy| hierarchy.headroom(&groups));
    machine.into_iter().chain(of_groups).min_by_key(|headroom| headroom.bytes)
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// `MemAvailable` and `SwapFree` of `/proc/meminfo`, in bytes.
fn parse_meminfo(meminfo: &str) -> Option<u64> {
    let kib = |key| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((kib("MemAvailable")? + kib("SwapFree").unwrap_or(0)) * 1024)
}

/// The two forms of control groups, and what their files are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The files of the limit and of the use, and the key in `memory.stat` of the file cache that
    /// nobody used for long, each with the groups below counted in.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            Self::Two => ("memory.max", "memory.current", "inactive_file"),
        }
    }
}

/// A mounted hierarchy of control groups that may limit memory.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount_point: PathBuf,
    /// The group that the mount point shows; not `/` in a container without a namespace of its own.
    root: String,
}

impl Hierarchy {
    /// The smallest headroom of the groups on the way from this process's own up to the mount.
    fn headroom(&self, proc_self_cgroup: &str) -> Option<Headroom> {
        let group = self.group(proc_self_cgroup)?;
        // A group outside the mount or the namespace cannot be seen; what the mount shows can.
        let mut inside = group.strip_prefix(self.root.trim_end_matches('/')).unwrap_or("");
        if !inside.starts_with('/') || inside.starts_with("/..") {
            inside = "";
        }
        let mut nearest: Option<Headroom> = None;
        loop {
            inside = inside.trim_end_matches('/');
            let directory = self.mount_point.join(inside.trim_start_matches('/'));
            if let Some((max, bytes)) = self.level(&directory)
                && nearest.as_ref().is_none_or(|nearest| bytes < nearest.bytes)
            {
                let name = format!("{}{inside}", self.root.trim_end_matches('/'));
                let path = if name.is_empty() { "/".to_owned() } else { name };
                nearest = Some(Headroom { bytes, limit: Limit::ControlGroup { path, max } });
            }
            match inside.rfind('/') {
                Some(parent) => inside = &inside[..parent],
                None => return nearest,
            }
        }
    }

    /// This process's group in this hierarchy: `4:memory:/path`, or `0::/path` in version 2.
    fn group<'a>(&self, proc_self_cgroup: &'a str) -> Option<&'a str> {
        proc_self_cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = match self.version {
                Version::One => controllers.split(',').any(|controller| controller == "memory"),
                Version::Two => number == "0" && controllers.is_empty(),
            };
            ours.then_some(path)
        })
    }

    /// One group's limit and the bytes left below it; `None` where there is no limit.
    fn level(&self, directory: &Path) -> Option<(u64, u64)> {
        let (limit, usage, inactive) = self.version.names();
        let number = |name| text(directory.join(name)).trim().parse::<u64>().ok();
        // Version 2 says "max" for none, version 1 the largest multiple of a page in an i64.
        let max = number(limit).filter(|&max| max < 1 << 62)?;
        let reclaimable = parse_stat(&text(directory.join("memory.stat")), inactive).unwrap_or(0);
        Some((max, max.saturating_sub(number(usage)?.saturating_sub(reclaimable))))
    }
}

/// The number behind `key` in a file of lines `key number`.
fn parse_stat(stat: &str, key: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The hierarchies that may limit memory, from `/proc/self/mountinfo`:
/// `36 25 0:30 ROOT MOUNT_POINT OPTIONS [TAG]... - TYPE SOURCE SUPER_OPTIONS`.
fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (unescape(mount.next()?), unescape(mount.next()?).into());
        let mut filesystem = filesystem.split(' ');
        let version = match filesystem.next()? {
            "cgroup2" => Version::Two,
            "cgroup" if filesystem.nth(1)?.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        Some(Hierarchy { version, mount_point, root })
    };
    mountinfo.lines().filter_map(hierarchy).collect()
}

/// Undoes the kernel's `\040` for a blank, a tab, a line's end and a backslash in a path.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |field, (code, meant)| field.replace(code, meant))
}

/// The number of processes of this one's control groups that the OOM killer has ended so far; `None` where nobody counts.
///
/// Version 2 counts those of the groups below as well, version 1 (Linux 4.13) only a group's own.
pub fn out_of_memory_kills() -> Option<u64> {
    let groups = text("/proc/self/cgroup");
    let counts = parse_mounts(&text("/proc/self/mountinfo")).into_iter().filter_map(|hierarchy| {
        let file = match hierarchy.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let group = hierarchy.group(&groups)?;
        let inside = group.strip_prefix(hierarchy.root.trim_end_matches('/')).unwrap_or(group);
        let directory = hierarchy.mount_point.join(inside.trim_start_matches('/'));
        parse_stat(&text(directory.join(file)), "oom_kill")
    });
    counts.reduce(|one, other| one + other)
}

/// Allows this process `bytes` of private writable memory more than it has now: `RLIMIT_DATA`, which since Linux 4.7 counts
/// every private writable mapping. An allocation beyond fails with ENOMEM.
pub fn limit_data(bytes: u64) {
    let data = Status::of(SELF).ok().and_then(|status| status.bytes("VmData"));
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Data);
    let most = data.unwrap_or(0).saturating_add(bytes);
    limit.current = Some(limit.maximum.map_or(most, |maximum| most.min(maximum)));
    let _lowering_is_allowed = rustix::process::setrlimit(rustix::process::Resource::Data, limit);
}

/// The number in `/proc/sys/NAME` (such as `vm/max_map_count`); `None` where there is no such setting.
pub fn sysctl(name: &str) -> Option<u64> {
    text(Path::new("/proc/sys").join(name)).trim().parse().ok()
}

/// Can pages go to swap? True where that cannot be read.
pub fn has_swap() -> bool {
    let memory = text(Path::new("/proc/meminfo"));
    let total = memory.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    total.and_then(|total| total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()) != Some(0)
}

/// The chosen word of `/sys/kernel/mm/transparent_hugepage/NAME` (`enabled`, `shmem_enabled`);
/// `None` in a kernel without huge pages.
pub fn huge_page_setting(name: &str) -> Option<String> {
    parse_choice(&text(Path::new("/sys/kernel/mm/transparent_hugepage").join(name)))
}

/// `always [madvise] never` is `madvise`.
fn parse_choice(line: &str) -> Option<String> {
    Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// `prctl(PR_GET_MEMORY_MERGE)`: may KSM merge equal pages anywhere in this process? It is inherited
/// over fork and exec. `None` before Linux 6.4 and without `CONFIG_KSM`, where it cannot.
pub fn merging() -> Option<bool> {
    // SAFETY: the call takes integers and changes nothing.
    let merging = unsafe { libc::prctl(libc::PR_GET_MEMORY_MERGE, 0, 0, 0, 0) };
    (merging >= 0).then_some(merging == 1)
}

/// `prctl(PR_GET_THP_DISABLE)`: is this process kept from transparent huge pages, wholly or in part?
pub fn is_kept_from_huge_pages() -> bool {
    rustix::thread::transparent_huge_pages_are_disabled().unwrap_or(false)
}

/// Is this process in the first user namespace, in which the kernel asks for the capabilities that concern all of the machine? True
/// where that cannot be read.
pub fn is_in_first_user_namespace() -> bool {
    // <linux/nsfs.h>: USER_NS_INIT_INO.
    const FIRST: u64 = 0xEFFF_FFFD;
    fs::metadata("/proc/self/ns/user").map_or(true, |namespace| namespace.ino() == FIRST)
}

/// May processes of the same user look into this one? Not after a set-user-id `exec`, or
/// `prctl(PR_SET_DUMPABLE, 0)`.
pub fn is_dumpable() -> bool {
    use rustix::process::DumpableBehavior;
    rustix::process::dumpable_behavior().is_ok_and(|behavior| behavior == DumpableBehavior::Dumpable)
}

/// The kernel's release, as `uname -r` says it; empty when `/proc` is not mounted.
pub fn kernel_release() -> String {
    text("/proc/sys/kernel/osrelease").trim_end().to_owned()
}

/// Does a seccomp filter decide which system calls this process may make?
pub fn has_seccomp_filter() -> bool {
    Status::of(SELF).is_ok_and(|status| status.number("Seccomp") == Some(2))
}

/// The identity of this process to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The effective user id.
    pub uid: u32,
    /// `CAP_SYS_PTRACE` is in effect.
    pub may_trace: bool,
    /// `CAP_SYS_ADMIN` is in effect.
    pub may_administer: bool,
}

/// `geteuid()` and `capget(0)`.
pub fn user() -> User {
    use rustix::thread::CapabilitySet;
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    User {
        uid: rustix::process::geteuid().as_raw(),
        may_trace: held.contains(CapabilitySet::SYS_PTRACE),
        may_administer: held.contains(CapabilitySet::SYS_ADMIN),
    }
}

/// Writes the highest `/proc/self/oom_score_adj`: where memory runs out, the kernel ends this process before others.
/// Anybody may raise his own. Without `/proc` nothing happens.
pub fn die_first_of_memory() {
    let _without_proc = std::fs::write("/proc/self/oom_score_adj", "1000");
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw shared:7 master:2 - cgroup cgroup rw,memory\n\
        41 31 0:38 /pod\\0401 /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn mounts_of_both_versions_are_found() {
        let found = parse_mounts(MOUNTS);
        let one = Hierarchy { version: Version::One, mount_point: "/sys/fs/cgroup/memory".into(), root: "/".into() };
        let two =
            Hierarchy { version: Version::Two, mount_point: "/sys/fs/cgroup/unified".into(), root: "/pod 1".into() };
        assert_eq!(found, [one, two]);
        let cgroup = "9:name=systemd:/\n4:cpu,memory:/a:b/c\n0::/pod 1/x\n";
        assert_eq!(found[0].group(cgroup), Some("/a:b/c"));
        assert_eq!(found[1].group(cgroup), Some("/pod 1/x"));
        assert_eq!(found[0].group("0::/\n"), None);
    }

    #[test]
    fn figures_are_parsed() {
        let meminfo = "MemTotal:  9 kB\nMemAvailable:   100 kB\nSwapTotal: 7 kB\nSwapFree:  20 kB\n";
        assert_eq!(parse_meminfo(meminfo), Some(120 * 1024));
        assert_eq!(parse_meminfo("MemFree: 1 kB\n"), None);
        let stat = "inactive_file 3\ntotal_inactive_file 4\n";
        assert_eq!((parse_stat(stat, "inactive_file"), parse_stat(stat, "total_inactive_file")), (Some(3), Some(4)));
        assert_eq!(parse_choice("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(parse_choice(""), None);
    }

    /// A made-up version 2 hierarchy: each level its limit, use and inactive file cache.
    fn hierarchy(name: &str, root: &str, levels: &[(&str, &str, u64, u64)]) -> Hierarchy {
        let mount_point = std::env::temp_dir().join(format!("cowbell-limits-{name}-{}", std::process::id()));
        for (path, max, current, inactive) in levels {
            let directory = mount_point.join(path);
            fs::create_dir_all(&directory).expect("a directory");
            let write = |file, value: &str| fs::write(directory.join(file), value).expect("a file");
            write("memory.max", &format!("{max}\n"));
            write("memory.current", &format!("{current}\n"));
            write("memory.stat", &format!("anon 1\ninactive_file {inactive}\n"));
        }
        Hierarchy { version: Version::Two, mount_point, root: root.to_owned() }
    }

    #[test]
    fn the_nearest_limit_on_the_way_up_counts() {
        let levels = [("", "9000", 100, 0), ("a", "1000", 700, 200), ("a/b", "max", 10, 0), ("a/b/c", "800", 100, 0)];
        let made = hierarchy("up", "/", &levels);
        let seen = |group: &str| made.headroom(&format!("0::{group}\n")).map(|headroom| headroom.to_string());
        // a: 1000 - (700 - 200) = 500; c: 800 - 100 = 700.
        assert_eq!(seen("/a/b/c").as_deref(), Some("control group /a allows 1000 bytes, 500 bytes in use"));
        assert_eq!(seen("/a").as_deref(), Some("control group /a allows 1000 bytes, 500 bytes in use"));
        assert_eq!(seen("/").as_deref(), Some("control group / allows 8.8 KiB, 100 bytes in use"));
        assert_eq!(seen("/gone/since").as_deref(), Some("control group / allows 8.8 KiB, 100 bytes in use"));
        assert_eq!(seen("/../outside").as_deref(), Some("control group / allows 8.8 KiB, 100 bytes in use"));
        fs::remove_dir_all(&made.mount_point).expect("removed");
    }

    #[test]
    fn a_mount_that_shows_one_group_is_its_root() {
        let made = hierarchy("root", "/pod", &[("", "900", 100, 0), ("x", "50", 60, 0)]);
        let seen = |group: &str| made.headroom(&format!("0::{group}\n"));
        let inner = Headroom { bytes: 0, limit: Limit::ControlGroup { path: "/pod/x".to_owned(), max: 50 } };
        let outer = Headroom { bytes: 800, limit: Limit::ControlGroup { path: "/pod".to_owned(), max: 900 } };
        assert_eq!(seen("/pod/x"), Some(inner));
        assert_eq!(seen("/pod"), Some(outer.clone()));
        assert_eq!(seen("/podium"), Some(outer.clone()));
        assert_eq!(seen("/elsewhere"), Some(outer));
        fs::remove_dir_all(&made.mount_point).expect("removed");
    }

    #[test]
    fn this_machine_has_some_memory_left() {
        assert!(memory_headroom().is_some_and(|headroom| headroom.bytes > 0));
        assert!(!kernel_release().is_empty());
    }

    /// Set in the copy of this test that runs inside the group.
    const INSIDE: &str = "COWBELL_LIMITS_TEST_GROUP";

    #[test]
    fn a_real_control_groups_limit_is_seen() {
        const MAX: u64 = 512 << 20;
        if let Some(directory) = std::env::var_os(INSIDE) {
            fs::write(Path::new(&directory).join("cgroup.procs"), "0").expect("moved into the group");
            let seen = memory_headroom().expect("a limit");
            let Limit::ControlGroup { path, max } = &seen.limit else { panic!("not a group's limit: {seen}") };
            assert!(path.contains("cowbell-limits-"), "{seen}");
            assert_eq!(*max, MAX);
            assert!(seen.bytes <= MAX && seen.bytes > MAX / 2, "{seen}");
            return;
        }
        let made = parse_mounts(&text("/proc/self/mountinfo")).into_iter().find_map(|hierarchy| {
            let directory = hierarchy.mount_point.join(format!("cowbell-limits-{}", std::process::id()));
            fs::create_dir(&directory).ok()?;
            if fs::write(directory.join(hierarchy.version.names().0), MAX.to_string()).is_err() {
                fs::remove_dir(&directory).expect("removed");
                return None;
            }
            Some(directory)
        });
        let Some(directory) = made else {
            println!("skipped: this user cannot make a control group with a memory limit");
            return;
        };
        let inside = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "sys::limits::tests::a_real_control_groups_limit_is_seen", "--nocapture"])
            .env(INSIDE, &directory)
            .output();
        let removed = fs::remove_dir(&directory);
        let inside = inside.expect("the test inside the group");
        assert!(inside.status.success(), "{}", String::from_utf8_lossy(&inside.stderr));
        removed.expect("the group is empty again");
    }
}
