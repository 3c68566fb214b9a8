//! A worker: serves connections of the listener that all workers share, in shifts.
//!
//! ```text
//! shift:   accept, serve ... told to leave, or the time is over
//! finish:  every response says `connection: close`; accept on, until the connections of the shift have ended
//! end:     take what is left in the queue, finish that, leave
//! ```
//! A client that has sent a request gets its answer: one that is idle is not hung up on at once, because its next request may be under way, but after a grace.

use crate::data::Packages;
use crate::{Options, routes};
use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;
use cowbell::pool::WorkerContext;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// True from when a worker, or a shift, comes to its end.
pub type Leaving = watch::Receiver<bool>;

/// Has a thread of the worker's wait until it is to leave, and tell the event loop. Once in a worker's life.
pub fn leaving(worker: &WorkerContext<Packages>) -> Leaving {
    let worker = **worker;
    let (tell, told) = watch::channel(false);
    thread::spawn(move || {
        worker.wait_to_leave();
        tell.send_replace(true);
    });
    told
}

async fn is_told(leaving: &mut Leaving) {
    // The value is that of a lock, and dropped here. An error says that nobody will tell any more.
    _ = leaving.wait_for(|&leaving| leaving).await;
}

/// A job of the pool: one shift, at most so long. Returns the number of requests that it answered.
pub fn shift(
    packages: &'static Packages,
    listener: &std::net::TcpListener,
    leaving: Leaving,
    options: &Options,
    time: Duration,
) -> io::Result<u64> {
    // One thread: there are as many workers as processors.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(packages, listener.try_clone()?, leaving, options, time))
}

async fn serve(
    packages: &'static Packages,
    listener: std::net::TcpListener,
    mut leaving: Leaving,
    options: &Options,
    time: Duration,
) -> io::Result<u64> {
    let listener = TcpListener::from_std(listener)?;
    let (finish, finishing) = watch::channel(false);
    let shift = Shift::new(packages, finishing, options);
    let over = async {
        tokio::select! {
            () = is_told(&mut leaving) => {}
            () = sleep(time) => {}
        }
    };
    let mut connections = JoinSet::new();
    shift.accept(&listener, &mut connections, over).await;
    finish.send_replace(true);
    // All workers are told at once, and the next ones come when these have left: meanwhile somebody must accept.
    let mut late = JoinSet::new();
    shift.accept(&listener, &mut late, end_of(&mut connections)).await;
    // When the pool drains nobody comes behind this worker, so nothing may stay in the queue.
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                shift.begin(TcpStream::from_std(stream)?, &mut late);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => wait_for_room(e).await,
        }
    }
    end_of(&mut late).await;
    Ok(shift.answered.load(Ordering::Relaxed))
}

/// After an error of `accept`: there are too many descriptors, and a connection that ends gives one back; or the client has gone.
async fn wait_for_room(e: io::Error) {
    log::warn!("accept: {e}");
    sleep(Duration::from_millis(50)).await;
}

async fn end_of(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

struct Shift {
    routes: Router,
    answered: Arc<AtomicU64>,
    finishing: Leaving,
    grace: Duration,
    last: Duration,
}

impl Shift {
    fn new(packages: &'static Packages, finishing: Leaving, options: &Options) -> Self {
        let answered = Arc::new(AtomicU64::new(0));
        let (count, closes) = (Arc::clone(&answered), finishing.clone());
        let worker = HeaderValue::from(std::process::id());
        let answer = move |mut response: Response| {
            count.fetch_add(1, Ordering::Relaxed);
            // Whoever debugs the service, and its tests, see who answered.
            response.headers_mut().insert("x-worker", worker.clone());
            if *closes.borrow() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            std::future::ready(response)
        };
        let routes = routes::routes(packages).layer(map_response(answer));
        Self { routes, answered, finishing, grace: options.grace(), last: options.last() }
    }

    /// Accepts connections until `end`.
    async fn accept(&self, listener: &TcpListener, connections: &mut JoinSet<()>, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.begin(stream, connections),
                    Err(e) => wait_for_room(e).await,
                },
                Some(_ended) = connections.join_next() => {}
            }
        }
    }

    fn begin(&self, stream: TcpStream, connections: &mut JoinSet<()>) {
        let routes = TowerToHyperService::new(self.routes.clone());
        let (mut finishing, grace, last) = (self.finishing.clone(), self.grace, self.last);
        connections.spawn(async move {
            let served = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), routes);
            let mut served = pin!(served);
            let patience = async {
                is_told(&mut finishing).await;
                sleep(grace).await;
            };
            tokio::select! {
                _ended = served.as_mut() => return,
                () = patience => {}
            }
            // This hangs up on a client that is idle, and answers one whose request has begun, but not for ever: it holds the old data.
            served.as_mut().graceful_shutdown();
            let _cut_off = timeout(last, served).await;
        });
    }
}
