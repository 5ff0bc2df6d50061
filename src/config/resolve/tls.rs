//! TLS of listeners and of clusters: which files, and whether they are any good.

use std::path::PathBuf;
use std::time::SystemTime;

use rustls::pki_types::ServerName;

use super::{Resolve, or};
use crate::config::tls::RELOAD_INTERVAL;
use crate::config::{CertificateFiles, Clients, Endpoint, Endpoints, Tls, UpstreamTls, raw};
use crate::tls::{Fault, Material, Upstream};

impl Resolve<'_> {
    pub(super) fn tls(&mut self, raw: raw::Tls, path: &str) -> Tls {
        let tls = Tls {
            certificates: raw.certificates.into_iter().map(pair).collect(),
            reload_interval: or(raw.reload_interval, RELOAD_INTERVAL),
            clients: raw.client_ca.as_ref().map(|ca| Clients {
                ca: ca.into(),
                auth: raw.client_auth.unwrap_or_default(),
                crls: (raw.client_crls.iter().flatten())
                    .map(PathBuf::from)
                    .collect(),
            }),
        };
        let without_ca = [
            ("client_auth", raw.client_auth.is_some()),
            ("client_crls", raw.client_crls.is_some()),
        ];
        for (key, written) in without_ca {
            if written && raw.client_ca.is_none() {
                let hint = "add `client_ca`: the file with the roots of clients' certificates";
                self.faults.add_key(
                    &format!("{path}.{key}"),
                    "means nothing without `client_ca`",
                    hint,
                );
            }
        }
        // A stand-in for what was not written names no file.
        if !self.faults.trusts(path) {
            return tls;
        }
        let found = Material::load(&tls).map(|material| material.doubts(SystemTime::now()));
        self.files(found, path);
        tls
    }

    /// Towards these endpoints.
    pub(super) fn upstream_tls(
        &mut self,
        raw: raw::UpstreamTls,
        endpoints: &Endpoints,
        path: &str,
    ) -> UpstreamTls {
        let server_name = raw.server_name.and_then(|text| {
            let name = ServerName::try_from(text.clone()).ok();
            if name.is_none() {
                let message = format!("`{text}` is no name that a certificate can be for");
                let hint = "write a host name or an IP address, without a port";
                self.faults
                    .add(&format!("{path}.server_name"), message, hint);
            }
            name
        });
        let of_dns = match endpoints {
            Endpoints::Dns { host, .. } => ServerName::try_from(host.clone()).ok(),
            Endpoints::Listed(_) | Endpoints::File { .. } => None,
        };
        let tls = UpstreamTls {
            ca: raw.ca.map(Into::into),
            server_name: server_name.or(of_dns),
            certificate: raw.certificate.map(pair),
            reload_interval: or(raw.reload_interval, RELOAD_INTERVAL),
        };
        if !self.faults.trusts(path) {
            return tls;
        }
        for Endpoint { address, .. } in endpoints.listed() {
            if tls.name_of(address).is_none() {
                let message = format!("nothing says what the certificate of `{address}` is for");
                self.faults.add(
                    path,
                    message,
                    "add `server_name`: the name in its certificate",
                );
                return tls;
            }
        }
        self.files(Upstream::check(&tls), path);
        tls
    }

    /// Tells what was found in the files: what is worth a look, or what is wrong.
    fn files(&mut self, found: Result<Vec<Fault>, Vec<Fault>>, path: &str) {
        let (doubts, faults) = match found {
            Ok(doubts) => (doubts, Vec::new()),
            Err(faults) => (Vec::new(), faults),
        };
        for doubt in doubts {
            let path = format!("{path}.{}", doubt.key);
            self.faults.warn(&path, doubt.message, doubt.hint);
        }
        for fault in faults {
            let path = format!("{path}.{}", fault.key);
            self.faults.add(&path, fault.message, fault.hint);
        }
    }
}

fn pair(raw: raw::CertificateFiles) -> CertificateFiles {
    CertificateFiles {
        cert: raw.cert.into(),
        key: raw.key.into(),
    }
}
