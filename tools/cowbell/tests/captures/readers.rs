//! Files for other programs, opened by these programs: tools/setup unpacks them to `readers` below the target directory.

use crate::browser::{self, has_browser};
use crate::export::job;
use crate::kit::{PAGE, Scratch, promtool_is_content, reader, shown, tool};
use serde_json::Value;
use std::process::{Command, Output};

/// Returns what the tool exports, as bytes.
fn exported(format: &str, file: &str) -> Vec<u8> {
    let Output { status, stdout, .. } =
        tool().args(["report", format, file]).output().expect("the tool can be started");
    assert!(status.success());
    stdout
}

#[test]
fn pprof_shows_frames_bytes_and_labels() {
    let Some(pprof) = reader("pprof") else { return };
    let scratch = Scratch::new();
    let profile = scratch.file("copies.pb.gz", exported("--pprof", &job(&scratch)));
    let asked = |options: &[&str]| {
        let output = Command::new(&pprof).args(options).arg(&profile).env("HOME", scratch.path("")).output();
        let output = output.expect("pprof can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let raw = asked(&["-raw"]);
    for part in [
        "PeriodType: copied bytes\nPeriod: 4096\n",
        "copied/bytes[dflt] copied_pages/count\n",
        "command:[python3 /srv/job.py]",
        "pid:[101]",
        "Comment: copies after fork",
    ] {
        assert!(raw.contains(part), "{part:?} is not in\n{raw}");
    }
    // By lines: the script's, and how many bytes are below it.
    let lines = asked(&["-top", "-cum", "-lines", "-unit=kb"]);
    assert!(lines.contains("Type: copied\n"), "{lines}");
    let read = lines.lines().find(|line| line.contains("read /srv/job.py:14")).expect("a line of the script");
    assert!(read.contains("400kB"), "{read}");
    let one = asked(&["-top", "-unit=kb", "-tagfocus=command=/srv/job.py"]);
    assert!(one.contains(&format!("{}kB total", 150 * PAGE / 1024)) && one.contains("400kB"), "{one}");
}

#[test]
fn promtool_finds_nothing_wrong_with_metrics() {
    let scratch = Scratch::new();
    promtool_is_content(&shown(&["report", "--openmetrics", &job(&scratch)]));
}

/// Opens a file in speedscope, as its own command does, and returns the name of the profile and the rows of its table.
fn opened_by_speedscope(scratch: &Scratch, name: &str, content: &[u8]) -> Option<Value> {
    let release = reader("speedscope-1.25.0")?.join("dist/release");
    if !has_browser() {
        return None;
    }
    let numbers: Vec<String> = content.iter().map(u8::to_string).collect();
    let load = format!("btoa(String.fromCharCode({}))", numbers.join(","));
    let file = scratch.file("load.js", format!("speedscope.loadFileFromBase64({name:?}, {load})"));
    // The table by functions is the one view that is text; it is turned to as soon as its tab is there.
    let is_ready = "document.body.innerText.includes('listiter_next') || (window.asked ||= (() => { \
         const tabs = [...document.querySelectorAll('div')].filter((one) => one.textContent.trim().endsWith('Sandwich')); \
         return tabs.length > 0 && (tabs.pop().click(), true); })(), false)";
    let rows =
        "[...document.querySelectorAll('tr')].map((row) => [...row.cells].map((cell) => cell.textContent.trim()))";
    let probe = browser::probe(is_ready, &format!("return {{ title: document.title, rows: {rows} }};"));
    let index = std::fs::read_to_string(release.join("index.html")).expect("its page");
    let index = index.replace("src=\"", &format!("src=\"file://{}/", release.display()));
    let page = scratch.file("index.html", index.replace("</body>", &(probe + "</body>")));
    Some(browser::answer(scratch, &format!("file://{page}#localProfilePath={file}"), &[]))
}

#[test]
fn speedscope_opens_its_own_format_and_that_of_pprof() {
    let scratch = Scratch::new();
    let file = job(&scratch);
    for (format, name) in [("--speedscope", "copies.speedscope.json"), ("--pprof", "copies.pb.gz")] {
        let Some(said) = opened_by_speedscope(&scratch, name, &exported(format, &file)) else { return };
        let rows = said["rows"].as_array().expect("rows");
        let row = rows.iter().find(|row| row.to_string().contains("listiter_next")).expect("the function");
        // All bytes of the process, or of both where pprof has one profile for all.
        assert!(row.to_string().contains("400.00 KB") || row.to_string().contains("600.00 KB"), "{said}");
    }
}
