//! The endpoints of a cluster, as the whole process knows them.
//!
//! A [`Directory`] publishes a [`Roster`] whenever the endpoints change; the workers follow it, and so does whoever looks after
//! their health. An endpoint that stays is the same object before and after, with its streams, its health, and its
//! connections. Where the endpoints come from, and who asks for them, is told by
//!
//! | file | what it holds |
//! |---|---|
//! | [`source`] | the name or the file that the endpoints are read from, again and again |
//! | [`directories`] | the directories of all clusters |

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::watch, task::AbortHandle};

use super::{
    check::{self, Checker},
    endpoint::Endpoint,
    roster::Roster,
};
use crate::{config, telemetry::ClusterStats, tls};
pub(crate) use directories::Directories;

mod directories;
mod source;

/// The endpoints of one cluster.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) settings: Arc<config::Cluster>,
    pub(crate) stats: Arc<ClusterStats>,
    rosters: watch::Sender<Arc<Roster>>,
    /// How the last look at the source went; `None` before the first.
    looked: watch::Sender<Option<Result<(), String>>>,
    /// Looks at the source.
    looking: OnceLock<AbortHandle>,
    /// Asks the endpoints whether they are well.
    checking: OnceLock<AbortHandle>,
    /// Where both are done.
    runtime: Handle,
    ejecting: Mutex<()>,
    /// News whenever an endpoint is found not to be well.
    unwell: watch::Sender<()>,
}

// === impl Directory ===

impl Directory {
    /// With the endpoints that the configuration lists.
    fn new(settings: Arc<config::Cluster>, stats: Arc<ClusterStats>, runtime: Handle) -> Self {
        let directory = Self {
            rosters: watch::Sender::new(Arc::new(Roster::new([], &settings.balance))),
            looked: watch::Sender::new(None),
            looking: OnceLock::new(),
            checking: OnceLock::new(),
            runtime,
            ejecting: Mutex::default(),
            unwell: watch::Sender::new(()),
            settings,
            stats,
        };
        let listed = directory.settings.endpoints.listed().to_vec();
        if !listed.is_empty() {
            directory.publish(listed);
            directory.looked.send_replace(Some(Ok(())));
        }
        directory
    }

    /// Has the endpoints asked whether they are well, if the settings want it, from the first call on. `tls` is that of the
    /// cluster.
    pub(super) fn check_health(&self, tls: Option<&Arc<tls::Upstream>>) {
        if let Some(checker) = Checker::of(&self.settings, tls, &self.stats, &self.unwell) {
            self.checking.get_or_init(|| {
                let checking = check::all(self.rosters(), Arc::new(checker));
                self.runtime.spawn(checking).abort_handle()
            });
        }
    }

    /// News whenever an endpoint is found not to be well.
    pub(crate) fn unwell(&self) -> watch::Receiver<()> {
        self.unwell.subscribe()
    }

    /// Held by whoever takes an endpoint out.
    pub(super) fn ejecting(&self) -> MutexGuard<'_, ()> {
        (self.ejecting.lock()).unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoints now.
    pub(crate) fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.rosters.borrow())
    }

    /// The endpoints now, and whenever they change.
    pub(crate) fn rosters(&self) -> watch::Receiver<Arc<Roster>> {
        self.rosters.subscribe()
    }

    /// Waits for the first look at the source, and tells what came of it.
    async fn first_look(&self) -> Result<(), String> {
        let mut looks = self.looked.subscribe();
        let looked = looks.wait_for(Option::is_some).await;
        let looked = looked.expect("the sender is in `self`");
        looked.clone().unwrap_or(Ok(()))
    }

    /// Takes up what a look at the source has found.
    fn take_up(&self, found: Result<Vec<config::Endpoint>, String>) {
        let cluster = &self.settings.name;
        let looked = found.map(|endpoints| self.publish(endpoints));
        self.stats.endpoints_stale.set(looked.is_err().into());
        if let Err(fault) = &looked {
            self.stats.endpoint_failures.increment();
            let told = matches!(&*self.looked.borrow(), Some(Err(before)) if before == fault);
            if !told {
                tracing::error!(%cluster, fault, "no new endpoints; those that there were stay");
            }
        }
        self.looked.send_replace(Some(looked));
    }

    /// Tells the endpoints that there are now to all who follow. Those that come to others begin slowly.
    fn publish(&self, listed: Vec<config::Endpoint>) {
        let before = self.roster();
        let mut known: HashMap<_, _> = (before.endpoints().iter())
            .map(|endpoint| (endpoint.address(), endpoint))
            .collect();
        let (mut added, mut changed) = (0, false);
        let mut endpoints = Vec::with_capacity(listed.len());
        for config::Endpoint { address, weight } in listed {
            if let Some(endpoint) = known.remove(&address) {
                changed |= endpoint.set_weight(weight) != weight;
                endpoints.push(Arc::clone(endpoint));
                continue;
            }
            let endpoint = Endpoint::new(address, weight, self.settings.slow_start);
            if !before.endpoints().is_empty() {
                endpoint.warm_up();
            }
            added += 1;
            endpoints.push(Arc::new(endpoint));
        }
        let removed = known.len();
        if added + removed == 0 && !changed {
            return;
        }
        let count = endpoints.len();
        self.rosters
            .send_replace(Arc::new(Roster::new(endpoints, &self.settings.balance)));
        if !before.endpoints().is_empty() {
            self.stats.endpoint_changes.increment();
            let cluster = &self.settings.name;
            tracing::info!(%cluster, endpoints = count, added, removed, "the endpoints have changed");
        }
    }

    fn to_json(&self) -> Value {
        let roster = self.roster();
        let endpoints = roster.endpoints().iter().map(|endpoint| {
            json!({
                "address": endpoint.address().to_string(),
                "weight": endpoint.weight(),
                "state": endpoint.state().name(),
                "streams": endpoint.streams(),
            })
        });
        let mut all = json!({
            "available": roster.available(),
            "endpoints": endpoints.collect::<Value>(),
        });
        if let Some(Err(fault)) = &*self.looked.borrow() {
            all["fault"] = fault.as_str().into();
        }
        all
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for task in [&self.looking, &self.checking] {
            if let Some(task) = task.get() {
                task.abort();
            }
        }
    }
}
