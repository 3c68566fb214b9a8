//! `cowbell top`: what the processes of running trees share, and what becomes their own, while they run.
//!
//! Page tables are read in turn, as `snapshot` does: nothing is stopped. Only who asks for lines, by a key, attaches as `attach` does.

mod draw;
mod model;

use crate::failure::Failure;
use crate::front::look_on::LookOn;
use crate::record::Mode;
use crate::snapshot::{self, document::Snapshot};
use cowbell::sys::signal;
use model::{Model, View};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// The time that a key may wait for its picture while nothing else happens.
const TICK: Duration = Duration::from_millis(100);
/// Looking takes at most one part in so many of the time.
const SHARE: u32 = 4;

/// The processes to look at.
#[derive(clap::Args)]
pub struct Options {
    /// The processes at the tops of the trees.
    #[arg(value_name = "PID", required = true, value_parser = clap::value_parser!(i32).range(1..))]
    pids: Vec<i32>,
    /// Look once in so many seconds; less often where a look takes long.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    every: Duration,
    /// How to watch, once t is pressed: as for attach, but trace by default where that is allowed, which tells copies at once.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Where w writes what was traced; %p is this process' id, %t the time in seconds since 1970.
    #[arg(long, value_name = "FILE", default_value = "cowbell-top-%t.capture")]
    capture: PathBuf,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

/// Shows the trees until somebody quits.
///
/// # Errors
/// There is no terminal; a process is not there, or may not be read.
pub fn run(options: &Options) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::new("it takes a terminal; cowbell snapshot and cowbell exporter do without"));
    }
    // A wrong process is a wrong command, and is told on the terminal as it is.
    let first = look(&options.pids)?;
    let asked = [signal::INT, signal::TERM, signal::HUP, signal::QUIT];
    let asked = signal::receive(&asked).map_err(|e| Failure::new(format!("cannot receive signals: {e}")))?;
    let (wanted, looks) = looker(options)?;
    let mut terminal = ratatui::try_init().map_err(|e| Failure::new(format!("cannot take the terminal over: {e}")))?;
    let mut top =
        Top { options, asked, wanted, looks, tracer: None, is_over: false, begun: Instant::now(), model: Model::new() };
    top.model.look(&first.snapshots, 0.0, first.took.as_millis() as u64);
    let shown = top.show(&mut terminal);
    if let Some(tracer) = top.tracer.take() {
        tracer.leave();
    }
    if has_hung_up().unwrap_or(true) {
        // Nobody is there to be told anything, and to put the screen back would panic.
        std::process::exit(0);
    }
    drop(terminal);
    let _restored = ratatui::try_restore();
    shown.map_err(|e| Failure::new(format!("the terminal: {e}")))
}

/// The findings of a look.
struct Found {
    snapshots: Vec<Snapshot>,
    took: Duration,
}

/// The findings of looks, or the reason why one failed.
type Looks = Receiver<Result<Found, Failure>>;

fn look(pids: &[i32]) -> Result<Found, Failure> {
    let started = Instant::now();
    let snapshots = pids.iter().map(|&pid| snapshot::take(pid)).collect::<Result<Vec<_>, _>>()?;
    Ok(Found { snapshots, took: started.elapsed() })
}

/// A thread that looks in turn until nobody listens, so that keys are answered meanwhile; sooner when it is asked.
fn looker(options: &Options) -> Result<(Sender<()>, Looks), Failure> {
    let (wanted, wants) = mpsc::channel();
    let (tell, looks) = mpsc::sync_channel(1);
    let (pids, every) = (options.pids.clone(), options.every);
    let look_in_turn = move || {
        let mut pause = every;
        while !matches!(wants.recv_timeout(pause), Err(RecvTimeoutError::Disconnected)) {
            let found = look(&pids);
            pause = every.max(found.as_ref().map_or(every, |found| found.took * SHARE));
            if tell.send(found).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("cowbell-looks".to_owned()).spawn(look_in_turn);
    thread.map_err(|e| Failure::new(format!("cannot start a thread: {e}")))?;
    Ok((wanted, looks))
}

/// Waits for a key, a signal, or until the time is over.
fn wait(asked: &OwnedFd, time: Duration) -> io::Result<()> {
    let keys = io::stdin();
    let mut both = [PollFd::new(&keys, PollFlags::IN), PollFd::new(asked, PollFlags::IN)];
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match rustix::event::poll(&mut both, Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Tells whether the terminal is gone.
fn has_hung_up() -> io::Result<bool> {
    let keys = io::stdin();
    let mut keys = [PollFd::new(&keys, PollFlags::IN)];
    rustix::event::poll(&mut keys, Some(&Timespec::default()))?;
    Ok(keys[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
}

struct Top<'a> {
    options: &'a Options,
    /// Signals that end this process.
    asked: OwnedFd,
    wanted: Sender<()>,
    looks: Looks,
    tracer: Option<LookOn>,
    /// The tracer has told all that it will.
    is_over: bool,
    begun: Instant,
    model: Model,
}

impl Top<'_> {
    fn show(&mut self, terminal: &mut DefaultTerminal) -> io::Result<()> {
        while signal::received(&self.asked).is_none() {
            let is_over = self.is_over;
            let traces = self.tracer.as_ref().map(|tracer| draw::Traced { mode: self.mode(tracer), is_over });
            terminal.draw(|frame| draw::draw(frame, &self.model, traces))?;
            wait(&self.asked, TICK)?;
            // crossterm's own wait never returns once the terminal has hung up, so that is asked each time.
            while !has_hung_up()? && event::poll(Duration::ZERO)? {
                if let Event::Key(key) = event::read()?
                    && key.kind != KeyEventKind::Release
                    && !self.on_key(key, terminal.size()?.height)
                {
                    return Ok(());
                }
            }
            if has_hung_up()? {
                return Ok(());
            }
            self.hear();
        }
        Ok(())
    }

    fn mode(&self, tracer: &LookOn) -> &'static str {
        match tracer.live().and_then(|live| live.mode()) {
            Some(Mode::Trace) => "trace",
            Some(Mode::Count) => "count: copies are told at the ends of processes",
            Some(Mode::Faults) => "faults: copies are told at the ends of processes",
            None => "not known yet",
        }
    }

    /// Takes over what was found meanwhile.
    fn hear(&mut self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let heard = self.tracer.as_mut().map(LookOn::hear);
        let mut looked = false;
        while let Ok(found) = self.looks.try_recv() {
            looked = true;
            match found {
                Ok(found) => self.model.look(&found.snapshots, seconds, found.took.as_millis() as u64),
                Err(e) => self.model.message = e.to_string(),
            }
        }
        if looked || self.tracer.is_some() {
            self.model.trace(self.tracer.as_ref().and_then(LookOn::live), seconds);
        }
        self.is_over = matches!(heard, Some(Ok(false)));
        match heard {
            Some(Err(e)) => {
                self.model.message = e.to_string();
                self.tracer = None;
            }
            Some(Ok(false)) => self.model.message = "the trace is over; w writes what it saw, t forgets it".to_owned(),
            Some(Ok(true)) | None => {}
        }
    }

    /// Answers a key; false: it is the last one.
    fn on_key(&mut self, key: KeyEvent, height: u16) -> bool {
        let model = &mut self.model;
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return false;
        }
        if model.typing {
            match key.code {
                KeyCode::Enter => model.typing = false,
                KeyCode::Esc => (model.typing, model.filter) = (false, String::new()),
                KeyCode::Backspace => drop(model.filter.pop()),
                KeyCode::Char(c) => model.filter.push(c),
                _ => {}
            }
            model.go(0);
            return true;
        }
        model.message.clear();
        let page = isize::try_from(height.saturating_sub(draw::AROUND).max(1)).unwrap_or(1);
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('?' | 'h') => model.turn_to(View::Help),
            KeyCode::Esc => model.turn_to(View::Processes),
            KeyCode::Tab => {
                let next = if model.view == View::Lines { View::Processes } else { View::Lines };
                model.turn_to(next);
            }
            KeyCode::Enter => model.enter(),
            KeyCode::Up | KeyCode::Char('k') => model.go(-1),
            KeyCode::Down | KeyCode::Char('j') => model.go(1),
            KeyCode::PageUp => model.go(-page),
            KeyCode::PageDown => model.go(page),
            KeyCode::Home => model.go(isize::MIN),
            KeyCode::End => model.go(isize::MAX),
            KeyCode::Char('s') => model.sort_next(false),
            KeyCode::Char('S') => model.sort_next(true),
            KeyCode::Char('r') => model.reverse = !model.reverse,
            KeyCode::Char('/') => model.typing = true,
            KeyCode::Char('p' | ' ') => {
                model.paused = !model.paused;
                let _over = self.wanted.send(());
            }
            KeyCode::Char('t') => self.trace(),
            KeyCode::Char('w') => self.write(),
            _ => {}
        }
        true
    }

    /// Attaches to the first tree, or lets it go.
    fn trace(&mut self) {
        if let Some(tracer) = self.tracer.take() {
            tracer.leave();
            self.model.message = "tracing has stopped".to_owned();
            return;
        }
        let Some(&pid) = self.options.pids.first() else { return };
        match LookOn::attach(pid, self.options.mode) {
            Ok(tracer) => self.tracer = Some(tracer),
            Err(e) => self.model.message = e.to_string(),
        }
    }

    fn write(&mut self) {
        let name: &Path = &self.options.capture;
        self.model.message = match self.tracer.as_mut().map(|tracer| tracer.save(name)) {
            None => "nothing is traced: t begins".to_owned(),
            Some(Ok(path)) => format!("written: {}; cowbell report renders it", path.display()),
            Some(Err(e)) => e.to_string(),
        };
    }
}
