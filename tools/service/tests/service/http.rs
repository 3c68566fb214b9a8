//! HTTP/1.1 as a strict client has it: one request, one answer of the length that it says, or an error.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A bound that only catches what never comes. Under load of others the process that loads data was seen to get 70 ms of processor time in 8 s.
pub const SOON: Duration = Duration::from_secs(300);

/// An answer.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The server will close the connection.
    pub closes: bool,
    /// The process that answered.
    pub worker: Option<i32>,
    /// The body.
    pub body: String,
}

/// A connection that is kept from request to request.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Asks, and reads the whole answer.
    pub fn ask(&mut self, method: &str, path: &str) -> io::Result<Answer> {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: service\r\ncontent-length: 0\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let line = self.line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| invalid(format!("no status: {line:?}")))?;
        let (mut closes, mut worker, mut length) = (false, None, None);
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").ok_or_else(|| invalid(format!("no header: {line:?}")))?;
            match name.to_ascii_lowercase().as_str() {
                "connection" => closes |= value == "close",
                "x-worker" => worker = value.parse().ok(),
                "content-length" => length = value.parse::<usize>().ok(),
                _ => {}
            }
        }
        let mut body = vec![0; length.ok_or_else(|| invalid("no length".into()))?];
        self.0.read_exact(&mut body)?;
        let body = String::from_utf8(body).map_err(|e| invalid(e.to_string()))?;
        Ok(Answer { status, closes, worker, body })
    }

    /// Waits until the server has hung up, and has said nothing more.
    pub fn hung_up(&mut self) -> io::Result<()> {
        match self.0.read(&mut [0; 1])? {
            0 => Ok(()),
            _ => Err(invalid("an answer that nobody asked for".into())),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "hung up"))?;
        Ok(line.to_owned())
    }
}

/// Asks once.
pub fn ask(address: SocketAddr, method: &str, path: &str) -> io::Result<Answer> {
    Connection::open(address)?.ask(method, path)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
