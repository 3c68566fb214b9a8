//! Edges: read from a file in SNAP form, or made up.

use super::graph::Builder;
use crate::failure::Failure;
use indicatif::ProgressBar;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Bytes of arena that one byte of an edge list takes at most: a line of four bytes may name two new
/// vertices of about 300 bytes each, tables that double included.
pub const ARENA_BYTES_PER_FILE_BYTE: usize = 160;

/// Reads an edge list: `#` begins a comment line, every other line has two ids.
pub fn read(path: &Path, builder: &mut Builder, progress: &ProgressBar) -> Result<(), Failure> {
    let shown = path.display();
    let file = File::open(path).map_err(|e| Failure::new(format!("{shown}: {e}")))?;
    progress.set_length(file.metadata().map_or(0, |metadata| metadata.len()));
    let mut lines = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    let mut edges = 0u64;
    for number in 1u64.. {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).map_err(|e| Failure::new(format!("{shown}:{number}: {e}")))?;
        if read == 0 {
            break;
        }
        progress.inc(read as u64);
        match parse(&line) {
            Ok(Some((from, to))) => {
                builder.edge(from, to)?;
                edges += 1;
            }
            Ok(None) => {}
            Err(why) => return Err(Failure::new(format!("{shown}:{number}: {why}"))),
        }
    }
    if edges == 0 {
        return Err(Failure::new(format!("{shown}: no edges in it")));
    }
    Ok(())
}

/// A line's edge; `None` for a comment or an empty line.
fn parse(line: &[u8]) -> Result<Option<(u64, u64)>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not text: two ids expected".to_owned())?.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let mut fields = text.split_ascii_whitespace();
    let (Some(from), Some(to), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err(format!("two ids expected, not {:?}", cut(text)));
    };
    let id = |field: &str| field.parse::<u64>().map_err(|_| format!("{:?} is no id (0 to 2^64 - 1)", cut(field)));
    Ok(Some((id(from)?, id(to)?)))
}

fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Edges of a made-up vertex on average, both directions counted.
const EDGES_PER_VERTEX: usize = 16;

/// Arena that such a vertex takes on average, its edges, name, attributes and place in the index included.
const ARENA_BYTES_PER_VERTEX: usize = 212;

/// Makes up a graph that takes about `bytes` of the arena: each new vertex points to eight others, old
/// ones preferred, as in real networks.
pub fn generate(bytes: usize, builder: &mut Builder, progress: &ProgressBar) -> Result<(), Failure> {
    progress.set_length(bytes as u64);
    // SplitMix64: enough for a graph that is to be the same each time.
    let mut state = 0x5EED_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    };
    let vertices = bytes / ARENA_BYTES_PER_VERTEX;
    builder.reserve(vertices)?;
    for vertex in 1..vertices.max(2) as u64 {
        for _ in 0..EDGES_PER_VERTEX / 2 {
            let other = random(vertex);
            // Every second edge goes to the smaller of two, so that early vertices are hubs.
            let other = if other % 2 == 0 { other.min(random(vertex)) } else { other };
            builder.edge(vertex, other)?;
            builder.edge(other, vertex)?;
        }
        if vertex % 1024 == 0 {
            progress.set_position(builder.used() as u64);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_line_is_an_edge_a_comment_or_an_error_that_says_why() {
        assert_eq!(parse(b"1\t2\n"), Ok(Some((1, 2))));
        assert_eq!(parse(b"  18446744073709551615 0 \r\n"), Ok(Some((u64::MAX, 0))));
        assert_eq!(parse(b"# Nodes: 3\n"), Ok(None));
        assert_eq!(parse(b"\n"), Ok(None));
        for (line, why) in [
            (&b"1"[..], "two ids expected, not \"1\""),
            (b"1 2 3", "two ids expected, not \"1 2 3\""),
            (b"a b", "\"a\" is no id (0 to 2^64 - 1)"),
            (b"1 -2", "\"-2\" is no id (0 to 2^64 - 1)"),
            (b"\xff\xfe", "not text: two ids expected"),
        ] {
            assert_eq!(parse(line), Err(why.to_owned()));
        }
    }
}
