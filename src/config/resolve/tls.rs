//! TLS of a listener: which files, and whether they are any good.

use std::path::PathBuf;
use std::time::SystemTime;

use super::{Resolve, or};
use crate::config::{CertificateFiles, Clients, Tls, raw};
use crate::tls::Material;

impl Resolve<'_> {
    pub(super) fn tls(&mut self, raw: raw::Tls, path: &str) -> Tls {
        let tls = Tls {
            certificates: (raw.certificates.into_iter())
                .map(|pair| CertificateFiles {
                    cert: pair.cert.into(),
                    key: pair.key.into(),
                })
                .collect(),
            reload_interval: or(raw.reload_interval, Tls::RELOAD_INTERVAL),
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
        match Material::load(&tls) {
            Ok(material) => {
                for doubt in material.doubts(SystemTime::now()) {
                    let path = format!("{path}.{}", doubt.key);
                    self.faults.warn(&path, doubt.message, doubt.hint);
                }
            }
            Err(faults) => {
                for fault in faults {
                    let path = format!("{path}.{}", fault.key);
                    self.faults.add(&path, fault.message, fault.hint);
                }
            }
        }
        tls
    }
}
