//! What the file says about TLS.

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Address;

/// TLS on a listener. All files were good when the configuration was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// At least one. A client gets the one with the name that it asks for, or else the first.
    pub certificates: Vec<CertificateFiles>,
    /// Who clients must be; `None` for anybody.
    pub clients: Option<Clients>,
    /// How often the files are looked at for changes; zero is never.
    pub reload_interval: Duration,
}

/// TLS towards the endpoints of a cluster. All files were good when the configuration was read.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    /// Who vouches for the endpoints; `None` for those whom this machine trusts.
    pub ca: Option<PathBuf>,
    /// What their certificates must be for; `None` for the host of each endpoint.
    pub server_name: Option<ServerName<'static>>,
    /// What is shown to an endpoint that asks for it.
    pub certificate: Option<CertificateFiles>,
    /// How often the files are looked at for changes; zero is never.
    pub reload_interval: Duration,
}

/// A certificate and its key, both in PEM.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateFiles {
    /// The certificate, and those between it and its root.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Whose certificates clients show.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// The roots that vouch for them.
    pub ca: PathBuf,
    /// Whether they can do without one.
    pub auth: ClientAuth,
    /// Which certificates are void.
    pub crls: Vec<PathBuf>,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// Who shows none is refused.
    #[default]
    Required,
    /// Who shows none is served without a name. A bad one is refused all the same.
    Optional,
}

// === impl Tls ===

/// How often files are looked at, unless something else is written.
pub(super) const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

impl Tls {
    /// Every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let pairs = self.certificates.iter();
        let clients = self.clients.iter();
        pairs
            .flat_map(|pair| [&pair.cert, &pair.key])
            .chain(clients.flat_map(|clients| std::iter::once(&clients.ca).chain(&clients.crls)))
    }
}

// === impl UpstreamTls ===

impl UpstreamTls {
    /// What the certificate of an endpoint must be for, unless nothing says it.
    pub(crate) fn name_of(&self, endpoint: &Address) -> Option<ServerName<'static>> {
        match (&self.server_name, endpoint) {
            (Some(name), _) => Some(name.clone()),
            (None, Address::Tcp(address)) => Some(ServerName::IpAddress(address.ip().into())),
            (None, Address::Host(host, _)) => ServerName::try_from(host.clone()).ok(),
            (None, Address::Unix(_)) => None,
        }
    }

    /// Every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let pair = self.certificate.iter();
        self.ca
            .iter()
            .chain(pair.flat_map(|pair| [&pair.cert, &pair.key]))
    }
}
