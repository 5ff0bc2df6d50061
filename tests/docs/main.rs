//! Holds the manual to what is true.
//!
//! | file | what it promises |
//! |---|---|
//! | `examples` | every configuration that a page shows is good |
//! | `links` | links lead somewhere, and the table of contents is complete |
//! | `reasons` | the reasons that clients are told are those that the page on endings lists |
//! | `reference` | the reference of the configuration says what the code says |
//! | `walk` | the commands of the first ten minutes work, in their order |

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error has failed, and clippy.toml allows it in test functions only"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

mod examples;
mod links;
mod reasons;
mod reference;
mod walk;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the project whose names end so, by their path from its root, in alphabetical order.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let foreign = name.starts_with('.') || name == "target" || name == "node_modules";
            if entry.file_type().unwrap().is_dir() && !foreign {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
