//! Which certificate a client gets: the one with the name that it asks for.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::material::Certificate;

/// The certificates of a listener by name. A name may have several, for clients that know other signatures.
#[derive(Debug)]
pub(super) struct Names {
    /// Whole names.
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// What stands behind the first label: `example.test` for `*.example.test`.
    wildcards: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// The first in the configuration, for all other names.
    first: Option<Arc<CertifiedKey>>,
}

// === impl Names ===

impl Names {
    pub(super) fn new(certificates: Vec<Certificate>) -> Self {
        let mut names = Self {
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            first: None,
        };
        for Certificate {
            certified,
            names: hosts,
            ..
        } in certificates
        {
            for host in hosts {
                let named = match host.strip_prefix("*.") {
                    Some(behind) => names.wildcards.entry(behind.to_owned()),
                    None => names.exact.entry(host),
                };
                named.or_default().push(Arc::clone(&certified));
            }
            names.first.get_or_insert(certified);
        }
        names
    }

    /// The first certificate with this name, or else the first of all; of several, the first that the client can check.
    fn choose(&self, host: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let named = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            let behind = host.split_once('.').map(|(_, behind)| behind);
            self.exact
                .get(&host)
                .or_else(|| self.wildcards.get(behind?))
        });
        let Some(named) = named else {
            return self.first.clone();
        };
        let fits = |it: &&Arc<CertifiedKey>| it.key.choose_scheme(schemes).is_some();
        named.iter().find(fits).or_else(|| named.first()).cloned()
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}
