//! The directories of all clusters.
//!
//! Each cluster has one directory, however many workers ask for it, and for as long as somebody holds it. A cluster whose
//! settings have not changed keeps it through a reload of the configuration.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};
use serde_json::Value;
use tokio::runtime::Handle;

use super::{Directory, source::Source};
use crate::{
    config,
    telemetry::Process,
    upstream::{endpoint::Endpoint, roster::Roster},
};

/// The directories of all clusters.
#[derive(Debug)]
pub(crate) struct Directories {
    process: Arc<Process>,
    /// Where the sources are looked at.
    runtime: Handle,
    known: Mutex<Vec<Weak<Directory>>>,
}

// === impl Directories ===

impl Directories {
    /// None so far. Sources will be looked at on this runtime.
    pub(crate) fn new(process: Arc<Process>) -> Self {
        Self {
            process,
            runtime: Handle::current(),
            known: Mutex::default(),
        }
    }

    /// The directories of all these clusters, whose sources have been looked at once. They want to be held until the workers
    /// do. A file that is no good is told with the name of its cluster; a name that cannot be looked up now may be found later.
    pub(crate) async fn open(
        &self,
        clusters: &[Arc<config::Cluster>],
    ) -> Result<Vec<Arc<Directory>>, (String, String)> {
        let all: Vec<_> = clusters.iter().map(|cluster| self.of(cluster)).collect();
        for directory in &all {
            let look = directory.first_look().await;
            if let (config::Endpoints::File { .. }, Err(fault)) =
                (&directory.settings.endpoints, look)
            {
                return Err((directory.settings.name.clone(), fault));
            }
        }
        Ok(all)
    }

    /// The directory of a cluster: the one that there is, if its settings are the same.
    pub(crate) fn of(&self, cluster: &Arc<config::Cluster>) -> Arc<Directory> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|directory| directory.strong_count() > 0);
        let found = known.iter().filter_map(Weak::upgrade);
        let mut same = found.filter(|directory| directory.settings == *cluster);
        if let Some(same) = same.next() {
            return same;
        }
        let stats = self.process.cluster(&cluster.name);
        let directory = Arc::new(Directory::new(
            Arc::clone(cluster),
            stats,
            self.runtime.clone(),
        ));
        if let Some(source) = Source::of(&cluster.endpoints) {
            let looking = self
                .runtime
                .spawn(source.follow(Arc::downgrade(&directory)));
            let first = directory.looking.set(looking.abort_handle());
            first.expect("a directory is looked after once");
        }
        known.push(Arc::downgrade(&directory));
        directory
    }

    /// The directory of each cluster: the newest, while streams still hold one with former settings.
    fn all(&self) -> impl Iterator<Item = Arc<Directory>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let all = known.iter().filter_map(Weak::upgrade);
        let all: BTreeMap<String, Arc<Directory>> = all
            .map(|directory| (directory.settings.name.clone(), directory))
            .collect();
        all.into_values()
    }

    /// Every cluster with its endpoints, for the operator.
    pub(crate) fn to_json(&self) -> Value {
        let all = self.all();
        all.map(|directory| (directory.settings.name.clone(), directory.to_json()))
            .collect()
    }
}

impl Collector for Directories {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Reading = (&'static str, &'static str, fn(&Roster) -> usize);
        const READINGS: [Reading; 2] = [
            ("endpoints", "Endpoints now", |roster| {
                roster.endpoints().len()
            }),
            (
                "endpoints_available",
                "Endpoints now that may get new streams",
                Roster::available,
            ),
        ];
        for (name, help, read) in READINGS {
            let name = format!("thalweg_cluster_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for directory in self.all() {
                let labels = [("cluster", directory.settings.name.as_str())];
                let count = read(&directory.roster()) as u64;
                family.encode_family(&labels)?.encode_gauge(&count)?;
            }
        }
        type OfEach = (&'static str, &'static str, fn(&Endpoint) -> u64);
        const OF_EACH: [OfEach; 2] = [
            (
                "available",
                "1 while an endpoint may get new streams, and 0 while it may not; /clusters says why",
                |endpoint| u64::from(endpoint.is_available()),
            ),
            (
                "streams",
                "Streams now that an endpoint has, or that wait for a place there",
                |endpoint| endpoint.streams() as u64,
            ),
        ];
        for (name, help, read) in OF_EACH {
            let name = format!("thalweg_endpoint_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            for directory in self.all() {
                for endpoint in directory.roster().endpoints() {
                    let address = endpoint.address().to_string();
                    let labels = [
                        ("cluster", directory.settings.name.as_str()),
                        ("endpoint", address.as_str()),
                    ];
                    family
                        .encode_family(&labels)?
                        .encode_gauge(&read(endpoint))?;
                }
            }
        }
        Ok(())
    }
}
