//! TLS towards upstreams: whom the proxy believes, and what it shows to those who ask.
//!
//! One [`Upstream`] serves all workers, so that a session that one of them has begun is resumed by any. When the files
//! change, new connections begin anew: a session outlives no rule about whom to believe.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt, io,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InvalidMessage, sign::SingleCertAndKey,
};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    material::{self, Certificate, Fault, provider},
    reload::{Reload, watch},
};
use crate::{
    config::{self, Address, BindingTarget, Config, Protocol},
    stamp::{self, Stamp},
    telemetry::{Process, ReloadStats, UpstreamTlsStats},
    transport::{Role, Transport},
};

/// TLS of every cluster that has it, by the cluster's name.
#[derive(Debug, Default)]
pub(crate) struct Upstreams(HashMap<String, Arc<Upstream>>);

/// TLS of one cluster, for all workers.
#[derive(Debug)]
pub(crate) struct Upstream {
    settings: config::UpstreamTls,
    protocol: Protocol,
    /// How the files were before they were read.
    first_look: Vec<Stamp>,
    current: RwLock<Arc<ClientConfig>>,
    pub(crate) stats: Arc<UpstreamTlsStats>,
}

/// Why there is no TLS with an upstream, in words that are safe for strangers.
#[derive(Debug)]
pub(crate) struct Broken {
    what: String,
    /// What the operator can do.
    pub(crate) hint: &'static str,
}

// === impl Upstreams ===

impl Upstreams {
    /// Reads the files of all clusters; or tells whose are no good. What was read before under the same settings stays, with its
    /// sessions.
    pub(crate) fn load(
        config: &Config,
        process: &Process,
        before: &Self,
    ) -> Result<Self, (String, Vec<Fault>)> {
        let of_bindings = config.bindings.iter().filter_map(|it| match &it.target {
            BindingTarget::Http(http) => Some(&http.cluster),
            _ => None,
        });
        let mut all = HashMap::new();
        for cluster in config.clusters.iter().chain(of_bindings) {
            if let Some(tls) = &cluster.tls {
                if let Some(known) = before.0.get(&cluster.name)
                    && (&known.settings, known.protocol) == (tls, cluster.protocol)
                {
                    all.insert(cluster.name.clone(), Arc::clone(known));
                    continue;
                }
                let stats = process.upstream_tls(&cluster.name);
                let loaded = Upstream::load(tls, cluster.protocol, stats);
                let loaded = loaded.map_err(|faults| (cluster.label.clone(), faults))?;
                all.insert(cluster.name.clone(), Arc::new(loaded));
            }
        }
        Ok(Self(all))
    }

    pub(crate) fn of(&self, cluster: &str) -> Option<Arc<Upstream>> {
        self.0.get(cluster).cloned()
    }

    /// Looks after the files of all that are not among those before, each for as long as it is used.
    pub(crate) fn watch(
        &self,
        before: &Self,
    ) -> impl Iterator<Item = impl Future<Output = ()> + use<>> {
        let all = (self.0.iter()).filter(|(cluster, tls)| {
            let known = before.0.get(*cluster);
            !known.is_some_and(|known| Arc::ptr_eq(known, tls))
        });
        all.map(|(cluster, tls)| watch(Arc::downgrade(tls), format!("cluster {cluster}")))
    }
}

// === impl Upstream ===

impl Upstream {
    /// Whether the files are any good; and what about them is worth a look.
    pub(crate) fn check(settings: &config::UpstreamTls) -> Result<Vec<Fault>, Vec<Fault>> {
        let (_, certificate) = client_config(settings, b"h2")?;
        let doubts = certificate.map(|it| it.doubts("certificate.cert", SystemTime::now()));
        Ok(doubts.unwrap_or_default())
    }

    fn load(
        settings: &config::UpstreamTls,
        protocol: Protocol,
        stats: Arc<UpstreamTlsStats>,
    ) -> Result<Self, Vec<Fault>> {
        let first_look = stamp::look(settings.files());
        let (config, certificate) = client_config(settings, alpn(protocol))?;
        stats
            .certificate_expiry
            .set(certificate.map_or(0, |it| it.expiry()));
        Ok(Self {
            settings: settings.clone(),
            protocol,
            first_look,
            current: RwLock::new(Arc::new(config)),
            stats,
        })
    }

    /// Shakes hands with an endpoint on a connection on which nothing was said yet.
    pub(crate) async fn connect(
        &self,
        transport: &Transport,
        endpoint: &Address,
    ) -> io::Result<()> {
        let name = self
            .settings
            .name_of(endpoint)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let greeting = match transport.secure(Role::Client(self.current(), name)).await {
            Ok(greeting) => greeting,
            Err(error) => return Err(self.explained(error, endpoint)),
        };
        if self.protocol == Protocol::Http2 && greeting.alpn.is_none() {
            let error = io::Error::other(Error::NoApplicationProtocol);
            return Err(self.explained(error, endpoint));
        }
        self.stats.handshakes.increment();
        if greeting.resumed {
            self.stats.resumed.increment();
        }
        Ok(())
    }

    /// The same on a socket that is used outside of the workers, where nothing counts but whether it works.
    pub(crate) async fn connect_plainly<S>(
        &self,
        socket: S,
        endpoint: &Address,
    ) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = (self.settings.name_of(endpoint)).ok_or(io::ErrorKind::InvalidInput)?;
        TlsConnector::from(self.current())
            .connect(name, socket)
            .await
    }

    fn current(&self) -> Arc<ClientConfig> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// The error of a connection, with what TLS has to do with it: an endpoint may refuse us after the handshake only.
    pub(crate) fn explained(&self, error: io::Error, endpoint: &Address) -> io::Error {
        let broken = match cause(&error) {
            Some(cause) => self.broken(cause, endpoint),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Broken::new(
                "the upstream has closed the connection instead of a TLS handshake",
                "it may speak no TLS: leave out `tls`",
            ),
            None => return error,
        };
        self.stats.handshake_failures.increment();
        io::Error::other(broken)
    }

    /// What an error has to do with TLS, if anything.
    pub(crate) fn refusal(
        &self,
        error: &(dyn StdError + 'static),
        endpoint: &Address,
    ) -> Option<Broken> {
        let broken = self.broken(cause(error)?, endpoint);
        self.stats.handshake_failures.increment();
        Some(broken)
    }

    fn broken(&self, cause: &Error, endpoint: &Address) -> Broken {
        match cause {
            Error::InvalidCertificate(why) => self.untrusted(why, endpoint),
            Error::NoApplicationProtocol
            | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                let protocol = match self.protocol {
                    Protocol::Http2 => "HTTP/2",
                    Protocol::Http1 => "HTTP/1.1",
                };
                Broken::new(
                    format!("the upstream does not agree to {protocol} under TLS (protocol)"),
                    "let it offer the protocol by ALPN, or change the cluster's `protocol`",
                )
            }
            Error::AlertReceived(AlertDescription::CertificateRequired) => Broken::new(
                "the upstream wants a client certificate (tls.certificate)",
                "`tls.certificate` names the one to show",
            ),
            Error::AlertReceived(alert) if self.settings.certificate.is_some() => Broken::new(
                format!("the upstream refuses our certificate or the connection: {alert:?}"),
                "the upstream's log may tell why; `tls.certificate` is what it was shown",
            ),
            Error::AlertReceived(alert) => Broken::new(
                format!("the upstream refuses the TLS connection: {alert:?}"),
                "the upstream's log may tell why; if it wants a certificate, `tls.certificate` names it",
            ),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Broken::new(
                "the upstream does not speak TLS (tls)",
                "leave out `tls`, or name the port with TLS",
            ),
            other => Broken::new(format!("TLS with the upstream is broken: {other}"), ""),
        }
    }

    fn untrusted(&self, why: &CertificateError, endpoint: &Address) -> Broken {
        match why {
            CertificateError::UnknownIssuer => Broken::new(
                "the upstream's certificate is of an issuer that is not trusted (tls.ca)",
                "`tls.ca` names a file with the roots to trust; without it, they are this machine's",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let name = self.settings.name_of(endpoint);
                let name = name
                    .as_ref()
                    .map_or_else(String::new, |it| it.to_str().into());
                Broken::new(
                    format!("the upstream's certificate is not for `{name}` (tls.server_name)"),
                    "`tls.server_name` says what it must be for; without it, the endpoint's own host",
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Broken::new(
                "the upstream's certificate has expired",
                "renew it on the upstream",
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Broken::new(
                    "the upstream's certificate is not valid yet",
                    "look at the clocks of both machines",
                )
            }
            other => Broken::new(
                format!("the upstream's certificate is not trusted: {other}"),
                "",
            ),
        }
    }
}

impl Reload for Upstream {
    fn interval(&self) -> Duration {
        self.settings.reload_interval
    }

    fn first_look(&self) -> Vec<Stamp> {
        self.first_look.clone()
    }

    fn look(&self) -> Vec<Stamp> {
        stamp::look(self.settings.files())
    }

    /// New connections are made with what the files say now.
    fn reload(&self) -> Result<(), Vec<Fault>> {
        let (config, certificate) = client_config(&self.settings, alpn(self.protocol))?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.stats
            .certificate_expiry
            .set(certificate.map_or(0, |it| it.expiry()));
        Ok(())
    }

    fn stats(&self) -> &ReloadStats {
        &self.stats.reload
    }
}

fn alpn(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Http2 => b"h2",
        Protocol::Http1 => b"http/1.1",
    }
}

/// The client's side of TLS, and the certificate that it shows. Without a `ca`, this machine says whom to trust.
pub(crate) fn client_config(
    settings: &config::UpstreamTls,
    alpn: &[u8],
) -> Result<(ClientConfig, Option<Certificate>), Vec<Fault>> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| vec![Fault::unforeseen(&error)])?;
    let builder = match &settings.ca {
        Some(file) => {
            (material::roots(file, "ca")).map(|(roots, _)| builder.with_root_certificates(roots))
        }
        None => builder.with_platform_verifier().map_err(|error| {
            let message =
                format!("the certificates that this machine trusts cannot be used: {error}");
            Fault::new("ca", message, "name a file with the roots to trust: `ca`")
        }),
    };
    let certificate = (settings.certificate.as_ref())
        .map(|pair| material::certificate(pair, "certificate", &provider))
        .transpose();
    let (builder, certificate) = match (builder, certificate) {
        (Ok(builder), Ok(certificate)) => (builder, certificate),
        (builder, certificate) => {
            let faults = builder.err().into_iter();
            return Err(faults
                .chain(certificate.err().into_iter().flatten())
                .collect());
        }
    };
    let mut config = match &certificate {
        Some(shown) => {
            let shown = SingleCertAndKey::from((*shown.certified).clone());
            builder.with_client_cert_resolver(Arc::new(shown))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok((config, certificate))
}

/// What TLS has to say in a chain of errors.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(cause) = error.downcast_ref() {
            return Some(cause);
        }
        next = match error.downcast_ref::<io::Error>() {
            // Its `source` passes over what it holds itself.
            Some(error) => error
                .get_ref()
                .map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

// === impl Broken ===

impl Broken {
    fn new(what: impl Into<String>, hint: &'static str) -> Self {
        Self {
            what: what.into(),
            hint,
        }
    }

    /// What stands behind an error, if it is that.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Broken {}
