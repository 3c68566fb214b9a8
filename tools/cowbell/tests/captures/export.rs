//! Files that `report` writes for other programs are read back as these read them.

use crate::kit::{Child, PAGE, Scratch, capture, child, ran, shown, tool};
use flate2::read::GzDecoder;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Two children; the second has hostile names.
pub fn job(scratch: &Scratch) -> String {
    let hostile = Child {
        script: "=cmd|'/C calc'!A0;</script>\u{202e}\u{1b}[31m \"x\",\n<&>'".to_owned(),
        source: "]]>".repeat(1 << 18),
        function: "a;b 7\n</title>&\"{}\\\u{0}".to_owned(),
        ..child(102, 50)
    };
    scratch.file("c", capture(&[child(101, 100), hostile]))
}

fn is_clean(text: &str) -> bool {
    !text.chars().any(|c| (c.is_control() && !matches!(c, '\n' | '\r')) || c == '\u{202e}')
}

#[test]
fn folded_stacks_are_frames_and_bytes_and_their_sum_is_what_was_copied() {
    let scratch = Scratch::new();
    let text = shown(&["report", "--folded", &job(&scratch)]);
    let lines: Vec<(&str, u64)> = text
        .lines()
        .map(|line| {
            line.rsplit_once(' ').map(|(stack, bytes)| (stack, bytes.parse().expect("bytes"))).expect("two parts")
        })
        .collect();
    assert_eq!(lines.iter().map(|line| line.1).sum::<u64>(), 150 * PAGE);
    let first = "101 python3 /srv/job.py;<module> (job.py:99);read (job.py:14);listiter_next (python3.13)";
    assert!(lines.contains(&(first, 100 * PAGE)), "{text}");
    let hostile = lines.iter().find(|line| line.0.starts_with("102 ")).expect("the other");
    assert_eq!(hostile.0.split(';').count(), 4, "no name has become two frames: {hostile:?}");
    assert!(is_clean(&text), "{text:?}");
}

#[test]
fn speedscope_has_what_its_schema_demands() {
    let scratch = Scratch::new();
    let json: Value = serde_json::from_str(&shown(&["report", "--speedscope", &job(&scratch)])).expect("JSON");
    assert_eq!(json["$schema"], "https://www.speedscope.app/file-format-schema.json");
    let frames = json["shared"]["frames"].as_array().expect("frames");
    assert!(frames.iter().all(|frame| frame["name"].is_string() && frame["file"].is_string()), "{json}");
    let profiles = json["profiles"].as_array().expect("profiles");
    assert_eq!(profiles.len(), 2);
    for (profile, pages) in profiles.iter().zip([100, 50]) {
        assert_eq!(
            (&profile["type"], &profile["unit"], &profile["startValue"]),
            (&"sampled".into(), &"bytes".into(), &0.into())
        );
        let weights = profile["weights"].as_array().expect("weights");
        let samples = profile["samples"].as_array().expect("samples");
        assert_eq!(weights.len(), samples.len());
        let sum: u64 = weights.iter().filter_map(Value::as_u64).sum();
        assert_eq!((sum, profile["endValue"].as_u64()), (pages * PAGE, Some(pages * PAGE)));
        let within = |frame: &Value| frame.as_u64().is_some_and(|frame| frame < frames.len() as u64);
        assert!(samples.iter().all(|sample| sample.as_array().is_some_and(|stack| stack.iter().all(within))));
    }
}

#[test]
fn firefox_has_a_thread_for_each_process_with_bytes_for_weights() {
    let scratch = Scratch::new();
    let json: Value = serde_json::from_str(&shown(&["report", "--firefox", &job(&scratch)])).expect("JSON");
    assert!(
        json["meta"]["preprocessedProfileVersion"].as_u64().is_some_and(|version| version >= 40),
        "{}",
        json["meta"]
    );
    let threads = json["threads"].as_array().expect("threads");
    assert_eq!(threads.len(), 2);
    for (thread, pages) in threads.iter().zip([100, 50]) {
        assert_eq!(thread["samples"]["weightType"], "bytes");
        let sum: u64 = thread["samples"]["weight"].as_array().expect("weights").iter().filter_map(Value::as_u64).sum();
        assert_eq!(sum, pages * PAGE);
        let stacks = thread["stackTable"]["length"].as_u64().expect("a length");
        assert!(
            thread["samples"]["stack"]
                .as_array()
                .expect("stacks")
                .iter()
                .all(|s| s.as_u64().is_some_and(|s| s < stacks))
        );
    }
    let categories = json["meta"]["categories"].to_string();
    assert!(categories.contains("real writes"), "{categories}");
}

/// The messages of pprof's profile.proto, as far as they are written.
#[derive(Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}
#[derive(Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}
#[derive(Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}
#[derive(Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
    #[prost(int64, tag = "3")]
    number: i64,
}
#[derive(Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}
#[derive(Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}
#[derive(Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

#[test]
fn pprof_is_a_packed_profile_whose_numbers_refer_to_what_there_is() {
    let scratch = Scratch::new();
    let output = tool().args(["report", "--pprof", &job(&scratch)]).output().expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut bytes = Vec::new();
    GzDecoder::new(&output.stdout[..]).read_to_end(&mut bytes).expect("packed by gzip");
    let profile = Profile::decode(&bytes[..]).expect("a profile");
    let text = |number: i64| profile.string_table.get(number as usize).map_or("", String::as_str);
    assert_eq!(profile.string_table.first().map(String::as_str), Some(""));
    let types: Vec<_> = profile.sample_type.iter().map(|t| (text(t.kind), text(t.unit))).collect();
    assert_eq!(types, [("copied", "bytes"), ("copied_pages", "count")]);
    assert_eq!(profile.period, PAGE as i64);
    assert_eq!(text(profile.default_sample_type), "copied", "what a reader shows first");
    assert!(profile.period_type.as_ref().is_some_and(|t| text(t.kind) == "copied"));
    assert_eq!((profile.time_nanos, profile.duration_nanos), (1_000_000, 10_000_000));
    assert_eq!(profile.comment.iter().filter(|comment| !text(**comment).is_empty()).count(), 1);
    let sum: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
    assert_eq!(sum, 150 * PAGE as i64);
    let first = &profile.sample[0];
    assert_eq!(first.value, [100 * PAGE as i64, 100]);
    let frames: Vec<_> = first
        .location_id
        .iter()
        .map(|id| {
            let location = profile.location.iter().find(|location| location.id == *id).expect("a location");
            let function = profile.function.iter().find(|f| f.id == location.line[0].function_id).expect("a function");
            assert_eq!(function.name, function.system_name);
            (text(function.name), text(function.filename), location.line[0].line)
        })
        .collect();
    let script = "/srv/job.py";
    assert_eq!(frames, [("listiter_next", "/usr/bin/python3.13", 0), ("read", script, 14), ("<module>", script, 99)]);
    let labels: BTreeMap<&str, (&str, i64)> =
        first.label.iter().map(|l| (text(l.key), (text(l.text), l.number))).collect();
    assert_eq!(labels["pid"], ("", 101));
    assert_eq!(labels["command"], ("python3 /srv/job.py", 0));
    assert!(profile.string_table.iter().all(|text| is_clean(text) && !text.contains('\n')));
}

/// Prometheus' own parser of OpenMetrics, which tools/setup installs.
const PARSER: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
print(json.dumps([[f.name, f.type, f.unit, [[s.labels, s.value] for s in f.samples]] for f in families]))
";

#[test]
fn openmetrics_are_read_by_prometheus_own_parser() {
    let scratch = Scratch::new();
    let text = shown(&["report", "--openmetrics", &job(&scratch)]);
    assert!(text.ends_with("# EOF\n") && is_clean(&text), "{text}");
    assert!(
        text.contains("cowbell_copied_bytes{pid=\"101\",depth=\"1\",command=\"python3 /srv/job.py\"} 409600\n"),
        "{text}"
    );
    let python = Command::new("/usr/bin/python3").args(["-c", "import prometheus_client"]).output();
    if !python.is_ok_and(|output| output.status.success()) {
        println!("skipped: no prometheus_client, which would parse it");
        return;
    }
    let mut parser = Command::new("/usr/bin/python3");
    let mut parser = parser.args(["-c", PARSER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    parser.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    let output = parser.wait_with_output().expect("an end");
    assert!(output.status.success(), "{text}");
    let families: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let copied =
        families.as_array().expect("families").iter().find(|f| f[0] == "cowbell_copied_bytes").expect("the family");
    assert_eq!((&copied[1], &copied[2]), (&"gauge".into(), &"bytes".into()));
    let values: Vec<_> = copied[3].as_array().expect("samples").iter().map(|sample| sample[1].as_f64()).collect();
    assert_eq!(values, [Some(100.0 * PAGE as f64), Some(50.0 * PAGE as f64)]);
}

#[test]
fn csv_has_a_row_for_each_process_and_no_formulas() {
    let scratch = Scratch::new();
    let text = shown(&["report", "--csv", &job(&scratch)]);
    assert!(is_clean(&text), "{text:?}");
    let rows: Vec<&str> = text.split("\r\n").collect();
    assert_eq!(rows.len(), 4, "{text}");
    assert!(rows[0].starts_with("pid,parent,role,command,"), "{text}");
    assert!(rows[1].starts_with("101,100,child,\"python3 /srv/job.py\","), "{text}");
    let columns = |row: &str| {
        let mut quoted = false;
        row.chars()
            .filter(|c| {
                quoted ^= *c == '"';
                *c == ',' && !quoted
            })
            .count()
    };
    assert_eq!(columns(rows[0]), columns(rows[1]));
    assert_eq!(columns(rows[0]), columns(rows[2]), "{}", rows[2]);
    let formula = scratch.file("f", capture(&[child(101, 10)]).replace("\"python3\",", "\"=1+2\","));
    assert!(shown(&["report", "--csv", &formula]).contains(",\"'=1+2 "), "a spreadsheet would reckon it");
}

#[test]
fn a_flame_graph_is_one_picture_without_script() {
    let scratch = Scratch::new();
    let (file, svg) = (job(&scratch), scratch.path("flame.svg"));
    shown(&["report", "-q", "--flamegraph", &svg, &file]);
    let text = std::fs::read_to_string(&svg).expect("a picture");
    assert!(text.contains("<title>read (job.py:14): 400.0 KiB, 66.7 %</title>"), "{text}");
    assert!(!text.contains("<script") && !text.contains("</title>&\"") && is_clean(&text), "{text}");
    let check = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";
    let parsed = Command::new("/usr/bin/python3").args(["-c", check, &svg]).output().expect("python3");
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
}

#[test]
fn one_format_at_a_time_and_none_of_a_file_that_has_no_pages() {
    let scratch = Scratch::new();
    let file = job(&scratch);
    let (code, _, err) = ran(&["report", "--folded", "--csv", &file]);
    assert!(code == Some(2) && err.contains("cannot be used with"), "{err}");
    let reports = scratch.file("r", crate::kit::library_report(101, 10, "last"));
    let (code, _, err) = ran(&["report", "--folded", &reports]);
    assert!(code == Some(1) && err.contains("no stacks"), "{err}");
    assert!(shown(&["report", "--csv", &reports]).contains("101,0,child,"), "what needs no stacks");
}
