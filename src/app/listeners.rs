//! The listeners of the configuration in force, and how they become those of another.
//!
//! A listener is known by its address: as long as there is one at an address, its socket stays open, and no client finds it closed.
//! Whatever else of its settings changes is met by new connections. A listener whose address is gone closes, and its
//! connections are told to open no more streams; the streams that they have go on.

use std::{collections::HashMap, sync::Arc};

use tokio::{sync::watch, task::JoinHandle};

use super::StartError;
use crate::{
    config::{self, Address, Config},
    drain::{Phase, advance},
    listener::{Listener, Sockets},
    serve::Front,
    telemetry::Process,
    tls::Tls,
    worker::Handle,
};

/// Those that run, in the order of the configuration.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Running>);

#[derive(Debug)]
struct Running {
    /// Where it really listens.
    address: Address,
    fronts: watch::Sender<Arc<Front>>,
    phases: watch::Sender<Phase>,
    accepting: JoinHandle<()>,
}

/// The listeners of another configuration, bound and ready. Nothing has changed yet.
#[derive(Debug)]
pub(super) struct Prepared(Vec<Next>);

#[derive(Debug)]
enum Next {
    /// The how many-th of those that run goes on, with this for new connections.
    Kept(usize, Arc<Front>),
    New(Listener, Address, watch::Sender<Phase>),
}

/// TLS of listeners, by their names.
pub(super) type TlsByName = HashMap<String, Arc<Tls>>;

/// Reads the TLS files of all listeners. What was read before under the same settings stays, with its tickets.
pub(super) fn load_tls(
    config: &Config,
    process: &Process,
    before: &TlsByName,
) -> Result<TlsByName, StartError> {
    let mut all = HashMap::new();
    for listener in &config.listeners {
        let Some(settings) = &listener.tls else {
            continue;
        };
        let known = before.get(&listener.name);
        let tls = match known.filter(|known| known.settings() == settings) {
            Some(known) => Arc::clone(known),
            None => {
                let loaded = Tls::load(settings, process.tls(&listener.name));
                let whose = format!("listener {}", listener.name);
                Arc::new(loaded.map_err(|faults| StartError::tls(&whose, &faults))?)
            }
        };
        all.insert(listener.name.clone(), tls);
    }
    Ok(all)
}

// === impl Listeners ===

impl Listeners {
    /// Binds the addresses that are new.
    pub(super) fn prepare(
        &self,
        config: &Config,
        tls: &TlsByName,
        sockets: &mut Sockets,
        process: &Process,
    ) -> Result<Prepared, StartError> {
        let next = config.listeners.iter().map(|settings| {
            let tls = tls.get(&settings.name).cloned();
            match self.running(settings) {
                Some((index, running)) => {
                    let before = Arc::clone(&running.fronts.borrow());
                    let same_tls = match (&before.tls, &tls) {
                        (Some(before), Some(now)) => Arc::ptr_eq(before, now),
                        (before, now) => before.is_none() && now.is_none(),
                    };
                    let front = if before.settings == *settings && same_tls {
                        before
                    } else {
                        front(settings, tls, process, &running.phases)
                    };
                    Ok(Next::Kept(index, front))
                }
                None => {
                    let phases = watch::Sender::default();
                    let front = front(settings, tls, process, &phases);
                    let bound = Listener::bind(front, sockets);
                    let bound = bound.and_then(|listener| Ok((listener.address()?, listener)));
                    let (address, listener) = bound.map_err(|source| StartError {
                        what: format!(
                            "listener {}: cannot listen on {}",
                            settings.name, settings.address
                        ),
                        source,
                    })?;
                    Ok(Next::New(listener, address, phases))
                }
            }
        });
        next.collect::<Result<_, _>>().map(Prepared)
    }

    /// Makes those that were prepared the ones that run. When this returns, the sockets of the others are closed.
    pub(super) async fn switch(&mut self, to: Prepared, workers: &Arc<Vec<Handle>>) {
        let mut before: Vec<Option<Running>> = self.0.drain(..).map(Some).collect();
        for next in to.0 {
            let running = match next {
                Next::Kept(index, front) => {
                    let running = before[index].take();
                    let running = running.expect("no two listeners have the same address");
                    if !Arc::ptr_eq(&running.fronts.borrow(), &front) {
                        running.fronts.send_replace(front);
                    }
                    running
                }
                Next::New(listener, address, phases) => {
                    let fronts = watch::Sender::new(listener.front());
                    let run = listener.run(fronts.subscribe(), Arc::clone(workers));
                    Running {
                        address,
                        fronts,
                        phases,
                        accepting: tokio::spawn(run),
                    }
                }
            };
            self.0.push(running);
        }
        let gone = before.into_iter().flatten().collect();
        Self(gone).close().await;
    }

    /// Closes the sockets, and tells all connections to open no more streams.
    pub(super) async fn close(self) {
        for running in &self.0 {
            advance(&running.phases, Phase::Draining);
        }
        for running in self.0 {
            // It ends in peace, or in a panic that has said so.
            let _ = running.accepting.await;
        }
    }

    /// Their names and where they really listen.
    pub(super) fn addresses(&self) -> Vec<(String, Address)> {
        let all = self.0.iter();
        all.map(|running| {
            let name = running.fronts.borrow().settings.name.clone();
            (name, running.address.clone())
        })
        .collect()
    }

    /// The TLS of those that have it.
    pub(super) fn tls(&self) -> TlsByName {
        let fronts = self.0.iter().map(|running| running.fronts.borrow());
        fronts
            .filter_map(|front| Some((front.settings.name.clone(), front.tls.clone()?)))
            .collect()
    }

    /// The one at the address of these settings. Where any port will do, the name tells which is meant.
    fn running(&self, settings: &config::Listener) -> Option<(usize, &Running)> {
        let any_port = matches!(settings.address, Address::Tcp(address) if address.port() == 0);
        self.0.iter().enumerate().find(|(_, running)| {
            let known = &running.fronts.borrow().settings;
            known.address == settings.address && (!any_port || known.name == settings.name)
        })
    }
}

fn front(
    settings: &config::Listener,
    tls: Option<Arc<Tls>>,
    process: &Process,
    phases: &watch::Sender<Phase>,
) -> Arc<Front> {
    Arc::new(Front {
        settings: settings.clone(),
        tls,
        stats: process.listener(&settings.name),
        phases: phases.subscribe(),
    })
}
