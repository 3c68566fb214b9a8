//! A service of many processes over one data set: HTTP by axum, workers and memory by cowbell. To be copied from; README.md beside it tells why each part is as it is.
//!
//! ```text
//!  parent: tokio, many threads ──> zygote ──> workers: tokio, one thread each, accept from one listener
//!  admin port, signals, reload                 each serves the frozen data, and leaves when there is newer
//! ```

mod admin;
mod data;
mod listener;
mod routes;
mod service;
mod worker;

use clap::Parser;
use service::{Failure, Service};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

#[derive(Clone, Debug, Parser)]
#[command(about)]
struct Options {
    /// The address that clients connect to
    #[arg(long, env, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The address of metrics, health and reload
    #[arg(long, env, default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// The number of workers; by default one for each processor
    #[arg(long, env, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    workers: usize,
    /// The number of packages in the data
    #[arg(long, env, default_value_t = 500_000)]
    packages: u32,
    /// A worker that has copied more pages of the data retires after its shift
    #[arg(long, env, default_value_t = 1000)]
    copied_pages_max: u64,
    /// A worker's shift, in seconds
    #[arg(long, env, default_value_t = 600)]
    shift_seconds: u64,
    /// How long a worker that leaves waits for the next request of an idle client, in milliseconds
    #[arg(long, env, default_value_t = 1000)]
    grace_ms: u64,
    /// How long it then waits for the end of a request that has begun, in milliseconds
    #[arg(long, env, default_value_t = 10_000)]
    last_ms: u64,
    /// Serve the same by threads of one process, to compare with
    #[arg(long)]
    threads: bool,
}

impl Options {
    fn shift(&self) -> Duration {
        Duration::from_secs(self.shift_seconds)
    }

    fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    fn last(&self) -> Duration {
        Duration::from_millis(self.last_ms)
    }
}

/// The time in which a connection that was about to begin when the door was shut has begun: some round trips to a client.
const ROUND_TRIPS: Duration = Duration::from_millis(200);

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let listener = TcpListener::bind(options.listen)?;
    listener.set_nonblocking(true)?;
    if options.threads {
        return threads(listener, &options);
    }
    // While there is one thread. What is opened and allocated below, the workers do not have.
    let zygote = service::prepare(&listener, &options)?;
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let admin = tokio::net::TcpListener::bind(options.admin).await?;
        println!("serving {} admin {}", listener.local_addr()?, admin.local_addr()?);
        let started = spawn_blocking(move || Service::start(zygote, options)).await?;
        run(Arc::new(started?), &listener, admin).await
    })
}

async fn run(service: Arc<Service>, listener: &TcpListener, admin: tokio::net::TcpListener) -> Result<(), Failure> {
    let (mut hangup, mut terminate, mut interrupt) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (drained, is_drained) = oneshot::channel::<()>();
    let served = axum::serve(admin, admin::routes(Arc::clone(&service)));
    let served =
        tokio::spawn(served.with_graceful_shutdown(async { is_drained.await.unwrap_or_default() }).into_future());
    let mut shifts = JoinSet::new();
    for _ in 0..service.workers() {
        let service = Arc::clone(&service);
        shifts.spawn(async move { service.keep_a_worker_busy().await });
    }
    println!("ready");
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                let service = Arc::clone(&service);
                spawn_blocking(move || match service.reload() {
                    Ok(generation) => log::info!("generation {generation}"),
                    Err(e) => log::error!("no new generation: {e}"),
                });
            }
            // The group gets the signal, or this process alone: the workers take no notice of it.
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // Not before the drain, unless the pool is gone; then a supervisor starts the service anew.
            Some(ended) = shifts.join_next() => ended??,
        }
    }
    listener::shut_the_door(listener)?;
    sleep(ROUND_TRIPS).await;
    spawn_blocking(move || service.drain()).await??;
    let _admin_has_gone = drained.send(());
    served.await??;
    Ok(())
}

/// The same routes over the same data, in one process.
fn threads(listener: TcpListener, options: &Options) -> Result<(), Failure> {
    let packages = data::build(0, options.packages)?.root();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(options.workers).enable_all().build()?;
    runtime.block_on(async {
        println!("serving {} admin -\nready", listener.local_addr()?);
        Ok(axum::serve(tokio::net::TcpListener::from_std(listener)?, routes::routes(packages)).await?)
    })
}
