//! Looks at the files of TLS, and takes up what they say when they have changed.
//!
//! Files that were just written may be half of a pair; so a change is taken up when it
//! looks the same a second time. Files that are no good leave all as it was, and are tried again at every look.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};

use super::Fault;
use crate::{stamp::Stamp, telemetry::ReloadStats};

/// What is made of files that may change.
pub(crate) trait Reload: Send + Sync + 'static {
    /// How often the files are looked at; zero is never.
    fn interval(&self) -> Duration;

    /// How the files were before they were read.
    fn first_look(&self) -> Vec<Stamp>;

    /// How the files are.
    fn look(&self) -> Vec<Stamp>;

    /// Reads the files again. If they are not good, all stays as it was.
    fn reload(&self) -> Result<(), Vec<Fault>>;

    fn stats(&self) -> &ReloadStats;
}

/// Looks at the files for as long as somebody uses what was made of them. `whose` they are, the log says.
pub(crate) async fn watch<T: Reload>(of: Weak<T>, whose: String) {
    let Some((interval, mut loaded)) = of.upgrade().map(|of| (of.interval(), of.first_look()))
    else {
        return;
    };
    if interval.is_zero() {
        return;
    }
    let mut before = loaded.clone();
    let mut told = None;
    loop {
        sleep(interval).await;
        let Some(files) = of.upgrade() else { return };
        let looking = Arc::clone(&files);
        // It ends without a result only when the process does.
        let Ok(now) = spawn_blocking(move || looking.look()).await else {
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
        let reloading = Arc::clone(&files);
        let Ok(result) = spawn_blocking(move || reloading.reload()).await else {
            return;
        };
        match result {
            Ok(()) => {
                files.stats().reloads.increment();
                tracing::info!("{whose}: the TLS files have changed, and are in use");
                loaded = now;
                told = None;
            }
            Err(faults) => {
                files.stats().failures.increment();
                let faults = faults.iter().map(ToString::to_string);
                let faults = faults.collect::<Vec<_>>().join("; ");
                if told.as_ref() != Some(&faults) {
                    tracing::error!(
                        faults,
                        "{whose}: the TLS files have changed, and are not good; what was in use stays"
                    );
                    told = Some(faults);
                }
            }
        }
    }
}
