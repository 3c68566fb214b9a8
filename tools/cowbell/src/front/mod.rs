//! The process that the user started: it starts the tracer, keeps the capture, and renders the report.

mod capture;
mod control;
mod images;
mod keep;
pub mod look_on;
pub mod options;
mod sources;
mod types;

use crate::failure::Failure;
use crate::output::{Output, Stream};
use crate::trace::link::{Options, Target, TracerCommand};
use capture::CaptureWriter;
use control::Control;
use cowbell::sys::epoll::Poller;
use cowbell::sys::{Errno, descriptor, signal};
use keep::{Kept, exit_code};
use options::{AttachOptions, RunOptions, Watching};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

/// The tool failed; the program's own codes are passed on as they are.
const FAILED: u8 = 125;

/// The processes that a program leaves behind are told of when they have not ended by then.
const LEFT_AFTER: Duration = Duration::from_secs(1);
/// No more of them are listed.
const LEFT_SHOWN_MAX: usize = 5;

const TRACER: u64 = 0;
const SIGNALS: u64 = 1;
const CONTROL: u64 = 2;
const ENDED: u64 = 3;

/// `cowbell run`.
pub fn run(options: &RunOptions) -> ExitCode {
    answer("run", watch(&options.watching, Target::Run(options.command.clone()), None))
}

/// `cowbell attach`; `socket`: of a program that has the process watched.
pub fn attach(options: &AttachOptions, socket: Option<OwnedFd>) -> ExitCode {
    let failed = |e| answer("attach", Err((FAILED, e)));
    let control = match socket {
        None => None,
        Some(socket) if options.aside.is_none() => {
            return control::step_aside(&socket).map_or_else(failed, |()| ExitCode::SUCCESS);
        }
        Some(socket) => match Control::open(socket, options.pid) {
            Ok(Some(control)) => Some(control),
            Ok(None) => return ExitCode::SUCCESS,
            Err(e) => return failed(e),
        },
    };
    answer("attach", watch(&options.watching, Target::Attach(options.pid), control))
}

fn answer(subcommand: &str, done: Result<u8, (u8, Failure)>) -> ExitCode {
    match done {
        Ok(code) => ExitCode::from(code),
        Err((code, e)) => {
            eprintln!("cowbell {subcommand}: {e}");
            ExitCode::from(code)
        }
    }
}

fn watch(watching: &Watching, target: Target, control: Option<Control>) -> Result<u8, (u8, Failure)> {
    let failed = |e| (FAILED, e);
    // Before anything runs: a bad name must not cost a run.
    let mut output = watching.output.open(Stream::Error).map_err(failed)?;
    let writer = watching.capture.as_ref().map(|name| CaptureWriter::create(name, watching.output.force));
    let writer = writer.transpose().map_err(failed)?;
    let runs = matches!(target, Target::Run(_));
    let options = Options {
        target,
        mode: watching.mode,
        who: watching.who,
        stacks_every: watching.stacks,
        children_max: watching.max_children as usize,
        signal_mask: signal::mask(),
    };
    let mut session = Session::start(&options, Kept::new(writer, watching.output.html.is_some())).map_err(failed)?;
    if let Some(control) = control {
        control.add_to(&session.poller).map_err(|e| failed(Failure::new(format!("cannot wait: {e}"))))?;
        session.control = Some(control);
    }
    session.follow(watching.duration, runs).map_err(|e| failed(Failure::new(format!("cannot wait: {e}"))))?;
    session.close(&mut output, runs)
}

/// One run with its tracer.
struct Session {
    tracer: Child,
    stream: UnixStream,
    poller: Poller,
    signals: OwnedFd,
    kept: Kept,
    control: Option<Control>,
}

impl Session {
    fn start(options: &Options, kept: Kept) -> Result<Self, Failure> {
        let failure = |what: &str, e: &dyn std::fmt::Display| Failure::new(format!("{what}: {e}"));
        let (mut stream, theirs) = UnixStream::pair().map_err(|e| failure("cannot make a socket", &e))?;
        descriptor::keep_on_exec(&theirs).map_err(|e| failure("cannot pass a socket on", &e))?;
        let signals = [signal::INT, signal::QUIT, signal::TERM, signal::HUP];
        let signals = signal::receive(&signals).map_err(|e| failure("cannot receive signals", &e))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("cowbell").args(["tracer", &theirs.as_raw_fd().to_string()]);
        let tracer = command.spawn().map_err(|e| failure("cannot start the tracer", &e))?;
        drop(theirs);
        let mut line = serde_json::to_vec(options).map_err(|e| failure("cannot write the options down", &e))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(|e| failure("the tracer does not listen", &e))?;
        let poller = Poller::new().map_err(|e| failure("cannot wait", &e))?;
        poller.add(&stream, TRACER).map_err(|e| failure("cannot wait", &e))?;
        poller.add(&signals, SIGNALS).map_err(|e| failure("cannot wait", &e))?;
        let mut kept = kept;
        kept.listen_to(tracer.id());
        Ok(Self { tracer, stream, poller, signals, kept, control: None })
    }

    /// Listens until the tracer has said everything.
    fn follow(&mut self, duration: Option<Duration>, runs: bool) -> Result<(), Errno> {
        let mut deadline = duration.and_then(|duration| Instant::now().checked_add(duration));
        let mut tell_at: Option<Instant> = None;
        let mut told = false;
        let mut asked = 0;
        let mut found = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let next = deadline.into_iter().chain(tell_at).min();
            let left = next.map(|next| next.saturating_duration_since(Instant::now()));
            self.poller.wait(left, &mut found)?;
            let is_over = |time: Option<Instant>| time.is_some_and(|time| time <= Instant::now());
            if is_over(deadline) {
                deadline = None;
                self.order(TracerCommand::Detach);
            }
            if is_over(tell_at) {
                (tell_at, told) = (None, true);
                self.tell_who_is_left();
            }
            if found.contains(&SIGNALS) {
                while let Some(number) = signal::received(&self.signals) {
                    asked += 1;
                    self.on_signal(number, asked, runs);
                }
            }
            if found.contains(&TRACER) {
                match self.stream.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(got) => {
                        if let Err(e) = self.kept.hear(buffer.get(..got).unwrap_or_default()) {
                            eprintln!("cowbell: {e}");
                        }
                        self.hang_up();
                        if tell_at.is_none() && !told && !self.kept.left_behind().is_empty() {
                            tell_at = Some(Instant::now() + LEFT_AFTER);
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return Ok(()),
                }
            }
            self.obey(&found);
        }
    }

    /// Once all was heard the tracer may go: until then its files can be opened.
    fn hang_up(&self) {
        if self.kept.finish.is_some() {
            let _gone = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// A program that is over while processes of it run on (a daemon, workers of a server that died) would seem to hang.
    fn tell_who_is_left(&self) {
        let left = self.kept.left_behind();
        let shown: Vec<String> = left.iter().take(LEFT_SHOWN_MAX).map(i32::to_string).collect();
        let more = if left.len() > LEFT_SHOWN_MAX { ", …" } else { "" };
        let (processes, run) = if left.len() == 1 { ("process", "runs") } else { ("processes", "run") };
        if !left.is_empty() {
            eprintln!(
                "cowbell: the program has ended, but {} {processes} of it still {run} ({}{more}), and the report comes when \
                 the last has ended; Ctrl-C (SIGINT) ends the watch now and lets them run",
                left.len(),
                shown.join(", ")
            );
        }
    }

    /// A signal from the terminal reaches the program too: it decides, and this process waits to report. Whoever asks twice
    /// means this process, and so does who asks when the program has ended.
    fn on_signal(&mut self, number: i32, asked: u32, runs: bool) {
        if !runs || asked > 1 || !self.kept.left_behind().is_empty() {
            self.order(TracerCommand::Detach);
        } else if number == signal::TERM || number == signal::HUP {
            self.order(TracerCommand::Signal(number));
        }
    }

    fn order(&mut self, order: TracerCommand) {
        if let Ok(mut line) = serde_json::to_vec(&order) {
            line.push(b'\n');
            // A tracer that is gone is noticed by its silence.
            let _gone = self.stream.write_all(&line);
        }
    }

    fn close(mut self, output: &mut Output, runs: bool) -> Result<u8, (u8, Failure)> {
        // Nothing more is heard: the tracer must not wait for that.
        let _gone = self.stream.shutdown(Shutdown::Write);
        let _status = self.tracer.wait();
        if let Some((code, message)) = self.kept.failed.take() {
            return Err((code, Failure::new(message)));
        }
        let finish = self.kept.finish.clone();
        let (summary, detail, written) = self.kept.finish("the tracer ended early; the program ran on unwatched");
        output.report(&summary, &detail).map_err(|e| (FAILED, e))?;
        let complete = written.unwrap_or_else(|e| {
            eprintln!("cowbell: {e}");
            false
        });
        let code = match finish.as_ref().map(|finish| finish.ended) {
            None => FAILED,
            Some(Some(ended)) if runs => exit_code(ended),
            Some(_) => 0,
        };
        Ok(if code == 0 && !complete { FAILED } else { code })
    }
}
