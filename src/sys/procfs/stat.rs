//! `/proc/PID/stat`: one line of a process or of a thread.

/// The fields that are read of it. *Async-signal-safe*: nothing is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat<'a> {
    /// The process' or thread's number.
    pub id: i32,
    /// The name of the thread, at most 15 bytes of any kind.
    pub name: &'a [u8],
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X` and others.
    pub state: u8,
    /// The parent's number.
    pub parent: i32,
    /// `PF_*` of linux/sched.h.
    pub flags: u32,
    /// Page faults of all its threads, those that had to read something included.
    pub faults: u64,
    /// Clock ticks spent in user mode, and in the kernel.
    pub ticks: (u64, u64),
    /// The number of threads of its process.
    pub threads: u32,
    /// When it was made, in clock ticks since the boot: with its number, this names a process for good.
    pub started: u64,
}

impl<'a> Stat<'a> {
    /// `PF_EXITING`: it is on its way out.
    const EXITING: u32 = 0x4;
    /// `PF_KTHREAD`: a thread of the kernel.
    const KERNEL: u32 = 0x0020_0000;

    /// Reads a line; `None` if it is not whole.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        // The name stands in parentheses and may hold some itself, and blanks.
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let id = std::str::from_utf8(line.get(..open)?).ok()?.trim_end().parse().ok()?;
        let name = line.get(open + 1..close)?;
        let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
        // Fields 3, 4, 9, 10, 12, 14, 15, 20 and 22 of proc(5).
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let flags = fields.nth(4)?.parse().ok()?;
        let (minor, major): (u64, u64) = (fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?);
        let faults = minor + major;
        let ticks = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let threads = fields.nth(4)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        Some(Self { id, name, state, parent, flags, faults, ticks, threads, started })
    }

    /// Tells whether it has ended, so that it has no memory any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Tells whether it is on its way out or has ended.
    pub fn is_exiting(&self) -> bool {
        self.flags & Self::EXITING != 0
    }

    /// Tells whether it is a thread of the kernel, which never has memory of its own.
    pub fn is_kernel(&self) -> bool {
        self.flags & Self::KERNEL != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_behind_a_name_of_any_bytes_are_found() {
        let line =
            |flags: u32| format!("7 (a ) na(me) Z 1 7 7 0 -1 {flags} 10 11 12 13 140 150 16 17 20 0 1 0 2200 23 24\n");
        let text = line(0x40_0044);
        let stat = Stat::parse(text.as_bytes()).expect("whole");
        assert_eq!((stat.id, stat.name, stat.state, stat.parent), (7, &b"a ) na(me"[..], b'Z', 1));
        assert_eq!((stat.faults, stat.ticks, stat.started), (10 + 12, (140, 150), 2200));
        assert!(stat.is_exiting() && stat.has_ended() && !stat.is_kernel());
        let text = line(0x60_0040);
        let stat = Stat::parse(text.as_bytes()).expect("whole");
        assert!(!stat.is_exiting() && stat.is_kernel());
    }

    #[test]
    fn a_line_that_is_not_whole_is_refused() {
        for line in ["", "7 (x) R", "7 (x", "x (y) R 1 1 1 1 1 1", "7 (x) R 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"] {
            assert_eq!(Stat::parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(Stat::parse(b"7 (\xff) R 1 7 7 0 -1 4 0 0 0 0 1 2 0 0 0 0 1 0 9").map(|stat| stat.started), Some(9));
    }

    #[test]
    fn this_process_is_read_as_it_is() {
        let me = crate::sys::process::pid();
        let text = super::super::read(me, "stat").expect("ours");
        let stat = Stat::parse(&text).expect("whole");
        assert_eq!((stat.id, stat.parent), (me, crate::sys::process::parent_pid()));
        assert!(!stat.has_ended() && !stat.is_exiting() && !stat.is_kernel() && stat.started > 0);
    }
}
