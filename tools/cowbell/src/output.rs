//! The place and the looks of a report: the options that `run`, `attach`, `snapshot` and `report` share.

use crate::analyse::Summary;
use crate::analyse::detail::Detail;
use crate::failure::Failure;
use crate::views;
use clap::Args;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Options about the report.
#[derive(Args, Clone, Debug)]
// Each subcommand's own options are a group of their own name.
#[group(id = "output_options")]
pub struct Options {
    /// Write the report to this file; %p is this process' id, %t the time in seconds since 1970, - is standard output.
    #[arg(short, long, value_name = "FILE", env = "COWBELL_OUTPUT")]
    pub output: Option<PathBuf>,
    /// Write a page for browsers to this file as well: one file, which loads nothing. %p and %t as above.
    #[arg(long, value_name = "FILE", env = "COWBELL_HTML")]
    pub html: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(long)]
    pub force: bool,
    /// Say only the verdict and why.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: mappings, functions of C, lines, causes, each process apart, and names in full.
    #[arg(short, long)]
    pub verbose: bool,
    /// Print JSON.
    #[arg(long, env = "COWBELL_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    /// How many lines each list in the text has.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), env = "COWBELL_TOP")]
    pub top: u32,
    /// When to use colours; auto: on a terminal, unless NO_COLOR is set.
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "COWBELL_COLOR")]
    pub color: Color,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless the environment says otherwise.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// The stream to which the report goes: open, so that a bad name is an error before anything is run.
#[derive(Debug)]
pub struct Output {
    sink: Sink,
    page: Option<Sink>,
    options: Options,
}

#[derive(Debug)]
enum Sink {
    Stream(Stream),
    File(File, PathBuf),
}

impl Options {
    /// Opens what `--output` names, or else the stream that is this subcommand's default.
    ///
    /// # Errors
    /// A [`Failure`] for people, with the path.
    pub fn open(&self, default: Stream) -> Result<Output, Failure> {
        let sink = match &self.output {
            None => Sink::Stream(default),
            Some(name) if name.as_os_str() == "-" => Sink::Stream(Stream::Output),
            Some(name) => {
                let path = expand(name)?;
                Sink::File(create(&path, 0o666, self.force)?, path)
            }
        };
        let page = self.html.as_ref().map(|name| -> Result<Sink, Failure> {
            let path = expand(name)?;
            Ok(Sink::File(create(&path, 0o666, self.force)?, path))
        });
        Ok(Output { sink, page: page.transpose()?, options: self.clone() })
    }
}

impl Output {
    /// Writes the report on a profile, as text or JSON, and its page if one is wanted. A reader that has gone away (a closed pipe) is
    /// no failure.
    ///
    /// # Errors
    /// A [`Failure`] for people, with where it was written to.
    pub fn report(&mut self, summary: &Summary, detail: &Detail) -> Result<(), Failure> {
        self.profile_page(summary, detail)?;
        let Options { top, quiet, verbose, .. } = self.options;
        if self.options.json {
            return self.json(summary);
        }
        self.text(&views::text(summary, &views::Verbosity { top: top as usize, quiet, verbose }))
    }

    /// Writes a document as JSON.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub fn json(&mut self, document: &impl views::Document) -> Result<(), Failure> {
        let bytes = views::json(document).map_err(|e| Failure::new(format!("cannot make JSON: {e}")))?;
        self.write(&bytes)
    }

    /// Writes the page of a profile, if one is wanted.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub fn profile_page(&mut self, summary: &Summary, detail: &Detail) -> Result<(), Failure> {
        self.page(|| views::html::profile(summary, detail))
    }

    /// Writes a page for browsers, if one is wanted.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub fn page(&mut self, page: impl FnOnce() -> Vec<u8>) -> Result<(), Failure> {
        match &mut self.page {
            Some(sink) => written(sink, &page()),
            None => Ok(()),
        }
    }

    /// Writes what another program is to read, as it is.
    ///
    /// # Errors
    /// As [`Output::report`]; or it is no text, and would go to a terminal.
    pub fn export(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let is_text = std::str::from_utf8(bytes).is_ok();
        if !is_text && matches!(self.sink, Sink::Stream(_)) && io::stdout().is_terminal() {
            return Err(Failure::new("it is no text, and standard output is a terminal: give a file with -o"));
        }
        self.write(bytes)
    }

    /// Writes text, its colours only where they are wanted.
    ///
    /// # Errors
    /// As [`Output::report`].
    pub fn text(&mut self, styled: &str) -> Result<(), Failure> {
        if self.colors() {
            self.write(styled.as_bytes())
        } else {
            self.write(anstream::adapter::strip_str(styled).to_string().as_bytes())
        }
    }

    fn colors(&self) -> bool {
        let choice = match (self.options.color, &self.sink) {
            (Color::Always, _) => return true,
            (Color::Never, _) => return false,
            (Color::Auto, Sink::Stream(Stream::Output)) => anstream::AutoStream::choice(&io::stdout()),
            (Color::Auto, Sink::Stream(Stream::Error)) => anstream::AutoStream::choice(&io::stderr()),
            (Color::Auto, Sink::File(file, _)) => anstream::AutoStream::choice(file),
        };
        choice != anstream::ColorChoice::Never
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        written(&mut self.sink, bytes)
    }
}

fn written(sink: &mut Sink, bytes: &[u8]) -> Result<(), Failure> {
    let (written, place) = match sink {
        Sink::Stream(Stream::Output) => {
            let mut out = io::stdout().lock();
            (out.write_all(bytes).and_then(|()| out.flush()), "standard output".to_owned())
        }
        Sink::Stream(Stream::Error) => (io::stderr().lock().write_all(bytes), "standard error".to_owned()),
        Sink::File(file, path) => (file.write_all(bytes), path.display().to_string()),
    };
    match written {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::new(format!("cannot write to {place}: {e}"))),
        _ => Ok(()),
    }
}

/// Expands `%p` (this process' id), `%t` (seconds since 1970) and `%%` in a file name.
///
/// # Errors
/// Any other character after `%`.
pub fn expand(name: &Path) -> Result<PathBuf, Failure> {
    let mut expanded = Vec::new();
    let mut bytes = name.as_os_str().as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b if b != b'%' => expanded.push(b),
            _ => match bytes.next() {
                Some(b'%') => expanded.push(b'%'),
                Some(b'p') => expanded.extend(std::process::id().to_string().bytes()),
                Some(b't') => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                    expanded.extend(now.to_string().bytes());
                }
                _ => {
                    let what = "% in a file name is followed by p (process id), t (time) or another %";
                    return Err(Failure::new(format!("{}: {what}", name.display())));
                }
            },
        }
    }
    Ok(PathBuf::from(OsString::from_vec(expanded)))
}

/// Creates a file. One that exists is an error, or with `force` is replaced by a new one; devices and pipes, where
/// nothing can be lost, are written to.
///
/// # Errors
/// A [`Failure`] for people, with the path.
pub fn create(path: &Path, mode: u32, force: bool) -> Result<File, Failure> {
    let failure = |e: io::Error| Failure::new(format!("{}: {e}", path.display()));
    let new = || OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let e = match new() {
        Ok(file) => return Ok(file),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => e,
        Err(e) => return Err(failure(e)),
    };
    // Follows links: /dev/stderr is one.
    let kind = fs::metadata(path).map_err(failure)?.file_type();
    if kind.is_dir() {
        return Err(failure(ErrorKind::IsADirectory.into()));
    }
    if kind.is_char_device() || kind.is_fifo() {
        return OpenOptions::new().write(true).open(path).map_err(failure);
    }
    if !kind.is_file() {
        return Err(Failure::new(format!("{}: neither a file nor a pipe", path.display())));
    }
    if !force {
        return Err(Failure::new(format!("{}: {e}; --force replaces it", path.display())));
    }
    // A new file and not the old one emptied: that may be another's, or open to others.
    fs::remove_file(path).map_err(failure)?;
    new().map_err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_expanded() {
        let id = std::process::id();
        let expanded = |name: &str| expand(Path::new(name)).expect("a name").display().to_string();
        assert_eq!(expanded("a-%p.json"), format!("a-{id}.json"));
        assert_eq!(expanded("100%%"), "100%");
        let time: u64 = expanded("%t").parse().expect("seconds");
        assert!(time > 1_700_000_000, "{time}");
        assert!(expand(Path::new("50%off")).is_err());
    }
}
