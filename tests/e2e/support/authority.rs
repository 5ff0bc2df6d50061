//! Certificates of every kind, and the files that they lie in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// Who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A folder with the files of a listener.
pub(crate) struct Files(TempDir);

// === impl Authority ===

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Nobody else is believed.
    pub(crate) fn roots(&self) -> RootCertStore {
        roots(&self.pem)
    }

    /// For hosts of these names.
    pub(crate) fn server(&self, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// For a host of this name, good until 2001.
    pub(crate) fn expired(&self, name: &str) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
        self.sign(params)
    }

    /// For a client: its common name, its other names, and the number that it is revoked by.
    pub(crate) fn client(&self, name: &str, others: Vec<SanType>, serial: u64) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.subject_alt_names = others;
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// For a client, good for a few seconds more: for at least so many.
    pub(crate) fn brief_client(&self, name: &str, seconds: i64) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(seconds);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Pair {
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    /// The list of the revoked, by their numbers.
    pub(crate) fn revokes(&self, serials: &[u64]) -> String {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: (serials.iter())
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: date_time_ymd(2024, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// The authority of a file is believed, and nobody else.
pub(crate) fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    roots.add(root).unwrap();
    roots
}

// === impl Pair ===

impl Pair {
    /// As TLS wants it.
    pub(crate) fn der(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let cert = CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        (cert, key)
    }
}

// === impl Files ===

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, as those who renew certificates do: whole, in the place of the old one.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (file, draft) = (
            self.path().join(name),
            self.path().join(format!("{name}.new")),
        );
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, &file).unwrap();
        file
    }

    /// Writes a pair: the words of an entry in `certificates`.
    pub(crate) fn pair(&self, name: &str, pair: &Pair) -> String {
        let cert = self.write(&format!("{name}.pem"), &pair.cert);
        let key = self.write(&format!("{name}.key"), &pair.key);
        format!("{{cert: {}, key: {}}}", cert.display(), key.display())
    }
}
