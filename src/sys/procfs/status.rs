//! `/proc/PID/status`: lines of `Name:\tvalue`, of a process or of a thread.

use crate::sys::Errno;

/// One such file as it was read. The names of its lines are those of proc(5).
#[derive(Clone, Debug, Default)]
pub struct Status(String);

impl Status {
    /// The status of a process or a thread.
    ///
    /// # Errors
    /// ENOENT and ESRCH when it is gone.
    pub fn of(id: i32) -> Result<Self, Errno> {
        super::text(id, "status").map(Self)
    }

    /// The status of a thread, if it belongs to this process.
    ///
    /// # Errors
    /// ENOENT and ESRCH when it is gone, or another process' thread.
    pub fn of_thread(pid: i32, tid: i32) -> Result<Self, Errno> {
        super::text(pid, &format!("task/{tid}/status")).map(Self)
    }

    /// A line's value. The name of the process comes first, with its line feeds escaped, and cannot pose as another line.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// A line's one number, as `Tgid` and `TracerPid` have it.
    pub fn number(&self, name: &str) -> Option<i32> {
        self.field(name)?.parse().ok()
    }

    /// A line's numbers: `Uid` (real, effective, saved, file system), `NSpid` (from the outermost namespace inwards).
    pub fn numbers(&self, name: &str) -> Vec<i64> {
        let values = self.field(name).unwrap_or_default().split_ascii_whitespace();
        values.filter_map(|value| value.parse().ok()).collect()
    }

    /// A line's bits, as `SigPnd` and `CapEff` have them.
    pub fn bits(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }

    /// A line's size in bytes, as `VmData` and `HugetlbPages` have it.
    pub fn bytes(&self, name: &str) -> Option<u64> {
        self.field(name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The effective user.
    pub fn user(&self) -> Option<u32> {
        self.numbers("Uid").get(1).and_then(|&uid| uid.try_into().ok())
    }

    /// The numbers by which the pid namespaces know a thread, ours first, its own last.
    pub fn thread_ids(&self) -> Vec<i32> {
        self.numbers("NSpid").into_iter().filter_map(|id| id.try_into().ok()).collect()
    }

    /// Tells whether it has a signal to take that it does not block.
    pub fn is_due_a_signal(&self) -> bool {
        let set = |name| self.bits(name).unwrap_or(0);
        (set("SigPnd") | set("ShdPnd")) & !set("SigBlk") != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_by_their_names() {
        let status = Status(
            "Name:\tTgid: 9\nTgid:\t17\nUid:\t1\t4294967295\t3\t4\nNSpid:\t17\t3\nHugetlbPages:\t    2048 kB\n\
             SigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000000003\n"
                .to_owned(),
        );
        assert_eq!((status.number("Tgid"), status.field("Name")), (Some(17), Some("Tgid: 9")));
        assert_eq!((status.user(), status.thread_ids()), (Some(u32::MAX), vec![17, 3]));
        assert_eq!(
            (status.bytes("HugetlbPages"), status.bytes("VmRSS"), status.bytes("Tgid")),
            (Some(2 << 20), None, None)
        );
        assert!(!status.is_due_a_signal());
        let due = Status(status.0.replace("SigBlk:\t0000000000000003", "SigBlk:\t0000000000000001"));
        assert!(due.is_due_a_signal());
    }

    #[test]
    fn this_thread_is_read_as_it_is() {
        let (pid, tid) = (crate::sys::process::pid(), crate::sys::process::tid());
        let status = Status::of_thread(pid, tid).expect("ours");
        assert_eq!(status.number("Tgid"), Some(pid));
        assert_eq!(status.number("Pid"), Some(tid));
        assert_eq!(status.user(), Some(crate::sys::limits::user().uid));
        assert_eq!(Status::of_thread(i32::MAX, tid).map(|_| ()), Err(Errno::NOENT));
    }
}
