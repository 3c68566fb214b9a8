//! pprof's format: a protocol buffer, packed by gzip. <https://github.com/google/pprof/blob/main/proto/profile.proto>
//!
//! Written by hand, because it is six messages of numbers: a crate that generates code for it would be larger than this.

use super::name;
use crate::analyse::detail::{Detail, Frame};
use crate::analyse::summary::Summary;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::HashMap;
use std::io::{self, Write};

/// Copies for pprof: bytes and pages by stack, with process id, command and likely cause for labels.
///
/// # Errors
/// None in practice: it is packed in memory.
pub fn pprof(summary: &Summary, detail: &Detail) -> io::Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&profile(summary, detail))?;
    packed.finish()
}

fn profile(summary: &Summary, detail: &Detail) -> Vec<u8> {
    let mut strings = Strings::default();
    let mut message = Message::default();
    for (kind, unit) in [("copied", "bytes"), ("copied_pages", "count")] {
        let value = value_type(&mut strings, kind, unit);
        message.bytes(1, &value);
    }
    for stack in &detail.stacks {
        let Some(interval) = summary.intervals.get(stack.interval) else { continue };
        let process = interval.process.and_then(|process| summary.processes.get(process));
        let command = process.map_or(String::new(), |process| name(&process.command_at(interval.begin_ns).join(" ")));
        let mut sample = Message::default();
        // Locations are numbered from 1, the leaf first.
        sample.packed(1, stack.frames.iter().rev().map(|&frame| u64::from(frame) + 1));
        sample.packed(2, [stack.pages.saturating_mul(summary.run.page_size), stack.pages].into_iter());
        for (key, text) in [("command", command.as_str()), ("cause", stack.cause.name())] {
            let mut label = Message::default();
            label.number(1, strings.number(key));
            label.number(2, strings.number(text));
            sample.bytes(3, &label);
        }
        let mut label = Message::default();
        label.number(1, strings.number("pid"));
        label.number(3, interval.pid as u64);
        sample.bytes(3, &label);
        message.bytes(2, &sample);
    }
    for (number, frame) in (1u64..).zip(&detail.frames) {
        let mut line = Message::default();
        line.number(1, number);
        line.number(2, u64::from(frame.line));
        let mut location = Message::default();
        location.number(1, number);
        location.bytes(4, &line);
        message.bytes(4, &location);
        message.bytes(5, &function(&mut strings, number, frame));
    }
    let period = value_type(&mut strings, "copied", "bytes");
    // Else a reader shows the last one first.
    let shown_first = strings.number("copied");
    let comment = strings.number("copies after fork, as cowbell estimates them from sampled stacks");
    for text in &strings.texts {
        message.text(6, text);
    }
    message.number(9, summary.run.started_unix_ms.saturating_mul(1_000_000));
    message.number(10, summary.run.duration_ns);
    message.bytes(11, &period);
    message.number(12, summary.run.page_size);
    message.packed(13, std::iter::once(comment));
    message.number(14, shown_first);
    message.0
}

fn value_type(strings: &mut Strings, kind: &str, unit: &str) -> Message {
    let mut value = Message::default();
    value.number(1, strings.number(kind));
    value.number(2, strings.number(unit));
    value
}

fn function(strings: &mut Strings, number: u64, frame: &Frame) -> Message {
    let mut function = Message::default();
    function.number(1, number);
    let (called, file) = (strings.number(&name(&frame.function)), strings.number(&name(&frame.file)));
    function.number(2, called);
    function.number(3, called);
    function.number(4, file);
    function
}

/// The table of strings, whose first is empty.
struct Strings {
    texts: Vec<String>,
    numbers: HashMap<String, u64>,
}

impl Default for Strings {
    fn default() -> Self {
        Self { texts: vec![String::new()], numbers: HashMap::from([(String::new(), 0)]) }
    }
}

impl Strings {
    fn number(&mut self, text: &str) -> u64 {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        let number = self.texts.len() as u64;
        self.texts.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }
}

/// A message in the making: each field is its number and kind, then its value.
#[derive(Default)]
struct Message(Vec<u8>);

/// Kinds of values: a number of seven bits a byte, or a length and so many bytes.
const NUMBER: u64 = 0;
const LENGTH: u64 = 2;

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number; zero is what a field without a value has.
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3 | NUMBER);
            self.varint(value);
        }
    }

    fn raw(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.raw(field, text.as_bytes());
    }

    fn bytes(&mut self, field: u64, message: &Self) {
        self.raw(field, &message.0);
    }

    fn packed(&mut self, field: u64, values: impl Iterator<Item = u64>) {
        let mut packed = Self::default();
        values.for_each(|value| packed.varint(value));
        self.raw(field, &packed.0);
    }
}
