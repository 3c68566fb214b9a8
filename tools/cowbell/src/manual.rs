//! The man pages and the completions of shells, made from the same options as `--help`: for those who package the tool.

use crate::failure::Failure;
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where to put man pages.
#[derive(clap::Args)]
pub struct Man {
    /// A page for each subcommand in this directory, as cowbell-run.1; without it the page cowbell.1 on standard output.
    #[arg(value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

/// For whom to complete.
#[derive(clap::Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes man pages.
///
/// # Errors
/// The directory cannot be written to.
pub fn man(command: clap::Command, options: &Man) -> Result<(), Failure> {
    match &options.directory {
        None => said(clap_mangen::Man::new(command).render(&mut io::stdout())),
        Some(directory) => write(command, directory),
    }
}

fn write(command: clap::Command, directory: &Path) -> Result<(), Failure> {
    let failure = |e: io::Error| Failure::new(format!("{}: {e}", directory.display()));
    fs::create_dir_all(directory).map_err(failure)?;
    clap_mangen::generate_to(command, directory).map_err(failure)
}

/// Writes a script of completions to standard output.
///
/// # Errors
/// It cannot be written.
pub fn completions<C: CommandFactory>(options: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut C::command(), "cowbell", &mut script);
    said(io::stdout().write_all(&script))
}

fn said(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}
