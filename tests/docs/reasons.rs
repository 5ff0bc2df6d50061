//! The reasons in `docs/status.md` are those of the code.
//!
//! A reason is a word in quotes that goes into an `Error`, directly or by one of few ways. Whoever finds a new way has to name it
//! here, or the page would list a reason that seems to be nowhere.

use std::collections::BTreeSet;
use std::path::Path;

use super::{files, read};

/// How the words come into an `Error`, up to where they stand, and the sign that ends that.
const WAYS: [(&str, char); 6] = [
    ("Error::new(", ')'),
    ("unavailable(", ')'),
    ("overflow(", ')'),
    ("told(", ')'),
    ("let reason = ", ';'),
    ("let (reason, message) = ", ';'),
];

/// The words in quotes that a way leads to.
fn words(source: &str, (opening, end): (&str, char)) -> Vec<String> {
    // `io::Error::new` is another one.
    let is_ours =
        |at: usize| !source[..at].ends_with(|sign: char| sign == ':' || sign.is_alphanumeric());
    let found = source.match_indices(opening).filter(|(at, _)| is_ours(*at));
    let within = found.map(|(at, _)| {
        let rest = &source[at + opening.len()..];
        let mut depth = 0_usize;
        let end = rest.find(|sign| match sign {
            _ if depth == 0 && sign == end => true,
            '(' | '{' | '[' => {
                depth += 1;
                false
            }
            ')' | '}' | ']' => {
                depth -= 1;
                false
            }
            _ => false,
        });
        &rest[..end.unwrap_or(rest.len())]
    });
    let is_word = |text: &&str| {
        !text.is_empty()
            && text
                .chars()
                .all(|sign| sign.is_ascii_lowercase() || "_0123456789".contains(sign))
    };
    let mut all = Vec::new();
    for text in within {
        let words = text.split('"').skip(1).step_by(2).filter(is_word);
        let before = all.len();
        all.extend(words.map(ToOwned::to_owned));
        assert!(
            opening != WAYS[0].0 || all.len() > before || text.contains("reason,"),
            "a reason comes into an error by a way that is not named here: {opening}{text}"
        );
    }
    all
}

#[test]
fn page_lists_the_reasons_that_there_are() {
    let sources = files(".rs").into_iter();
    let sources = sources.filter(|path| path.starts_with("src") || path.starts_with("filters"));
    let raised: BTreeSet<String> = sources
        .flat_map(|path| {
            let source = read(&path);
            let (code, _) = source.split_once("#[cfg(test)]").unwrap_or((&source, ""));
            let words_of_code: Vec<&str> = code.split_whitespace().collect();
            let code = words_of_code.join(" ");
            WAYS.iter()
                .flat_map(|way| words(&code, *way))
                .collect::<Vec<_>>()
        })
        .collect();

    let page = read(Path::new("docs/status.md"));
    let (_, table) = page.split_once("## Reasons").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<String> = rows
        .map(|row| row.split_once('`').unwrap().0.to_owned())
        .collect();

    assert!(listed.len() > 30);
    assert_eq!(listed, raised);
}
