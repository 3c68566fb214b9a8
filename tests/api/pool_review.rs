//! Pools under users who do what nobody should: threads and children in jobs, forged bytes, signals, results kept for long.
#![expect(unsafe_code, reason = "timers, and releases")]

use crate::case::{Outcome, passed};
use crate::look::{Bytes, frozen_pages, until};
use cowbell::arena::{Arena, Frozen};
use cowbell::fork::{self, Ended, ForkOptions};
use cowbell::pool::{Buffer, JobError, Pool, Ticket};
use cowbell::sys::process;
use cowbell::sys::shared_words::SharedWords;
use libtest_mimic::{Failed, Trial};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

pub fn data() -> cowbell::Result<Frozen<Bytes>> {
    frozen_pages("review", 4)
}

/// Words that all processes share, kept for the life of this one.
fn table(words: usize) -> cowbell::Result<&'static [AtomicU64]> {
    Ok(Box::leak(Box::new(SharedWords::new(words)?)).words())
}

fn parent_of(pid: i32) -> Result<i32, Failed> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").ok_or("a name")?.1;
    Ok(fields.split(' ').nth(1).ok_or("a parent")?.parse()?)
}

pub fn zygote_of<T, J, R>(pool: &Pool<T, J, R>) -> Result<i32, Failed> {
    parent_of(*pool.workers().first().ok_or("a worker")?)
}

/// The name of a descriptor or mapping of a process.
pub fn names(pid: i32, part: &str) -> Result<usize, Failed> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let open = links.filter(|link| link.to_string_lossy().contains(part)).count();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(open + maps.lines().filter(|line| line.contains(part)).count())
}

fn threads_of_a_job_get_buffers_of_their_own() -> Outcome {
    const EACH: usize = 300;
    let pool = Pool::builder().workers(1).spawn(data()?, |_, threads: u64| {
        let make = |thread: u64| {
            let buffers = (0..EACH as u64).map(|n| Buffer::copy_of(&[thread << 32 | n; 4]).expect("room"));
            buffers.collect::<Vec<_>>()
        };
        let begin = std::sync::Barrier::new(threads as usize);
        let all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads)
                .map(|thread| {
                    let begin = &begin;
                    scope.spawn(move || {
                        begin.wait();
                        make(thread)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let right = |thread: usize, n: usize, buffer: &Buffer<u64>| **buffer == [(thread << 32 | n) as u64; 4];
        let wrong = |(thread, buffers): (usize, &Vec<Buffer<u64>>)| {
            buffers.iter().enumerate().filter(|&(n, buffer)| !right(thread, n, buffer)).count()
        };
        all.iter().enumerate().map(wrong).sum::<usize>()
    })?;
    for _ in 0..15 {
        assert_eq!(pool.submit(4)?.wait()?, 0, "buffers that another thread wrote");
    }
    passed()
}

fn a_child_of_a_worker_has_none_of_its_buffers() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, (): ()| {
        let mut buffer = Buffer::zeroed(4).expect("room");
        let slice: &mut [u64] = &mut buffer;
        let mut child = fork::spawn(&ForkOptions::new().last_census(false), move |_| slice[0] = 7).expect("a child");
        let wrote = child.wait().expect("an end").ended;
        let makes = || match Buffer::<u64>::zeroed(4) {
            Ok(_) => 1,
            Err(_) => 0,
        };
        let mut child = fork::spawn(&ForkOptions::new().last_census(false), move |_| makes()).expect("a child");
        let made = child.wait().expect("an end").ended;
        (wrote, made, buffer)
    })?;
    let (wrote, made, mut buffer) = pool.submit(())?.wait()?;
    assert_eq!((wrote, made, buffer[0]), (Ended::Signaled(libc::SIGSEGV), Ended::Exited(0), 0));

    // Nor has one of the program itself.
    let slice: &mut [u64] = &mut buffer;
    let mut child = fork::spawn(&ForkOptions::new(), move |_| slice[1] = 8)?;
    assert_eq!((child.wait()?.ended, buffer[1]), (Ended::Signaled(libc::SIGSEGV), 0));
    passed()
}

static STOLEN: AtomicUsize = AtomicUsize::new(0);
static MEANWHILE: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Bytes that name the same buffer over and over.
#[derive(Debug)]
struct Forged(Buffer<u64>);

const TRIES: usize = 300;

impl Serialize for Forged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(1 + TRIES)?;
        tuple.serialize_element(&self.0)?;
        for _ in 0..TRIES {
            tuple.serialize_element(&0u32)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for Forged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Again;
        impl<'de> Visitor<'de> for Again {
            type Value = Forged;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("buffers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut tuple: A) -> Result<Forged, A::Error> {
                let first = tuple.next_element::<Buffer<u64>>()?.expect("a buffer");
                drop(first);
                if let Some(meanwhile) = MEANWHILE.lock().expect("no panic").take() {
                    meanwhile();
                }
                for _ in 0..TRIES {
                    if let Ok(Some(again)) = tuple.next_element::<Buffer<u64>>() {
                        STOLEN.fetch_add(1, Ordering::SeqCst);
                        return Ok(Forged(again));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(serde::de::Error::custom("none"))
            }
        }
        deserializer.deserialize_tuple(1 + TRIES, Again)
    }
}

fn forged_bytes_take_a_buffer_out_of_a_result_once() -> Outcome {
    #[derive(Debug, Serialize, Deserialize)]
    enum Answer {
        Forged(Forged),
        Bytes(Vec<u8>),
    }
    let pool = Pool::builder().workers(1).spawn(data()?, |_, forged: bool| match forged {
        true => Answer::Forged(Forged(Buffer::zeroed(100).expect("room"))),
        false => Answer::Bytes(vec![9; 780]),
    })?;
    let (pool, other) = (Arc::new(pool), Arc::new(Mutex::new(None::<Ticket<Answer>>)));
    *MEANWHILE.lock()? = Some(Box::new({
        let (pool, other) = (Arc::clone(&pool), Arc::clone(&other));
        // The result lies where the buffer was.
        move || *other.lock().expect("no panic") = Some(pool.submit(false).expect("a ticket"))
    }));
    let forged = pool.submit(true)?.wait();
    assert_eq!(STOLEN.load(Ordering::SeqCst), 0, "another's result was taken for a buffer: {forged:?}");
    assert!(matches!(forged, Err(JobError::NotPassed(_))), "{forged:?}");
    let other = other.lock()?.take().ok_or("it was submitted")?.wait();
    assert!(matches!(&other, Ok(Answer::Bytes(bytes)) if *bytes == [9; 780]), "{other:?}");
    passed()
}

extern "C" fn nothing(_: i32) {}

fn signals_do_not_part_questions_from_answers() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: u64| job)?;
    // SAFETY: a sigaction of zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: the struct is valid for the call, the handler does nothing.
    assert_eq!(unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) }, 0);
    let every = libc::timeval { tv_sec: 0, tv_usec: 97 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the struct is valid for the call.
    assert_eq!(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) }, 0);
    for n in 0..2000 {
        let exits = pool.take_exits().map_err(|e| format!("question {n}: {e}"))?;
        assert!(exits.is_empty());
    }
    passed()
}

fn a_result_that_finds_no_room_does_not_shift_those_behind_it() -> Outcome {
    let gate = &table(1)?[0];
    let capacity = 1 << 16;
    let pool = Pool::builder().workers(1).result_capacity(capacity).spawn(data()?, move |_, job: u64| {
        if job == 2 {
            gate.store(1, Ordering::SeqCst);
            while gate.load(Ordering::SeqCst) != 2 {
                std::thread::yield_now();
            }
        }
        // Leaves room for its own result and for nothing else.
        (job, (job == 0).then(|| Buffer::<u8>::zeroed(capacity - 128 - 32).expect("room")))
    })?;
    let (_, held) = pool.submit(0)?.wait()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(move || {
            while gate.load(Ordering::SeqCst) != 1 {
                std::thread::yield_now();
            }
            drop(held);
            gate.store(2, Ordering::SeqCst);
        });
        pool.map(1..=3).chunk(3).map(|result| result.map(|(job, _)| job)).collect()
    });
    assert!(matches!(results.first(), Some(Err(JobError::NotPassed(_)))), "{results:?}");
    assert_eq!(results.get(1..), Some(&[Ok(2), Ok(3)][..]));
    passed()
}

fn results_that_nobody_asks_for_yet_do_not_keep_others_waiting() -> Outcome {
    let pool =
        Pool::builder().workers(1).result_capacity(1 << 16).spawn(data()?, |_, job: u64| vec![job as u8; 20_000])?;
    let mut results = pool.map(0..10).chunk(1);
    assert_eq!(results.next().ok_or("a result")??[0], 0);
    let ticket = pool.submit(77)?;
    let result = ticket.wait_timeout(Duration::from_secs(10)).map_err(|_| "the map's results keep it waiting")?;
    assert_eq!(result?[0], 77);
    for job in 1..10 {
        assert_eq!(results.next().ok_or("a result")??[0], job);
    }
    passed()
}

/// Polls where it is woken.
struct Inline<R: DeserializeOwned + Send + 'static> {
    ticket: Mutex<Option<Ticket<R>>>,
    result: Mutex<Option<Result<R, JobError>>>,
}

impl<R: DeserializeOwned + Send + 'static> Inline<R> {
    fn poll(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        let Some(mut ticket) = self.ticket.lock().expect("no panic").take() else { return };
        match Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => *self.result.lock().expect("no panic") = Some(result),
            Poll::Pending => *self.ticket.lock().expect("no panic") = Some(ticket),
        }
    }
}

impl<R: DeserializeOwned + Send + 'static> Wake for Inline<R> {
    fn wake(self: Arc<Self>) {
        self.poll();
    }
}

fn a_future_may_be_polled_where_it_is_woken() -> Outcome {
    let gate = &table(1)?[0];
    let pool = Pool::builder().workers(1).spawn(data()?, move |_, job: u64| {
        while gate.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        job
    })?;
    let inline = Arc::new(Inline { ticket: Mutex::new(Some(pool.submit(5)?)), result: Mutex::new(None) });
    inline.poll();
    assert!(inline.result.lock()?.is_none());
    gate.store(1, Ordering::SeqCst);
    let result = until("it is woken", || inline.result.lock().expect("no panic").is_some());
    if result.is_err() {
        // The thread that holds the locks never ends.
        process::exit(71);
    }
    assert_eq!(inline.result.lock()?.take(), Some(Ok(5)));
    passed()
}

fn a_time_limit_of_centuries_is_none() -> Outcome {
    // The limit is as many nanoseconds as 64 bits hold, and a few.
    let limit = Duration::from_nanos(u64::MAX) + Duration::from_nanos(1000);
    let pool = Pool::builder().workers(1).time_limit(limit).spawn(data()?, |_, (): ()| {
        std::thread::sleep(Duration::from_millis(100));
    })?;
    assert_eq!(pool.submit(())?.wait(), Ok(()));
    passed()
}

/// The memory that the files of a pool take.
fn memory_of_pools() -> Result<u64, Failed> {
    // Nobody but the mapping knows the file, so its pages are counted there.
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut kib = 0;
    let mut inside = false;
    for line in smaps.lines() {
        if line.contains("/memfd:cowbell-pool:") {
            inside = true;
        } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| inside) {
            kib += rss.trim().trim_end_matches(" kB").parse::<u64>()?;
            inside = false;
        }
    }
    Ok(kib * 1024)
}

fn memory_of_jobs_and_results_is_given_back() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: Vec<u8>| {
        let parts = job.chunks(1 << 16).map(|part| Buffer::copy_of(part).expect("room"));
        parts.collect::<Vec<_>>()
    })?;
    let large = 32 << 20;
    for byte in 1..4 {
        let parts = pool.submit(vec![byte; large])?.wait()?;
        assert!(parts.iter().all(|part| part.iter().all(|&there| there == byte)));
    }
    let most = memory_of_pools()?;
    assert!(most > large as u64, "{most}");
    // The worker has been without a job for a while, and so have the jobs' memory.
    std::thread::sleep(Duration::from_millis(1100));
    drop(pool.submit(vec![1])?.wait()?);
    until("the memory is given back", || memory_of_pools().is_ok_and(|now| now < 4 << 20))?;
    let parts = pool.submit(vec![5; large])?.wait()?;
    assert!(parts.iter().all(|part| part.iter().all(|&there| there == 5)));
    passed()
}

fn an_image_opened_in_place_is_reshared_with_its_own_pages() -> Outcome {
    let path = std::env::temp_dir().join(format!("cowbell-review-{}", process::pid()));
    let words = cowbell::sys::page_size().bytes() / 8;
    // Pages of zeroes between others, and the head of the file pushes them out of place.
    let pages = || (0..16 * words as u64).map(|n| if (n / words as u64).is_multiple_of(2) { 0 } else { n });
    let arena = Arena::builder("in-place").capacity(1 << 20).plain()?;
    let numbers = arena.alloc_span_iter(pages())?;
    arena.freeze(numbers)?.save(&path)?;
    // SAFETY: nobody else knows the file.
    let opened = unsafe { Frozen::<cowbell::arena::Span<u64>>::open(&path) };
    std::fs::remove_file(&path)?;
    let opened = opened?;
    let numbers = opened.slice(*opened.root())?;
    let mut child = fork::spawn(&ForkOptions::new(), move |_| {
        for word in numbers {
            // SAFETY: none; a write into the child's own copy, as an atomic in it would be.
            unsafe { std::ptr::from_ref(word).cast_mut().write_volatile(0) };
        }
        opened.reshare().expect("it is alone");
        numbers.iter().filter(|&word| std::hint::black_box(*word) != 0).count().min(255) as i32
    })?;
    assert_eq!(child.wait()?.ended, Ended::Exited(0), "so many words are no longer what was written");
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        threads_of_a_job_get_buffers_of_their_own,
        a_child_of_a_worker_has_none_of_its_buffers,
        forged_bytes_take_a_buffer_out_of_a_result_once,
        signals_do_not_part_questions_from_answers,
        a_result_that_finds_no_room_does_not_shift_those_behind_it,
        results_that_nobody_asks_for_yet_do_not_keep_others_waiting,
        a_future_may_be_polled_where_it_is_woken,
        a_time_limit_of_centuries_is_none,
        memory_of_jobs_and_results_is_given_back,
        an_image_opened_in_place_is_reshared_with_its_own_pages,
    ]
}
