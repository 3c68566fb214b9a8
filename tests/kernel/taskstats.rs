//! taskstats: the kernel's own count of copies, by generic netlink.
//!
//! # Safety
//! A netlink socket is opened by libc's `socket`.
#![expect(unsafe_code, reason = "rustix has no generic netlink")]

use crate::child::{self, Gate};
use crate::claim::{Claim, NET_ADMIN, Skip, Verdict, claim};
use crate::memory::{Kind, Memory, last_errno};
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::{FromRawFd, OwnedFd};

pub const CLAIMS: &[Claim] = &[claim!(
    taskstats_counts_copies_and_not_reuse on [PrivateMemfd, Anonymous],
    "With `kernel.task_delayacct=1` `wpcopy_count` of taskstats counts copies of pages that were mapped and not reuse; a write to a private memfd page that this process never read is a copy it does not count."
)
.needs(&[NET_ADMIN])
.restores(&["/proc/sys/kernel/task_delayacct"])];

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const TASKSTATS_CMD_GET: u8 = 1;
const TASKSTATS_CMD_ATTR_PID: u16 = 1;
const TASKSTATS_TYPE_STATS: u16 = 3;
const TASKSTATS_TYPE_AGGR_PID: u16 = 4;
/// The offset of `wpcopy_count` in `struct taskstats` of linux/taskstats.h, since version 13.
const WPCOPY_COUNT_OFFSET: usize = 400;
const VERSION_MIN: u16 = 13;
/// This version had put new fields in the middle; the next took them to the end.
const VERSION_SHIFTED: u16 = 15;

const HEADER: usize = 16 + 4;

/// Asks generic netlink: a message of one attribute; the attributes of the answer.
fn ask(socket: &OwnedFd, family: u16, command: u8, attribute: u16, value: &[u8]) -> Result<Vec<u8>, String> {
    let mut message = Vec::new();
    let len = HEADER + 4 + value.len().next_multiple_of(4);
    message.extend((len as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value);
    message.resize(len, 0);
    rustix::net::send(socket, &message, SendFlags::empty()).map_err(|e| format!("send: {e}"))?;
    let mut answer = vec![0u8; 4096];
    let (got, _) = rustix::net::recv(socket, &mut answer[..], RecvFlags::empty()).map_err(|e| format!("recv: {e}"))?;
    answer.truncate(got);
    if u16::from_ne_bytes([answer[4], answer[5]]) == libc::NLMSG_ERROR as u16 {
        let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        return Err(std::io::Error::from_raw_os_error(-errno).to_string());
    }
    Ok(answer.split_off(HEADER))
}

/// The value of an attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [l0, l1, t0, t1, ..] = *attributes {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        // The two highest bits are flags.
        if u16::from_ne_bytes([t0, t1]) & 0x3fff == wanted {
            return attributes.get(4..len);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

struct Taskstats {
    socket: OwnedFd,
    family: u16,
}

impl Taskstats {
    fn open() -> Result<Self, Skip> {
        // SAFETY: opening a socket has no precondition.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_GENERIC) };
        if fd < 0 {
            return Err(Skip(format!("generic netlink: {}", last_errno())));
        }
        // SAFETY: it was opened just now, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let family = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"TASKSTATS\0");
        let family = family.map_err(|e| Skip(format!("no taskstats in this kernel: {e}")))?;
        let id = attribute(&family, CTRL_ATTR_FAMILY_ID).expect("a family has an id");
        Ok(Self { socket, family: u16::from_ne_bytes([id[0], id[1]]) })
    }

    /// Copies by write faults of a thread.
    fn copies(&self, tid: i32) -> Result<u64, Skip> {
        let answer = ask(&self.socket, self.family, TASKSTATS_CMD_GET, TASKSTATS_CMD_ATTR_PID, &tid.to_ne_bytes());
        let answer = answer.map_err(|e| Skip(format!("taskstats: {e}")))?;
        let aggregate = attribute(&answer, TASKSTATS_TYPE_AGGR_PID).expect("an answer");
        let stats = attribute(aggregate, TASKSTATS_TYPE_STATS).expect("with statistics");
        let version = u16::from_ne_bytes([stats[0], stats[1]]);
        if version < VERSION_MIN || version == VERSION_SHIFTED {
            return Err(Skip(format!("taskstats version {version} has no wpcopy_count at the known place")));
        }
        let count = stats.get(WPCOPY_COUNT_OFFSET..WPCOPY_COUNT_OFFSET + 8).expect("within the struct");
        Ok(count.try_into().map_or(0, u64::from_ne_bytes))
    }
}

const PAGES: usize = 20;
/// Far behind the pages that are read, as reading one maps its neighbours, too.
const UNTOUCHED: usize = 50 * PAGES;

fn taskstats_counts_copies_and_not_reuse(kind: Kind) -> Verdict {
    let clock = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    if clock.is_ok_and(|clock| clock.contains("jiffies")) {
        return Err(Skip("needs a finer clock than jiffies: a copy that took no time is not counted".to_owned()));
    }
    let setting = "/proc/sys/kernel/task_delayacct";
    if let Err(e) = std::fs::write(setting, "1") {
        return Err(Skip(format!("{setting}: {e}")));
    }
    let taskstats = Taskstats::open()?;
    let memory = Memory::marked(kind, UNTOUCHED + PAGES)?;
    let (step, go) = (Gate::new(), Gate::new());
    // Only threads made after the setting are counted.
    let child = child::spawn(|| {
        // Fork gave it no page tables of a file, so it must read for itself.
        (0..2 * PAGES).for_each(|page| memory.touch(page));
        for pages in [0..0, 0..PAGES, PAGES..2 * PAGES, UNTOUCHED..UNTOUCHED + PAGES] {
            go.pass();
            pages.for_each(|page| memory.store(page, 255));
            step.open();
        }
        go.pass();
    });
    let count = || {
        go.open();
        step.pass();
        taskstats.copies(child.pid)
    };
    let start = count()?;
    let copied = count()?;
    // If the pages were anonymous, the child now has the old ones alone.
    (PAGES..2 * PAGES).for_each(|page| memory.store(page, 254));
    let left_alone = count()?;
    let last = count()?;
    go.open();
    child.finish();
    // Stack and heap of the child are copied a little, too.
    let all = |count: u64| (PAGES as u64..PAGES as u64 + 8).contains(&count);
    let none = |count: u64| count < 8;
    let (copied, reused, direct) = (copied - start, left_alone - copied, last - left_alone);
    assert!(all(copied), "{PAGES} pages copied: {copied} counted");
    match kind {
        Kind::Anonymous => {
            assert!(none(reused), "{PAGES} pages reused: {reused} counted");
            assert!(all(direct), "{PAGES} more pages copied: {direct} counted");
        }
        _ => {
            assert!(all(reused), "{PAGES} pages of the file copied: {reused} counted");
            assert!(none(direct), "{PAGES} untouched pages copied: {direct} counted");
        }
    }
    Ok(())
}
