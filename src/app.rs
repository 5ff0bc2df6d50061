//! Puts the proxy together, starts it, and ends it.
//!
//! Everything is bound before anything runs, so that a port in use is told before a single connection is taken, and so that
//! whoever asked for port 0 can read the real one. The same holds when another configuration is taken up: `reload`.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    admin,
    bindings::{Components, Shared, Stores},
    config::{Address, Config},
    drain::{Phase, advance, reached},
    listener::Sockets,
    telemetry::Telemetry,
    tls::{self, Upstreams},
    upstream::directory::{Directories, Directory},
    worker::{self, Handle},
};

mod changes;
mod listeners;
mod reload;

pub use changes::{Changes, Difference};
use listeners::{Listeners, TlsByName, load_tls};
pub use reload::ReloadError;
pub(crate) use reload::{Request, Requests};

/// A running proxy.
#[derive(Debug)]
pub struct App {
    /// The listeners' names and the addresses that they are bound to, in the order of the configuration.
    pub listeners: Vec<(String, Address)>,
    /// Where the admin endpoints are.
    pub admin: Option<SocketAddr>,
    running: Listeners,
    sockets: Sockets,
    /// What is in force.
    config: watch::Sender<Arc<Config>>,
    telemetry: Arc<Telemetry>,
    shared: Shared,
    /// Those who ask for a reload and wait for what becomes of it.
    reloads: mpsc::Receiver<Request>,
    workers: Arc<Vec<Handle>>,
    /// Looks after the components of bindings, and after the files of listeners, until the end.
    supervising: JoinSet<()>,
    /// The endpoints of the clusters of the configuration in force.
    directories: Vec<Arc<Directory>>,
    phases: watch::Sender<Phase>,
}

/// What became of the streams that were open when the proxy closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// By themselves, while they were waited for.
    pub ended: usize,
    /// By the proxy, behind their current messages.
    pub dismissed: usize,
    /// By the proxy, within a message.
    pub cut: usize,
    /// How long it took, the delay included.
    pub took: Duration,
}

/// What kept the proxy from starting.
#[derive(Debug)]
pub struct StartError {
    what: String,
    source: io::Error,
}

impl App {
    /// Binds every address and starts to serve.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let sockets = Sockets::from_environment(config.takeover);
        let mut sockets = sockets.map_err(|source| StartError {
            what: "cannot use the sockets that were handed over (LISTEN_FDS)".into(),
            source,
        })?;
        let telemetry = Arc::new(Telemetry::new(&config.dapr));
        telemetry.process.held.set_limit(config.max_held);
        let config = Arc::new(config);
        let shared = open(&config, &telemetry, None)?;
        let directories = look_up(&config, &shared).await?;
        let phases = watch::Sender::default();

        let tls = load_tls(&config, &telemetry.process, &TlsByName::new())?;
        let mut supervising: JoinSet<()> = shared.upstreams.watch(&Upstreams::default()).collect();
        for (name, tls) in &tls {
            supervising.spawn(tls::watch(Arc::downgrade(tls), format!("listener {name}")));
        }
        let mut listeners = Listeners::default();
        let prepared = listeners.prepare(&config, &tls, &mut sockets, &telemetry.process)?;
        let in_force = watch::Sender::new(Arc::clone(&config));
        let (requests, reloads) = Requests::channel();
        let admin = match &config.admin {
            Some(settings) => {
                let what = || format!("admin: cannot listen on {}", settings.address);
                let started = admin::start(
                    settings,
                    &mut sockets,
                    in_force.subscribe(),
                    &shared,
                    &telemetry,
                    requests,
                    phases.clone(),
                );
                Some(started.map_err(|source| StartError {
                    what: what(),
                    source,
                })?)
            }
            None => None,
        };
        for address in sockets.unused() {
            tracing::warn!(socket = %address, "a socket was handed over, and no listener has its address");
        }
        let workers: Vec<Handle> = (0..config.workers)
            .map(|index| {
                worker::start(
                    index,
                    Arc::clone(&config),
                    &telemetry,
                    &shared,
                    phases.subscribe(),
                )
            })
            .collect::<io::Result<_>>()
            .map_err(|source| StartError {
                what: "cannot start a worker".into(),
                source,
            })?;
        let workers = Arc::new(workers);
        supervising.spawn(Arc::clone(&shared.components).supervise());
        listeners.switch(prepared, &workers).await;
        telemetry.process.config.succeeded(SystemTime::now());
        Ok(Self {
            listeners: listeners.addresses(),
            running: listeners,
            sockets,
            admin,
            config: in_force,
            telemetry,
            shared,
            reloads,
            workers,
            supervising,
            directories,
            phases,
        })
    }

    /// Ready when an operator has asked for the end at the admin endpoint.
    pub fn asked_to_drain(&self) -> impl Future<Output = ()> + use<> {
        reached(self.phases.subscribe(), Phase::Leaving)
    }

    /// Says that it is no longer ready, stops accepting, lets the streams end for as long as `drain` allows, and returns when all
    /// is closed.
    pub async fn drain(mut self) -> Drained {
        let began = Instant::now();
        // Who waits for a reload hears that there is none.
        drop(self.reloads);
        let delay = self.config.borrow().drain.delay;
        advance(&self.phases, Phase::Leaving);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let forced_before = self.telemetry.process.forced_ends.get();
        let open: usize = self.workers.iter().map(|worker| worker.load().0).sum();
        advance(&self.phases, Phase::Draining);
        self.running.close().await;
        let workers = Arc::try_unwrap(self.workers).unwrap_or_default();
        // All at once: none waits for its turn to drain.
        let workers: Vec<_> = workers.into_iter().map(Handle::release).collect();
        let joined = tokio::task::spawn_blocking(move || {
            // One that panicked has said so already.
            let farewells = workers.into_iter().filter_map(|worker| worker.join().ok());
            farewells.fold((0, 0), |(left, lost), farewell| {
                (left + farewell.dismissed, lost + farewell.lost)
            })
        });
        let (left, lost) = joined.await.unwrap_or_default();
        self.supervising.abort_all();
        let forced = self.telemetry.process.forced_ends.get() - forced_before;
        let cut = lost + usize::try_from(forced).unwrap_or(usize::MAX);
        Drained {
            ended: open.saturating_sub(left),
            dismissed: left.saturating_sub(cut),
            cut,
            took: began.elapsed(),
        }
    }
}

/// Opens what a configuration names and the workers share, and keeps what is open already.
fn open(
    config: &Arc<Config>,
    telemetry: &Arc<Telemetry>,
    before: Option<&Shared>,
) -> Result<Shared, StartError> {
    let process = &telemetry.process;
    let (stores, upstreams) = match before {
        Some(before) => (
            Stores::open(config, &before.stores),
            Upstreams::load(config, process, &before.upstreams),
        ),
        None => (
            Stores::open(config, &Stores::default()),
            Upstreams::load(config, process, &Upstreams::default()),
        ),
    };
    let stores = stores.map_err(|(binding, source)| StartError {
        what: format!("binding {binding}: cannot open its store"),
        source,
    })?;
    let upstreams = upstreams.map_err(|(cluster, faults)| StartError::tls(&cluster, &faults))?;
    Ok(Shared {
        upstreams: Arc::new(upstreams),
        directories: match before {
            Some(before) => Arc::clone(&before.directories),
            None => Arc::new(Directories::new(Arc::clone(process))),
        },
        components: match before {
            Some(before) => Arc::clone(&before.components),
            None => Arc::new(Components::new(config, telemetry)),
        },
        stores: Arc::new(stores),
    })
}

/// Looks for the endpoints of all clusters. They want to be held until every worker holds them.
async fn look_up(config: &Config, shared: &Shared) -> Result<Vec<Arc<Directory>>, StartError> {
    let opened = shared.directories.open(&config.clusters).await;
    opened.map_err(|(cluster, fault)| StartError {
        what: format!("cluster {cluster}: cannot use its endpoints"),
        source: io::Error::other(fault),
    })
}

impl StartError {
    fn tls(whose: &str, faults: &[tls::Fault]) -> Self {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Self {
            what: format!("{whose}: cannot use its TLS files"),
            source: io::Error::other(faults.join("; ")),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)?;
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                f.write_str("\nanother process listens there: stop it, or choose another address in the configuration")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str("\nports below 1024 need the capability CAP_NET_BIND_SERVICE; or choose a higher one")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for StartError {}
