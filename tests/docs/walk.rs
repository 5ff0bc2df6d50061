//! `docs/getting-started.md` is walked, command by command, in a folder of its own.
//!
//! Each block of `sh` is run, and what it prints is compared with the block of `text` behind it, in which `...` stands for anything.
//! The ports of the page may be taken, so others stand in for them.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use super::read;

/// The longest that all of it may take. Only a walk that hangs takes so long.
const CAP: &str = "120";

/// What is typed, and what is answered.
struct Step {
    commands: String,
    answer: Option<String>,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            continue;
        };
        let block: String = (lines.by_ref())
            .take_while(|line| *line != "```")
            .map(|line| format!("{line}\n"))
            .collect();
        match language {
            "sh" => steps.push(Step {
                commands: block,
                answer: None,
            }),
            "text" => steps.last_mut().unwrap().answer = Some(block),
            _ => {}
        }
    }
    steps
}

/// Whether a text is what a pattern says.
fn fits(text: &str, pattern: &str) -> bool {
    let mut pieces = pattern.trim_end().split("...");
    let Some(mut rest) = text
        .trim_end()
        .strip_prefix(pieces.next().unwrap_or_default())
    else {
        return false;
    };
    let mut last = None;
    for piece in pieces {
        let Some((_, after)) = rest.split_once(piece) else {
            return false;
        };
        last = Some((piece, rest));
        rest = after;
    }
    match last {
        Some((piece, before)) => before.ends_with(piece),
        None => rest.is_empty(),
    }
}

#[test]
fn every_command_of_the_first_ten_minutes_works() {
    let steps = steps(&read(Path::new("docs/getting-started.md")));
    assert!(steps.len() > 5, "the commands were found");
    let folder = tempfile::tempdir().unwrap();
    let heard = tempfile::tempdir().unwrap();
    let ports = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = ports.map(|port| port.local_addr().unwrap().port().to_string());
    let here = |text: &str| text.replace("8080", &ports[0]).replace("9901", &ports[1]);
    let there = |text: &str| text.replace(&ports[0], "8080").replace(&ports[1], "9901");

    let mut script =
        String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n");
    for (index, step) in steps.iter().enumerate() {
        let file = heard.path().join(index.to_string());
        writeln!(
            script,
            "{{\n{}}} > '{}'",
            here(&step.commands),
            file.display()
        )
        .unwrap();
        // What a command has written names the ports as well. The brackets keep the pattern as it is.
        script.push_str(&here(
            "[ ! -f config.yaml ] || sed -i 's/:80[8]0/:8080/; s/:990[1]/:9901/' config.yaml\n",
        ));
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_thalweg"));
    let path = env::var("PATH").unwrap();
    let output = Command::new("timeout")
        .args([CAP, "bash", "-c", &script])
        .current_dir(folder.path())
        .env(
            "PATH",
            format!("{}:{path}", binary.parent().unwrap().display()),
        )
        // What the page leaves to defaults.
        .env("THALWEG_ADDRESS", here("http://127.0.0.1:8080"))
        .env("THALWEG_ADMIN", here("http://127.0.0.1:9901"))
        .env_remove("THALWEG_CONFIG")
        .env_remove("DAPR_COMPONENTS_SOCKETS_FOLDER")
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let heard = |index: usize| fs::read_to_string(heard.path().join(index.to_string()));
    for (index, step) in steps.iter().enumerate() {
        let Ok(text) = heard(index) else {
            break;
        };
        if let Some(answer) = &step.answer {
            assert!(
                fits(&there(&text), answer),
                "{}answers\n{text}and not\n{answer}{}",
                step.commands,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
