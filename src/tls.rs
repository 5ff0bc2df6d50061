//! TLS of a listener: which certificate a client sees, whose certificates are believed, and what the upstream hears of them. And
//! TLS towards upstreams.
//!
//! | file | what it holds |
//! |---|---|
//! | [`material`] | certificates, keys, authorities and revocation lists, read from their files |
//! | [`names`] | which certificate a client gets |
//! | [`identity`] | what a client's certificate says, as a header |
//! | [`reload`] | looks at the files for changes |
//! | [`upstream`] | the other side: whom the proxy believes, and what it shows |
//!
//! The bytes are sealed and opened in [`transport`](crate::transport).
//!
//! **Tickets.** A client that comes back resumes its session without a second handshake, whichever worker it meets. A resumed
//! client is not asked for its certificate again. So the keys that seal the tickets belong to one listener, and they are new
//! when the files change that say whom it believes: no ticket outlives the rules that it was given under, and a revoked
//! client cannot come back on an old one.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig, crypto::aws_lc_rs::Ticketer, server::NoServerSessionStorage,
    server::ProducesTickets,
};

use thalweg_filters::Error;

use crate::{
    config,
    stamp::{self, Stamp},
    telemetry::{ReloadStats, TlsStats},
    transport::{Role, Spoken, Transport},
};

mod identity;
mod material;
mod names;
mod reload;
mod upstream;

use self::material::provider;
pub(crate) use self::{
    identity::Identity,
    material::{Fault, Material},
    reload::watch,
    upstream::{Broken, Upstream, Upstreams, client_config},
};

/// TLS of one listener, for all workers.
#[derive(Debug)]
pub(crate) struct Tls {
    settings: config::Tls,
    /// How the files were before they were read.
    first_look: Vec<Stamp>,
    current: RwLock<Current>,
    pub(crate) stats: Arc<TlsStats>,
}

/// What new connections are met with.
#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// The files that say who is believed, as they were.
    trust: Vec<Vec<u8>>,
}

/// What a handshake has shown.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// What the two agreed to speak, unless the client has left it open.
    pub(crate) spoken: Option<Spoken>,
    /// What the client's certificate says, if it has shown one; or why it is not served with it.
    pub(crate) certificate: Result<Option<Identity>, Error>,
}

// === impl Tls ===

impl Tls {
    /// Reads the files.
    pub(crate) fn load(settings: &config::Tls, stats: Arc<TlsStats>) -> Result<Self, Vec<Fault>> {
        let first_look = stamp::look(settings.files());
        let material = Material::load(settings)?;
        stats.certificate_expiry.set(material.expiry());
        Ok(Self {
            settings: settings.clone(),
            first_look,
            current: RwLock::new(Current::new(material, None)?),
            stats,
        })
    }

    /// What it was made of.
    pub(crate) fn settings(&self) -> &config::Tls {
        &self.settings
    }

    /// Shakes hands with a client that has begun to.
    pub(crate) async fn accept(&self, transport: &Transport) -> io::Result<Accepted> {
        let config = Arc::clone(&self.current().config);
        let greeting = transport.secure(Role::Server(config)).await?;
        let read = |certificate| identity::read(certificate, SystemTime::now());
        let certificate = greeting.certificate.as_ref().map(read).transpose();
        self.stats.handshakes.increment();
        if greeting.resumed {
            self.stats.resumed.increment();
        }
        Ok(Accepted {
            spoken: match greeting.alpn.as_deref() {
                Some(b"h2") => Some(Spoken::Http2),
                Some(_) => Some(Spoken::Http1),
                None => None,
            },
            certificate,
        })
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl reload::Reload for Tls {
    fn interval(&self) -> Duration {
        self.settings.reload_interval
    }

    fn first_look(&self) -> Vec<Stamp> {
        self.first_look.clone()
    }

    fn look(&self) -> Vec<Stamp> {
        stamp::look(self.settings.files())
    }

    /// New connections get what the files say now.
    fn reload(&self) -> Result<(), Vec<Fault>> {
        let material = Material::load(&self.settings)?;
        let expiry = material.expiry();
        let next = Current::new(material, Some(&self.current()))?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        self.stats.certificate_expiry.set(expiry);
        Ok(())
    }

    fn stats(&self) -> &ReloadStats {
        &self.stats.reload
    }
}

// === impl Current ===

impl Current {
    /// Tickets go on to be good for as long as the same files are trusted.
    fn new(material: Material, before: Option<&Self>) -> Result<Self, Vec<Fault>> {
        let (verifier, trust) = match material.clients {
            Some(clients) => (Some(clients.verifier), clients.files),
            None => (None, Vec::new()),
        };
        let ticketer: Arc<dyn ProducesTickets> = match before {
            Some(before) if before.trust == trust => Arc::clone(&before.config.ticketer),
            _ => Ticketer::new().map_err(|error| vec![Fault::unforeseen(&error)])?,
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| vec![Fault::unforeseen(&error)])?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(names::Names::new(material.certificates)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = ticketer;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            trust,
        })
    }
}
