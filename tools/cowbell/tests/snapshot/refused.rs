//! The processes that `cowbell snapshot` refuses, and in which words.

use super::place::{NOBODY, Place, Tree, text};
use std::process::Command;

/// Demands that the tool fails with a code, says `why` on standard error and nothing on standard output.
pub fn refused(place: &Place, arguments: &[&str], code: i32, why: &str) {
    let output = place.snapshot(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    assert!(err.contains(why), "{arguments:?}: {err:?} does not say {why:?}");
    assert_eq!(out, "", "{arguments:?}");
    assert!(code == 2 || err.lines().count() == 1, "{err}");
}

#[test]
fn bad_input_is_one_clear_line_and_an_exit_code() {
    for place in Place::with_users("input") {
        refused(&place, &[], 2, "<PID>");
        for bad in ["0", "many", "99999999999", "1.5"] {
            refused(&place, &[bad], 2, "invalid value");
        }
        refused(&place, &["1", "--top", "all"], 2, "invalid value");
        // Linux has no process ids above 4194304.
        refused(&place, &["4194305"], 1, "there is no process 4194305");
        let mut gone = Command::new("true").spawn().expect("true");
        let _status = gone.wait();
        refused(&place, &[&gone.id().to_string()], 1, "there is no process");
        let tree = Tree::start(&place, "(x)");
        refused(&place, &[&tree.pids[1].to_string()], 1, "it is ending or has ended: it has no memory to read");
        if std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
            refused(&place, &["2"], 1, "kernel has no memory of its own");
        } else {
            println!("skipped: there is no kernel thread to see");
        }
    }
}

#[test]
fn another_users_process_is_refused_with_what_would_help() {
    let places = Place::with_users("denied");
    let last = places.last().expect("a place");
    if last.user.is_empty() && cowbell::sys::limits::user().may_trace {
        println!("skipped: no ordinary user to try it as");
        return;
    }
    // Root's, if this is root; else the first process, if that is another user's.
    let mine = Command::new("sleep").arg("600").spawn();
    let mut mine = mine.expect("sleep");
    let foreign = if last.user.is_empty() { 1 } else { mine.id() as i32 };
    refused(last, &[&foreign.to_string()], 1, "run cowbell as that user or as root (CAP_SYS_PTRACE)");
    mine.kill().expect("sleep ends");
    let _status = mine.wait();
}

#[test]
fn a_process_that_is_closed_to_its_own_user_is_refused_without_the_advice_to_be_that_user() {
    let places = Place::with_users("closed");
    let Some(nobody) = places.iter().find(|place| !place.user.is_empty()) else {
        println!("skipped: it takes root to start processes of two users");
        return;
    };
    const DAEMON: &[&str] = &["setpriv", "--reuid=daemon", "--regid=nogroup", "--clear-groups"];
    const OTHER_GROUP: &[&str] = &["setpriv", "--reuid=nobody", "--regid=daemon", "--clear-groups"];
    for (user, script, says) in [
        (DAEMON, " ", "run cowbell as that user or as root (CAP_SYS_PTRACE)"),
        (DAEMON, "D", "it is closed to its own user (not dumpable); run cowbell as root (CAP_SYS_PTRACE)"),
        (OTHER_GROUP, " ", "or with another real or saved user, group, capabilities or user namespace)"),
    ] {
        let tree = Tree::start_as(nobody, user, script);
        refused(nobody, &[&tree.pids[0].to_string()], 1, says);
    }
}

#[test]
fn a_process_that_proc_hides_is_not_said_to_be_missing() {
    let places = Place::with_users("hidden");
    let Some(nobody) = places.iter().find(|place| !place.user.is_empty()) else {
        println!("skipped: it takes root to mount /proc anew");
        return;
    };
    let tool = nobody.tool();
    let mut hidden = Command::new("sleep").arg("600").spawn().expect("sleep");
    let as_nobody = NOBODY.join(" ");
    let says = format!("/proc does not show process {}, though it is there: see hidepid in proc(5)", hidden.id());
    let outputs = [("snapshot", 1), ("attach", 125)].map(|(command, code)| {
        let script = format!(
            "mount -t proc -o hidepid=2 proc /proc || exit 99; exec {as_nobody} {} {command} {}",
            tool.display(),
            hidden.id()
        );
        (Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().expect("unshare"), code)
    });
    hidden.kill().expect("sleep ends");
    let _status = hidden.wait();
    for (output, code) in outputs {
        let err = text(&output.stderr);
        if output.status.code() == Some(99) {
            println!("skipped: /proc cannot be mounted here: {err}");
            return;
        }
        assert!(output.status.code() == Some(code) && err.contains(&says), "{err}");
    }
}
