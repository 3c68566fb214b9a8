//! Reading a capture, whoever wrote it: line by line, in bounded memory, up to where it was cut off.

use super::record::{FORMAT, Header, Record, VERSION};
use cowbell::page::{Bytes, PageSize};
use serde::Deserialize;
use std::fmt;
use std::io::{self, BufRead, Read};

/// No record is longer: what is, is no capture. The tracer's largest, an account's end with the contents of each copy,
/// takes about 26 bytes a page: this much for 40 GiB of copies.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Why a capture cannot be read. Printed for people; the file's name is for the caller to add.
#[derive(Debug)]
pub enum Error {
    /// The first line is no capture's.
    Foreign(String),
    /// A later version of cowbell wrote it, in this version of the format.
    Newer(u64),
    /// The line of this number, counted from one, is not what belongs there.
    Damaged(u64, String),
    /// The file cannot be read.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(why) => write!(f, "not a capture of cowbell's: {why}"),
            Self::Newer(theirs) => write!(
                f,
                "written by a newer cowbell: the capture's version is {theirs}, this program reads up to {VERSION}"
            ),
            Self::Damaged(line, why) => write!(f, "damaged: line {line}: {why}"),
            Self::Io(e) => write!(f, "cannot be read: {e}"),
        }
    }
}

/// How a capture lacks its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its last line is not whole; so many lines before it are.
    InLine(u64),
    /// Its lines are whole, so many of them, but the last says nothing of the end.
    BetweenLines(u64),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InLine(whole) => write!(f, "it ends within line {}", whole + 1),
            Self::BetweenLines(whole) => write!(f, "it ends after line {whole} without its last record"),
        }
    }
}

/// The records of a capture, the header first.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// The header until it is handed out.
    header: Option<Header>,
    /// Whole lines read.
    lines: u64,
    finished: bool,
    cut: Option<Cut>,
    /// Nothing comes after an error or the end.
    over: bool,
    line_bytes_max: u64,
}

/// A first line, as far as every version of the format must agree on it.
#[derive(Deserialize)]
struct FirstLine {
    header: AnyHeader,
}

#[derive(Deserialize)]
struct AnyHeader {
    format: String,
    version: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error`] where the input is no capture or a newer program's.
    pub fn new(input: R) -> Result<Self, Error> {
        Self::limited(input, LINE_BYTES_MAX)
    }

    fn limited(input: R, line_bytes_max: u64) -> Result<Self, Error> {
        let mut reader =
            Self { input, header: None, lines: 0, finished: false, cut: None, over: false, line_bytes_max };
        let line = match reader.line() {
            Ok(Some(line)) => line,
            Ok(None) => return Err(Error::Foreign("it is empty".into())),
            Err(Error::Io(e)) => return Err(Error::Io(e)),
            Err(_) => return Err(Error::Foreign("its first line has no end".into())),
        };
        let foreign = |_| Error::Foreign("it does not begin with a header".into());
        let first: FirstLine = serde_json::from_slice(&line).map_err(foreign)?;
        if first.header.format != FORMAT {
            return Err(Error::Foreign(format!("its format is {:?}, not {FORMAT:?}", first.header.format)));
        }
        if first.header.version > u64::from(VERSION) {
            return Err(Error::Newer(first.header.version));
        }
        let header = match serde_json::from_slice(&line) {
            Ok(Record::Header(header)) => header,
            Ok(_) => return Err(Error::Damaged(1, "no header".into())),
            Err(e) => return Err(Error::Damaged(1, e.to_string())),
        };
        if usize::try_from(header.page_size).ok().and_then(PageSize::new).is_none() {
            return Err(Error::Damaged(1, format!("{} is no page size", header.page_size)));
        }
        reader.lines = 1;
        reader.header = Some(header);
        Ok(reader)
    }

    /// How the capture lacks its end; known once all records are read.
    pub fn cut(&self) -> Option<Cut> {
        self.cut
    }

    /// The next line, without its end; `None` after the last. What the input holds beyond a line's limit is not read.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut line = Vec::new();
        let read = self.input.by_ref().take(self.line_bytes_max).read_until(b'\n', &mut line).map_err(Error::Io)?;
        if read == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read as u64 == self.line_bytes_max {
            return Err(Error::Damaged(self.lines + 1, format!("longer than {}", Bytes(self.line_bytes_max))));
        } else {
            self.cut = Some(Cut::InLine(self.lines));
        }
        Ok(Some(line))
    }

    fn record(&mut self) -> Result<Option<Record>, Error> {
        let Some(line) = self.line()? else {
            if !self.finished {
                self.cut = Some(Cut::BetweenLines(self.lines));
            }
            return Ok(None);
        };
        match serde_json::from_slice(&line) {
            Ok(_) if self.finished => Err(Error::Damaged(self.lines + 1, "a record after the last".into())),
            Ok(Record::Header(_)) => Err(Error::Damaged(self.lines + 1, "a second header".into())),
            Ok(record) => {
                self.lines += 1;
                // A last line that only lacks its line feed is whole.
                self.cut = None;
                self.finished = matches!(record, Record::Finish(_));
                Ok(Some(record))
            }
            Err(_) if self.cut.is_some() => Ok(None),
            Err(e) => Err(Error::Damaged(self.lines + 1, e.to_string())),
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(header) = self.header.take() {
            return Some(Ok(Record::Header(header)));
        }
        if self.over {
            return None;
        }
        let next = self.record().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}
