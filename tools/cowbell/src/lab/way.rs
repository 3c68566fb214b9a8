//! One way to do an experiment's work: a program, run to its end under `cowbell run`.

use super::needs::{Need, Python};
use crate::analyse::Summary;
use crate::analyse::experiment::{Finding, Outcome, WatchedRun};
use crate::failure::Failure;
use crate::input;
use crate::views;
use cowbell::sys::{pidfd, signal};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The programs of the lab, by name.
const PROGRAMS: &[(&str, &str)] = &[
    ("lab.py", include_str!("programs/lab.py")),
    ("pool.py", include_str!("programs/pool.py")),
    ("executor.py", include_str!("programs/executor.py")),
    ("site.py", include_str!("programs/site.py")),
    ("site_app.py", include_str!("programs/site_app.py")),
    ("collector.py", include_str!("programs/collector.py")),
    ("matrix.py", include_str!("programs/matrix.py")),
    ("manager.py", include_str!("programs/manager.py")),
    ("redis.py", include_str!("programs/redis.py")),
    ("postgres.py", include_str!("programs/postgres.py")),
    ("puma.py", include_str!("programs/puma.py")),
];
/// The most characters of a program's words that are told when it fails.
const SAID_MAX: usize = 300;

/// A way that is to be gone.
#[derive(Clone, Debug)]
pub struct PlannedWay {
    /// The way's name.
    pub name: &'static str,
    /// The way's work, in words.
    pub does: &'static str,
    /// The programs and modules that it needs.
    pub needs: &'static [Need],
    /// The number of workers.
    pub workers: u32,
    /// The program.
    pub program: Program,
}

/// A program of the lab.
#[derive(Clone, Debug)]
pub enum Program {
    /// A script of Python's, and its arguments.
    Script(&'static str, Vec<String>),
    /// The same, not watched: it measures times.
    Unwatched(&'static str, Vec<String>),
    /// A part of this program, and its arguments.
    Own(&'static str, Vec<String>),
}

/// A directory for the programs of one experiment, which goes with them.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// A new one.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn new() -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let nth = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("cowbell-lab-{}-{nth}", std::process::id()));
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Failure::new(format!("{}: {e}", path.display()))),
            }
        }
    }

    /// A file in it, which all ways can read.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // A folder that cannot be removed is left in the directory for temporary files.
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// Goes one way.
///
/// # Errors
/// The programs cannot be written down, or the lab was told to end.
pub fn perform(plan: &PlannedWay, place: &WorkDir, python: &Python, signals: &Signals) -> Result<Outcome, Failure> {
    let folder = place.file(&format!("{}-{}", plan.name.replace(' ', "-"), plan.workers));
    let failure = |e: io::Error| Failure::new(format!("{}: {e}", folder.display()));
    write_programs(&folder).map_err(failure)?;
    let capture = folder.join("capture");
    let (out, err) = (folder.join("output"), folder.join("messages"));
    let mut command = command(plan, &folder, &capture, python, signals);
    command.stdin(Stdio::null());
    command.stdout(File::create(&out).map_err(failure)?).stderr(File::create(&err).map_err(failure)?);
    let status = to_its_end(&mut command, &signals.descriptor)?;
    let said = fs::read_to_string(&out).unwrap_or_default();
    let told = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let (true, Some(told)) = (status.success(), told) else {
        let why = fs::read(&err).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        return Ok(Outcome::Failed { why: format!("{status}: {}", ending(why.trim())) });
    };
    let watched = match plan.program {
        Program::Unwatched(..) => None,
        _ => Some(watched(&input::summary(&capture)?)),
    };
    Ok(Outcome::Ran(Box::new(Finding { watched, told })))
}

fn write_programs(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    // A database that root starts runs as somebody else.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    PROGRAMS.iter().try_for_each(|(name, source)| fs::write(folder.join(name), source))
}

/// The last characters of what a program said.
fn ending(said: &str) -> String {
    let characters = said.chars().count();
    said.chars().skip(characters.saturating_sub(SAID_MAX)).collect()
}

/// The command of a way: the part of this program that gives it back the signals which the lab receives, `cowbell run`, and the program.
fn command(plan: &PlannedWay, folder: &Path, capture: &Path, python: &Python, signals: &Signals) -> Command {
    let this = this_program();
    let mut command = Command::new(&this);
    command.args(["lab-start", &signals.mask.to_string()]);
    if !matches!(plan.program, Program::Unwatched(..)) {
        command.arg(&this).args(["run", "--quiet", "--output"]).arg(folder.join("report"));
        command.arg("--capture").arg(capture).arg("--");
    }
    let arguments = match &plan.program {
        Program::Script(name, arguments) | Program::Unwatched(name, arguments) => {
            command.arg(&python.path).arg(folder.join(name));
            arguments
        }
        Program::Own(name, arguments) => {
            command.arg(&this).arg(name);
            arguments
        }
    };
    command.args(arguments).current_dir(folder).env("PYTHONDONTWRITEBYTECODE", "1").env("COWBELL", &this);
    // Options that users have set in the environment are for runs of their own.
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.to_string_lossy().starts_with("COWBELL_")) {
        command.env_remove(name);
    }
    command
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}

/// A process that leads the group of a way, and ends whatever is in it when this is dropped. The kernel closes its pipe, too, so
/// that nothing of a way outlives a lab that is killed.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn start() -> io::Result<Self> {
        let mut command = Command::new(this_program());
        let command = command.arg("lab-guard").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own: what a terminal sends reaches it through the lab, and once.
        Ok(Self(command.process_group(0).spawn()?))
    }

    fn group(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // `wait` closes the pipe first.
        let _ended = self.0.wait();
    }
}

/// The signals that tell the lab to end.
#[derive(Debug)]
pub struct Signals {
    descriptor: OwnedFd,
    mask: u64,
}

impl Signals {
    /// Receives them from now on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn receive() -> Result<Self, Failure> {
        let mask = signal::mask();
        let signals = signal::receive(&[signal::INT, signal::QUIT, signal::TERM, signal::HUP]);
        let descriptor = signals.map_err(|e| Failure::new(format!("cannot receive signals: {e}")))?;
        Ok(Self { descriptor, mask })
    }
}

/// Runs the command to its end. A signal that tells the lab to end is passed on, and an error in the end.
fn to_its_end(command: &mut Command, signals: &OwnedFd) -> Result<ExitStatus, Failure> {
    let failure = |what: &str, e: &dyn std::fmt::Display| Failure::new(format!("{what}: {e}"));
    let guard = Guard::start().map_err(|e| failure("cannot start a program", &e))?;
    let mut child = command.process_group(guard.group()).spawn().map_err(|e| failure("cannot start a program", &e))?;
    let pidfd = pidfd::open(child.id() as i32).map_err(|e| failure("cannot watch a program", &e))?;
    let mut told = None;
    loop {
        let wait = pidfd::wait_any([pidfd.as_fd(), signals.as_fd()]);
        let [is_over, _] = wait.map_err(|e| failure("cannot wait", &e))?;
        while let Some(signal) = signal::received(signals) {
            told = Some(signal);
            pidfd::signal(&pidfd, signal)?;
        }
        if is_over {
            break;
        }
    }
    let status = child.wait().map_err(|e| failure("cannot wait", &e))?;
    match told {
        Some(signal) => Err(Failure::new(format!("told to end by signal {signal}"))),
        None => Ok(status),
    }
}

/// The findings of `cowbell run`.
fn watched(summary: &Summary) -> WatchedRun {
    let verdict = &summary.verdict;
    let workers = verdict.workers.len() as u64;
    let mean = |sum: u64| sum.checked_div(workers).unwrap_or(0);
    let is_asked = views::has_cause(verdict);
    let place = verdict.places.first().filter(|place| is_asked && place.line > 0);
    let name = |file: &str| Path::new(file).file_name().unwrap_or_default().to_string_lossy().into_owned();
    WatchedRun {
        verdict: verdict.kind,
        workers,
        copied_bytes: mean(verdict.copied_bytes + verdict.starting_bytes),
        ending_bytes: (!verdict.ending_is_unknown).then(|| mean(verdict.ending_bytes)),
        new_bytes: mean(verdict.new_bytes.iter().sum()),
        parent_bytes: verdict.parent_bytes,
        says: views::sentence(summary),
        why: verdict.why.first().filter(|_| is_asked).map(|why| why.text.clone()),
        place: place.map(|place| format!("{}:{}", name(&place.file), place.line)),
    }
}
