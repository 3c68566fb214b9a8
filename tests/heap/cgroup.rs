//! A limit of a memory cgroup, which counts pages and not addresses.

use crate::{CASE, Case, Numbers, cases};
use cowbell::heap::Heap;
use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CASES: &[Case] = cases![what_a_memory_cgroup_refuses_is_given_and_its_pages_are_not];

/// Says that the case runs in the group.
const INSIDE: &str = "COWBELL_HEAP_INSIDE";
const LIMIT_BYTES: usize = 64 << 20;
const SIGKILL: i32 = 9;

/// A group with a limit, gone when this is dropped.
struct Group {
    path: PathBuf,
    /// The file that counts who was killed, as a line `oom_kill N`.
    events: &'static str,
}

impl Group {
    /// A group below the root of the second version where that manages memory, or of the first; why not, where there can be none.
    fn new() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
        let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
        let holds = |path: &Path, word: &str| {
            fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|each| each == word))
        };
        let second = mounts.iter().find(|mount| {
            mount[2] == "cgroup2" && holds(&Path::new(mount[1]).join("cgroup.subtree_control"), "memory")
        });
        let first =
            mounts.iter().find(|mount| mount[2] == "cgroup" && mount[3].split(',').any(|word| word == "memory"));
        let name = format!("cowbell-heap-{}", std::process::id());
        let (root, limits, events) = match (second, first) {
            (Some(mount), _) => (mount[1], ["memory.max", "memory.swap.max"], "memory.events"),
            (None, Some(mount)) => (mount[1], ["memory.limit_in_bytes"; 2], "memory.oom_control"),
            (None, None) => return Err("no hierarchy of cgroups manages memory".to_owned()),
        };
        let group = Self { path: Path::new(root).join(name), events };
        let failed = |e: std::io::Error| format!("{}: {e}", group.path.display());
        fs::create_dir(&group.path).map_err(failed)?;
        fs::write(group.path.join(limits[0]), LIMIT_BYTES.to_string()).map_err(failed)?;
        if limits[1] != limits[0] {
            // There is no such file without swap.
            let _none = fs::write(group.path.join(limits[1]), "0");
        }
        Ok(group)
    }

    fn killed(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.events)).expect("the group's events");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.parse().ok()).expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _left = fs::remove_dir(&self.path);
    }
}

/// Memory is given as addresses, so that an allocation beyond the limit is no null; who touches more pages than the group may have is killed.
fn what_a_memory_cgroup_refuses_is_given_and_its_pages_are_not() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let group = match Group::new() {
        Ok(group) => group,
        Err(why) => return println!("skipped: {why}"),
    };
    // Without swap of its own the process may be killed, or not, as the machine has some.
    let swap = fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1);
    if swap && group.events == "memory.oom_control" {
        return println!("skipped: pages of groups of the first version go to swap");
    }
    let script = r#"echo $$ > "$0/cgroup.procs" && exec "$1""#;
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(&group.path).arg(std::env::current_exe().expect("a path"));
    command.env(CASE, "what_a_memory_cgroup_refuses_is_given_and_its_pages_are_not").env(INSIDE, "1");
    let output = command.output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "lived\nfroze\ngiven\n", "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.signal(), group.killed()), (Some(SIGKILL), 1));
}

fn say(word: &str) {
    let mut output = std::io::stdout();
    writeln!(output, "{word}").and_then(|()| output.flush()).expect("somebody reads");
}

fn inside() {
    // Many times the limit in all, a third of it at a time: what is freed goes back.
    let mut numbers = Numbers(11);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for _ in 0..60_000 {
        let shift = [8, 12, 17, 21][numbers.below(4)];
        let block = vec![1; 1 + numbers.below(1 << shift)];
        bytes += block.len();
        kept.push(block);
        while bytes > LIMIT_BYTES / 3 {
            bytes -= kept.swap_remove(numbers.below(kept.len())).len();
        }
    }
    say("lived");
    let generation = Heap::freeze().expect("one thread");
    assert!(generation.holds(&kept[0][0]) && kept.iter().all(|block| block.iter().all(|byte| *byte == 1)));
    say("froze");
    let mut more: Vec<u8> = Vec::new();
    more.try_reserve_exact(4 * LIMIT_BYTES).expect("addresses");
    say("given");
    more.resize(4 * LIMIT_BYTES, 1);
    black_box(&more);
    say("and had");
}
