//! The browser that tools/setup installs: pages opened in it without a window, which say what a script of the test's finds there.

use crate::kit::Scratch;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// No page takes so long.
const LIMIT: Duration = Duration::from_secs(90);

const BROWSER: &str = "chromium";

/// Tells whether there is a browser, and says what is not tested without one.
pub fn has_browser() -> bool {
    let found = Command::new(BROWSER).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: no {BROWSER}, in which pages would be opened");
    }
    found
}

/// A script that says what `probe`, the body of a function, returns, as soon as `is_ready` holds. Time is the machine's: the
/// browser's own clock for tests stands still while scripts run.
pub fn probe(is_ready: &str, probe: &str) -> String {
    format!(
        "<script>addEventListener('load', () => {{ const look = () => {{ if (!({is_ready})) return requestAnimationFrame(look); \
         let said; try {{ said = (() => {{ {probe} }})(); }} catch (e) {{ said = String(e); }} \
         console.log('PROBE:' + JSON.stringify(said) + ':PROBE'); }}; look(); }});</script>"
    )
}

/// Opens an address, and returns what the probe in it says.
pub fn answer(scratch: &Scratch, address: &str, options: &[&str]) -> Value {
    let mut command = Command::new(BROWSER);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    command.args(["--disable-background-networking", "--enable-logging=stderr", "--window-size=1280,900"]);
    command.arg(format!("--user-data-dir={}", scratch.path("browser"))).args(options).arg(address);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut browser = command.spawn().expect("the browser can be started");
    let said = BufReader::new(browser.stderr.take().expect("a pipe"));
    let (sender, receiver) = mpsc::channel();
    let listener = std::thread::spawn(move || {
        for line in said.lines().map_while(Result::ok) {
            let _nobody = sender.send(line);
        }
    });
    let until = Instant::now() + LIMIT;
    let mut heard = Vec::new();
    let answer = loop {
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.split("PROBE:").nth(1).and_then(|rest| rest.split(":PROBE").next()) {
                Some(answer) => break Some(answer.to_owned()),
                None => heard.push(line),
            },
            Err(_) => break None,
        }
    };
    // All that it started is in its group.
    let group = format!("-{}", browser.id());
    let _killed = Command::new("kill").args(["-KILL", "--", &group]).status();
    let _ended = browser.wait();
    let _joined = listener.join();
    let answer = answer.unwrap_or_else(|| panic!("the browser does not answer: {heard:#?}"));
    serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"))
}
