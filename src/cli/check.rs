//! `thalweg check`: whether a configuration is good.

use std::{path::Path, process::ExitCode};

use crate::config::Config;

/// Says that a file is good, and how much is in it.
pub(super) fn check(file: &Path, config: &Config) -> ExitCode {
    println!(
        "{}: good ({} listeners, {} routes, {} clusters)",
        file.display(),
        config.listeners.len(),
        config.routes.len(),
        config.clusters.len()
    );
    ExitCode::SUCCESS
}
