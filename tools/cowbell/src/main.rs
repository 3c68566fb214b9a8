//! The cowbell command: who copied which page after fork, and why.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; `run` passes the program's on, and `check` has its own.

mod analyse;
mod check;
mod demo;
mod diff;
mod doctor;
mod exporter;
mod failure;
mod front;
mod input;
mod lab;
mod manual;
mod output;
mod record;
mod report;
mod snapshot;
mod stacks;
mod symbols;
mod top;
mod trace;
mod views;

use clap::{CommandFactory, Parser, Subcommand};
use cowbell::sys::{Errno, prctl, tracing};
use failure::Failure;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

/// Tell who copied which page after fork, and why.
#[derive(Parser)]
#[command(name = "cowbell", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a graph, fork workers over it, and show what each of them copied and why.
    Demo(demo::Options),
    /// Run a program and report which pages it and its forked children copied, and which code did it.
    ///
    /// The program's exit status is passed on (128+n if signal n ended it); 125: cowbell failed, 126: the program cannot
    /// be executed, 127: it was not found.
    Run(front::options::RunOptions),
    /// The same for a running process and all that it has forked; it is left running.
    Attach(front::options::AttachOptions),
    /// Show what each process of a running tree shares with its parent now. Arms and stops nothing.
    Snapshot(snapshot::Options),
    /// Show a running tree live: what each process shares, and what becomes its own; by a key, which lines copy.
    Top(top::Options),
    /// Tell Prometheus what the processes of a running tree share, over HTTP. Arms and stops nothing.
    Exporter(exporter::Options),
    /// Hold a capture against budgets, for CI.
    ///
    /// The exit status is 0 if every budget is kept for certain; 1 if one is broken for certain; 3 if neither can be told,
    /// because the bounds of what was counted lie on both sides of the budget; 4 if the file cannot be read; 2 for wrong usage.
    Check(check::Options),
    /// Say what changed between two runs, or between several runs of each side.
    Diff(diff::Options),
    /// Render a capture again.
    Report(report::Options),
    /// Run experiments with real systems, and say what is seen: what copies, and what does not.
    ///
    /// The exit status is 1 if a program failed or what was seen is not as expected.
    Lab(lab::Options),
    /// Say what this kernel and this user can do, and what would change that.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a way of the lab, with these signals blocked.
    #[command(hide = true)]
    LabStart {
        mask: u64,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Ends its group of processes as soon as the lab is gone.
    #[command(hide = true)]
    LabGuard,
    /// A pool of the lab's.
    #[command(hide = true)]
    LabPool { edges: std::path::PathBuf, workers: u32 },
    /// A server of the lab's: the descriptor of its socket, its numbers and its workers.
    #[command(hide = true)]
    LabServer { socket: i32, numbers: u64, workers: u32 },
    /// Write man pages.
    #[command(hide = true)]
    Man(manual::Man),
    /// Write the completions of a shell.
    #[command(hide = true)]
    Completions(manual::Completions),
    /// The process behind `run` and `attach`: its socket is this descriptor.
    #[command(hide = true)]
    Tracer { socket: i32 },
    /// Holds this descriptor for processes of its user, see `trace::lender`.
    #[command(hide = true)]
    Lender { descriptor: i32 },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Demo(options) => answer("demo", demo::run(&options)),
        Command::Run(options) => front::run(&options),
        Command::Attach(options) => match options.aside.or(options.control).map(inherited).transpose() {
            Ok(socket) => front::attach(&options, socket),
            Err(e) => {
                eprintln!("cowbell attach: --control names no open descriptor: {e}");
                ExitCode::FAILURE
            }
        },
        Command::Snapshot(options) => answer("snapshot", snapshot::run(&options)),
        Command::Top(options) => answer("top", top::run(&options)),
        Command::Exporter(options) => answer("exporter", exporter::run(&options)),
        Command::Check(options) => check::run(&options),
        Command::Diff(options) => answer("diff", diff::run(&options)),
        Command::Report(options) => answer("report", report::run(&options)),
        Command::Lab(options) => lab::run(&options),
        Command::LabStart { mask, command } => answer("lab", Err(lab::parts::start(mask, &command))),
        Command::LabGuard => {
            lab::parts::guard();
            ExitCode::FAILURE
        }
        Command::LabPool { edges, workers } => answer("lab", lab::parts::pool(&edges, workers)),
        Command::LabServer { socket, numbers, workers } => match inherited(socket) {
            Ok(socket) => answer("lab", lab::parts::server(socket, numbers, workers)),
            Err(e) => answer("lab", Err(Failure::new(format!("there is no such socket: {e}")))),
        },
        Command::Man(options) => answer("man", manual::man(Arguments::command(), &options)),
        Command::Completions(options) => answer("completions", manual::completions::<Arguments>(&options)),
        Command::Doctor { json } => doctor::run(json),
        Command::Lender { descriptor } => match inherited(descriptor) {
            Ok(device) => trace::lender::run(device),
            Err(_) => ExitCode::FAILURE,
        },
        Command::Tracer { socket } => match inherited(socket) {
            Ok(socket) => {
                // The kernel names a process by the link it was executed by: `exe`.
                prctl::set_name(c"cowbell");
                trace::run(socket.into())
            }
            Err(e) => {
                eprintln!("cowbell tracer: it is started by `cowbell run` and `cowbell attach`: {e}");
                ExitCode::FAILURE
            }
        },
    }
}

#[expect(unsafe_code, reason = "a descriptor that came with the exec has no owner yet")]
fn inherited(number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: this is the start of the process, which has opened nothing yet; whoever started it passed the number on for this.
    unsafe { tracing::inherited(number) }
}

fn answer(subcommand: &str, done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cowbell {subcommand}: {e}");
            ExitCode::FAILURE
        }
    }
}
