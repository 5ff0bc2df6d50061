//! Certificates of every kind, and clients that shake hands.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use h2::client::Builder;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;
use thalweg::config::Address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        version::{TLS12, TLS13},
    },
};

use super::{client::Client, within};

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

/// How a client shakes hands. A clone remembers the same sessions.
#[derive(Clone)]
pub(crate) struct Hands {
    roots: RootCertStore,
    versions: Vec<&'static SupportedProtocolVersion>,
    pair: Option<Pair>,
    config: ClientConfig,
}

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

// === impl Hands ===

impl Hands {
    /// Trusts what this authority signs, and knows both versions and both protocols.
    pub(crate) fn trusting(authority: &Authority) -> Self {
        Self::trusting_pem(authority.pem())
    }

    /// The same, with an authority's own certificate.
    pub(crate) fn trusting_pem(pem: &str) -> Self {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let versions = vec![&TLS13, &TLS12];
        Self {
            config: config(&roots, &versions, None),
            roots,
            versions,
            pair: None,
        }
    }

    /// Shows a certificate when asked for one.
    pub(crate) fn showing(mut self, pair: &Pair) -> Self {
        self.pair = Some(pair.clone());
        self.anew()
    }

    /// Knows one version alone.
    pub(crate) fn only(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self.anew()
    }

    /// Offers other protocols.
    pub(crate) fn speaking(mut self, alpn: &[&[u8]]) -> Self {
        self.config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        self
    }

    fn anew(mut self) -> Self {
        self.config = config(&self.roots, &self.versions, self.pair.as_ref());
        self
    }

    /// Connects and shakes hands, asking for a host.
    pub(crate) async fn shake(
        &self,
        address: &Address,
        host: &str,
    ) -> io::Result<TlsStream<TcpStream>> {
        let socket = dial(address).await;
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        within("the handshake ends", connector.connect(host, socket)).await
    }

    /// Connects for HTTP/2.
    pub(crate) async fn client(&self, address: &Address, host: &str) -> Client {
        self.client_with(address, host, &Builder::new()).await
    }

    /// Connects for HTTP/2 with settings of its own.
    pub(crate) async fn client_with(
        &self,
        address: &Address,
        host: &str,
        builder: &Builder,
    ) -> Client {
        let stream = self.shake(address, host).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Client::over(stream, builder).await
    }

    /// Asks for a path over HTTP/1.1, and reads up to the end; or what kept it from that.
    pub(crate) async fn get(&self, address: &Address, host: &str) -> io::Result<String> {
        let plain = self.clone().speaking(&[b"http/1.1"]);
        let mut stream = plain.shake(address, host).await?;
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        within("the answer comes", stream.read_to_string(&mut answer)).await?;
        Ok(answer)
    }
}

fn config(
    roots: &RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
    pair: Option<&Pair>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots.clone());
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// A connection on which nothing was said yet.
pub(crate) async fn dial(address: &Address) -> TcpStream {
    let Address::Tcp(address) = address else {
        panic!("these clients know TCP only")
    };
    let socket = within("the client connects", TcpStream::connect(address)).await;
    let socket = socket.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}
