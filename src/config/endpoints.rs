//! Where the upstreams of a cluster are, and which of them takes a stream.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::load;
use super::report::Report;
use super::{Address, Faults, check, raw, resolve};

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Endpoints {
    /// From the configuration: at least one.
    Listed(Vec<Endpoint>),
    /// Every address of a name, looked up again and again.
    Dns {
        /// The name.
        host: String,
        /// The port of each address.
        port: u16,
        /// The time between two looks.
        refresh: Duration,
    },
    /// From a file of their own, which is looked at again and again.
    File {
        /// The file.
        path: PathBuf,
        /// The time between two looks.
        refresh: Duration,
    },
}

/// One upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where it is; no other endpoint of the cluster is there.
    pub address: Address,
    /// Its part of the streams, in proportion to the weights of the others; at least 1.
    pub weight: u32,
}

/// Which endpoint takes a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Balance {
    /// Of two drawn at random, the one with fewer streams.
    #[default]
    LeastStreams,
    /// Each in turn.
    RoundRobin,
    /// Always the same for the same value of a header.
    RingHash {
        /// The header.
        header: HeaderName,
    },
}

/// Reads a list of endpoints as it stands in a file of its own. `file_name` is what faults call it.
pub(crate) fn endpoints(text: &str, file_name: &str) -> Result<Vec<Endpoint>, Faults> {
    let mut report = Report::new(file_name, text);
    let load::Document { mut value, places } = match load::read(text) {
        Ok(document) => document,
        Err(broken) => return Err(report.broken(broken)),
    };
    report.locate(places);
    let schema = schemars::schema_for!(raw::EndpointList).to_value();
    check::check(&schema, &mut value, &mut report);
    match serde_json::from_value(value) {
        Ok(raw) => {
            let endpoints = resolve::endpoints(raw, &mut report);
            report.finish(endpoints)
        }
        Err(error) => Err(report.unforeseen(&error)),
    }
}

// === impl Endpoints ===

impl Endpoints {
    pub(super) const DNS_REFRESH: Duration = Duration::from_secs(5);
    pub(super) const FILE_REFRESH: Duration = Duration::from_secs(1);

    /// Just one.
    pub(super) fn one(address: Address) -> Self {
        Self::Listed(vec![Endpoint { address, weight: 1 }])
    }

    /// Those that the configuration itself names.
    pub fn listed(&self) -> &[Endpoint] {
        match self {
            Self::Listed(endpoints) => endpoints,
            Self::Dns { .. } | Self::File { .. } => &[],
        }
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed(endpoints) => {
                for (index, endpoint) in endpoints.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", endpoint.address)?;
                }
                Ok(())
            }
            Self::Dns { host, port, .. } => write!(f, "dns {host}:{port}"),
            Self::File { path, .. } => write!(f, "file {}", path.display()),
        }
    }
}
