//! Signals that a supervisor or a terminal sends to a whole group of processes, and what zygote and workers do with them.
//!
//! ```text
//! kill(-pgid, SIGTERM), Ctrl-C ──> parent: its handler drains the pool, or ends it
//!                              ──> zygote, workers: take no notice, and serve the parent to the end
//! ```

use crate::sys::signal;

/// A signal that users and supervisors send to tell a service something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// SIGHUP: the terminal is gone; to services: read the settings anew.
    Hangup,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGQUIT: Ctrl-\; to some services: end when all is done.
    Quit,
    /// SIGTERM: end. Supervisors and `kill` send it.
    Terminate,
    /// SIGUSR1.
    User1,
    /// SIGUSR2.
    User2,
}

impl Signal {
    const ALL: [Self; 6] = [Self::Hangup, Self::Interrupt, Self::Quit, Self::Terminate, Self::User1, Self::User2];

    fn number(self) -> i32 {
        match self {
            Self::Hangup => signal::HUP,
            Self::Interrupt => signal::INT,
            Self::Quit => signal::QUIT,
            Self::Terminate => signal::TERM,
            Self::User1 => signal::USR1,
            Self::User2 => signal::USR2,
        }
    }

    fn bit(self) -> u64 {
        1 << (self.number() - 1)
    }
}

/// The effect of a [`Signal`] on the zygote or a worker: see [`PoolBuilder::worker_signal`](super::PoolBuilder::worker_signal).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSignal {
    /// None. A system call that a job waits in goes on, where the kernel can begin it anew (`SA_RESTART`, signal(7)): not those of a socket that has a timeout
    /// (`TcpStream::set_read_timeout`), which say EINTR. Programs that a job executes have the kernel's default, or ignore the signal where this program did when
    /// it made the pool (`nohup`). Processes that a job forks take no notice of it either, unless they install something else: see
    /// [`ForkOptions::reset_handlers`](crate::fork::ForkOptions::reset_handlers).
    #[default]
    Ignore,
    /// The kernel's default: the process ends. A worker fails the job that it has, and is replaced.
    Default,
    /// A handler which a hook installs decides: see [`PoolBuilder::on_worker_start`](super::PoolBuilder::on_worker_start). Until the hooks have run the signal
    /// waits. Where they have installed no handler it stays blocked, so that a thread of theirs may fetch it (`sigwait(3)`, `signalfd(2)`).
    ///
    /// The crate `signal-hook` installs its handler when it is first asked for a signal, and believes for ever that it is there. Where the program has
    /// asked it for this signal **before** it made the pool, a hook that asks it installs none, and the signal stays blocked: ask it after the pool was made (or prepared),
    /// or call `sigaction(2)` in the hook.
    Hook,
}

/// The settings of a process for each signal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OnSignals {
    then: [OnSignal; Signal::ALL.len()],
    /// Those that the program ignored when it made the pool, bit `n - 1` for signal `n`.
    ignored: u64,
}

impl OnSignals {
    pub(crate) fn set(&mut self, signal: Signal, then: OnSignal) {
        for (entry, _) in self.then.iter_mut().zip(Signal::ALL).filter(|(_, one)| *one == signal) {
            *entry = then;
        }
    }

    fn each(&self) -> impl Iterator<Item = (Signal, OnSignal)> {
        Signal::ALL.into_iter().zip(self.then)
    }

    /// Is one of them left to hooks?
    pub(crate) fn has_hook(&self) -> bool {
        self.then.contains(&OnSignal::Hook)
    }

    /// In the parent, before the fork of the zygote: what the program ignores now (it was started by `nohup`, or as `cmd &` by a script), the programs that jobs
    /// execute are to ignore.
    pub(crate) fn note_ignored(&mut self) {
        let is_ignored = |signal: &Signal| signal::current(signal.number()).is_ok_and(|action| action.is_ignored());
        self.ignored = Signal::ALL.into_iter().filter(is_ignored).fold(0, |bits, signal| bits | signal.bit());
    }

    /// In the zygote, whose signals are held: from now on they have this effect.
    pub(crate) fn begin_zygote(&self) {
        for (signal, then) in self.each() {
            match then {
                // The zygote executes no program that would inherit this. A loader has handlers of its own.
                OnSignal::Ignore => signal::ignore(signal.number()),
                OnSignal::Default | OnSignal::Hook => signal::restore_default(signal.number()),
            }
        }
        signal::set_mask(0);
    }

    /// In a new worker, whose signals are held: those that are left to hooks wait for them.
    pub(crate) fn begin_worker(&self) {
        for (signal, then) in self.each() {
            match then {
                OnSignal::Ignore if self.ignored & signal.bit() != 0 => signal::ignore(signal.number()),
                OnSignal::Ignore => signal::take_no_notice(signal.number()),
                OnSignal::Default | OnSignal::Hook => signal::restore_default(signal.number()),
            }
        }
        let hooked = self.each().filter(|(_, then)| *then == OnSignal::Hook);
        signal::set_mask(hooked.fold(0, |bits, (signal, _)| bits | signal.bit()));
    }

    /// In a loader, which calls no hooks: what workers take no notice of, or have a hook for, it takes no notice of.
    pub(crate) fn begin_loader(&self) {
        for (signal, then) in self.each() {
            match then {
                OnSignal::Ignore if self.ignored & signal.bit() != 0 => signal::ignore(signal.number()),
                OnSignal::Ignore | OnSignal::Hook => signal::take_no_notice(signal.number()),
                OnSignal::Default => signal::restore_default(signal.number()),
            }
        }
    }

    /// In a worker whose hooks have run: their handlers get what has waited.
    pub(crate) fn hooks_have_run(&self) {
        let handled = |(signal, then): &(Signal, OnSignal)| {
            *then == OnSignal::Hook && signal::current(signal.number()).is_ok_and(|action| !action.is_default())
        };
        let bits = self.each().filter(handled).fold(0, |bits, (signal, _)| bits | signal.bit());
        if bits != 0 {
            signal::set_mask(signal::mask() & !bits);
        }
    }
}

/// Holds all of these signals from this thread as long as it lives: they come then, if somebody still wants them.
pub(crate) fn hold() -> signal::HeldSignals {
    signal::HeldSignals::new(Signal::ALL.into_iter().fold(0, |bits, signal| bits | signal.bit()))
}
