//! Pools beside each other, after each other and inside each other: none keeps anything of another.
#![expect(unsafe_code, reason = "timers, and releases")]

use crate::case::{Outcome, passed};
use crate::look::{Bytes, until};
use crate::pool_review::{data, names, zygote_of};
use cowbell::arena::{Arena, Frozen, Handle};
use cowbell::pool::{Buffer, JobError, Pool, Ticket};
use libtest_mimic::{Failed, Trial};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::OnceLock;

fn squares(name: &str) -> cowbell::Result<Frozen<[u64; 1000]>> {
    let arena = Arena::builder(name).capacity(1 << 20).build()?;
    arena.freeze(std::array::from_fn(|at| (at * at) as u64))
}

fn nothing_of_the_first_generation_stays_in_the_pool() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(squares("first-of-all")?, |data, at: usize| data[at])?;
    assert_eq!(pool.submit(9)?.wait()?, 81);
    let zygote = zygote_of(&pool)?;
    let old = pool.replace(squares("second")?)?;
    // SAFETY: nothing refers to it.
    unsafe { old.release() }?;
    assert_eq!(pool.submit(8)?.wait()?, 64);
    // The new worker may be known a moment after it has done its first job.
    let everywhere = || {
        let worker = *pool.workers().first().ok_or("a worker")?;
        Ok::<_, Failed>(names(zygote, "first-of-all")? + names(worker, "first-of-all")?)
    };
    until("it is gone", || everywhere().is_ok_and(|left| left == 0))?;
    assert!(names(zygote, "second")? > 0);
    passed()
}

fn one_pool_keeps_nothing_of_another() -> Outcome {
    let first = Pool::builder().workers(1).name("one").spawn(data()?, |_, job: u64| job)?;
    let second = Pool::builder().workers(1).name("other").spawn(data()?, |_, job: u64| job)?;
    assert_eq!((first.submit(1)?.wait()?, second.submit(2)?.wait()?), (1, 2));
    assert_eq!(names(zygote_of(&second)?, "cowbell-pool:one")?, 0);
    assert!(names(zygote_of(&second)?, "cowbell-pool:other")? > 0);
    passed()
}

fn a_handle_of_what_a_worker_made_in_its_copy_goes_nowhere() -> Outcome {
    let arena = Arena::builder("cells").capacity(1 << 20).build()?;
    let frozen = arena.freeze_unchecked(OnceLock::<&'static str>::new())?;
    let inside = frozen.clone();
    let pool = Pool::builder().workers(1).spawn(frozen, move |cell, (): ()| -> Handle<&'static str> {
        inside.handle(cell.get_or_init(|| "only here")).expect("it lies there")
    })?;
    let refused = pool.submit(())?.wait();
    assert!(matches!(&refused, Err(JobError::NotPassed(why)) if why.contains("written")), "{refused:?}");
    passed()
}

/// A pool of a job's own, over other data.
fn inner() -> Pool<Bytes, u8, Buffer<u8>> {
    let job = |_: &'static Bytes, job: u8| {
        assert_ne!(job, 0, "an inner panic");
        Buffer::copy_of(&[job; 100]).expect("a worker of the inner pool's")
    };
    Pool::builder().workers(1).spawn(data().expect("frozen"), job).expect("one thread")
}

/// The words for a panic, and the length of a buffer, that come out of an inner pool.
fn of_inner(pool: &Pool<Bytes, u8, Buffer<u8>>) -> (String, usize) {
    let failed = pool.submit(0).expect("open").wait().expect_err("it panics").to_string();
    (failed, pool.submit(7).expect("open").wait().expect("a result").iter().map(|&byte| usize::from(byte)).sum())
}

/// A result that makes a pool while it is written, behind a buffer that it has written already.
struct MakesPools(Buffer<u8>);

impl Serialize for MakesPools {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(2)?;
        tuple.serialize_element(&self.0)?;
        tuple.serialize_element(&of_inner(&inner()))?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for MakesPools {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (buffer, (failed, sum)) = <(Buffer<u8>, (String, usize))>::deserialize(from)?;
        assert!(failed.contains("an inner panic") && sum == 700, "{failed}, {sum}");
        Ok(Self(buffer))
    }
}

/// The inner pool's worker took itself for the outer one, and freed buffers where it had no memory.
fn a_job_may_make_pools_of_its_own() -> Outcome {
    type Told = (String, (String, usize), String);
    let pool = Pool::builder().workers(1).spawn(data()?, |_, (): ()| -> (Told, MakesPools) {
        let taking = Pool::builder().workers(1).spawn(data().expect("frozen"), |_, buffer: Buffer<u8>| buffer.len());
        let taking = taking.expect("one thread");
        let own = Buffer::copy_of(&[5u8; 100]).expect("room");
        let refused = taking.submit(own).and_then(Ticket::wait);
        let of_inner = of_inner(&inner());
        let handed_on = inner().submit(9).expect("open").wait().expect("a result");
        let told = (refused.expect_err("no job takes it").to_string(), of_inner, format!("{}", handed_on[99]));
        (told, MakesPools(Buffer::copy_of(&[3u8; 50]).expect("room")))
    })?;
    for _ in 0..2 {
        let ((refused, (failed, sum), handed_on), buffer) = pool.submit(())?.wait()?;
        assert!(refused.contains("in a job's result only"), "{refused}");
        assert!(failed.contains("an inner panic") && (sum, handed_on.as_str()) == (700, "9"), "{failed}, {sum}");
        assert_eq!(&buffer.0[..], [3; 50]);
    }
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        nothing_of_the_first_generation_stays_in_the_pool,
        one_pool_keeps_nothing_of_another,
        a_handle_of_what_a_worker_made_in_its_copy_goes_nowhere,
        a_job_may_make_pools_of_its_own,
    ]
}
