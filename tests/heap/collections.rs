//! Ordinary collections, which know no allocator.

use crate::{Case, Numbers, cases};
use std::collections::{BTreeMap, HashMap};

pub const CASES: &[Case] = cases![maps_agree, a_graph_a_set_of_expressions_and_a_document_are_whole];

fn maps_agree() {
    let mut numbers = Numbers(77);
    let (mut std, mut tree) = (HashMap::new(), BTreeMap::new());
    let (mut table, mut ordered) = (hashbrown::HashMap::new(), indexmap::IndexMap::new());
    for _ in 0..200_000 {
        let key = format!("key {}", numbers.below(40_000));
        if numbers.below(3) == 0 {
            let gone = std.remove(&key);
            assert_eq!(gone, tree.remove(&key));
            assert_eq!(gone, table.remove(&key));
            assert_eq!(gone, ordered.swap_remove(&key));
        } else {
            let value = vec![numbers.next(); numbers.below(20)];
            std.insert(key.clone(), value.clone());
            tree.insert(key.clone(), value.clone());
            table.insert(key.clone(), value.clone());
            ordered.insert(key, value);
        }
    }
    assert_eq!(std.len(), tree.len());
    assert!(tree.iter().all(|(key, value)| std.get(key) == Some(value) && table.get(key) == Some(value)));
    assert!(ordered.iter().all(|(key, value)| tree.get(key) == Some(value)));
}

fn a_graph_a_set_of_expressions_and_a_document_are_whole() {
    let mut numbers = Numbers(99);
    let mut graph = petgraph::graph::UnGraph::<String, u64>::new_undirected();
    let nodes: Vec<_> = (0..20_000).map(|at| graph.add_node(format!("node {at}"))).collect();
    (1..nodes.len()).for_each(|at| {
        graph.add_edge(nodes[at], nodes[numbers.below(at)], numbers.next() % 100);
    });
    assert_eq!(petgraph::algo::connected_components(&graph), 1);
    assert_eq!(petgraph::algo::min_spanning_tree(&graph).count(), 2 * nodes.len() - 1);

    let patterns: Vec<_> = (0..300).map(|at| format!("^(a|b)*{at}[x-z]+$")).collect();
    let set = regex::RegexSet::new(&patterns).expect("expressions");
    assert_eq!(set.matches("abab17zy").iter().collect::<Vec<_>>(), [17]);

    let row = |at: u64| serde_json::json!({ "at": at, "name": format!("row {at}"), "list": [at, null, 1.5, "text"] });
    let document = serde_json::Value::Array((0..20_000).map(row).collect());
    let text = document.to_string();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("a document"), document);
}
