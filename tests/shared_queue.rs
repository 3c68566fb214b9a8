//! The waiting and waking of `SharedQueue`, as a model: all interleavings, with a death at every step.
//!
//! The steps are those of `src/shared/queue.rs`, one store or system call each; the side of `push` that waits for room
//! is the same code and left out. Robust mutexes are taken as what they are: free at the moment their holder dies.
//! Not in the model: looking again after a while, which the queue does for waiters that are stopped. So what is shown
//! here holds without it.
//!
//! To show that the search would find a mistake, it is also made for protocols that have one.

use std::collections::HashSet;

/// The steps that are left out or done in another order.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsBuilt,
    /// The element is put in before the wake-up.
    CommitFirst,
    /// All waiters sleep on the word; one is woken.
    NoTurnstile,
    /// `sleeping` is taken back before the wake-up.
    AwakeFirst,
    /// A waiter goes to sleep whatever the word is by then.
    LateWord,
}

/// The state of a process: its next step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Step {
    // put(), and close().
    PutLock,
    PutLook,
    PutRaise,
    PutWake,
    PutAwake,
    PutCommit,
    PutUnlock,
    // wait(): the first attempt, then with the turnstile.
    TakeLock,
    TakeLook,
    TakeUnlock,
    Turnstile,
    SayLock,
    Say,
    SayUnlock,
    AgainLock,
    AgainLook,
    AgainUnlock,
    Wait,
    Asleep,
    LeaveUnlock,
    LeaveTurnstile,
    Done,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Role {
    Pusher,
    Closer,
    Popper,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    processes: Vec<(Role, Step, u8)>,
    lock: Option<usize>,
    turnstile: Option<usize>,
    word: u8,
    sleeping: bool,
    items: u8,
    closed: bool,
    deaths_left: u8,
}

impl State {
    fn go(&self, who: usize, step: Step) -> Self {
        let mut next = self.clone();
        next.processes[who].1 = step;
        next
    }

    fn locked(&self, who: usize, step: Step) -> Vec<Self> {
        if self.lock.is_some() {
            return vec![];
        }
        vec![Self { lock: Some(who), ..self.go(who, step) }]
    }

    fn unlocked(&self, who: usize, step: Step) -> Vec<Self> {
        vec![Self { lock: None, ..self.go(who, step) }]
    }

    /// The states that a process's next step may lead to; none if it waits.
    fn after(&self, who: usize, protocol: Protocol) -> Vec<Self> {
        use Step::*;
        let (role, step, seen) = self.processes[who];
        let one = |step| self.go(who, step);
        match step {
            PutLock => self.locked(who, if protocol == Protocol::CommitFirst { PutCommit } else { PutLook }),
            PutLook => {
                let after = if protocol == Protocol::CommitFirst { PutUnlock } else { PutCommit };
                vec![one(if self.sleeping { PutRaise } else { after })]
            }
            PutRaise => {
                let after = if protocol == Protocol::AwakeFirst { PutAwake } else { PutWake };
                vec![Self { word: self.word.wrapping_add(1), ..one(after) }]
            }
            PutWake => {
                let after = if protocol == Protocol::AwakeFirst { PutCommit } else { PutAwake };
                let asleep = (0..self.processes.len()).filter(|&other| self.processes[other].1 == Asleep);
                let woken: Vec<Self> = asleep.map(|other| one(after).go(other, SayLock)).collect();
                if woken.is_empty() { vec![one(after)] } else { woken }
            }
            PutAwake => {
                let after = match protocol {
                    Protocol::AwakeFirst => PutWake,
                    Protocol::CommitFirst => PutUnlock,
                    _ => PutCommit,
                };
                vec![Self { sleeping: false, ..one(after) }]
            }
            PutCommit => {
                let after = if protocol == Protocol::CommitFirst { PutLook } else { PutUnlock };
                match role {
                    Role::Closer => vec![Self { closed: true, ..one(after) }],
                    _ => vec![Self { items: self.items + 1, ..one(after) }],
                }
            }
            PutUnlock => self.unlocked(who, Done),
            TakeLock => self.locked(who, TakeLook),
            TakeLook if self.items > 0 => vec![Self { items: self.items - 1, ..one(LeaveUnlock) }],
            TakeLook => vec![one(if self.closed { LeaveUnlock } else { TakeUnlock })],
            TakeUnlock => self.unlocked(who, Turnstile),
            Turnstile if protocol == Protocol::NoTurnstile => vec![one(SayLock)],
            Turnstile if self.turnstile.is_some() => vec![],
            Turnstile => vec![Self { turnstile: Some(who), ..one(SayLock) }],
            SayLock => self.locked(who, Say),
            Say => {
                let mut next = Self { sleeping: true, ..one(SayUnlock) };
                next.processes[who].2 = self.word;
                vec![next]
            }
            SayUnlock => self.unlocked(who, AgainLock),
            AgainLock => self.locked(who, AgainLook),
            AgainLook if self.items > 0 => vec![Self { items: self.items - 1, ..one(LeaveUnlock) }],
            AgainLook => vec![one(if self.closed { LeaveUnlock } else { AgainUnlock })],
            AgainUnlock => self.unlocked(who, Wait),
            // In the kernel compare and sleep are one step.
            Wait if protocol == Protocol::LateWord => vec![one(Asleep)],
            Wait => vec![one(if self.word == seen { Asleep } else { SayLock })],
            Asleep => vec![],
            LeaveUnlock => self.unlocked(who, LeaveTurnstile),
            LeaveTurnstile => {
                let turnstile = self.turnstile.filter(|&holder| holder != who);
                vec![Self { turnstile, ..one(Done) }]
            }
            Done | Dead => vec![],
        }
    }

    fn killed(&self, who: usize) -> Option<Self> {
        if self.deaths_left == 0 || matches!(self.processes[who].1, Step::Done | Step::Dead) {
            return None;
        }
        let mut next = self.go(who, Step::Dead);
        next.processes[who].2 = 0;
        next.lock = self.lock.filter(|&holder| holder != who);
        next.turnstile = self.turnstile.filter(|&holder| holder != who);
        next.deaths_left -= 1;
        Some(next)
    }

    /// Does somebody wait for what is there?
    fn is_stuck(&self) -> bool {
        let waits =
            |&(role, step, _): &(Role, Step, u8)| role == Role::Popper && !matches!(step, Step::Done | Step::Dead);
        (self.items > 0 || self.closed) && self.processes.iter().any(waits)
    }
}

/// Goes through all states that can be reached. Returns how many, or the first in which nobody can go on but should.
fn search(roles: &[Role], deaths: u8, protocol: Protocol) -> Result<usize, State> {
    let first = |&role| (role, if role == Role::Popper { Step::TakeLock } else { Step::PutLock }, 0);
    let start = State {
        processes: roles.iter().map(first).collect(),
        lock: None,
        turnstile: None,
        word: 0,
        sleeping: false,
        items: 0,
        closed: false,
        deaths_left: deaths,
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        let everybody = 0..state.processes.len();
        let steps: Vec<State> = everybody.clone().flat_map(|who| state.after(who, protocol)).collect();
        if steps.is_empty() {
            for &(role, step, _) in state.processes.iter().filter(|(role, _, _)| *role != Role::Popper) {
                assert!(matches!(step, Step::Done | Step::Dead), "{role:?} never waits for ever: {state:?}");
            }
            if state.is_stuck() {
                return Err(state);
            }
        }
        let deaths = everybody.filter_map(|who| state.killed(who));
        for next in steps.into_iter().chain(deaths) {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    Ok(seen.len())
}

use Role::{Closer, Popper, Pusher};

#[test]
fn no_wake_up_is_lost_whoever_dies() {
    let casts: &[(&[Role], u8)] = &[
        (&[Popper, Popper, Pusher, Pusher], 2),
        (&[Popper, Popper, Popper, Pusher], 3),
        (&[Popper, Popper, Pusher, Closer], 2),
        (&[Popper, Popper, Popper, Pusher, Pusher], 1),
    ];
    for &(roles, deaths) in casts {
        match search(roles, deaths, Protocol::AsBuilt) {
            Ok(states) => println!("{roles:?}, {deaths} deaths: {states} states"),
            Err(stuck) => panic!("stuck: {stuck:#?}"),
        }
    }
}

#[test]
fn the_search_finds_protocols_that_lose_wake_ups() {
    for (name, protocol, deaths) in [
        ("commit first", Protocol::CommitFirst, 1),
        ("no turnstile", Protocol::NoTurnstile, 1),
        ("awake first", Protocol::AwakeFirst, 1),
        ("late word", Protocol::LateWord, 0),
    ] {
        assert!(search(&[Popper, Popper, Pusher, Pusher], deaths, protocol).is_err(), "{name}");
        if deaths > 0 && protocol != Protocol::NoTurnstile {
            assert!(search(&[Popper, Popper, Pusher, Pusher], 0, protocol).is_ok(), "{name}: only deaths show it");
        }
    }
}
