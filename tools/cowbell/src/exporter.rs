//! `cowbell exporter`: the memory of running trees for Prometheus, over HTTP.
//!
//! Each answer is a snapshot: page tables are read, and nothing is armed, stopped or traced. Between two answers nothing is done.

use crate::failure::Failure;
use crate::snapshot;
use cowbell::openmetrics::MEDIA_TYPE;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// The path under which the metrics are.
const PATH: &str = "/metrics";
/// No request is longer.
const REQUEST_MAX: usize = 8 << 10;
/// A client that is silent for so long is given up, so that it keeps no other waiting for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The processes to look at, and the address to listen at.
#[derive(clap::Args)]
pub struct Options {
    /// The processes at the tops of the trees.
    #[arg(value_name = "PID", required = true, value_parser = clap::value_parser!(i32).range(1..))]
    pids: Vec<i32>,
    /// The address to listen at; port 0 takes one that is free. Whoever can reach it can read the commands of the processes.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9757")]
    listen: SocketAddr,
    /// Look at most once in so many seconds; who asks sooner is told what was found then.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    every: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

/// Answers until one of the processes has ended.
///
/// # Errors
/// The address cannot be listened at; a process is not there, has ended, or may not be read.
pub fn run(options: &Options) -> Result<(), Failure> {
    // Before anybody asks: a wrong process is a wrong command.
    let mut last = Found::take(&options.pids)?;
    let failure = |e: io::Error| Failure::new(format!("cannot listen at {}: {e}", options.listen));
    let listener = TcpListener::bind(options.listen).map_err(failure)?;
    let address = listener.local_addr().map_err(failure)?;
    eprintln!("cowbell exporter: http://{address}{PATH}");
    for stream in listener.incoming() {
        // One that went before it was accepted.
        let Ok(mut stream) = stream else { continue };
        let asked = ask(&mut stream);
        if asked.as_ref().is_ok_and(|request| request.wants_metrics()) && last.at.elapsed() >= options.every {
            match Found::take(&options.pids) {
                Ok(found) => last = found,
                Err(e) => {
                    let _gone = answer(
                        &mut stream,
                        "503 Service Unavailable",
                        "text/plain; charset=utf-8",
                        &format!("{e}\n"),
                        true,
                    );
                    return Err(e);
                }
            }
        }
        // A client that went away is its own affair.
        let _gone = asked.and_then(|request| request.answer(&mut stream, &last.text));
    }
    Ok(())
}

/// The findings of a look.
struct Found {
    at: Instant,
    text: String,
}

impl Found {
    fn take(pids: &[i32]) -> Result<Self, Failure> {
        let snapshots = pids.iter().map(|&pid| snapshot::take(pid)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { at: Instant::now(), text: snapshot::metrics(&snapshots) })
    }
}

/// The first line of a request.
struct Request {
    method: String,
    path: String,
}

/// Reads a request up to its empty line.
fn ask(stream: &mut TcpStream) -> io::Result<Request> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut read, mut buffer) = (Vec::new(), [0; 1024]);
    let until = Instant::now() + PATIENCE;
    while !read.windows(4).any(|four| four == b"\r\n\r\n") {
        let got = stream.read(&mut buffer)?;
        read.extend(buffer.iter().take(got));
        if got == 0 || read.len() > REQUEST_MAX || Instant::now() > until {
            return Err(ErrorKind::InvalidData.into());
        }
    }
    let first = read.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(first).into_owned();
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Request { method, path: path.split('?').next().unwrap_or_default().to_owned() })
}

impl Request {
    fn wants_metrics(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD") && self.path == PATH
    }

    fn answer(&self, stream: &mut TcpStream, text: &str) -> io::Result<()> {
        let plain = "text/plain; charset=utf-8";
        let body = self.method != "HEAD";
        match self.method.as_str() {
            _ if self.wants_metrics() => answer(stream, "200 OK", MEDIA_TYPE, text, body),
            "GET" | "HEAD" => answer(stream, "404 Not Found", plain, &format!("metrics are at {PATH}\n"), body),
            _ => answer(stream, "405 Method Not Allowed", plain, "only GET and HEAD are answered\n", true),
        }
    }
}

fn answer(stream: &mut TcpStream, status: &str, kind: &str, text: &str, body: bool) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes())?;
    if body { stream.write_all(text.as_bytes()) } else { Ok(()) }
}
