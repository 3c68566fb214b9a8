//! The beginning of a trace: the mode, the header, and the program or the process.

use super::birth::traced;
use super::codes::Codes;
use super::compare::Originals;
use super::faults::Faults;
use super::faults_stand_in::StandIn;
use super::growth::GrowthLooks;
use super::images::Images;
use super::lender::Lenders;
use super::link::{Link, Options, Target};
use super::sample::Sampler;
use super::tree::{Tracee, Tree};
use super::{FAULTS, LINK, SIGNALS, Tracer, ability, baseline};
use crate::failure::absent;
use crate::record::{FORMAT, Finish, GapKind, Header, Mode, Origin, Record, VERSION, WatchReason};
use cowbell::sys::epoll::Poller;
use cowbell::sys::launch::{Launch, Launched};
use cowbell::sys::ptrace::{self, EventStop, Stop, Until, WaitStatus};
use cowbell::sys::remote::Drain;
use cowbell::sys::{self, Errno, signal};
use cowbell::sys::{limits, procfs};
use std::collections::{HashMap, HashSet};
use std::env;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Exit codes of a tracer that could not begin.
const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Why it could not begin: the link to say it on, the exit code, the words.
pub type NotStarted = (Link, u8, String);

impl Tracer {
    /// Starts or attaches. From then on [`Tracer::follow`].
    pub(super) fn begin(link: Link, options: Options) -> Result<Self, NotStarted> {
        let (mode, mode_reason) = match choose_mode(options.mode) {
            Ok(chosen) => chosen,
            Err(why) => return Err((link, FAILED, why)),
        };
        let prepared = (|| -> Result<_, Errno> {
            // A signal that the terminal sends to all its processes is for the target; this one ends when the target does.
            let ignored = [
                signal::CHLD,
                signal::INT,
                signal::QUIT,
                signal::TERM,
                signal::HUP,
                signal::TSTP,
                signal::TTIN,
                signal::TTOU,
                signal::PIPE,
            ];
            let (poller, signals) = (Poller::new()?, signal::receive(&ignored)?);
            poller.add(&signals, SIGNALS)?;
            poller.add(link.socket(), LINK)?;
            Ok((poller, signals, Drain::new()?))
        })();
        let (poller, signals, drain) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => return Err((link, FAILED, format!("cannot watch for events: {e}"))),
        };
        let mut tracer = Self {
            link,
            mode,
            frames: ability::frames(),
            poller,
            signals,
            tree: Tree::default(),
            originals: Originals::default(),
            lenders: Lenders::default(),
            drain,
            sampler: Sampler::default(),
            faults: None,
            codes: Codes::default(),
            images: Images::default(),
            growth: GrowthLooks::default(),
            newborn: HashSet::new(),
            parked: HashMap::new(),
            stops_unread: false,
            leaving: false,
            leaving_since_ns: 0,
            owed: Vec::new(),
            intervals: 0,
            unweighed: 0,
            most_together: 0,
            weighing_ran_ns: 0,
            together_ran_ns: 0,
            started_ns: sys::monotonic_ns(),
            root: 0,
            root_ended: None,
            spent: Finish::default(),
            sampling_ran_ns: 0,
            stand_in: None,
            options,
        };
        let begun = match tracer.options.target.clone() {
            Target::Run(command) => tracer.run(&command, mode_reason),
            Target::Attach(pid) => tracer.attach(pid, mode_reason),
        };
        match begun {
            Ok(()) => {
                // Several for each process watched. Only now: the program was to start with the user's limit.
                sys::tracing::raise_descriptors_max();
                if tracer.faults.is_some() {
                    // A stack that is read late is another one.
                    sys::process::go_first();
                }
                Ok(tracer)
            }
            Err((code, message)) => Err((tracer.link, code, message)),
        }
    }

    fn say_header(&mut self, command: Vec<String>, mode_reason: String) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            cowbell: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: sys::limits::kernel_release(),
            page_size: baseline::page_bytes(),
            command,
            started_unix_ms: since_1970.as_millis() as u64,
            mode: self.mode,
            mode_reason,
            who: self.options.who,
            stacks_every: self.options.stacks_every,
            frames: self.frames,
        };
        self.say(Record::Header(header));
    }

    fn run(&mut self, words: &[OsString], mut mode_reason: String) -> Result<(), (u8, String)> {
        let name = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
        let launch = Launch::prepare(words, self.options.signal_mask)
            .map_err(|e| (FAILED, format!("cannot start a process: {e}")))?;
        let pid = launch.pid();
        ptrace::seize(pid, traced()).map_err(|e| (FAILED, cannot_trace(pid, e)))?;
        self.hear_faults(pid, &mut mode_reason)?;
        match until_executed(pid, launch.go()) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound && is_there(words) => {
                let why = "the interpreter or loader that it names is not there";
                return Err((NOT_EXECUTABLE, format!("{name}: cannot be executed: {why} ({e})")));
            }
            // A folder on the PATH that may not be searched makes the kernel speak of permissions.
            Err(e) if e.kind() == ErrorKind::NotFound || !says_where(words) && !is_there(words) => {
                return Err((NOT_FOUND, format!("{name}: not found; is it installed, and on the PATH?")));
            }
            Err(e) => return Err((NOT_EXECUTABLE, format!("{name}: cannot be executed: {e}"))),
        }
        self.say_header(words.iter().map(|word| word.to_string_lossy().into_owned()).collect(), mode_reason);
        self.root = pid;
        let family = self.tree.new_family();
        self.tree.add(pid, Tracee::new(pid, 0, family, WatchReason::Parent));
        self.name(pid, 0, Origin::Started);
        self.begin_to_compare(pid);
        self.tell_of_privilege(pid);
        self.begin_to_sample(pid, pid);
        self.go_on(pid, Stop::Event(EventStop::Exec));
        Ok(())
    }

    fn attach(&mut self, id: i32, mut mode_reason: String) -> Result<(), (u8, String)> {
        let command = procfs::command(id).map_err(|_| (FAILED, absent(id)))?;
        // A thread stands for its process.
        let root = process_of(id);
        if let Some(why) = has_no_memory(root) {
            return Err((FAILED, why));
        }
        // Seized first, so that nothing is half done when the right is missing.
        ptrace::seize(root, traced()).map_err(|e| (FAILED, cannot_trace(root, e)))?;
        self.hear_faults(root, &mut mode_reason)?;
        self.say_header(command, mode_reason);
        self.root = root;
        let family = self.tree.new_family();
        let mut seen = HashSet::from([root]);
        let mut parents = HashMap::from([(root, 0)]);
        let mut fresh = vec![root];
        // Until nothing new is found: the tree grows while it is listed.
        while let Some(pid) = fresh.pop() {
            let parent = parents.get(&pid).copied().unwrap_or(0);
            let mut process = Tracee::new(pid, parent, family, WatchReason::Attached);
            process.to_arm = true;
            self.tree.add(pid, process);
            self.seize_threads(pid, &mut seen);
            self.name(pid, parent, Origin::Attached);
            for child in procfs::children(pid) {
                if !seen.insert(child) {
                    continue;
                }
                match ptrace::seize(child, traced()) {
                    Ok(()) => {
                        self.hear_more_faults(child, child);
                        parents.insert(child, pid);
                        fresh.push(child);
                    }
                    Err(e) if e != Errno::SRCH && !has_ended(child) => {
                        self.gap(child, GapKind::NotArmed, cannot_trace(child, e));
                    }
                    Err(_) => {}
                }
            }
        }
        // Relatives outside of this tree may share with it: it is never taken to be alone.
        self.tree.add(0, Tracee::new(0, 0, family, WatchReason::Attached));
        self.tree.threads.remove(&0);
        let pids: Vec<i32> = self.tree.processes.keys().copied().filter(|&pid| pid != 0).collect();
        for pid in pids {
            let _gone = ptrace::interrupt(pid);
        }
        Ok(())
    }

    /// In [`Mode::Faults`]: opens the rings of everybody who comes from this thread. Where they are refused (a process of another
    /// user, too many descriptors), pages are counted instead, and `mode_reason` says why.
    fn hear_faults(&mut self, tid: i32, mode_reason: &mut String) -> Result<(), (u8, String)> {
        if self.mode != Mode::Faults {
            return Ok(());
        }
        match Faults::open(tid) {
            Ok(faults) => {
                let added = self.poller.add(faults.news(), FAULTS);
                added.map_err(|e| (FAILED, format!("cannot wait for page faults: {e}")))?;
                self.faults = Some(faults);
                self.stand_in = StandIn::start();
            }
            Err(why) => {
                ability::count().map_err(|e| (FAILED, format!("page faults cannot be watched ({why}), and {e}")))?;
                self.mode = Mode::Count;
                *mode_reason = format!("page faults cannot be watched: {why}");
            }
        }
        Ok(())
    }

    fn seize_threads(&mut self, pid: i32, seen: &mut HashSet<i32>) {
        loop {
            let tids = procfs::threads(pid).unwrap_or_default().into_iter();
            let new: Vec<i32> = tids.filter(|&tid| tid != pid && seen.insert(tid)).collect();
            if new.is_empty() {
                return;
            }
            for tid in new {
                if ptrace::seize(tid, traced()).is_ok() {
                    self.hear_more_faults(pid, tid);
                    self.tree.add_thread(pid, tid);
                }
            }
        }
    }
}

/// Chooses the mode that was asked for, or the one that tells the most at the least cost; and says why not that, where it is
/// another.
fn choose_mode(asked: Option<Mode>) -> Result<(Mode, String), String> {
    let count = || ability::count().map_err(|why| format!("{why}; `cowbell snapshot PID` works without"));
    let faults = match asked {
        None => ability::all_faults(),
        Some(Mode::Faults) => ability::faults(),
        Some(Mode::Count) => return count().map(|()| (Mode::Count, String::new())),
        Some(Mode::Trace) => {
            count()?;
            return match ability::trace() {
                Ok(()) => Ok((Mode::Trace, String::new())),
                Err(why) => Err(format!("{why}; --mode count works without")),
            };
        }
    };
    match faults {
        Ok(()) => Ok((Mode::Faults, String::new())),
        Err(why) => count().map(|()| (Mode::Count, why)),
    }
}

/// Serves the stops of a process on its way into a program.
fn until_executed(pid: i32, launched: Launched) -> io::Result<()> {
    loop {
        let (_, status) = ptrace::wait(Some(pid), true)?.ok_or(Errno::CHILD)?;
        match status {
            WaitStatus::Stopped(Stop::Event(EventStop::Exec)) => return launched.result(),
            WaitStatus::Stopped(Stop::Signal(due)) => ptrace::resume(pid, Until::Event, due)?,
            WaitStatus::Stopped(Stop::Group(_)) => ptrace::listen(pid)?,
            WaitStatus::Stopped(_) => ptrace::resume(pid, Until::Event, 0)?,
            WaitStatus::Exited(_) | WaitStatus::Signaled(_) => return launched.result().and(Err(Errno::CHILD.into())),
        }
    }
}

/// Tells whether there is a file of the program's name: in the folder that it is named with, or else on the PATH.
fn is_there(words: &[OsString]) -> bool {
    let Some(program) = words.first().map(Path::new) else { return false };
    let path = env::var_os("PATH").unwrap_or_default();
    if says_where(words) {
        program.exists()
    } else {
        env::split_paths(&path).any(|folder| folder.join(program).exists())
    }
}

/// Tells whether a program is named with its folder, so that the PATH is not asked.
fn says_where(words: &[OsString]) -> bool {
    words.first().is_some_and(|program| Path::new(program).components().count() > 1)
}

/// Why there is nothing to watch in a process: a thread of the kernel, or one that has ended.
fn has_no_memory(pid: i32) -> Option<String> {
    let line = procfs::read(pid, "stat").ok()?;
    let stat = procfs::stat::Stat::parse(&line)?;
    let name = String::from_utf8_lossy(stat.name);
    if stat.is_kernel() {
        return Some(format!("process {pid} ({name}) is a thread of the kernel: it has no memory of its own"));
    }
    if !stat.has_ended() {
        return None;
    }
    Some(if has_ended(pid) {
        format!("process {pid} ({name}) has ended; its parent has not asked how")
    } else {
        format!(
            "the first thread of process {pid} ({name}) has ended and others run on: such a process cannot be attached to; \
             `cowbell snapshot {pid}` works without"
        )
    })
}

/// Tells whether all threads of a process have ended.
fn has_ended(pid: i32) -> bool {
    let is_over = |id: i32| {
        let line = procfs::read(id, "stat").ok();
        line.as_deref().and_then(procfs::stat::Stat::parse).is_none_or(|stat| stat.has_ended())
    };
    is_over(procfs::living(pid))
}

/// The process that a thread belongs to.
fn process_of(id: i32) -> i32 {
    procfs::status::Status::of(id).ok().and_then(|status| status.number("Tgid")).unwrap_or(id)
}

fn cannot_trace(pid: i32, e: Errno) -> String {
    let status = procfs::status::Status::of(pid).unwrap_or_default();
    let tracer = status.number("TracerPid").unwrap_or(0);
    if tracer != 0 {
        let tracer = process_of(tracer);
        return format!("process {pid} is traced already, by process {tracer} (strace, gdb, another cowbell?)");
    }
    match e {
        Errno::SRCH => absent(pid),
        Errno::PERM => {
            // Even the process' own user may not, where it is not dumpable or has more capabilities.
            let whom = if status.user() == Some(limits::user().uid) { "as root" } else { "as its user or as root" };
            format!(
                "process {pid} may not be traced: run {whom} (CAP_SYS_PTRACE); in a container allow ptrace; \
                 kernel.yama.ptrace_scope must be 0 to attach without CAP_SYS_PTRACE"
            )
        }
        e => format!("process {pid} cannot be traced: {e}"),
    }
}
