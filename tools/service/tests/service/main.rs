//! The service under load, from outside: the real program, its processes, strict clients, wrk, Prometheus.

mod clients;
mod http;
mod others;
mod running;

use clients::{Clients, Unanswered, expected};
use http::Connection;
use others::{Prometheus, Wrk};
use running::{Service, until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;

const PACKAGES: u32 = 500_000;
const WORKERS: usize = 3;

/// Long runs are asked for by `COWBELL_SOAK=1`.
fn soak() -> bool {
    std::env::var_os("COWBELL_SOAK").is_some()
}

/// One service, from its start to the SIGTERM of its supervisor.
#[test]
fn a_service_is_reloaded_loses_workers_and_ends_and_no_request_fails_but_those_of_dead_workers() {
    let service = Service::start(&["--workers", &WORKERS.to_string(), "--grace-ms", "300"]);
    let admin = service.admin.expect("it has workers");
    let prometheus = Prometheus::start(admin);
    let clients = Clients::start(6, service.address, PACKAGES);
    let wrk = Wrk::start(service.address, 8, 3600);

    let reloads = if soak() { 100 } else { 10 };
    let first = service.metrics();
    for generation in 1..=reloads {
        reload(&service, &clients, generation);
    }
    let account = wrk.stop();
    println!("{reloads} reloads under {account:?}");
    assert!(account.errors.is_empty(), "{account:?}");
    assert_eq!(clients.told.unanswered.lock().expect("whole").len(), 0);
    let last = service.metrics();
    let shared = "cowbell_pool_data_shared_bytes";
    assert!((last.value(shared) / first.value(shared) - 1.0).abs() < 0.01, "one generation's");
    assert_eq!(last.value("cowbell_pool_workers_died_total"), 0.0);
    // One shift of each worker and generation, but for a worker that left before its first.
    let shifts = last.value("cowbell_pool_jobs_total");
    assert!(shifts > reloads as f64 && shifts <= (reloads * WORKERS as u64) as f64, "{shifts}");

    let kills = if soak() { 100 } else { 6 };
    let killed = kill(&service, kills);
    let figures = || {
        let now = service.metrics();
        (now.value("cowbell_pool_workers_died_total") == kills as f64
            && now.values("cowbell_pool_worker_generation") == [reloads as f64; WORKERS])
            .then_some(now)
    };
    let figures = until("a worker for each that died", figures);
    assert_eq!(figures.values("cowbell_pool_worker_copied_bytes"), [0.0; WORKERS], "nobody writes to the data");
    if let Some(prometheus) = &prometheus {
        reads_the_same(prometheus, &figures, kills, reloads);
    }

    // A supervisor ends the whole group, while clients ask.
    let answered = clients.told.answered.load(Ordering::SeqCst);
    until("load goes on", || (clients.told.answered.load(Ordering::SeqCst) > answered + 100).then_some(()));
    let unanswered_before = clients.told.unanswered.lock().expect("whole").len();
    clients.told.ending.store(true, Ordering::SeqCst);
    service.signal("-TERM", -service.pid());
    let told = clients.join();
    assert!(service.end().success());

    let unanswered = told.unanswered.lock().expect("whole");
    let answered = told.answered.load(Ordering::SeqCst);
    println!("{answered} answers, {} kills, {} requests of dead workers", killed.len(), unanswered.len());
    assert_eq!(unanswered.len(), unanswered_before, "the end fails no request: {unanswered:?}");
    // The kernel hangs up in a dead worker's place, or resets.
    let ends = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    let of_a_dead =
        |one: &Unanswered| ends.contains(&one.error.kind()) && one.worker.is_none_or(|worker| killed.contains(&worker));
    assert!(unanswered.iter().all(of_a_dead), "{unanswered:?}, killed: {killed:?}");
    // Each client has one request under way.
    assert!(unanswered.len() <= 6 * killed.len(), "{unanswered:?}");
}

/// Has the service build the next generation, by turns over HTTP and by a signal, and waits until nothing is left of the last.
fn reload(service: &Service, clients: &Clients, generation: u64) {
    clients.told.newest.store(generation, Ordering::SeqCst);
    if generation.is_multiple_of(2) {
        service.signal("-HUP", -service.pid());
    } else {
        let answer = http::ask(service.admin.expect("workers"), "POST", "/reload").expect("an answer");
        assert_eq!((answer.status, answer.body), (200, format!("generation {generation}\n")));
    }
    only(service, generation);
    clients.told.oldest.store(generation, Ordering::SeqCst);
}

/// Waits until no process has memory of another generation: then all workers are of this one.
fn only(service: &Service, generation: u64) {
    until("memory of one generation alone", || (service.generations() == BTreeSet::from([generation])).then_some(()));
}

/// Kills so many workers, one after the other, when each of them has answered a request.
fn kill(service: &Service, kills: usize) -> Vec<i32> {
    let mut killed = Vec::new();
    while killed.len() < kills {
        let mut connection = Connection::open(service.address).expect("a connection");
        let answer = connection.ask("GET", "/packages/package-000007");
        let worker = answer.ok().and_then(|answer| answer.worker);
        let Some(worker) = worker.filter(|worker| service.workers().contains(worker)) else { continue };
        service.signal("-KILL", worker);
        // The kernel hangs up in its place, or resets.
        let _ended = connection.hung_up();
        killed.push(worker);
    }
    killed
}

/// Prometheus has the figures that the service tells, and that the test knows.
fn reads_the_same(prometheus: &Prometheus, figures: &running::Metrics, kills: usize, generation: u64) {
    let is = |query: &str, values: &[f64]| {
        until(query, || (prometheus.values(query) == values).then_some(()));
    };
    is("cowbell_pool_workers_died_total", &[kills as f64]);
    is("cowbell_pool_workers", &[WORKERS as f64]);
    is("cowbell_pool_worker_generation", &[generation as f64; WORKERS]);
    is("cowbell_pool_jobs_total", &[figures.value("cowbell_pool_jobs_total")]);
    is("cowbell_pool_workers_started_total", &[(WORKERS as u64 * (generation + 1) + kills as u64) as f64]);
    is("cowbell_pool_data_shared_bytes", &[figures.value("cowbell_pool_data_shared_bytes")]);
    is("min_over_time(up[1h])", &[1.0]);
}

#[test]
fn a_client_that_was_idle_is_answered_within_the_grace_and_hung_up_on_after_it() {
    const SMALL: u32 = 1000;
    let service = Service::start(&["--workers", "1", "--packages", "1000", "--grace-ms", "3000"]);
    let admin = service.admin.expect("it has workers");
    let ask = |connection: &mut Connection, place: u32, generation: u64| {
        let answer = connection.ask("GET", &format!("/packages/package-{place:06}")).expect("an answer");
        let body: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(body, expected(place, SMALL, generation));
        answer.closes
    };
    let mut idle = [(); 2].map(|()| Connection::open(service.address).expect("a connection"));
    for connection in &mut idle {
        assert!(!ask(connection, 5, 0));
    }
    assert_eq!(http::ask(admin, "POST", "/reload").expect("an answer").status, 200);
    // Only one worker, which leaves: it accepts still, over the old data, and closes at once when it has heard.
    let mut late = until("the worker hears", || {
        let mut late = Connection::open(service.address).expect("a connection");
        ask(&mut late, 6, 0).then_some(late)
    });
    late.hung_up().expect("at once");
    let [mut one, mut other] = idle;
    assert!(ask(&mut one, 7, 0), "the last answer on this connection");
    one.hung_up().expect("at once");
    other.hung_up().expect("after the grace");
    only(&service, 1);
    let mut new = Connection::open(service.address).expect("a connection");
    assert!(!ask(&mut new, 8, 1));
    // SIGTERM to the parent alone: what has begun to connect is answered.
    service.signal("-TERM", service.pid());
    while !ask(&mut new, 9, 1) {}
    assert!(service.end().success());
}

#[test]
fn a_service_that_ends_while_data_is_loaded_does_not_wait_for_it() {
    let service = Service::start(&["--workers", "1", "--packages", "1000"]);
    let admin = service.admin.expect("it has workers");
    let answer = thread::scope(|scope| {
        // It could be done before it is seen, and then the next is.
        let reload = scope.spawn(move || {
            let mut answer = http::ask(admin, "POST", "/reload").expect("an answer");
            while answer.status == 200 {
                answer = http::ask(admin, "POST", "/reload").expect("an answer");
            }
            answer
        });
        let stopped =
            |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "));
        until("a loader stands still", || {
            let loader = service.loader()?;
            // It may have ended by now.
            Command::new("kill").args(["-STOP", &loader.to_string()]).stderr(Stdio::null()).status().ok()?;
            stopped(loader).then_some(())
        });
        service.signal("-TERM", -service.pid());
        reload.join().expect("no panic")
    });
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("loading was stopped"), "{}", answer.body);
    assert!(service.end().success());
}

/// Requests a second of wrk, beside the same routes in one process of as many threads: `cargo test --release -p cowbell-service -- --ignored --nocapture figures`.
#[test]
#[ignore = "figures: on a machine that does nothing else"]
fn figures() {
    let workers = thread::available_parallelism().map_or(2, usize::from);
    let measure = |arguments: &[&str]| {
        let service = Service::start(&[&["--workers", &workers.to_string()], arguments].concat());
        Wrk::start(service.address, 32, 2).end();
        let account = Wrk::start(service.address, 32, 8).end();
        assert!(account.errors.is_empty(), "{account:?}");
        let memory = service.admin.map(|_| service.metrics());
        service.signal("-TERM", service.pid());
        (account.per_second, memory)
    };
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let ((processes, memory), (threads, _)) = (measure(&[]), measure(&["--threads"]));
        let memory = memory.expect("it has workers");
        let own = memory.values("cowbell_pool_worker_own_bytes");
        println!(
            "{workers} workers: {processes:.0} requests/s, {workers} threads: {threads:.0}, ratio {:.2}; data {:.0} MiB, each worker {:.1} MiB of its own",
            processes / threads,
            memory.value("cowbell_pool_data_shared_bytes") / f64::from(1 << 20),
            own.iter().sum::<f64>() / own.len() as f64 / f64::from(1 << 20),
        );
        ratios.push(processes / threads);
    }
    ratios.sort_by(f64::total_cmp);
    println!("ratio: {:.2} to {:.2}, median {:.2}", ratios[0], ratios[4], ratios[2]);
}
