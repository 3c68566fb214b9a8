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

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Number(u64),
    Text(String),
}

#[derive(Serialize, Deserialize)]
struct Reply {
    id: u64,
    answer: Answer,
}

fn a_pool_whose_jobs_or_results_cannot_be_passed_is_not_made() -> Outcome {
    let refused = |made: cowbell::Result<()>| made.expect_err("it is refused");
    let of_results = Pool::builder().spawn(data()?, |_, id: u64| Reply { id, answer: Answer::Number(1) });
    let error = refused(of_results.map(drop));
    assert!(error.is_invalid() && error.to_string().contains("results of type"), "{error}");
    assert!(
        error.to_string().contains("::Reply` or a part")
            && error.hint().is_some_and(|hint| hint.contains("serde_json")),
        "{error}"
    );
    let error = refused(Pool::builder().spawn(data()?, |_, job: (u8, Value)| job.0).map(drop));
    assert!(error.to_string().contains("jobs of type"), "{error}");
    assert!(!has_children());
    passed()
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Tree(Vec<Tree>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Trie {
    children: BTreeMap<char, Trie>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "(u8, Vec<Node>)", into = "(u8, Vec<Node>)")]
struct Node(u8, Vec<Node>);

impl From<(u8, Vec<Node>)> for Node {
    fn from((value, below): (u8, Vec<Node>)) -> Self {
        Self(value, below)
    }
}

impl From<Node> for (u8, Vec<Node>) {
    fn from(Node(value, below): Node) -> Self {
        (value, below)
    }
}

fn types_without_names_may_hold_themselves() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: (Tree, Node)| {
        let (tree, node) = job;
        let below = BTreeMap::from([('a', Trie { children: BTreeMap::new() })]);
        (tree.0.len(), node.1.len(), Trie { children: below })
    })?;
    let job = (Tree(vec![Tree(vec![]), Tree(vec![])]), Node(1, vec![Node(2, vec![])]));
    let (trees, nodes, trie) = pool.submit(job)?.wait()?;
    assert_eq!((trees, nodes, trie.children.len()), (2, 1, 1));
    passed()
}

#[derive(Debug, Serialize, Deserialize)]
enum Command {
    Get(u64),
    Raw(Answer),
}

#[derive(Debug, Serialize, Deserialize)]
struct Said {
    id: u64,
    extra: Option<Answer>,
}

fn a_part_that_a_value_may_do_without_is_no_reason_to_refuse() -> Outcome {
    let pool = Pool::builder().workers(1).spawn(data()?, |data, command: Command| match command {
        Command::Get(0) => Said { id: 0, extra: Some(Answer::Text("never read".to_owned())) },
        Command::Get(id) => Said { id: id + data, extra: None },
        Command::Raw(answer) => Said { id: 1, extra: Some(answer) },
    })?;
    let said = pool.submit(Command::Get(2))?.wait()?;
    assert!(said.id == 9 && said.extra.is_none(), "{said:?}");
    for (job, whose) in [(Command::Get(0), "the result"), (Command::Raw(Answer::Number(1)), "the job")] {
        let error = pool.submit(job)?.wait().expect_err("an answer");
        assert!(matches!(&error, JobError::NotPassed(why) if why.contains("untagged")), "{whose}: {error}");
    }
    assert_eq!(pool.submit(Command::Get(3))?.wait()?.id, 10, "the pool goes on");
    passed()
}

/// A text that is not empty: what it reads first is.
#[derive(Debug, Serialize)]
struct Named(String);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        assert!(!text.is_empty(), "a text that is not empty");
        Ok(Self(text))
    }
}

fn a_panic_at_made_up_values_is_not_heard() -> Outcome {
    std::panic::set_hook(Box::new(|_| std::process::exit(71)));
    let pool = Pool::builder().workers(1).spawn(data()?, |_, job: Named| job.0.len())?;
    assert_eq!(pool.submit(Named("four".to_owned()))?.wait()?, 4);
    passed()
}

#[derive(Debug, Serialize)]
struct Ends(u64);

impl<'de> Deserialize<'de> for Ends {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u64::deserialize(from)? {
            0 => std::process::exit(71),
            number => Ok(Self(number)),
        }
    }
}

fn types_that_must_not_read_made_up_values_are_not_checked() -> Outcome {
    let pool = Pool::builder().workers(1).check_types(false).spawn(data()?, |_, job: Ends| job)?;
    assert_eq!(pool.submit(Ends(4))?.wait()?.0, 4);
    let pool = Pool::builder().workers(1).check_types(false).spawn(data()?, |_, n: u64| Answer::Number(n))?;
    let error = pool.submit(4)?.wait().expect_err("an answer");
    assert!(matches!(&error, JobError::NotPassed(why) if why.contains("untagged")), "{error}");
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
        types_without_names_may_hold_themselves,
        a_part_that_a_value_may_do_without_is_no_reason_to_refuse,
        a_panic_at_made_up_values_is_not_heard,
        types_that_must_not_read_made_up_values_are_not_checked,
        what_needs_names_is_passed_as_text,
        a_list_without_a_length_is_that_jobs_error,
    ]
}
