//! Jobs and results that cannot be passed: types that refuse or panic fail alone.

use crate::case::{Outcome, passed};
use crate::look::SOON;
use crate::pool_kit::{data, in_time};
use crate::pool_results::{not_passed, small};
use cowbell::pool::{Buffer, JobError, Pool};
use libtest_mimic::Trial;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that refuses to travel, in every way there is.
#[derive(Debug, PartialEq)]
struct Picky(u32);

const NOT_ENCODED: u32 = 1;

const ENCODING_PANICS: u32 = 2;

const NOT_DECODED: u32 = 3;

const DECODING_PANICS: u32 = 4;

const DROP_PANICS: u32 = 5;

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, into: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            NOT_ENCODED => Err(S::Error::custom("no thanks")),
            ENCODING_PANICS => panic!("no encoding"),
            n => n.serialize(into),
        }
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u32::deserialize(from)? {
            NOT_DECODED => Err(D::Error::custom("no thanks")),
            DECODING_PANICS => panic!("no decoding"),
            n => Ok(Self(n)),
        }
    }
}

impl Drop for Picky {
    fn drop(&mut self) {
        if self.0 == DROP_PANICS && std::env::var_os("PICKY").is_none() {
            self.0 = 0;
            panic!("no end");
        }
    }
}

fn jobs_that_cannot_be_passed_fail_alone() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: Picky| job.0)?;
    let jobs = |n: u32| [100, n, 101].map(Picky);
    assert!(not_passed(&pool.submit(Picky(NOT_ENCODED)), "cannot be encoded"));
    assert!(not_passed(&pool.submit(Picky(NOT_DECODED))?.wait(), "cannot be decoded"));
    let panicked = pool.submit(Picky(DECODING_PANICS))?.wait();
    assert!(matches!(&panicked, Err(JobError::Panicked { message, .. }) if message == "no decoding"), "{panicked:?}");
    for chunk in [1, 3] {
        for bad in [NOT_ENCODED, NOT_DECODED] {
            let results: Vec<_> = pool.map(jobs(bad)).chunk(chunk).collect();
            assert!(matches!(results[..], [Ok(100), Err(JobError::NotPassed(_)), Ok(101)]), "{results:?}");
            let mut results: Vec<_> = pool.map_unordered(jobs(bad)).chunk(chunk).collect();
            results.sort_by_key(|(at, _)| *at);
            assert!(
                matches!(results[..], [(0, Ok(100)), (1, Err(JobError::NotPassed(_))), (2, Ok(101))]),
                "{results:?}"
            );
        }
        let results: Vec<_> = pool.map(jobs(DECODING_PANICS)).chunk(chunk).collect();
        assert!(matches!(results[..], [Ok(100), Err(JobError::Panicked { .. }), Ok(101)]), "{results:?}");
    }
    // The program's own panic is its own; the pool goes on.
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.submit(Picky(ENCODING_PANICS)).is_ok()));
    assert!(panicked.is_err());
    assert_eq!(pool.submit(Picky(102))?.wait(), Ok(102));
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

fn results_that_cannot_be_passed_fail_alone_and_leave_their_buffers_room() -> Outcome {
    let pool = small().spawn(data()?, |_, job: u32| (Buffer::<u8>::zeroed(9_000).expect("room"), Picky(job)))?;
    in_time(SOON, || {
        for _ in 0..20 {
            assert!(not_passed(&pool.submit(NOT_ENCODED).expect("open").wait(), "cannot be encoded"));
            assert!(not_passed(&pool.submit(NOT_DECODED).expect("open").wait(), "cannot be decoded"));
            assert!(not_passed(&pool.submit(DECODING_PANICS).expect("open").wait(), "panicked"));
            for (kind, text) in [(ENCODING_PANICS, "no encoding"), (DROP_PANICS, "no end")] {
                let result = pool.submit(kind).expect("open").wait();
                assert!(matches!(&result, Err(JobError::Panicked { message, .. }) if message == text), "{result:?}");
            }
            for chunk in [1, 3] {
                let results: Vec<_> =
                    pool.map([100, NOT_ENCODED, DECODING_PANICS, 101]).chunk(chunk).map(|r| r.map(|r| r.1.0)).collect();
                let as_it_should =
                    matches!(results[..], [Ok(100), Err(JobError::NotPassed(_)), Err(JobError::NotPassed(_)), Ok(101)]);
                assert!(as_it_should, "{results:?}");
            }
        }
    })?;
    assert_eq!(pool.stats().deaths, 0);
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        jobs_that_cannot_be_passed_fail_alone,
        results_that_cannot_be_passed_fail_alone_and_leave_their_buffers_room,
    ]
}
