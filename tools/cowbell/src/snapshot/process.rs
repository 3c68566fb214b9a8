//! Processes as `/proc` shows them: which there are, who is whose child, and the memory of one.

use super::space::{PagemapReader, ProcessPages};
use crate::failure::{Failure, absent};
use cowbell::sys::procfs::{self, smaps, stat::Stat, status::Status};
use cowbell::sys::{Errno, limits};
use std::collections::HashMap;

/// The number of times that a process is read which executes another program meanwhile.
const ATTEMPTS_MAX: u32 = 3;

/// A process of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// The process' id.
    pub pid: i32,
    /// The parent's id.
    pub parent: i32,
    /// Generations below the top of the tree.
    pub depth: usize,
    /// The name of its main thread.
    pub name: String,
    started: u64,
    is_kernel: bool,
}

/// Every process of a tree, parents before their children, the children of one in the order of their birth.
///
/// # Errors
/// When there is no such process, or it can have no memory.
pub fn tree(pid: i32) -> Result<Vec<Node>, Failure> {
    let all = procfs::processes().map_err(|e| Failure::new(format!("cannot list processes: {e}")))?;
    // A process that is gone again is not in the tree.
    let all: Vec<Node> = all.into_iter().filter_map(Node::of).collect();
    let top = all.iter().find(|node| node.pid == pid).cloned();
    let top = top.ok_or_else(|| Failure::new(absent(pid)))?;
    let mut children: HashMap<i32, Vec<Node>> = HashMap::new();
    for node in all {
        children.entry(node.parent).or_default().push(node);
    }
    let (mut nodes, mut waiting) = (Vec::new(), vec![top]);
    while let Some(node) = waiting.pop() {
        let mut siblings = children.remove(&node.pid).unwrap_or_default();
        // Youngest first: the next one is taken from the end.
        siblings.sort_by_key(|child| std::cmp::Reverse((child.started, child.pid)));
        waiting.extend(siblings.into_iter().map(|child| Node { depth: node.depth + 1, ..child }));
        nodes.push(node);
    }
    Ok(nodes)
}

/// The process that a thread belongs to; the id itself if it is a process' or nobody's.
pub fn of_thread(id: i32) -> i32 {
    Status::of(id).ok().and_then(|status| status.number("Tgid")).unwrap_or(id)
}

/// One process' memory.
#[derive(Debug)]
pub struct ProcessMemory {
    /// The process' pages.
    pub space: ProcessPages,
    /// The kernel's own sums.
    pub sums: smaps::MappingFigures,
    /// Pages of huge page pools, in bytes: in no figure of smaps but in the page tables.
    pub hugetlb_bytes: u64,
    /// The process' auxiliary vector: the same in all processes that were forked from one without executing another program.
    pub image: Vec<u8>,
}

/// Why a process has no memory to read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadState {
    /// The process was read.
    Read,
    /// The process ended before it was read.
    Gone,
    /// The process is ending, or has ended and its parent did not ask yet.
    Zombie,
    /// A thread of the kernel: it never has memory of its own.
    KernelThread,
    /// The kernel refused.
    Denied,
    /// The process could not be read for another reason.
    Failed,
}

/// A state, and words for people where it needs some.
pub type Unread = (ReadState, String);

impl Node {
    /// A process by itself, as the top of a tree.
    pub fn of(pid: i32) -> Option<Self> {
        let line = procfs::read(pid, "stat").ok()?;
        let stat = Stat::parse(&line)?;
        let name = String::from_utf8_lossy(stat.name).into_owned();
        Some(Self { pid, parent: stat.parent, depth: 0, name, started: stat.started, is_kernel: stat.is_kernel() })
    }

    /// The process' arguments; none where it has no memory.
    pub fn command(&self) -> Vec<String> {
        procfs::command(self.pid).unwrap_or_default()
    }

    /// The bytes that tell the program which it executes from others.
    pub fn image(&self) -> Option<Vec<u8>> {
        image(procfs::living(self.pid)).ok()
    }

    /// Reads its memory; again if it executes another program meanwhile.
    ///
    /// # Errors
    /// Why there is none to read.
    pub fn read(&self, reader: &PagemapReader) -> Result<ProcessMemory, Unread> {
        if self.is_kernel {
            return Err((ReadState::KernelThread, "a thread of the kernel has no memory of its own".to_owned()));
        }
        for _ in 0..ATTEMPTS_MAX {
            let read = self.read_once(reader);
            // Memory is gone before the process is.
            if let Some(ended) = self.ended() {
                return Err((ended, String::new()));
            }
            match read {
                Ok(Some(memory)) => return Ok(memory),
                // The process lives, so the memory that is gone is that of the program that it executed before.
                Ok(None) | Err(Errno::SRCH) => {}
                Err(e) => return Err(self.refused(e)),
            }
        }
        Err((ReadState::Failed, "it executed another program each time it was read".to_owned()))
    }

    /// Reads the process' memory; `None` if it executed another program meanwhile.
    fn read_once(&self, reader: &PagemapReader) -> Result<Option<ProcessMemory>, Errno> {
        let id = procfs::living(self.pid);
        let before = image(id)?;
        let space = reader.read(id)?;
        let sums = smaps::rollup(id)?;
        let hugetlb_bytes = Status::of(id)?.bytes("HugetlbPages").unwrap_or(0);
        let changed = image(id)? != before;
        Ok((!changed).then_some(ProcessMemory { space, sums, hugetlb_bytes, image: before }))
    }

    /// The state of a process that is gone, or has ended, by now.
    pub fn ended(&self) -> Option<ReadState> {
        match Self::of(self.pid) {
            Some(now) if now.started != self.started => Some(ReadState::Gone),
            Some(_) if procfs::signal_safe::is_exiting(procfs::living(self.pid)) => Some(ReadState::Zombie),
            Some(_) => None,
            None => Some(ReadState::Gone),
        }
    }

    fn refused(&self, e: Errno) -> Unread {
        if !matches!(e, Errno::ACCESS | Errno::PERM) {
            return (ReadState::Failed, format!("cannot read its memory: {}", std::io::Error::from(e)));
        }
        let owner = Status::of(self.pid).ok().and_then(|status| status.user());
        let user = limits::user().uid;
        // Files of a process that is not dumpable are root's; its folder is not.
        let is_open = |owner| procfs::owner(self.pid, "stat") == Ok(owner);
        let why = match owner {
            _ if limits::user().may_trace => {
                "the kernel refuses it even to CAP_SYS_PTRACE; a security module, or another user namespace, guards it"
                    .to_owned()
            }
            Some(owner) if owner == user => {
                "it is guarded (not dumpable, or with another real or saved user, group, capabilities or user \
                 namespace); run cowbell as root (CAP_SYS_PTRACE)"
                    .to_owned()
            }
            Some(owner) if !is_open(owner) => format!(
                "it runs as user {owner}, cowbell as user {user}, and it is closed to its own user (not dumpable); run \
                 cowbell as root (CAP_SYS_PTRACE)"
            ),
            Some(owner) => format!(
                "it runs as user {owner}, cowbell as user {user}; run cowbell as that user or as root (CAP_SYS_PTRACE)"
            ),
            None => "run cowbell as root (CAP_SYS_PTRACE)".to_owned(),
        };
        (ReadState::Denied, format!("its memory may not be read: {why}"))
    }
}

fn image(id: i32) -> Result<Vec<u8>, Errno> {
    let mut buffer = [0; 4096];
    procfs::signal_safe::auxiliary_vector(id, &mut buffer).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowbell::sys::process;

    #[test]
    fn a_thread_leads_to_its_process() {
        let tid = std::thread::spawn(process::tid).join().expect("a thread");
        assert_eq!(of_thread(process::tid()), process::pid());
        // The thread has ended by now, or is about to: either answer is of this process.
        assert!([tid, process::pid()].contains(&of_thread(tid)));
    }

    #[test]
    fn the_tree_of_this_process_starts_with_it() {
        let nodes = tree(process::pid()).expect("this process");
        assert_eq!(nodes[0].pid, process::pid());
        assert_eq!((nodes[0].depth, nodes[0].parent), (0, process::parent_pid()));
    }
}
