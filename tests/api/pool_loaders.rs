//! Loaders, and the workers over what they have built: signals, copies, and when the memory is free.

use crate::case::{Outcome, passed};
use crate::look::anonymous_pages;
use crate::pool_kit::{Gate, Words, data_mappings, descendants, is_freed, multiples};
use cowbell::arena::Frozen;
use cowbell::pool::{Pool, Shutdown, WorkerContext};
use cowbell::sys::{page_size, pidfd, process};
use libtest_mimic::Trial;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn programs_of_a_loader_ignore_what_those_of_the_program_do() -> Outcome {
    let ignored = || -> std::io::Result<String> {
        let said = std::process::Command::new("grep").args(["SigIgn", "/proc/self/status"]).output()?;
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    };
    let prepared = Pool::builder().workers(1).prepare_loaded(
        move |(): ()| -> Result<Frozen<Words>, String> { Err(ignored().map_err(|e| e.to_string())?) },
        |_: &WorkerContext<Words>, at: usize| at,
    )?;
    let error = prepared.load(&()).expect_err("what it ignores").to_string();
    assert!(error.ends_with(&ignored()?), "{error}, and the program's {}", ignored()?);
    passed()
}

fn copies_are_those_of_the_worker_s_own_data() -> Outcome {
    let prepared =
        Pool::builder().workers(1).prepare_loaded(multiples, |worker: &WorkerContext<Words>, pages: usize| {
            let words = worker.root();
            (0..pages).for_each(|page| {
                _ = words[page * page_size().bytes() / size_of::<u64>()].fetch_add(1, Ordering::Relaxed)
            });
            let start = std::ptr::from_ref(&words[0]).addr();
            (worker.pid(), start, words.len() * 8)
        })?;
    let pool = prepared.load(&3)?;
    for (pages, of) in [(4, 5u64), (9, 7)] {
        let (pid, start, len) = pool.submit(pages)?.wait()?;
        let copied = anonymous_pages(pid, cowbell::sys::map::Range { start, len })?;
        assert!((pages as u64..=pages as u64 + 1).contains(&copied));
        assert_eq!(pool.worker_stats()?[0].copied_pages.map(|pages| pages.0), Some(copied));
        is_freed(&pool.reload(&of)?)?;
    }
    let reports = pool.shutdown(Shutdown::Drain)?;
    let copied: std::vec::Vec<u64> = reports.iter().map(|exit| exit.report.copied_pages().0).collect();
    assert!(matches!(copied[..], [4..=5, 9..=10, ..]), "{copied:?}");
    passed()
}

/// A worker that runs a long job still has the old data, and so has what it has forked.
fn memory_is_free_when_the_last_user_has_left() -> Outcome {
    let gate = Gate::new()?;
    let prepared =
        Pool::builder().workers(2).prepare_loaded(multiples, move |worker: &WorkerContext<Words>, at: usize| {
            if at == 0 {
                gate.pass();
            }
            worker.root()[at].load(Ordering::Relaxed)
        })?;
    let pool = prepared.load(&3)?;
    let slow = pool.submit(0)?;
    gate.reached()?;
    let former = pool.reload(&5)?;
    assert_eq!(pool.submit(2)?.wait()?, 10);
    assert!(!former.wait_timeout(Duration::from_millis(50))?);
    assert!(!pidfd::readable(former.as_fd(), Some(Duration::ZERO))?, "nothing is there to be read");
    gate.open();
    assert_eq!(slow.wait()?, 0);
    former.wait()?;
    // By then its memory is gone: only the new data's file is left among the pool's processes.
    for pid in descendants(process::pid()) {
        assert_eq!(data_mappings(pid, 3), 0);
    }
    assert!(pidfd::readable(former.as_fd(), Some(Duration::ZERO))?, "the descriptor hangs up");
    passed()
}

pub fn trials() -> std::vec::Vec<Trial> {
    claims![
        programs_of_a_loader_ignore_what_those_of_the_program_do,
        copies_are_those_of_the_worker_s_own_data,
        memory_is_free_when_the_last_user_has_left,
    ]
}
