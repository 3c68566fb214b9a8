//! Clients that keep their connections, ask without a pause and know the right answer.

use crate::http::Connection;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A request without an answer, and the worker that had answered others on that connection.
#[derive(Debug)]
pub struct Unanswered {
    /// The worker's process, if an answer had come before.
    pub worker: Option<i32>,
    /// The error.
    pub error: io::Error,
}

/// The facts that clients and the test share.
#[derive(Default)]
pub struct Told {
    /// No worker of an older generation is left.
    pub oldest: AtomicU64,
    /// The newest generation that was asked for.
    pub newest: AtomicU64,
    /// From now on a connection may be refused.
    pub ending: AtomicBool,
    /// Requests that were answered.
    pub answered: AtomicU64,
    /// Requests that were not.
    pub unanswered: Mutex<Vec<Unanswered>>,
}

/// Clients at work.
pub struct Clients {
    /// What they are told, and have found.
    pub told: Arc<Told>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts so many; the data has so many packages.
    pub fn start(count: u32, address: SocketAddr, packages: u32) -> Self {
        let told = Arc::<Told>::default();
        let client = |seed: u32| {
            let told = Arc::clone(&told);
            thread::spawn(move || client(seed, address, packages, &told))
        };
        let threads = (0..count).map(client).collect();
        Self { told, threads }
    }

    /// Waits until they find no service any more; fails if one of them had a wrong answer.
    pub fn join(self) -> Arc<Told> {
        self.threads.into_iter().for_each(|thread| thread.join().expect("every answer was right"));
        self.told
    }
}

fn client(seed: u32, address: SocketAddr, packages: u32, told: &Told) {
    let mut random = u64::from(seed) + 1;
    loop {
        let mut connection = match Connection::open(address) {
            Ok(connection) => connection,
            Err(_) if told.ending.load(Ordering::SeqCst) => return,
            Err(e) => panic!("no connection: {e}"),
        };
        let mut worker = None;
        loop {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let place = (random >> 33) as u32 % packages;
            let oldest = told.oldest.load(Ordering::SeqCst);
            let answer = match connection.ask("GET", &format!("/packages/package-{place:06}")) {
                Ok(answer) => answer,
                Err(error) => {
                    told.unanswered.lock().expect("no client panics here").push(Unanswered { worker, error });
                    break;
                }
            };
            assert_eq!(answer.status, 200);
            worker = answer.worker;
            let body: Value = serde_json::from_str(&answer.body).expect("JSON");
            let generation = body["generation"].as_u64().expect("a number");
            assert!((oldest..=told.newest.load(Ordering::SeqCst)).contains(&generation), "{generation}, not {oldest}");
            assert_eq!(body, expected(place, packages, generation));
            told.answered.fetch_add(1, Ordering::SeqCst);
            if answer.closes {
                connection.hung_up().expect("it said so");
                break;
            }
        }
    }
}

/// The answer, from the rule by which the data is made up.
pub fn expected(place: u32, packages: u32, generation: u64) -> Value {
    let name = |place: u32| format!("package-{place:06}");
    let version = |place: u32| format!("{}.{}.{generation}", place % 7, place % 50);
    let dependency = |nth: u32| {
        let place = (place + nth * nth * 7919) % packages;
        json!({ "name": name(place), "version": version(place) })
    };
    let dependencies: Vec<_> = (1..=place % 6).map(dependency).collect();
    json!({ "name": name(place), "version": version(place), "generation": generation, "dependencies": dependencies })
}
