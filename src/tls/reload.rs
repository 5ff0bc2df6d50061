//! Looks at a listener's files, and takes up what they say when they have changed.
//!
//! A change is seen by what the file system says of a file, links followed, so the swap of a link to a folder is one too, as
//! Kubernetes does it with secrets. Files that were just written may be half of a pair; so a change is taken up when it
//! looks the same a second time. Files that are no good leave all as it was, and are tried again at every look.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc};

use tokio::{task::spawn_blocking, time::sleep};

use super::Tls;
use crate::config;

/// What tells a file from what it was: where it lies, how large it is, and when it was changed.
pub(super) type Stamp = Option<[i64; 7]>;

/// Looks at the files of a listener for as long as it is polled.
pub(crate) async fn watch(tls: Arc<Tls>, listener: String) {
    let interval = tls.settings.reload_interval;
    if interval.is_zero() {
        return;
    }
    let mut loaded = tls.first_look.clone();
    let mut before = loaded.clone();
    let mut told = None;
    loop {
        sleep(interval).await;
        let looking = Arc::clone(&tls);
        // It ends without a result only when the process does.
        let Ok(now) = spawn_blocking(move || look(&looking.settings)).await else {
            return;
        };
        let settled = now == before;
        before.clone_from(&now);
        if now == loaded {
            told = None;
        }
        if now == loaded || !settled {
            continue;
        }
        let reloading = Arc::clone(&tls);
        let Ok(result) = spawn_blocking(move || reloading.reload()).await else {
            return;
        };
        match result {
            Ok(()) => {
                tls.stats.reloads.increment();
                tracing::info!(listener, "the TLS files have changed, and are in use");
                loaded = now;
                told = None;
            }
            Err(faults) => {
                tls.stats.reload_failures.increment();
                let faults = faults.iter().map(ToString::to_string);
                let faults = faults.collect::<Vec<_>>().join("; ");
                if told.as_ref() != Some(&faults) {
                    tracing::error!(
                        listener,
                        faults,
                        "the TLS files have changed, and are not good; what was in use stays"
                    );
                    told = Some(faults);
                }
            }
        }
    }
}

/// A look at every file.
pub(super) fn look(settings: &config::Tls) -> Vec<Stamp> {
    settings.files().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some([
        found.dev().cast_signed(),
        found.ino().cast_signed(),
        found.size().cast_signed(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ])
}
