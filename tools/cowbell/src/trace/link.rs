//! The socket to the front: orders come in, records go out.

use crate::record::{Mode, Record, Who};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// The first line to the tracer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// The program or process to watch.
    pub target: Target,
    /// The way to observe; `None`: the most that is allowed.
    pub mode: Option<Mode>,
    /// The processes whose copies are counted.
    pub who: Who,
    /// A stack for every so many events; 0 for none.
    pub stacks_every: u32,
    /// The number of processes that are watched at once, at most.
    pub children_max: usize,
    /// The signals that the program starts with blocked: those that the front did.
    pub signal_mask: u64,
}

/// The program or process to watch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A program to start, with its arguments.
    Run(Vec<OsString>),
    /// A process that runs, and all that it has forked.
    Attach(i32),
}

/// The front's further lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TracerCommand {
    /// Let everybody go and finish.
    Detach,
    /// Send this signal to the program.
    Signal(i32),
}

/// A line that the tracer says: a record, or why it could not begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "nearly all are records, of which one lives at a time")]
pub enum TracerMessage {
    /// The tracer could not begin.
    Failed {
        /// The exit code that this deserves.
        failed: u8,
        /// One line for people.
        message: String,
    },
    /// The tracer has opened this module's file.
    Opened {
        /// The module's number.
        opened: u32,
        /// The tracer's descriptor of the file, as long as the tracer lives.
        descriptor: i32,
    },
    /// An interval that is about to close has copies in images of the library's heap.
    Images {
        /// The interval.
        images: u32,
        /// The images.
        of: Vec<Image>,
        /// The code of its process.
        code: Vec<CodeMapping>,
    },
    /// A line of the capture.
    Record(Record),
}

/// An image of the library's heap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The inode of the image's file.
    pub inode: u64,
    /// The tracer's descriptor of the file, as long as the tracer lives; `None` where it could not be opened.
    pub descriptor: Option<i32>,
    /// The image's mappings that have copies: start, end, and offset in the file.
    pub parts: Vec<(u64, u64, u64)>,
}

/// A mapping of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeMapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The number of the file's [`Module`](crate::record::Module).
    pub module: u32,
}

impl TracerMessage {
    /// Reads a line. Nearly all are records, which are read at once: of an untagged value serde keeps all in a form of its
    /// own before it tries what it is.
    ///
    /// # Errors
    /// The line is nothing that the tracer says.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        let begins = |key: &str| line.strip_prefix(b"{\"").is_some_and(|rest| rest.starts_with(key.as_bytes()));
        if ["failed", "opened", "images"].iter().any(|key| begins(key)) {
            return serde_json::from_slice(line);
        }
        serde_json::from_slice(line).map(Self::Record)
    }
}

/// The tracer's end.
pub struct Link {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    broken: bool,
}

impl Link {
    /// Takes the socket over, and waits for the first line.
    ///
    /// # Errors
    /// The front is gone or does not speak this language.
    pub fn open(stream: UnixStream) -> std::io::Result<(Self, Options)> {
        let mut link = Self { stream, incoming: Vec::new(), outgoing: Vec::new(), sent: 0, broken: false };
        let line = loop {
            if let Some(line) = link.line() {
                break line;
            }
            if !link.fill()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        };
        let options = serde_json::from_slice(&line)?;
        link.stream.set_nonblocking(true)?;
        Ok((link, options))
    }

    /// The socket, to wait for.
    pub fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// Queues a line; [`Self::flush`] sends.
    pub fn say(&mut self, said: &TracerMessage) {
        // Writing to memory fails for no value of these types.
        if serde_json::to_writer(&mut self.outgoing, said).is_ok() {
            self.outgoing.push(b'\n');
        }
    }

    /// Sends what the socket takes now; true if something is left. The target never waits for a slow front.
    pub fn flush(&mut self) -> bool {
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty() && !self.broken) {
            match self.stream.write(rest) {
                Ok(sent) => self.sent += sent,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => self.broken = true,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        false
    }

    /// Sends all, however long it takes.
    pub fn flush_all(&mut self) {
        let _refused = self.stream.set_nonblocking(false);
        self.flush();
    }

    /// Waits until the front has heard all: it opens files that are open here, and hangs up then.
    pub fn wait_until_heard(&mut self) {
        while self.fill().is_ok_and(|more| more) {}
    }

    /// The next command. A front that is gone wants everybody let go.
    pub fn command(&mut self) -> Option<TracerCommand> {
        loop {
            if let Some(line) = self.line() {
                match serde_json::from_slice(&line) {
                    Ok(command) => return Some(command),
                    Err(_) => continue,
                }
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => {
                    self.broken = true;
                    return Some(TracerCommand::Detach);
                }
                Err(_) => return None,
            }
        }
    }

    /// Tells whether the front is gone.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn fill(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 1024];
        let got = self.stream.read(&mut buffer)?;
        self.incoming.extend(buffer.iter().take(got));
        Ok(got > 0)
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.incoming.iter().position(|&byte| byte == b'\n')?;
        Some(self.incoming.drain(..=end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_arrive_whole_and_a_front_that_leaves_means_detach() {
        let (mut front, tracer) = UnixStream::pair().expect("a pair");
        let options = Options {
            target: Target::Attach(7),
            mode: None,
            who: Who::Both,
            stacks_every: 0,
            children_max: 1,
            signal_mask: 0,
        };
        serde_json::to_writer(&mut front, &options).expect("options");
        front.write_all(b"\n{\"signal\":15}\n\"det").expect("written");
        let (mut link, read) = Link::open(tracer).expect("options");
        assert!(matches!(read.target, Target::Attach(7)));
        assert_eq!((link.command(), link.command()), (Some(TracerCommand::Signal(15)), None));
        front.write_all(b"ach\"\n").expect("written");
        assert_eq!(link.command(), Some(TracerCommand::Detach));
        assert!(!link.is_broken());
        drop(front);
        assert_eq!(link.command(), Some(TracerCommand::Detach));
        assert!(link.is_broken());
    }
}
