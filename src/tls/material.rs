//! Certificates, keys, authorities and revocation lists, read from their files.
//!
//! Everything that is wrong is told at once, each fault with the key of the configuration that names the file.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    Error, InconsistentKeys, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer,
    revocation_list::CertificateRevocationList,
};

use crate::config::{self, ClientAuth};

/// The most that is read of one file: room for a list of half a million revocations.
const MOST_BYTES: u64 = 16 << 20;

const PEM: &str = "it is a text that begins with `-----BEGIN`; `openssl x509 -inform der` makes one of the other form";

const DAMAGED: &str = "the file is damaged: get it anew from whoever issued it";

/// What a listener's files say.
#[derive(Debug)]
pub(crate) struct Material {
    /// At least one.
    pub(super) certificates: Vec<Certificate>,
    pub(super) clients: Option<Clients>,
}

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(super) certified: Arc<CertifiedKey>,
    /// The hosts that it is good for, in small letters; `*.` stands for one label.
    pub(super) names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Whose certificates are believed.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// The files that say so, whole.
    pub(super) files: Vec<Vec<u8>>,
}

/// What is wrong with a file, or doubtful about it.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The key that names the file, below `tls`.
    pub(crate) key: String,
    pub(crate) message: String,
    pub(crate) hint: &'static str,
}

/// The cryptography that all of the proxy uses.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

// === impl Material ===

impl Material {
    /// Reads all files.
    pub(crate) fn load(tls: &config::Tls) -> Result<Self, Vec<Fault>> {
        let provider = provider();
        let mut faults = Vec::new();
        let mut certificates = Vec::new();
        for (index, pair) in tls.certificates.iter().enumerate() {
            match certificate(pair, &format!("certificates[{index}]"), &provider) {
                Ok(certificate) => certificates.push(certificate),
                Err(more) => faults.extend(more),
            }
        }
        let clients = tls.clients.as_ref().and_then(|clients| {
            let clients = self::clients(clients, provider);
            clients.map_err(|more| faults.extend(more)).ok()
        });
        if faults.is_empty() {
            Ok(Self {
                certificates,
                clients,
            })
        } else {
            Err(faults)
        }
    }

    /// When the first of the certificates ends, in seconds since 1970.
    pub(super) fn expiry(&self) -> u64 {
        let ends = self.certificates.iter().map(Certificate::expiry);
        ends.min().unwrap_or(0)
    }

    /// What works, and will surprise.
    pub(crate) fn doubts(&self, now: SystemTime) -> Vec<Fault> {
        let mut doubts = Vec::new();
        for (index, certificate) in self.certificates.iter().enumerate() {
            let key = format!("certificates[{index}].cert");
            doubts.extend(certificate.doubts(&key, now));
            if index > 0 && certificate.names.is_empty() {
                doubts.push(Fault::new(
                    &key,
                    "the certificate names no host, and so no client will get it",
                    "put it first, or give it a DNS name (subjectAltName)",
                ));
            }
        }
        doubts
    }
}

// === impl Certificate ===

impl Certificate {
    /// When it ends, in seconds since 1970.
    pub(super) fn expiry(&self) -> u64 {
        let since = self.not_after.duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    }

    /// What works, and will surprise. `key` names its file.
    pub(super) fn doubts(&self, key: &str, now: SystemTime) -> Vec<Fault> {
        let mut doubts = Vec::new();
        if now > self.not_after {
            let hint = "whoever sees it will refuse it: renew it";
            doubts.push(Fault::new(key, "the certificate has expired", hint));
        }
        if now < self.not_before {
            let hint = "whoever sees it will refuse it: look at the clock of this machine";
            doubts.push(Fault::new(key, "the certificate is not valid yet", hint));
        }
        doubts
    }
}

// === impl Fault ===

impl Fault {
    pub(super) fn new(key: &str, message: impl Into<String>, hint: &'static str) -> Self {
        Self {
            key: key.to_owned(),
            message: message.into(),
            hint,
        }
    }

    /// What no file is to blame for.
    pub(super) fn unforeseen(error: &Error) -> Self {
        Self::new("certificates", error.to_string(), "")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

// === certificates and keys ===

pub(super) fn certificate(
    pair: &config::CertificateFiles,
    at: &str,
    provider: &CryptoProvider,
) -> Result<Certificate, Vec<Fault>> {
    let (cert_at, key_at) = (format!("{at}.cert"), format!("{at}.key"));
    let chain = read(&pair.cert, &cert_at).and_then(|text| chain(&text, &cert_at));
    let key = read(&pair.key, &key_at).and_then(|text| private_key(&text, &key_at));
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            let faults = [chain.err(), key.err()];
            return Err(faults.into_iter().flatten().collect());
        }
    };
    // That the first can be read has just been seen.
    let unreadable = || vec![Fault::new(&cert_at, "the certificate cannot be read", "")];
    let first = chain.first().ok_or_else(unreadable)?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(|_| unreadable())?;
    let names = match parsed.subject_alternative_name() {
        Ok(Some(names)) => dns_names(&names.value.general_names),
        _ => Vec::new(),
    };
    let (not_before, not_after) = (
        moment(parsed.validity().not_before.timestamp()),
        moment(parsed.validity().not_after.timestamp()),
    );
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        vec![match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Fault::new(
                &key_at,
                "the key is not that of the certificate",
                "one of the two is from another time or another host: name the pair that was made together",
            ),
            error => Fault::new(
                &key_at,
                format!("the key cannot be used: {error}"),
                "use an ECDSA key (P-256, P-384), an Ed25519 key, or an RSA key of 2048 bits or more",
            ),
        }]
    })?;
    Ok(Certificate {
        certified: Arc::new(certified),
        names,
        not_before,
        not_after,
    })
}

fn chain(text: &[u8], at: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    let chain = chain.map_err(|error| not_pem(at, &error))?;
    let Some(first) = chain.first() else {
        return Err(Fault::new(at, "holds no certificate in PEM", PEM));
    };
    match X509Certificate::from_der(first) {
        Ok(_) => Ok(chain),
        Err(_) => Err(Fault::new(
            at,
            "its first certificate cannot be read",
            DAMAGED,
        )),
    }
}

fn private_key(text: &[u8], at: &str) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        // As PKCS#8 says it, and as the older kind of file does.
        _ if contains(text, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(text, b"4,ENCRYPTED") => Fault::new(
            at,
            "the key is encrypted, and nobody could be asked for its password",
            "`openssl pkey -in ENCRYPTED -out KEY` takes the password off",
        ),
        pem::Error::NoItemsFound => Fault::new(at, "holds no private key in PEM", "a key begins with `-----BEGIN PRIVATE KEY-----`, or with `EC` or `RSA` before `PRIVATE`"),
        error => not_pem(at, &error),
    })
}

fn dns_names(names: &[GeneralName<'_>]) -> Vec<String> {
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

fn moment(timestamp: i64) -> SystemTime {
    let since = Duration::from_secs(timestamp.unsigned_abs());
    let moment = match timestamp {
        0.. => UNIX_EPOCH.checked_add(since),
        _ => UNIX_EPOCH.checked_sub(since),
    };
    moment.unwrap_or(UNIX_EPOCH)
}

// === clients ===

fn clients(
    clients: &config::Clients,
    provider: Arc<CryptoProvider>,
) -> Result<Clients, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    let mut roots = RootCertStore::empty();
    match self::roots(&clients.ca, "client_ca") {
        Ok((found, text)) => {
            roots = found;
            files.push(text);
        }
        Err(fault) => faults.push(fault),
    }
    let mut crls = Vec::new();
    for (index, file) in clients.crls.iter().enumerate() {
        let at = format!("client_crls[{index}]");
        match read(file, &at).and_then(|text| Ok((revocations(&text, &at)?, text))) {
            Ok((found, text)) => {
                crls.extend(found);
                files.push(text);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if !crls.is_empty() {
        builder = builder.with_crls(crls);
    }
    if clients.auth == ClientAuth::Optional {
        builder = builder.allow_unauthenticated();
    }
    match builder.build() {
        Ok(verifier) => Ok(Clients { verifier, files }),
        Err(error) => Err(vec![match error {
            VerifierBuilderError::InvalidCrl(error) => Fault::new(
                "client_crls",
                format!("a revocation list cannot be used: {error:?}"),
                "a list must be of version 2, have a number, and be whole: no list of changes",
            ),
            error => Fault::new("client_ca", error.to_string(), ""),
        }]),
    }
}

/// The certificates of authorities, at least one, and the file that holds them.
pub(super) fn roots(file: &Path, at: &str) -> Result<(RootCertStore, Vec<u8>), Fault> {
    let text = read(file, at)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| not_pem(at, &error))?;
        let unreadable = |_| Fault::new(at, "one of its certificates cannot be read", DAMAGED);
        roots.add(certificate).map_err(unreadable)?;
    }
    if roots.is_empty() {
        return Err(Fault::new(at, "holds no certificate in PEM", PEM));
    }
    Ok((roots, text))
}

fn revocations(text: &[u8], at: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    let lists: Result<Vec<_>, pem::Error> =
        CertificateRevocationListDer::pem_slice_iter(text).collect();
    let lists = lists.map_err(|error| not_pem(at, &error))?;
    if lists.is_empty() {
        let hint = "it is a text that begins with `-----BEGIN X509 CRL-----`; `openssl crl -inform der` makes one of the other form";
        return Err(Fault::new(at, "holds no revocation list in PEM", hint));
    }
    if lists
        .iter()
        .any(|list| CertificateRevocationList::from_der(list).is_err())
    {
        return Err(Fault::new(
            at,
            "the revocation list cannot be read",
            DAMAGED,
        ));
    }
    Ok(lists)
}

// === files ===

fn read(file: &Path, at: &str) -> Result<Vec<u8>, Fault> {
    let read = || {
        let mut text = Vec::new();
        let taken = File::open(file)?
            .take(MOST_BYTES + 1)
            .read_to_end(&mut text)?;
        Ok((text, taken as u64))
    };
    match read() {
        Ok((_, MOST_BYTES..)) => Err(Fault::new(
            at,
            "has more than 16MiB",
            "name a file in PEM with certificates, a key or a list",
        )),
        Ok((text, _)) => Ok(text),
        Err(error) => Err(unreadable(at, &error)),
    }
}

fn unreadable(at: &str, error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::NotFound => Fault::new(
            at,
            "there is no such file",
            "paths start where Thalweg is started; `thalweg certs` makes files to try with",
        ),
        io::ErrorKind::PermissionDenied => Fault::new(
            at,
            "the file may not be read",
            "let the user that runs Thalweg read it",
        ),
        _ => Fault::new(at, format!("the file cannot be read: {error}"), ""),
    }
}

fn not_pem(at: &str, error: &pem::Error) -> Fault {
    Fault::new(at, format!("is not sound PEM: {error}"), PEM)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encrypted_key_is_called_that() {
        for text in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        ] {
            let fault = private_key(text.as_bytes(), "key").unwrap_err();

            assert!(fault.message.contains("is encrypted"), "{}", fault.message);
            assert!(fault.hint.contains("openssl pkey"), "{}", fault.hint);
        }
    }
}
