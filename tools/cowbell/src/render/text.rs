//! The report as text: how much, which mappings, which code, how much of it pointless and why, what was not seen.

use super::Look;
use super::lines::{Text, WIDTH, clean, count, head, pages_and_share, percent, some, tail, time};
use crate::capture::record::{Blindness, Closed, Mode, Role};
use crate::profile::summary::{Account, ByClass, Function, Mapping, PythonLine, Summary};
use crate::profile::{Cause, Kind};
use cowbell::page::Bytes;

/// Below this share of the copies a cause is named without its remedy.
const REMEDY_SHARE_MIN: f64 = 0.03;
/// Columns of the lists, after pages and share.
const COLUMNS: usize = WIDTH - 21;

/// The report, with colours.
pub fn text(summary: &Summary, look: &Look) -> String {
    let mut text = Text::default();
    if let Some(cut) = &summary.cut {
        text.loud(&format!("This capture was cut off: {}. What it holds:", clean(cut)));
    }
    headline(&mut text, summary);
    if !look.quiet && summary.totals.accounts > 0 {
        accounts(&mut text, summary, look);
        mappings(&mut text, summary, look);
        functions(&mut text, summary, look);
        python(&mut text, summary, look);
        syscalls(&mut text, summary, look);
        contents(&mut text, summary);
        causes(&mut text, summary);
    }
    if !look.quiet {
        blind(&mut text, summary, look);
        overhead(&mut text, summary);
    }
    text.finish()
}

/// How much was copied, all told.
fn headline(text: &mut Text, summary: &Summary) {
    let totals = &summary.totals;
    let (children, parents) = (role_count(summary, Role::Child), role_count(summary, Role::Parent));
    let command = head(&summary.run.command.join(" "), 60);
    let command = command.trim_end();
    if totals.accounts == 0 {
        let why = if summary.processes.len() > 1 { "no process was watched" } else { "nothing forked" };
        text.loud(&format!("Nothing was copied under {command}: {why}."));
    } else {
        let mut who = Vec::new();
        if children > 0 {
            who.push(some(children, "child", "children"));
        }
        if parents > 0 {
            who.push(some(parents, "parent, while it shared,", "parents, while they shared,"));
        }
        let attached = role_count(summary, Role::Attached);
        if attached > 0 {
            who.push(some(attached, "process", "processes"));
        }
        let most = if totals.pages.copy_or_reuse > 0 { "At most " } else { "" };
        let pages = some(totals.copied_pages, "page", "pages");
        let bytes = Bytes(totals.copied_bytes);
        text.loud(&format!("{most}{pages} ({bytes}) copied by {} of {command}", who.join(" and ")));
        besides(text, &totals.pages);
    }
    let run = &summary.run;
    let mode = match run.mode {
        Mode::Count => "count (which pages)",
        Mode::Trace => "trace (which pages, when, which code)",
    };
    let reason = if run.mode_reason.is_empty() { String::new() } else { format!(": {}", clean(&run.mode_reason)) };
    let ended = run.ended.map_or(String::new(), |ended| format!(", {ended}"));
    text.faint_sentence(0, &format!("watched for {}{ended}; mode {mode}{reason}", time(run.duration_ns)));
}

/// Written pages that are no copies, and what the copies were of.
fn besides(text: &mut Text, pages: &ByClass) {
    let mut parts = Vec::new();
    if pages.private_file > 0 {
        parts.push(format!("{} of the copies are of file pages", count(pages.private_file)));
    }
    let others =
        [(pages.reuse, "reused"), (pages.first_touch, "first touched"), (pages.zero_page, "from the zero page")];
    let others: Vec<_> =
        others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", count(*n))).collect();
    if !others.is_empty() {
        parts.push(format!("written without a copy: {}", others.join(", ")));
    }
    if !parts.is_empty() {
        text.faint(&parts.join("; "));
    }
}

fn role_count(summary: &Summary, role: Role) -> u64 {
    // A parent is one parent, however often it forked.
    let mut pids: Vec<_> = summary.accounts.iter().filter(|a| a.role == role).map(|a| (a.process, a.pid)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.len() as u64
}

/// A line per account.
fn accounts(text: &mut Text, summary: &Summary, look: &Look) {
    let mut sorted: Vec<&Account> = summary.accounts.iter().collect();
    sorted.sort_by_key(|account| std::cmp::Reverse(account.copied_pages));
    let times = sorted.iter().any(|account| account.when.is_some());
    text.heading("Copied pages by process");
    let when = if times { format!("{:>8} {:>8} {:>8}", "first", "half", "last") } else { String::new() };
    text.faint(&format!("{:>11} {:>10} {:>9}  {:>7} {:<8} {when}", "copied", "", "of shared", "pid", "role"));
    let all = summary.totals.copied_pages.max(1) as f64;
    let share = |account: &&Account| account.copied_pages as f64 / all;
    text.list(&sorted, look.top, share, |text, account| {
        text.line(&account_line(summary, account, times));
        if look.verbose {
            account_details(text, summary, account);
        }
    });
}

fn account_line(summary: &Summary, account: &Account, times: bool) -> String {
    let of_shared = match account.held.shared {
        0 => String::new(),
        shared => percent((account.pages.copy.saturating_add(account.pages.copy_or_reuse)) as f64 / shared as f64),
    };
    let role = match account.role {
        Role::Child => "child",
        Role::Parent => "parent",
        Role::Attached => "attached",
    };
    let when = match account.when {
        Some(when) => format!("{:>8} {:>8} {:>8}  ", time(when.first_ns), time(when.half_ns), time(when.last_ns)),
        None if times => format!("{:28}", ""),
        None => String::new(),
    };
    let process = account.process.and_then(|process| summary.processes.get(process));
    let end = match (account.closed, process.and_then(|process| process.ended)) {
        (None, _) => "cut off".to_owned(),
        (Some(Closed::Exec), _) => {
            let program = process.and_then(|process| process.executed.first()?.first());
            program.map_or("executed another program".to_owned(), |program| format!("then ran {}", clean(program)))
        }
        (Some(Closed::Unshared), _) => "shares no more".to_owned(),
        (Some(Closed::Forked), _) => "forked again".to_owned(),
        (Some(Closed::Detached), _) => "let go".to_owned(),
        (Some(Closed::Lost), None) => "lost".to_owned(),
        (Some(Closed::Exit), None) => "ended".to_owned(),
        (Some(_), Some(ended)) => ended.to_string(),
    };
    let (copied, bytes) = (count(account.copied_pages), Bytes(account.copied_bytes).to_string());
    let line = format!("{copied:>11} {bytes:>10} {of_shared:>9}  {:>7} {role:<8} {when}{end}", account.pid);
    head(&line, WIDTH).trim_end().to_owned()
}

/// An account's own mappings and causes, for those who want to know more.
fn account_details(text: &mut Text, summary: &Summary, account: &Account) {
    if let Some(process) = account.process.and_then(|process| summary.processes.get(process)) {
        let command = clean(&process.executed.last().unwrap_or(&process.command).join(" "));
        let parent = if process.parent > 0 { format!(", forked by {}", process.parent) } else { String::new() };
        text.faint(&format!("{:>34}{command}{parent}", ""));
    }
    for mapping in account.mappings.iter().take(3).filter(|mapping| mapping.copied_pages > 0) {
        text.faint(&format!("{:>34}{} in {}", "", some(mapping.copied_pages, "page", "pages"), mapping_name(mapping)));
    }
    for cause in account.causes.iter().take(3) {
        text.faint(&format!("{:>34}{}: likely {}", "", some(cause.copied_pages, "page", "pages"), cause.name));
    }
}

fn mappings(text: &mut Text, summary: &Summary, look: &Look) {
    let copied: Vec<&Mapping> = summary.mappings.iter().filter(|mapping| mapping.copied_pages > 0).collect();
    if copied.is_empty() {
        return;
    }
    text.heading("Copied pages by mapping, with their share of all copies");
    text.list(
        &copied,
        look.top,
        |mapping| mapping.share,
        |text, mapping| {
            let name = mapping_name(mapping);
            let name = if look.verbose { name } else { tail(&name, COLUMNS).trim_end().to_owned() };
            text.line(&format!("{}  {name}", pages_and_share(mapping.copied_pages, mapping.share)));
        },
    );
}

fn mapping_name(mapping: &Mapping) -> String {
    let (name, bytes) = (clean(&mapping.name), Bytes(mapping.bytes));
    match mapping.kind {
        Kind::Heap => format!("heap, {bytes}"),
        Kind::Stack => {
            if name == "[stack]" {
                "stack".to_owned()
            } else {
                name
            }
        }
        Kind::Anonymous => format!("anonymous memory, {bytes} at {:#x}", mapping.start.unwrap_or_default()),
        Kind::NamedAnonymous => format!("{name}, {bytes}"),
        Kind::Bss => format!("uninitialised data of {name}"),
        Kind::File => name,
        Kind::Memfd => format!("{name}, {bytes}"),
        Kind::Unknown => "mappings that came after the fork and went".to_owned(),
    }
}

fn functions(text: &mut Text, summary: &Summary, look: &Look) {
    if summary.functions.is_empty() {
        return;
    }
    text.heading("Copied pages by the code that first wrote to them");
    text.list(
        &summary.functions,
        look.top,
        |function| function.share,
        |text, function| {
            let (name, place) = (function_name(function), function_place(function));
            let columns = if look.verbose {
                format!("{name}  {place}")
            } else {
                format!("{} {}", head(&name, 44), tail(&place, COLUMNS - 45))
            };
            text.line(&format!("{}  {columns}", pages_and_share(function.copied_pages, function.share)));
        },
    );
}

fn function_name(function: &Function) -> String {
    let name = clean(&function.function);
    match (&function.inlined, &function.called_from) {
        (Some(inlined), _) => format!("{name} ({})", clean(inlined)),
        (None, Some(caller)) => format!("{name} < {}", clean(caller)),
        (None, None) => name,
    }
}

fn function_place(function: &Function) -> String {
    match function.lines.first() {
        Some(line) => {
            let more = function.lines.len() - 1;
            let more = if more > 0 { format!(" +{}", some(more as u64, "line", "lines")) } else { String::new() };
            format!("{}:{}{more}", clean(&line.file), line.line)
        }
        None => clean(function.module.rsplit('/').next().unwrap_or_default()),
    }
}

fn python(text: &mut Text, summary: &Summary, look: &Look) {
    let python = &summary.python;
    if python.lines.is_empty() {
        return;
    }
    let samples = some(python.samples, "sampled stack", "sampled stacks");
    text.heading(&format!("Copied pages by Python line, estimated from {samples}"));
    text.list(
        &python.lines,
        look.top,
        |line| line.share,
        |text, line| {
            let source = clean(line.source.as_deref().unwrap_or_default());
            let source = if source.is_empty() { format!("in {}", clean(&line.function)) } else { source };
            let place = python_place(line);
            let cause = if line.cause == Cause::Unknown { "" } else { line.cause.name() };
            let columns = if look.verbose {
                format!("{place}  {source}  {cause}")
            } else {
                format!("{} {} {cause}", tail(&place, 33), head(&source, 26))
            };
            text.line(&format!("{}  {columns}", pages_and_share(line.copied_pages_estimated, line.share)));
        },
    );
}

fn python_place(line: &PythonLine) -> String {
    let place = |file: &str, number: i32| match number {
        1.. => format!("{file}:{number}"),
        _ => file.to_owned(),
    };
    match &line.called_from {
        // The user's own line first; what of the library it called is shown by name.
        Some(own) => format!("{} > {}", place(&own.file, own.line), line.function),
        None => place(&line.file, line.line),
    }
}

fn syscalls(text: &mut Text, summary: &Summary, look: &Look) {
    if summary.syscalls.is_empty() {
        return;
    }
    text.heading("Copied pages by system call, where the kernel wrote first");
    text.list(
        &summary.syscalls,
        look.top,
        |syscall| syscall.share,
        |text, syscall| {
            let name = syscall.name.map_or(format!("number {}", syscall.number), str::to_owned);
            text.line(&format!("{}  {name}", pages_and_share(syscall.copied_pages, syscall.share)));
        },
    );
}

/// How much of the copying was pointless.
fn contents(text: &mut Text, summary: &Summary) {
    let contents = &summary.contents;
    if contents.compared_pages == 0 {
        return;
    }
    text.heading("How much of it was pointless");
    let compared = contents.compared_pages;
    if compared < summary.totals.copied_pages {
        let of = count(summary.totals.copied_pages);
        text.faint(&format!("{:>21}{} of {of} copies were compared with their originals", "", count(compared)));
    }
    let mut row = |pages: u64, what: &str| {
        if pages > 0 {
            text.line(&format!("{}  {what}", pages_and_share(pages, pages as f64 / compared as f64)));
        }
    };
    row(contents.identical_pages, "the same as the original again: copied for nothing");
    row(contents.counter_pages, "changed only in what looks like counters");
    let other = compared.saturating_sub(contents.identical_pages.saturating_add(contents.counter_pages));
    row(other, "changed otherwise");
    if let Some(amplification) = contents.amplification {
        let changed = some(contents.changed_bytes, "byte", "bytes");
        text.line(&format!("{:>21}{changed} changed in all: {} copied for each", "", Bytes(amplification as u64)));
    }
}

fn causes(text: &mut Text, summary: &Summary) {
    if summary.causes.is_empty() {
        return;
    }
    text.heading("Likely causes, and what is known to help");
    text.list(
        &summary.causes,
        usize::MAX,
        |cause| cause.share,
        |text, cause| {
            let blind = cause.without_code_pages > 0 && cause.cause != Cause::Unknown;
            let how = match (cause.cause, blind, cause.without_code_pages == cause.copied_pages) {
                (Cause::Unknown, ..) if summary.run.mode == Mode::Count => " (--mode trace shows the code)",
                (_, true, true) => " (by their contents alone: the code was not seen)",
                (_, true, false) => " (some by their contents alone)",
                _ => "",
            };
            text.line(&format!("{}  {}{how}", pages_and_share(cause.copied_pages, cause.share), cause.name));
            if let Some(remedy) = cause.remedy.filter(|_| cause.share >= REMEDY_SHARE_MIN) {
                text.faint_sentence(23, remedy);
            }
        },
    );
}

fn blind(text: &mut Text, summary: &Summary, look: &Look) {
    if summary.blind.is_empty() {
        return;
    }
    text.heading("What could not be seen");
    for blind in summary.blind.iter().take(look.top) {
        let processes = some(blind.times, "process", "processes");
        let what = match blind.what {
            Blindness::TooManyChildren => format!("{processes} beyond --max-children ran unwatched"),
            Blindness::SharesMemory => {
                format!("{processes} shared memory with the parent (vfork, posix_spawn): there is nothing to copy")
            }
            Blindness::NotArmed => "the kernel would not watch everything".to_owned(),
            Blindness::EventsDropped => {
                "events came too fast to be kept: their pages are counted, not explained".into()
            }
            Blindness::Executed => {
                format!("{processes} executed another program: what they copied before is not counted")
            }
            Blindness::StillRunning => format!("{processes} still ran when the watch ended"),
            Blindness::NoStacks => "stacks could not be taken".to_owned(),
            Blindness::Other => String::new(),
        };
        let details = blind.details.iter().take(if look.verbose { usize::MAX } else { 2 }).map(|detail| clean(detail));
        let parts: Vec<String> = Some(what).into_iter().filter(|what| !what.is_empty()).chain(details).collect();
        let more =
            if parts.len() <= blind.details.len() && !look.verbose && blind.details.len() > 2 { "; …" } else { "" };
        let pids = match blind.pids.as_slice() {
            [] => String::new(),
            [pid] => format!(" (process {pid})"),
            pids => {
                let shown: Vec<_> = pids.iter().take(5).map(i32::to_string).collect();
                format!(" (processes {}{})", shown.join(", "), if pids.len() > 5 { ", …" } else { "" })
            }
        };
        text.faint_sentence(2, &format!("{}{more}{pids}", parts.join(": ")));
    }
    if let Some(rest) = summary.blind.len().checked_sub(look.top).filter(|rest| *rest > 0) {
        text.faint(&format!("  and {rest} more kinds"));
    }
}

fn overhead(text: &mut Text, summary: &Summary) {
    let overhead = &summary.overhead;
    let parts = [
        (overhead.arming_ns, "to arm"),
        (overhead.events_ns, "to answer page events"),
        (overhead.stacks_ns, "for sampled stacks"),
    ];
    let mut parts: Vec<String> =
        parts.iter().filter(|(ns, _)| *ns > 0).map(|(ns, what)| format!("{} {what}", time(*ns))).collect();
    if overhead.stops > 0 {
        parts.push(some(overhead.stops, "stop of a thread", "stops of threads"));
    }
    if !parts.is_empty() {
        text.heading("What looking cost");
        let sum = percent(overhead.share);
        text.faint_sentence(2, &format!("{sum} of the time watched: {}", parts.join(", ")));
    }
}
