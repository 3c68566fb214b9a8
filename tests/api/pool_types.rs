//! Types of jobs and results: which can be passed, and what is said of others.

use crate::case::{Outcome, passed};
use crate::look::has_children;
use cowbell::arena::{Arena, Frozen};
use cowbell::pool::{JobError, Pool};
use libtest_mimic::Trial;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn data() -> cowbell::Result<Frozen<u64>> {
    Arena::builder("data").capacity(1 << 20).build()?.freeze(7u64)
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Number(u64),
    Text(String),
}

#[derive(Serialize, Deserialize)]
struct Reply {
    id: u64,
    answers: Vec<Answer>,
}

fn a_pool_whose_jobs_or_results_cannot_be_passed_is_not_made() -> Outcome {
    let refused = |made: cowbell::Result<()>| made.expect_err("it is refused");
    let of_results = Pool::builder().spawn(data()?, |_, id: u64| Reply { id, answers: vec![Answer::Number(1)] });
    let error = refused(of_results.map(drop));
    assert!(error.is_invalid() && error.to_string().contains("results of type"), "{error}");
    assert!(
        error.to_string().contains("`Reply` or a part") && error.hint().is_some_and(|hint| hint.contains("serde_json")),
        "{error}"
    );
    let error = refused(Pool::builder().spawn(data()?, |_, job: Option<Value>| job.is_some()).map(drop));
    assert!(error.to_string().contains("jobs of type"), "{error}");
    assert!(!has_children());
    passed()
}

fn what_needs_names_is_passed_as_text() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |data, job: String| {
        let mut job: Value = serde_json::from_str(&job).expect("JSON");
        job["data"] = json!(data);
        job.to_string()
    })?;
    let result = pool.submit(json!({ "id": 3 }).to_string())?.wait()?;
    assert_eq!(serde_json::from_str::<Value>(&result)?, json!({ "id": 3, "data": 7 }));
    passed()
}

#[derive(Debug, Deserialize)]
struct OfNoLength(Vec<u64>);

impl Serialize for OfNoLength {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().filter(|number| **number > 3))
    }
}

fn a_list_without_a_length_is_that_jobs_error() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, n: u64| OfNoLength(vec![n]))?;
    let error = pool.submit(9)?.wait().expect_err("a list without a length");
    assert!(matches!(&error, JobError::NotPassed(why) if why.contains("collect it first")), "{error}");
    let pool = Pool::builder().workers(1).spawn(data()?, |_, n: u64| BTreeMap::from([(n, vec![n])]))?;
    assert_eq!(pool.submit(9)?.wait()?[&9], [9]);
    passed()
}

pub fn trials() -> Vec<Trial> {
    claims![
        a_pool_whose_jobs_or_results_cannot_be_passed_is_not_made,
        what_needs_names_is_passed_as_text,
        a_list_without_a_length_is_that_jobs_error,
    ]
}
