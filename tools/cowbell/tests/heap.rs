//! `cowbell run` over a program whose every allocation is of `cowbell::heap::Heap`: this one, which the harness starts again as the target.

#[path = "../../../tests/heap/writers.rs"]
mod writers;

use cowbell::fork::{self, ForkOptions};
use cowbell::heap::{self, Heap};
use cowbell::report::Cause;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

#[global_allocator]
static HEAP: Heap = Heap;

/// Names what the target does, and the file for what is true of it.
const TARGET: &str = "COWBELL_HEAP_TARGET";
const TRUTH: &str = "COWBELL_HEAP_TRUTH";

/// A target by its name.
type Target = (&'static str, fn() -> Value);

const TARGETS: &[Target] = &[("planted", planted), ("arenas", arenas), ("unrecorded", unrecorded), ("waits", waits)];

/// A test by its name.
type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("fifty_planted_writers_are_each_explained", fifty_planted_writers_are_each_explained),
    ("objects_are_named_in_every_mode", objects_are_named_in_every_mode),
    ("arenas_are_called_by_their_names", arenas_are_called_by_their_names),
    ("what_was_not_recorded_is_unknown", what_was_not_recorded_is_unknown),
    ("who_attaches_is_told_the_same", who_attaches_is_told_the_same),
];

fn main() -> ExitCode {
    if let Some(name) = std::env::var_os(TARGET) {
        let target = TARGETS.iter().find(|(each, _)| name == *each);
        let truth = target.expect("a target of this name").1();
        fs::write(std::env::var_os(TRUTH).expect("a file"), truth.to_string()).expect("written");
        return ExitCode::SUCCESS;
    }
    let trial = |&(name, case): &Case| {
        Trial::test(name, move || {
            let done = std::panic::catch_unwind(case);
            done.map_err(|why| {
                why.downcast_ref::<String>().map_or("it panicked".into(), |why| Failed::from(why.clone()))
            })
        })
    };
    let mut arguments = Arguments::from_args();
    // A run of the tool takes a processor or two, and its targets are timed by nobody.
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, CASES.iter().map(trial).collect()).exit_code()
}

/// The truth of fifty writers, of which 45 copy a page each.
fn planted() -> Value {
    let (_generation, writers) = writers::plant();
    let writers::Writers(writers, freeing) = writers;
    let truth: Vec<Value> = writers
        .iter()
        .map(|writer| {
            let cause = serde_json::to_value(writer.cause).expect("a word");
            json!({ "cause": cause, "address": writer.address, "allocated": writer.allocated, "line": writer.line, "same": writer.is_same })
        })
        .collect();
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        writers.into_iter().for_each(|writer| (writer.write)());
        freeing.into_iter().for_each(|free| free());
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    json!({ "pid": exit.report.pid, "writers": truth })
}

/// An object in each of two arenas is written, and one of a frozen heap.
fn arenas() -> Value {
    let numbers = |from: u64| {
        (from..from + 3000).map(|n| Box::new(std::array::from_fn::<_, 10, _>(|_| Cell::new(n)))).collect::<Vec<_>>()
    };
    let all = black_box(numbers(0));
    let generation = Heap::freeze().expect("one thread");
    let (index, names) = (heap::arena("index", || numbers(1)), heap::arena("names", || numbers(2)));
    let (index, names) = (index.expect("one thread"), names.expect("one thread"));
    let addresses = [&all[1500], &index[700], &names[900]].map(|object| std::ptr::from_ref(&**object).addr());
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        [&all[1500], &index[700], &names[900]].iter().for_each(|object| object[3].set(77));
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    let images = generation.images().iter().chain(index.generation().images()).chain(names.generation().images());
    let images: Vec<Value> = images
        .map(|image| json!({ "name": image.name(), "generation": image.generation(), "start": image.range().start }))
        .collect();
    json!({ "pid": exit.report.pid, "addresses": addresses, "images": images })
}

/// An object is written of which nothing was recorded.
fn unrecorded() -> Value {
    let mut all: Vec<Box<[u64; 10]>> = (0..3000).map(|n| Box::new([n; 10])).collect();
    let large = vec![1u8; 300_000];
    let _generation = Heap::freeze().expect("one thread");
    let addresses = [std::ptr::from_ref(&*all[1500]).addr(), large.as_ptr().addr()];
    let mut child = fork::spawn(&ForkOptions::new(), |_| {
        all[1500][3] = 77;
        let mut large = large;
        large[200_000] = 2;
        std::mem::forget(large);
    })
    .expect("a child");
    let exit = child.wait().expect("its end");
    assert!(exit.success(), "{exit:?}");
    json!({ "pid": exit.report.pid, "addresses": addresses })
}

/// The same once somebody says so.
fn waits() -> Value {
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).expect("a line");
    unrecorded()
}

fn tool() -> OsString {
    std::env::var_os("COWBELL_TOOL").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowbell").into())
}

/// A file of this process that is gone when this is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("heap-{}-{name}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _absent = fs::remove_file(&self.0);
    }
}

/// The truth that a target says, what the run says, and what its capture says afterwards, as JSON and as text.
struct Told {
    truth: Value,
    report: Value,
    again: Value,
    text: String,
}

fn run(target: &str, options: &[&str]) -> Told {
    let name = options.join("").replace(['-', '/'], "");
    let [truth, report, capture] =
        ["truth", "report", "capture"].map(|what| Temporary::new(&format!("{target}-{name}-{what}")));
    let mut command = Command::new(tool());
    command.arg("run").args(options).args(["--json", "--force", "-o"]).arg(&report.0).arg("--capture").arg(&capture.0);
    command.arg("--").arg(std::env::current_exe().expect("a path"));
    let output = command.env(TARGET, target).env(TRUTH, &truth.0).output().expect("the tool starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = |options: &[&str]| {
        let output =
            Command::new(tool()).arg("report").arg(&capture.0).args(options).output().expect("the tool starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let json = |text: &[u8]| serde_json::from_slice(text).expect("JSON");
    Told {
        truth: json(&fs::read(&truth.0).expect("the truth")),
        report: json(&fs::read(&report.0).expect("the report")),
        again: json(&again(&["--json"])),
        text: String::from_utf8(again(&["-v"])).expect("text"),
    }
}

/// All pages that are told of a process, with their images. The parent gives up what it handed to the child, and copies pages, too.
fn pages<'a>(report: &'a Value, pid: &Value) -> Vec<(&'a Value, &'a Value)> {
    let objects = report["objects"].as_array().expect("objects");
    objects
        .iter()
        .filter(|image| image["pid"] == *pid)
        .flat_map(|image| image["pages"].as_array().expect("pages").iter().map(move |page| (image, page)))
        .collect()
}

/// The page that holds an address.
fn page_of<'a>(pages: &[(&'a Value, &'a Value)], address: u64) -> Option<&'a Value> {
    pages.iter().map(|(_, page)| *page).find(|page| page["address"].as_u64() == Some(address / 4096 * 4096))
}

fn holds(object: &Value, address: u64) -> bool {
    let start = object["start"].as_u64().expect("an address");
    (start..start + object["bytes"].as_u64().expect("bytes")).contains(&address)
}

fn is_line(told: &Value, line: &Value) -> bool {
    told.as_str().is_some_and(|told| told.ends_with(&format!("writers.rs:{line}")))
}

fn fifty_planted_writers_are_each_explained() {
    let told = run("planted", &["--mode", "trace", "--stacks", "1"]);
    assert_eq!(told.report["objects"], told.again["objects"], "the capture says the same");
    let pages = pages(&told.report, &told.truth["pid"]);
    let (mut wrong, mut whole) = (Vec::new(), 0);
    for writer in told.truth["writers"].as_array().expect("writers") {
        let address = writer["address"].as_u64().expect("an address");
        let Some(page) = page_of(&pages, address) else {
            wrong.push(format!("{writer}: its page is not told"));
            continue;
        };
        let object = &page["objects"][0];
        // A stack may not be read in time; then who called the code that wrote is unknown, and nothing else is said.
        let is_known = !page["writer"]["line"].is_null();
        let unknown = [Cause::Unknown, Cause::SameAgain].map(|cause| serde_json::to_value(cause).expect("a word"));
        whole += u32::from(is_known);
        let is_right = (page["cause"] == writer["cause"] || !is_known && unknown.contains(&page["cause"]))
            && holds(object, address)
            && is_line(&object["allocated_at"], &writer["allocated"])
            && (is_line(&page["writer"]["line"], &writer["line"]) || !is_known)
            && page["changed_bytes"]
                .as_u64()
                .is_some_and(|bytes| (bytes == 0) == writer["same"].as_bool().expect("a truth"));
        if !is_right {
            wrong.push(format!("{writer}:\n{page:#}"));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(pages.len(), 45, "those that free copied nothing");
    assert!(whole >= 40, "{whole} of 45 writers have a line");
    let texts = ["Objects of frozen heaps on copied pages, by the line", "writers.rs:", "reference count"];
    assert!(texts.iter().all(|text| told.text.contains(text)), "{}", told.text);
}

fn objects_are_named_in_every_mode() {
    for mode in ["count", "faults"] {
        let told = run("planted", &["--mode", mode]);
        assert_eq!(told.report["objects"], told.again["objects"], "the capture says the same");
        let pages = pages(&told.report, &told.truth["pid"]);
        assert_eq!(pages.len(), 45, "{mode}");
        for writer in told.truth["writers"].as_array().expect("writers") {
            let address = writer["address"].as_u64().expect("an address");
            let page = page_of(&pages, address).unwrap_or_else(|| panic!("{mode}, {writer}: its page is not told"));
            let is_same = page["changed_bytes"].as_u64().expect("compared") == 0;
            assert_eq!(Some(is_same), writer["same"].as_bool(), "{mode}, {writer}: {page:#}");
            let objects = page["objects"].as_array().expect("objects");
            // Nobody saw who wrote, and nothing differs.
            if mode == "count" && is_same {
                assert!(objects.is_empty(), "{page:#}");
                continue;
            }
            assert!(objects.iter().any(|object| holds(object, address)), "{mode}, {writer}: {page:#}");
            let of_it = objects.iter().find(|object| holds(object, address)).expect("the object");
            assert!(is_line(&of_it["allocated_at"], &writer["allocated"]), "{mode}, {writer}: {page:#}");
            let cause = serde_json::to_value(Cause::Unknown).expect("a word");
            assert!(mode == "faults" || page["cause"] == cause, "{page:#}");
        }
    }
}

fn arenas_are_called_by_their_names() {
    let told = run("arenas", &["--mode", "count"]);
    let pages = pages(&told.report, &told.truth["pid"]);
    assert_eq!(pages.len(), 3, "{}", told.report["objects"]);
    let addresses = told.truth["addresses"].as_array().expect("addresses").iter();
    for (address, image) in addresses.zip(told.truth["images"].as_array().expect("images")) {
        let address = address.as_u64().expect("an address");
        let (told, page) = pages.iter().find(|(told, _)| told["start"] == image["start"]).expect("the image");
        assert_eq!((&told["arena"], &told["generation"]), (&image["name"], &image["generation"]));
        let object = &page["objects"][0];
        assert_eq!((object["start"].as_u64(), object["bytes"].as_u64()), (Some(address), Some(80)), "{page:#}");
    }
}

fn what_was_not_recorded_is_unknown() {
    let told = run("unrecorded", &["--mode", "count"]);
    let pages = pages(&told.report, &told.truth["pid"]);
    let addresses = told.truth["addresses"].as_array().expect("addresses");
    let addresses: Vec<u64> = addresses.iter().filter_map(Value::as_u64).collect();
    let (small, large) = (page_of(&pages, addresses[0]), page_of(&pages, addresses[1] + 200_000));
    for (page, object) in [(small, (addresses[0], 80)), (large, (addresses[1], 300_000))] {
        let found = &page.expect("the page")["objects"][0];
        assert_eq!((found["start"].as_u64(), found["bytes"].as_u64()), (Some(object.0), Some(object.1)));
        assert!(found["allocated_at"].is_null() && found["allocated_in"].is_null(), "{found}");
    }
    assert!(told.text.contains("allocated at an unknown line"), "{}", told.text);
    assert!(pages.iter().all(|(image, _)| image["recorded_every"] == 0));
}

fn who_attaches_is_told_the_same() {
    let [truth, report] = ["truth", "report"].map(|what| Temporary::new(&format!("waits-{what}")));
    let mut target = Command::new(std::env::current_exe().expect("a path"));
    target.env(TARGET, "waits").env(TRUTH, &truth.0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut target = target.spawn().expect("the target starts");
    let mut said = BufReader::new(target.stdout.take().expect("a pipe"));
    said.read_line(&mut String::new()).expect("it is ready");
    let mut attach = Command::new(tool());
    attach.args(["attach", "--mode", "count", "--json", "--force", "-o"]).arg(&report.0).arg(target.id().to_string());
    let mut attach = attach.spawn().expect("the tool starts");
    let status = format!("/proc/{}/status", target.id());
    let is_traced = || fs::read_to_string(&status).is_ok_and(|text| !text.contains("TracerPid:\t0\n"));
    while !is_traced() {
        assert!(attach.try_wait().expect("it is a child").is_none(), "it ended and did not attach");
        std::thread::yield_now();
    }
    // From now on whatever it forks is watched.
    target.stdin.take().expect("a pipe").write_all(b"go\n").expect("it reads");
    assert!(target.wait().expect("its end").success() && attach.wait().expect("its end").success());
    let [truth, report] =
        [truth, report].map(|file| serde_json::from_slice::<Value>(&fs::read(&file.0).expect("a file")).expect("JSON"));
    let pages = pages(&report, &truth["pid"]);
    let address = truth["addresses"][0].as_u64().expect("an address");
    let page = page_of(&pages, address).unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!(page["objects"][0]["start"].as_u64(), Some(address), "{page:#}");
}
