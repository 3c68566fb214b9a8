//! The cowbell command: who copied which page after fork, and why.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

mod capture;
mod demo;
mod doctor;
mod failure;
mod front;
mod output;
mod profile;
mod render;
mod report;
mod snapshot;
mod stacks;
mod symbols;
mod tracer;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Who copied which page after fork, and why.
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
    /// Render a capture again.
    Report(report::Options),
    /// Say what this kernel and this user can do, and what would change that.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what each process of a running tree shares with its parent now. Arms and stops nothing.
    Snapshot(snapshot::Options),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Doctor { json } => doctor::run(json),
        Command::Demo(options) => match demo::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("cowbell demo: {e}");
                ExitCode::FAILURE
            }
        },
        Command::Report(options) => match report::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("cowbell report: {e}");
                ExitCode::FAILURE
            }
        },
        Command::Snapshot(options) => match snapshot::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("cowbell snapshot: {e}");
                ExitCode::FAILURE
            }
        },
    }
}
