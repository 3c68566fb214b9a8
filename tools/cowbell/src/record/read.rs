//! Reading a capture, whoever wrote it: line by line, in bounded memory, up to where it was cut off.

use super::types::{FORMAT, Header, Record, VERSION};
use cowbell::page::{Bytes, PageSize};
use serde::Deserialize;
use std::fmt;
use std::io::{self, BufRead, Read};

/// No record is longer: what is, is no capture. The tracer's largest, an interval's end with the contents of each copy,
/// takes about 26 bytes a page: this much for 40 GiB of copies.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Why a capture cannot be read. Printed for people; the file's name is for the caller to add.
#[derive(Debug)]
pub enum Error {
    /// The first line is no capture's.
    Foreign(String),
    /// A later version of cowbell wrote it, in this version of the format.
    OtherVersion(u64),
    /// The line of this number, counted from one, is not what belongs there.
    Damaged(u64, String),
    /// The file cannot be read.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(why) => write!(f, "not a capture of cowbell's: {why}"),
            Self::OtherVersion(theirs) => write!(
                f,
                "written by {} cowbell: the capture's version is {theirs}, this program reads version {VERSION}; render it \
                 with the cowbell that wrote it",
                if *theirs > u64::from(VERSION) { "a newer" } else { "an older" }
            ),
            Self::Damaged(line, why) => write!(f, "damaged: line {line}: {why}"),
            Self::Io(e) => write!(f, "cannot be read: {e}"),
        }
    }
}

/// The way a capture lacks its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The capture's last line is not whole; so many lines before it are.
    InLine(u64),
    /// The capture's lines are whole, so many of them, but the last says nothing of the end.
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
        if first.header.version != u64::from(VERSION) {
            return Err(Error::OtherVersion(first.header.version));
        }
        let header = match serde_json::from_slice(&line) {
            Ok(Record::Header(header)) => header,
            Ok(_) => return Err(Error::Damaged(1, "no header".into())),
            Err(e) => return Err(Error::Damaged(1, said(&e))),
        };
        if usize::try_from(header.page_size).ok().and_then(PageSize::new).is_none() {
            return Err(Error::Damaged(1, format!("{} is no page size", header.page_size)));
        }
        reader.lines = 1;
        reader.header = Some(header);
        Ok(reader)
    }

    /// The way the capture lacks its end; known once all records are read.
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
            Err(e) => Err(Error::Damaged(self.lines + 1, said(&e))),
        }
    }
}

/// The error of a line, without what it holds that a terminal would obey, and not all of it if it is long.
fn said(e: &serde_json::Error) -> String {
    e.to_string().chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    const HEADER: &str = r#"{"header":{"format":"cowbell-capture","version":2,"cowbell":"0","kernel":"6.18","page_size":4096,"command":["x"],"started_unix_ms":0,"mode":"trace","mode_reason":"","who":"both","stacks_every":0,"frames":true}}"#;
    const EXIT: &str = r#"{"exit":{"pid":7,"time_ns":1,"ended":{"exited":0}}}"#;
    const FINISH: &str = r#"{"finish":{"time_ns":9,"ended":null,"arming_ns":0,"events_ns":0,"stacks_ns":0,"stops":0}}"#;

    /// The number of records, and the way the input lacks its end.
    fn read(input: impl AsRef<[u8]>) -> Result<(usize, Option<Cut>), String> {
        let mut reader = Reader::new(Cursor::new(input)).map_err(|e| e.to_string())?;
        let mut records = 0;
        for record in reader.by_ref() {
            record.map_err(|e| e.to_string())?;
            records += 1;
        }
        Ok((records, reader.cut()))
    }

    #[test]
    fn a_whole_capture_has_all_its_records_and_is_not_cut() {
        assert_eq!(read(format!("{HEADER}\n{EXIT}\n{FINISH}\n")), Ok((3, None)));
        assert_eq!(read(format!("{HEADER}\n{EXIT}\n{FINISH}")), Ok((3, None)), "the last line feed is not missed");
    }

    #[test]
    fn a_capture_cut_at_any_byte_has_its_whole_lines_and_is_told_to_be_cut() {
        let whole = format!("{HEADER}\n{EXIT}\n{EXIT}\n{FINISH}\n");
        for end in HEADER.len() + 1..whole.len() - 1 {
            let part = &whole[..end];
            let (records, cut) = read(part).unwrap_or_else(|e| panic!("{end}: {e}"));
            let lines = part.matches('\n').count() + usize::from(part.ends_with("}}}"));
            assert_eq!(records, lines, "{part:?}");
            assert!(cut.is_some(), "{part:?}");
        }
        assert_eq!(read(format!("{HEADER}\n{EXIT}\n{{\"ex")), Ok((2, Some(Cut::InLine(2)))));
        assert_eq!(read(format!("{HEADER}\n{EXIT}\n\0\0\0")), Ok((2, Some(Cut::InLine(2)))), "zeros after a crash");
        assert_eq!(read(format!("{HEADER}\n{EXIT}\n")), Ok((2, Some(Cut::BetweenLines(2)))));
    }

    #[test]
    fn what_is_no_capture_or_of_another_version_is_refused_with_its_reason() {
        for (input, why) in [
            (String::new(), "it is empty"),
            ("\n".into(), "does not begin with a header"),
            ("#!/bin/sh\n".into(), "does not begin with a header"),
            (HEADER[..80].into(), "does not begin with a header"),
            (format!("{EXIT}\n"), "does not begin with a header"),
            (HEADER.replace("cowbell-capture", "other"), "its format is \"other\""),
            (
                HEADER.replace("\"version\":2", "\"version\":3"),
                "a newer cowbell: the capture's version is 3, this program reads version 2",
            ),
            (HEADER.replace("\"version\":2", "\"version\":1"), "an older cowbell: the capture's version is 1"),
            ("{\"header\":{\"format\":\"cowbell-capture\",\"version\":77}}".into(), "version is 77"),
            (HEADER.replace("4096", "0"), "0 is no page size"),
            (HEADER.replace("4096", "5000"), "5000 is no page size"),
            (HEADER.replace("\"kernel\":\"6.18\",", ""), "damaged: line 1: missing field `kernel`"),
        ] {
            let told = read(&input).expect_err(&input);
            assert!(told.contains(why), "{input:?}: {told}");
        }
        let binary = read([0xff, 0xfe, 0x00, b'\n']).expect_err("no text");
        assert!(binary.contains("not a capture"), "{binary}");
    }

    #[test]
    fn damage_is_told_with_its_line() {
        for (line, why) in [
            ("{\"exit\":{}}", "line 3: missing field"),
            ("", "line 3: "),
            ("{\"unheard_of\":1}", "line 3: unknown variant `unheard_of`"),
            ("{\"\\u001b[2J\":1}", "line 3: unknown variant `?[2J`"),
            (HEADER, "line 3: a second header"),
        ] {
            let told = read(format!("{HEADER}\n{EXIT}\n{line}\n{FINISH}\n")).expect_err(line);
            assert!(told.starts_with("damaged: ") && told.contains(why), "{told}");
        }
        let told = read(format!("{HEADER}\n{FINISH}\n{EXIT}\n")).expect_err("no end");
        assert!(told.contains("line 3: a record after the last"), "{told}");
    }

    #[test]
    fn a_line_without_an_end_is_not_read_whole() {
        /// Counts what is taken from it.
        #[derive(Debug)]
        struct Endless(u64);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += buffer.len() as u64;
                assert!(self.0 < 1 << 20, "read on");
                buffer.fill(b' ');
                Ok(buffer.len())
            }
        }
        let input = io::BufReader::new(Endless(0));
        let told = Reader::limited(input, 1 << 16).expect_err("too long").to_string();
        assert!(told.contains("not a capture"), "{told}");
        let input = io::BufReader::new(Cursor::new(format!("{HEADER}\n")).chain(Endless(0)));
        let mut reader = Reader::limited(input, 1 << 16).expect("a header");
        assert!(matches!(reader.next(), Some(Ok(Record::Header(_)))));
        let told = reader.next().expect("an error").expect_err("too long").to_string();
        assert_eq!(told, "damaged: line 2: longer than 64.0 KiB");
        assert!(reader.next().is_none());
    }
}
