//! Processes as `/proc` shows them: which there are, who is whose child, and the memory of one.

use super::space::{Reader, Space};
use crate::failure::Failure;
use cowbell::sys::{Errno, limits, process, smaps};
use procfs::process::{Process, Stat, all_processes};
use std::collections::{BTreeMap, HashMap};

/// How often a process is read again that executed another program meanwhile.
const ATTEMPTS_MAX: u32 = 3;

/// A process of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Generations below the top of the tree.
    pub depth: usize,
    stat: Stat,
}

/// Every process of a tree, parents before their children, the children of one in the order of their birth.
///
/// # Errors
/// When there is no such process, or it can have no memory.
pub fn tree(pid: i32) -> Result<Vec<Node>, Failure> {
    let stats = all_processes().map_err(|e| Failure::new(format!("cannot list processes: {e}")))?;
    // What is gone again is not in the tree.
    let stats: HashMap<i32, Stat> =
        stats.filter_map(|process| process.ok()?.stat().ok()).map(|stat| (stat.pid, stat)).collect();
    let mut children: BTreeMap<i32, Vec<&Stat>> = BTreeMap::new();
    for stat in stats.values() {
        children.entry(stat.ppid).or_default().push(stat);
    }
    for siblings in children.values_mut() {
        // Youngest first: the next one is taken from the end.
        siblings.sort_by_key(|stat| std::cmp::Reverse((stat.starttime, stat.pid)));
    }
    let top = stats.get(&pid).ok_or_else(|| Failure::new(format!("there is no process {pid}")))?;
    let (mut nodes, mut waiting) = (Vec::new(), vec![(0, top)]);
    while let Some((depth, stat)) = waiting.pop() {
        nodes.push(Node { pid: stat.pid, parent: stat.ppid, depth, stat: stat.clone() });
        waiting.extend(children.remove(&stat.pid).unwrap_or_default().into_iter().map(|child| (depth + 1, child)));
    }
    Ok(nodes)
}

/// The process that a thread belongs to; the id itself if it is a process' or nobody's.
pub fn of_thread(id: i32) -> i32 {
    let status = file(id, "status").unwrap_or_default();
    field(&status, "Tgid").and_then(|tgid| tgid.parse().ok()).unwrap_or(id)
}

/// One process' memory.
#[derive(Debug)]
pub struct Memory {
    /// Its pages.
    pub space: Space,
    /// The kernel's own sums.
    pub sums: smaps::Mapping,
    /// Pages of huge page pools, in bytes: in no figure of smaps but in the page tables.
    pub hugetlb_bytes: u64,
    /// Its auxiliary vector: the same in all processes that were forked from one without executing another program.
    pub image: Vec<u8>,
}

/// Why a process has no memory to read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It was read.
    Read,
    /// It ended before it was read.
    Gone,
    /// It has ended, and its parent did not ask yet.
    Zombie,
    /// A thread of the kernel: it never has memory of its own.
    KernelThread,
    /// The kernel refused.
    Denied,
    /// It could not be read for another reason.
    Failed,
}

/// A state, and words for people where it needs some.
pub type Unread = (State, String);

impl Node {
    /// A process that is not of the tree: the parent of its top.
    pub fn outside(pid: i32) -> Option<Self> {
        let stat = Process::new(pid).ok()?.stat().ok()?;
        Some(Self { pid, parent: stat.ppid, depth: 0, stat })
    }

    /// The name of its main thread.
    pub fn name(&self) -> &str {
        &self.stat.comm
    }

    /// Its arguments; none where it has no memory.
    pub fn command(&self) -> Vec<String> {
        let text = file(self.pid, "cmdline").unwrap_or_default();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    /// The bytes that tell the program which it executes from others.
    pub fn image(&self) -> Option<Vec<u8>> {
        image(self.memory_id()).ok()
    }

    /// Reads its memory; again if it executes another program meanwhile.
    ///
    /// # Errors
    /// Why there is none to read.
    pub fn read(&self, reader: &Reader) -> Result<Memory, Unread> {
        /// `PF_KTHREAD` of linux/sched.h.
        const KERNEL_THREAD: u32 = 0x0020_0000;
        if self.stat.flags & KERNEL_THREAD != 0 {
            return Err((State::KernelThread, "a thread of the kernel has no memory of its own".to_owned()));
        }
        for _ in 0..ATTEMPTS_MAX {
            let read = self.read_once(reader);
            // Memory is gone before the process is.
            if let Some(ended) = self.ended() {
                return Err((ended, String::new()));
            }
            match read {
                Ok(Some(memory)) => return Ok(memory),
                // It lives, so what is gone is the memory of the program that it executed before.
                Ok(None) | Err(Errno::SRCH) => {}
                Err(e) => return Err(self.refused(e)),
            }
        }
        Err((State::Failed, "it executes one program after the other".to_owned()))
    }

    /// Its memory; `None` if it executed another program meanwhile.
    fn read_once(&self, reader: &Reader) -> Result<Option<Memory>, Errno> {
        let id = self.memory_id();
        let before = image(id)?;
        let space = reader.read(id)?;
        let sums = smaps::rollup(id).map_err(|e| e.errno().map_or(Errno::IO, Errno::from_raw_os_error))?;
        let status = file(id, "status")?;
        let hugetlb_bytes = field(&status, "HugetlbPages").and_then(kibibytes).unwrap_or(0);
        let changed = image(id)? != before;
        Ok((!changed).then_some(Memory { space, sums, hugetlb_bytes, image: before }))
    }

    /// The id under which the memory is found: its own, but when its main thread has ended, another thread's.
    fn memory_id(&self) -> i32 {
        let has_ended = |state: char| matches!(state, 'Z' | 'X');
        if !has_ended(self.stat.state) {
            return self.pid;
        }
        let threads = Process::new(self.pid).and_then(|process| process.tasks()).into_iter().flatten();
        let mut alive = threads.filter_map(|task| task.ok()?.stat().ok()).filter(|stat| !has_ended(stat.state));
        alive.next().map_or(self.pid, |stat| stat.pid)
    }

    /// Whether it is gone, or has ended, by now.
    fn ended(&self) -> Option<State> {
        match Process::new(self.pid).and_then(|process| process.stat()) {
            Ok(now) if now.starttime != self.stat.starttime => Some(State::Gone),
            Ok(_) if process::is_exiting(self.memory_id()) => Some(State::Zombie),
            Ok(_) => None,
            Err(_) => Some(State::Gone),
        }
    }

    fn refused(&self, e: Errno) -> Unread {
        if !matches!(e, Errno::ACCESS | Errno::PERM) {
            return (State::Failed, format!("cannot read its memory: {}", std::io::Error::from(e)));
        }
        let status = file(self.pid, "status").unwrap_or_default();
        let owner = field(&status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)?.parse::<u32>().ok());
        let user = limits::user().uid;
        let why = match owner {
            _ if limits::user().may_trace => {
                "the kernel refuses it even to CAP_SYS_PTRACE; a security module, or another user namespace, guards it"
                    .to_owned()
            }
            Some(owner) if owner == user => {
                "it is guarded (not dumpable, other capabilities or another user namespace); run cowbell as root \
                 (CAP_SYS_PTRACE)"
                    .to_owned()
            }
            Some(owner) => format!(
                "it runs as user {owner}, cowbell as user {user}; run cowbell as that user or as root (CAP_SYS_PTRACE)"
            ),
            None => "run cowbell as root (CAP_SYS_PTRACE)".to_owned(),
        };
        (State::Denied, format!("its memory may not be read: {why}"))
    }
}

fn image(id: i32) -> Result<Vec<u8>, Errno> {
    let mut buffer = [0; 4096];
    process::auxiliary_vector(id, &mut buffer).map(<[u8]>::to_vec)
}

/// A file of `/proc/PID`, lossily as text: names in it may be of any bytes.
///
/// # Errors
/// As `open(2)` and `read(2)`.
pub fn file(id: i32, name: &str) -> Result<String, Errno> {
    let bytes = std::fs::read(format!("/proc/{id}/{name}"))
        .map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line's value in a `status` file. The name of the process comes first and cannot pose as another line.
fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn kibibytes(value: &str) -> Option<u64> {
    value.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_file_is_read_by_its_keys() {
        let status = "Name:\tTgid: 9\nTgid:\t17\nUid:\t1\t2\t3\t4\nHugetlbPages:\t    2048 kB\n";
        assert_eq!(field(status, "Tgid"), Some("17"));
        assert_eq!(field(status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)), Some("2"));
        assert_eq!(field(status, "HugetlbPages").and_then(kibibytes), Some(2 << 20));
        assert_eq!(field(status, "VmRSS"), None);
    }

    #[test]
    fn a_thread_leads_to_its_process() {
        let tid = std::thread::spawn(process::tid).join().expect("a thread");
        assert_eq!(of_thread(process::tid()), process::pid());
        // That thread has ended by now, or is about to: either answer is of this process.
        assert!([tid, process::pid()].contains(&of_thread(tid)));
    }

    #[test]
    fn the_tree_of_this_process_starts_with_it() {
        let nodes = tree(process::pid()).expect("this process");
        assert_eq!(nodes[0].pid, process::pid());
        assert_eq!((nodes[0].depth, nodes[0].parent), (0, process::parent_pid()));
    }
}
