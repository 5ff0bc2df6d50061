//! Takes up another configuration while streams run.
//!
//! **Why.** Routes, backends and certificates change many times in the life of a stream. A proxy that had to be restarted for it
//! would end streams that have nothing to do with the change.
//!
//! **How.** All that can fail comes first: the file is read and judged, stores are opened, addresses bound. Only then does anything change,
//! and nothing of that can fail. Each worker builds what is new, keeps what is the same, and answers when new streams go
//! by the new configuration; so whoever has asked for a reload and got an answer can rely on it. Reloads come one after another.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::sleep,
};

use super::{App, Changes, StartError, listeners::load_tls, look_up, open};
use crate::{
    config::{self, Config, Faults},
    stamp::{self, Stamp},
    tls,
};

/// More than an operator and his tools ask for at once.
const MAX_WAITING: usize = 16;

/// Why a configuration was not taken up. The one before it is still in force, and whole.
#[derive(Debug)]
pub enum ReloadError {
    /// It is not good.
    Faults(Faults),
    /// These keys of it are only read when the process starts.
    NeedsRestart(Vec<&'static str>),
    /// Something that it names cannot be opened.
    Unusable(StartError),
}

/// Asks for reloads.
#[derive(Clone, Debug)]
pub(crate) struct Requests(mpsc::Sender<Request>);

/// Somebody who waits for a reload.
#[derive(Debug)]
pub(crate) struct Request(oneshot::Sender<Result<Changes, ReloadError>>);

// === impl Requests ===

impl Requests {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Self(sender), receiver)
    }

    /// What becomes of a reload; `None` if none is done, because too many are asked for or the proxy ends.
    pub(crate) async fn ask(&self) -> Option<Result<Changes, ReloadError>> {
        let (request, answer) = oneshot::channel();
        self.0.try_send(Request(request)).ok()?;
        answer.await.ok()
    }
}

// === impl App ===

impl App {
    /// Reloads the file each time that somebody asks for it or that it has changed, until this is dropped.
    pub async fn follow(&mut self, file: &Path, hangups: &mut Signal) {
        let mut watch = Watch::new(file);
        loop {
            let interval = self.config.borrow().reload_interval;
            let request = tokio::select! {
                Some(request) = self.reloads.recv() => Some(request),
                Some(()) = hangups.recv() => None,
                () = watch.changed(interval) => None,
            };
            // Whatever comes of it, the file is tried again when it has changed again.
            watch.taken = watch.look();
            let result = self.reload_from(file.to_owned()).await;
            if let Some(Request(answer)) = request {
                // Whoever has asked may have left.
                let _ = answer.send(result);
            }
        }
    }

    async fn reload_from(&mut self, file: PathBuf) -> Result<Changes, ReloadError> {
        let loaded = spawn_blocking(move || config::load(&file)).await;
        let loaded = loaded.map_err(|panic| ReloadError::unusable("cannot read it", panic));
        let result = match loaded.and_then(|loaded| loaded.map_err(ReloadError::Faults)) {
            Ok(config) => self.take_up(config).await,
            Err(error) => Err(error),
        };
        self.tell(&result);
        result
    }

    /// Takes up a configuration. When this returns, new streams go by it on all workers; or all is as it was.
    pub async fn reload(&mut self, config: Config) -> Result<Changes, ReloadError> {
        let result = self.take_up(config).await;
        self.tell(&result);
        result
    }

    async fn take_up(&mut self, config: Config) -> Result<Changes, ReloadError> {
        let before = Arc::clone(&self.config.borrow());
        let fixed = needs_restart(&before, &config);
        if !fixed.is_empty() {
            return Err(ReloadError::NeedsRestart(fixed));
        }
        let changes = Changes::between(&before, &config);
        let config = Arc::new(config);
        let (opening, telemetry) = (Arc::clone(&config), Arc::clone(&self.telemetry));
        let (known, known_tls) = (self.shared.clone(), self.running.tls());
        let opened = spawn_blocking(move || {
            let shared = open(&opening, &telemetry, Some(&known))?;
            Ok((shared, load_tls(&opening, &telemetry.process, &known_tls)?))
        });
        let opened = opened.await;
        let opened = opened.map_err(|panic| ReloadError::unusable("cannot open it", panic))?;
        let (shared, tls) = opened.map_err(ReloadError::Unusable)?;
        let directories = look_up(&config, &shared).await;
        let directories = directories.map_err(ReloadError::Unusable)?;
        let process = &self.telemetry.process;
        let prepared = (self.running).prepare(&config, &tls, &mut self.sockets, process);
        let prepared = prepared.map_err(ReloadError::Unusable)?;

        while self.supervising.try_join_next().is_some() {}
        for watch in shared.upstreams.watch(&self.shared.upstreams) {
            self.supervising.spawn(watch);
        }
        let known_tls = self.running.tls();
        for (name, tls) in tls {
            let known = known_tls.get(&name);
            if !known.is_some_and(|known| Arc::ptr_eq(known, &tls)) {
                let watch = tls::watch(Arc::downgrade(&tls), format!("listener {name}"));
                self.supervising.spawn(watch);
            }
        }
        self.shared = shared;
        self.directories = directories;
        self.shared.components.configure(&config);
        self.telemetry.process.held.set_limit(config.max_held);
        let workers = self.workers.iter();
        let answers: Vec<_> = workers
            .map(|worker| worker.configure(Arc::clone(&config), self.shared.clone()))
            .collect();
        for answer in answers {
            // A worker that is gone has said so already.
            let _ = answer.await;
        }
        self.running.switch(prepared, &self.workers).await;
        self.listeners = self.running.addresses();
        for warning in &config.warnings {
            if !before.warnings.contains(warning) {
                tracing::warn!("{warning}");
            }
        }
        self.config.send_replace(config);
        self.telemetry.forget_unused();
        Ok(changes)
    }

    fn tell(&self, result: &Result<Changes, ReloadError>) {
        let stats = &self.telemetry.process.config;
        match result {
            Ok(changes) => {
                stats.reloads.increment();
                stats.succeeded(SystemTime::now());
                tracing::info!("the configuration was reloaded: {changes}");
            }
            Err(error) => {
                stats.failed();
                let why = match error {
                    ReloadError::Faults(faults) => faults.in_one_line(),
                    error => error.to_string().replace('\n', " "),
                };
                tracing::error!(
                    "the configuration was not reloaded, and the one before stays in force: {why}"
                );
            }
        }
    }
}

/// Looks at the file for changes.
struct Watch<'a> {
    file: &'a Path,
    /// How the file was when it was last read.
    taken: Vec<Stamp>,
    /// How it was at the last look.
    before: Vec<Stamp>,
}

impl<'a> Watch<'a> {
    fn new(file: &'a Path) -> Self {
        let seen = stamp::look([file]);
        Self {
            file,
            taken: seen.clone(),
            before: seen,
        }
    }

    fn look(&self) -> Vec<Stamp> {
        stamp::look([self.file])
    }

    /// Ready when the file has changed, and looks the same twice: one that was just written may not be whole.
    async fn changed(&mut self, interval: Duration) {
        if interval.is_zero() {
            std::future::pending::<()>().await;
        }
        loop {
            sleep(interval).await;
            let now = self.look();
            let settled = now == self.before;
            self.before.clone_from(&now);
            if settled && now != self.taken {
                return;
            }
        }
    }
}

/// The keys that differ and that only a new process takes up.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let fixed = [
        ("admin", before.admin != after.admin),
        ("workers", before.workers != after.workers),
        ("takeover", before.takeover != after.takeover),
        ("dapr", before.dapr != after.dapr),
    ];
    let differing = fixed.into_iter().filter(|(_, differs)| *differs);
    differing.map(|(key, _)| key).collect()
}

// === impl ReloadError ===

impl ReloadError {
    fn unusable(what: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unusable(StartError {
            what: what.to_owned(),
            source: io::Error::other(why),
        })
    }
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faults(faults) => faults.fmt(f),
            Self::NeedsRestart(keys) => write!(
                f,
                "{}: cannot change while the process runs, and needs a restart",
                keys.join(", ")
            ),
            Self::Unusable(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReloadError {}
