//! Configurations that pages show.
//!
//! A block of YAML is a whole configuration, or some keys of one; where it has no listeners, it is judged with some. The files in
//! `tls/` are those that `thalweg certs` makes.

use std::process::Command;

use thalweg::config;

use super::{files, read};

/// The blocks of a language in a text, each with the number of its first line.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<(usize, Vec<&'a str>)> {
    let opening = format!("```{language}");
    let mut lines = text.lines().enumerate();
    let mut blocks = Vec::new();
    while let Some((index, line)) = lines.next() {
        if line == opening {
            let body = lines.by_ref().map(|(_, line)| line);
            blocks.push((index + 2, body.take_while(|line| *line != "```").collect()));
        }
    }
    blocks
}

/// What a fragment is put behind to be whole.
const LISTENERS: &str = "listeners: [{name: plain, address: 127.0.0.1:8080}]\n";

#[test]
fn every_configuration_on_a_page_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let mut certs = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    let made = certs.arg("certs").arg("--dir").arg(folder.path()).output();
    assert!(made.unwrap().status.success());
    let tls = format!(" {}/", folder.path().display());
    let mut judged = 0;
    let mut faults = Vec::new();
    for page in files(".md") {
        let text = read(&page);
        for (line, block) in blocks(&text, "yaml") {
            let mut yaml = format!("{}\n", block.join("\n")).replace(" tls/", &tls);
            if !block.iter().any(|line| line.starts_with("listeners:")) {
                yaml.insert_str(0, LISTENERS);
            }
            let place = format!("{}:{line}", page.display());
            let env = |_: &str| Some("from-the-environment".to_owned());
            faults.extend(
                config::parse(&yaml, &place, &env)
                    .err()
                    .map(|faults| faults.to_string()),
            );
            judged += 1;
        }
    }

    assert!(judged > 10, "blocks were found: {judged}");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
