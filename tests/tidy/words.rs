//! Comments begin with a subject that a stranger knows: "The worker's id", and not "Its id".

use super::{files_below, root};
use std::fs;

/// Words that stand for something which the comment has not named yet.
const WITHOUT_SUBJECT: &[&str] = &[
    "What", "Who", "Of", "It", "Its", "Whose", "Whoever", "Whatever", "Which", "As", "So", "That", "Than", "They",
    "Them", "Their",
];

/// The comments of a folder, and those of them that begin without a subject. Lines of comments that follow each other are one.
fn comments(folder: &str) -> (usize, Vec<String>) {
    let (mut count, mut without) = (0, Vec::new());
    for path in files_below(&root().join(folder), "rs") {
        let text = fs::read_to_string(&path).expect("text");
        let mut before = false;
        for (number, line) in text.lines().enumerate() {
            let comment = line.trim_start().strip_prefix("//").map(|rest| rest.trim_start_matches(['/', '!']).trim());
            if let Some(first) = comment.filter(|comment| !before && !comment.is_empty()) {
                count += 1;
                let word: String =
                    first.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '\'').collect();
                if WITHOUT_SUBJECT.contains(&word.as_str()) {
                    without.push(format!("{}:{}: {first}", path.display(), number + 1));
                }
            }
            before = comment.is_some();
        }
    }
    (count, without)
}

#[test]
fn comments_begin_with_a_subject() {
    // At most so many of a thousand do in code that is pleasant to read, such as rayon's.
    const PER_MILLE_MAX: usize = 10;
    for folder in ["src", "tests", "tools"] {
        let (count, without) = comments(folder);
        let per_mille = without.len() * 1000 / count;
        println!("{folder}: {} of {count} comments begin without a subject", without.len());
        assert!(per_mille <= PER_MILLE_MAX, "{folder}: {per_mille} in a thousand:\n{}", without.join("\n"));
    }
}
