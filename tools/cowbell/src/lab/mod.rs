//! `cowbell lab`: experiments that run real systems on the same data, watch them as `cowbell run` does, and say what is seen.
//!
//! An experiment has several ways to do the same work. Each is a program of its own under `cowbell run`, in a directory of its own that
//! goes with it. The experiment's conclusion is drawn from what was measured, and holds or does not.

mod conclude;
mod experiments;
mod needs;
pub mod parts;
mod way;

use crate::analyse::experiment::{Experiment, Lab, Machine, Outcome, Way};
use crate::failure::Failure;
use crate::output::{self, Stream};
use crate::views;
use conclude::Conclusion;
use cowbell::sys::limits;
use experiments::{ALL, PlannedExperiment, Scale};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// The experiments to run, their size, and how to show them.
#[derive(clap::Args)]
pub struct Options {
    /// The experiments: pool, executor, gunicorn, collector, matrix, servers. All, if none is named.
    #[arg(value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(ALL.map(|plan| plan.name)))]
    names: Vec<String>,
    /// Use small data, so that the first five take less than a minute together, and the sixth as well.
    #[arg(long)]
    quick: bool,
    /// The Python to run, with the packages numpy, networkx, flask, gunicorn, joblib and cowbell-fork; what lacks one is skipped by name.
    #[arg(long, value_name = "PATH", default_value = "python3", env = "COWBELL_LAB_PYTHON")]
    python: PathBuf,
    /// Print Markdown.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Write the charts to this file as well, as SVG.
    #[arg(long, value_name = "SVG")]
    chart: Option<PathBuf>,
    #[command(flatten)]
    output: output::Options,
}

/// Runs the experiments and shows what was seen. The status is 1 if a program failed or a conclusion does not hold.
pub fn run(options: &Options) -> ExitCode {
    match experiment(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("cowbell lab: {e}");
            ExitCode::FAILURE
        }
    }
}

fn experiment(options: &Options) -> Result<bool, Failure> {
    let mut out = options.output.open(Stream::Output)?;
    let chart = options.chart.as_ref().map(|path| output::create(path, 0o666, options.output.force)).transpose()?;
    let headroom = limits::memory_headroom().map(|headroom| headroom.bytes);
    let scale = Scale::new(options.quick, headroom);
    let python = needs::Python::find(&options.python);
    let signals = way::Signals::receive()?;
    let is_named =
        |plan: &&PlannedExperiment| options.names.is_empty() || options.names.iter().any(|name| name == plan.name);
    let mut experiments = Vec::new();
    for plan in ALL.iter().filter(is_named) {
        experiments.push(perform(plan, &scale, &python, &signals)?);
    }
    let machine = Machine {
        kernel: limits::kernel_release(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        free_bytes: headroom,
        interpreter: python.version_words(),
    };
    let lab = Lab { quick: options.quick, machine, experiments };
    out.page(|| views::lab::page(&lab))?;
    if let Some(mut file) = chart {
        file.write_all(views::lab::chart(&lab).as_bytes())
            .map_err(|e| Failure::new(format!("the chart cannot be written: {e}")))?;
    }
    if options.output.json {
        out.json(&lab)?;
    } else if options.markdown {
        let name = options.chart.as_ref().and_then(|chart| chart.file_name()?.to_str());
        out.text(&views::lab::markdown(&lab, name))?;
    } else {
        out.text(&views::lab::text(&lab))?;
    }
    Ok(lab.experiments.iter().all(Experiment::is_as_expected))
}

/// Does the work of one experiment in all its ways, and concludes.
fn perform(
    plan: &PlannedExperiment,
    scale: &Scale,
    python: &needs::Python,
    signals: &way::Signals,
) -> Result<Experiment, Failure> {
    let mut ways = Vec::new();
    let place = way::WorkDir::new()?;
    if let Some(prepare) = plan.prepare {
        prepare(scale, &place)?;
    }
    for way in (plan.ways)(scale, &place) {
        progress(plan.name, way.name);
        let outcome = match way.needs.iter().find_map(|need| need.missing(python)) {
            Some(why) => Outcome::Skipped { why },
            None => way::perform(&way, &place, python, signals)?,
        };
        ways.push(Way { name: way.name, workers: way.workers, does: way.does, outcome });
    }
    progress("", "");
    let mut conclusion = Conclusion::new(&ways);
    (plan.concludes)(&mut conclusion, scale);
    let Conclusion { seen, unexpected, .. } = conclusion;
    Ok(Experiment { name: plan.name, question: plan.question, work: (plan.work)(scale), ways, seen, unexpected })
}

/// Says on a terminal what is under way, in a line that the next one replaces.
fn progress(experiment: &str, way: &str) {
    let mut terminal = std::io::stderr().lock();
    if terminal.is_terminal() {
        // Nobody needs to know that this could not be said.
        let _said = write!(terminal, "\r\x1b[K{experiment} {way}").and_then(|()| terminal.flush());
    }
}
