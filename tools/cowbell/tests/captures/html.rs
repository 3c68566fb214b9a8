//! `--html`: one page that loads nothing, can be sorted, searched and zoomed, and in which nothing foreign is markup.

use crate::browser::{self, has_browser};
use crate::kit::{self, Child, Scratch, capture, child, ran, shown};
use serde_json::{Value, json};

/// Opens a page in the browser, waits until its pictures are there, and returns what `probe`, a script of the test's own, says then.
fn opened(scratch: &Scratch, page: &str, probe: &str) -> Value {
    browser::answer(scratch, &format!("file://{}", probed(scratch, page, probe)), &[])
}

/// The page with a probe in it.
fn probed(scratch: &Scratch, page: &str, probe: &str) -> String {
    let html = std::fs::read_to_string(page).expect("a page");
    let probe = browser::probe("document.documentElement.dataset.ready", probe) + "</body>";
    scratch.file("probed.html", html.replace("</body>", &probe))
}

/// The page of a capture.
fn page(scratch: &Scratch, capture: &str) -> String {
    let (file, page) = (scratch.file("c", capture), scratch.path("page.html"));
    shown(&["report", "-q", "--html", &page, "--force", &file]);
    page
}

#[test]
fn a_page_has_verdict_processes_lines_flame_graph_map_and_gaps_and_loads_nothing() {
    let scratch = Scratch::new();
    let gap = json!({"gap": {"time_ns": 1, "pid": 101, "what": "no_stacks", "detail": "because"}});
    let children = [Child { identical: 200, ..child(101, 256) }, child(102, 512)];
    let html = std::fs::read_to_string(page(&scratch, &kit::with_records(&children, &[gap]))).expect("a page");
    for part in [
        "<h1 class=\"verdict\">",
        "2.0 MiB",
        "id=\"processes\"",
        "python3 /srv/job.py",
        "id=\"lines\"",
        "/srv/job.py:14",
        "for x in data:",
        "id=\"flame\"",
        "listiter_next",
        "id=\"map\"",
        "stacks could not be taken: because",
        "prefers-color-scheme: dark",
        "@media print",
        "default-src 'none'",
    ] {
        assert!(html.contains(part), "no {part} in\n{html}");
    }
    for loads in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!html.contains(loads), "{loads}");
    }
}

#[test]
fn a_browser_sorts_searches_zooms_and_reads_by_keyboard() {
    if !has_browser() {
        return;
    }
    let scratch = Scratch::new();
    let many: Vec<Child> = (0..20).map(|nth| child(101 + nth, 100 + 10 * ((7 * nth as u64) % 20))).collect();
    let page = page(&scratch, &capture(&many));
    let said = opened(
        &scratch,
        &page,
        "const table = document.querySelector('#processes').parentElement.querySelector('table');
         const pids = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => Number(row.cells[0].textContent));
         const heads = [...table.tHead.rows[0].cells];
         heads[0].querySelector('button').click();
         const down = pids(), sort = heads[0].getAttribute('aria-sort');
         heads[0].querySelector('button').click();
         const up = pids();
         const search = document.querySelector('#processes').parentElement.querySelector('input');
         search.value = '105'; search.dispatchEvent(new Event('input'));
         const found = pids();
         const flame = document.querySelector('.flame');
         const frames = () => [...flame.querySelectorAll('button')];
         const before = frames().length;
         const names = frames().map((frame) => frame.getAttribute('aria-label'));
         const find = document.querySelector('#flame input');
         find.value = 'job.py:14'; find.dispatchEvent(new Event('input'));
         const marked = flame.querySelectorAll('.yes').length, says = document.querySelector('#flame output').textContent;
         const stops = frames().filter((frame) => frame.tabIndex === 0).length;
         const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true }));
         frames()[0].focus(); key('ArrowDown');
         const focused = document.activeElement.textContent;
         document.activeElement.click();
         const zoomed = frames().filter((frame) => !frame.classList.contains('above'))[0].style.width;
         const canvas = document.querySelector('#map canvas');
         canvas.focus(); key('ArrowRight');
         const map = document.querySelector('#map output').textContent;
         const context = canvas.getContext('2d');
         const painted = [...context.getImageData(0, 0, canvas.width, canvas.height).data].some((value) => value > 0);
         return { down, up, sort, found, before, names, marked, says, stops, focused, zoomed, map, painted,
             wide: document.documentElement.scrollWidth <= innerWidth };",
    );
    let numbers = |value: &Value| value.as_array().map(|all| all.iter().filter_map(Value::as_i64).collect::<Vec<_>>());
    let expected: Vec<i64> = (101..121).collect();
    assert_eq!(numbers(&said["up"]), Some(expected.clone()), "{said}");
    assert_eq!(numbers(&said["down"]), Some(expected.into_iter().rev().collect()));
    assert_eq!((&said["sort"], numbers(&said["found"])), (&"descending".into(), Some(vec![105])));
    assert_eq!(
        (&said["stops"], &said["zoomed"], &said["painted"], &said["wide"]),
        (&1.into(), &"100%".into(), &true.into(), &true.into())
    );
    assert!(said["names"].to_string().contains("read (job.py:14): ") && said["marked"] == 1, "{said}");
    assert!(said["says"].as_str().is_some_and(|says| says.contains("100.0 %")), "{said}");
    assert!(
        said["map"].as_str().is_some_and(|map| map.contains("pages from 0x") && map.contains("copied, mostly")),
        "{said}"
    );
    assert!(said["focused"].as_str().is_some_and(|name| !name.is_empty()), "{said}");
}

/// Names that would break out of whatever they are put into.
fn hostile() -> Child {
    Child {
        script: "</script><script>document.documentElement.dataset.evil=1</script><img src=x onerror=alert(1)>\u{202e}\u{1b}]0;x\u{7}\"'`;,\n".into(),
        source: "<!--<script>".repeat(1 << 16),
        function: "</textarea></style></title>&lt;${7*7}\u{2028}\u{0}=cmd|' /C calc'!A0".into(),
        ..child(101, 100)
    }
}

#[test]
fn hostile_names_are_text_in_a_page_and_in_a_browser() {
    let scratch = Scratch::new();
    let page = page(&scratch, &capture(&[hostile()]));
    let html = std::fs::read_to_string(&page).expect("a page");
    assert_eq!((html.matches("<script").count(), html.matches("</script").count()), (2, 2));
    assert!(!html.contains("<img") && !html.contains("<!--") && !html.contains('\u{202e}') && !html.contains('\u{1b}'));
    assert!(html.len() < 400_000, "a line of a megabyte is told by its beginning: {}", html.len());
    if !has_browser() {
        return;
    }
    let said = opened(
        &scratch,
        &page,
        "return { evil: document.documentElement.dataset.evil || null, images: document.images.length, scripts: document.scripts.length,
            text: document.body.innerText.includes('<' + '/script>'), flame: document.querySelectorAll('.flame button').length > 2 };",
    );
    assert_eq!(said, json!({"evil": null, "images": 0, "scripts": 3, "text": true, "flame": true}));
}

#[test]
fn two_hundred_thousand_pages_and_a_thousand_processes_are_painted_soon() {
    let scratch = Scratch::new();
    // Each other page is of another cause, so that no two pages are one run.
    let many: Vec<Child> = (0..1000).map(|nth| Child { traced: false, ..child(101 + nth, 200) }).collect();
    let mixed = capture(&many).replace("2000,300,0,true", "2000,300,0,false");
    let lines: Vec<String> = mixed.lines().map(alternate).collect();
    let page = page(&scratch, &(lines.join("\n") + "\n"));
    let size = std::fs::metadata(&page).expect("a page").len();
    assert!(size < 6 << 20, "{size} bytes");
    if !has_browser() {
        return;
    }
    let said = opened(
        &scratch,
        &page,
        "const table = document.querySelector('#processes').parentElement.querySelector('table');
         const time = (work) => { const from = performance.now(); work(); document.body.getBoundingClientRect(); return performance.now() - from; };
         const paint = performance.getEntriesByName('first-contentful-paint')[0];
         const loop = () => time(() => { let sum = 0; for (let i = 0; i < 2e7; i += 1) sum += i % 7; window.sum = sum; });
         return { loop: Math.min(loop(), loop(), loop()), rows: table.tBodies[0].rows.length, ready: Number(document.documentElement.dataset.ready),
             paint: paint ? paint.startTime : null,
             sort: time(() => table.tHead.rows[0].cells[1].querySelector('button').click()),
             search: time(() => { const find = document.querySelector('#processes').parentElement.querySelector('input'); find.value = '77';
                 find.dispatchEvent(new Event('input')); }) };",
    );
    println!("{size} bytes: {said}");
    assert_eq!(said["rows"], 1000);
    // A busy machine is slower by as much as a loop of known length is: on a quiet one it takes 25 ms here.
    let slower = said["loop"].as_f64().map_or(1.0, |ms| (ms / 25.0).max(1.0)) * 2.0;
    let within = |name: &str, most_ms: f64| said[name].as_f64().is_some_and(|ms| ms < most_ms * slower);
    assert!(within("ready", 2000.0), "{said}");
    assert!(within("sort", 200.0) && within("search", 200.0), "{said}");
}

/// Makes every other copy of an interval the same as its original.
fn alternate(line: &str) -> String {
    let mut record: Value = serde_json::from_str(line).expect("a record");
    if let Some(contents) = record.pointer_mut("/end/contents").and_then(Value::as_array_mut) {
        for content in contents.iter_mut().step_by(2) {
            (content[1], content[2]) = (0.into(), 0.into());
        }
    }
    record.to_string()
}

#[test]
fn a_page_is_as_narrow_as_a_telephone_and_as_dark_as_its_reader_wants() {
    if !has_browser() {
        return;
    }
    let scratch = Scratch::new();
    let gap = json!({"gap": {"time_ns": 1, "pid": 101, "what": "no_stacks", "detail": "because"}});
    let long = format!("/srv/{}/job.py", "a-folder-with-a-long-name".repeat(8));
    let children = [Child { identical: 200, ..child(101, 256) }, Child { script: long, ..child(102, 512) }];
    let page = page(&scratch, &kit::with_records(&children, &[gap]));
    let probe = "const light = (color) => { const [r, g, b] = color.match(/[0-9.]+/g).map(Number); return r + g + b; };
         const style = getComputedStyle(document.body), root = document.documentElement;
         const out = [...document.querySelectorAll('main, main > *, section > *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1);
         return { width: innerWidth, scrolls: root.scrollWidth > innerWidth, out: out.map((one) => one.outerHTML.slice(0, 80)),
             told: document.querySelector('pre.brief').scrollWidth <= document.querySelector('pre.brief').clientWidth,
             names: Math.min(...[...document.querySelector('#lines').parentElement.querySelectorAll('td:not(.f)')].map((cell) => cell.clientWidth)) > 100,
             flame: document.querySelector('.flame').getBoundingClientRect().width > 200, dark: light(style.backgroundColor) < light(style.color) };";
    let probed = probed(&scratch, &page, probe);
    // A window is wider than a telephone, a frame in it is not.
    let frame =
        format!("<!doctype html><iframe src=\"file://{probed}\" style=\"width: 360px; height: 740px\" frameborder=0>");
    let narrow = scratch.file("narrow.html", frame);
    for (scheme, dark) in [("0", true), ("1", false)] {
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        let said = browser::answer(&scratch, &format!("file://{narrow}"), &[&scheme]);
        assert_eq!(
            said,
            json!({"width": 360, "scrolls": false, "out": [], "told": true, "names": true, "flame": true, "dark": dark})
        );
    }
}

#[test]
fn diff_and_snapshot_have_pages_too() {
    let scratch = Scratch::new();
    let [before, after] =
        [("b", 1000), ("a", 100)].map(|(name, copied)| scratch.file(name, capture(&[child(101, copied)])));
    let page = scratch.path("diff.html");
    shown(&["diff", "-q", "--html", &page, &before, &after]);
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(
        html.contains("DIFFERENT: child of") && html.contains("noise is unknown") && html.contains("id=\"roles\""),
        "{html}"
    );
    let page = scratch.path("snapshot.html");
    let own = std::process::id().to_string();
    shown(&["snapshot", "-q", "--html", &page, &own]);
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.contains("id=\"processes\"") && html.contains(&own), "{html}");
    assert!(html.contains("Own: differs") && html.contains("Own: either"), "{html}");
    // A page that is there stays, unless it is to be replaced.
    let (code, _, err) = ran(&["diff", "--html", &page, &before, &after]);
    assert!(code == Some(1) && err.contains("--force"), "{err}");
}

#[test]
fn a_page_shows_memory_over_time_and_comes_with_an_export_too() {
    let scratch = Scratch::new();
    let grew = json!({"grew": {"pid": 101, "time_ns": 400_000, "pages": 512, "stack": null}});
    let file = scratch.file("c", kit::with_records(&[child(101, 256), child(102, 512)], &[grew]));
    let page = scratch.path("page.html");
    let folded = shown(&["report", "--folded", "--html", &page, &file]);
    assert!(folded.starts_with("101 "), "{folded}");
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.contains("id=\"time\"") && html.contains("id=\"processes\""), "the export left the page empty");
    if !has_browser() {
        return;
    }
    let said = opened(
        &scratch,
        &page,
        "const place = document.querySelector('#time'), chart = place.querySelector('svg'), says = place.querySelector('output');
         const key = (name) => { chart.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true, cancelable: true })); return says.textContent; };
         const choice = place.querySelector('select');
         choice.value = '0'; choice.dispatchEvent(new Event('change'));
         const first = key('Home'), last = key('End');
         choice.value = ''; choice.dispatchEvent(new Event('change'));
         return { options: choice.options.length, first, last, all: key('End'),
             drawn: [...chart.querySelectorAll('path')].every((path) => path.getAttribute('d').length > 10) };",
    );
    assert_eq!((&said["options"], &said["drawn"]), (&3.into(), &true.into()), "{said}");
    let says = |name: &str, part: &str| said[name].as_str().is_some_and(|text| text.contains(part));
    assert!(says("first", "shared 4.0 GiB, copied 0 bytes, new 0 bytes"), "{said}");
    assert!(says("last", "copied 1.0 MiB, new 2.0 MiB"), "{said}");
    assert!(says("all", "copied 3.0 MiB, new 2.0 MiB"), "{said}");
}

/// Takes away what an interval's copies were compared with.
fn without_contents(line: &str, interval: u64) -> String {
    let mut record: Value = serde_json::from_str(line).expect("a record");
    if record.pointer("/end/interval").and_then(Value::as_u64) == Some(interval) {
        record["end"]["contents"] = json!([]);
    }
    record.to_string()
}

#[test]
fn each_cause_of_a_picture_has_a_colour_of_its_own() {
    let scratch = Scratch::new();
    // On one child's pages only counts changed; of the other's copies neither the code nor the contents are known.
    let both = capture(&[child(101, 200), Child { traced: false, ..child(102, 200) }]);
    let both = both.replace("2000,300,0,true", "16,2,2,true");
    let lines: Vec<String> = both.lines().map(|line| without_contents(line, 2) + "\n").collect();
    let page = page(&scratch, &lines.concat());
    let html = std::fs::read_to_string(&page).expect("a page");
    let data = html.split("id=\"data\">").nth(1).and_then(|rest| rest.split("</script>").next()).expect("data");
    let data: Value = serde_json::from_str(data).expect("JSON");
    let causes = &data["map"]["causes"];
    assert_eq!(causes["names"], json!(["reference counts", "unknown"]), "{causes}");
    assert!(causes["colors"][0] != causes["colors"][1], "{causes}");
    if !has_browser() {
        return;
    }
    let said = opened(
        &scratch,
        &page,
        "return [...document.querySelectorAll('#map .legend li')].map((item) => [item.textContent, item.firstChild.style.background]);",
    );
    assert_eq!((&said[0][0], &said[1][0]), (&"reference counts".into(), &"unknown".into()), "{said}");
    assert!(said[0][1] != said[1][1], "{said}");
}
