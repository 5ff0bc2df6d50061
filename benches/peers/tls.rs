//! TLS between the load generator, the proxies and the backend: a certificate that signs itself, and who trusts it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::grpc::Failure;
use crate::transport::READ_MAX;

/// The certificate, in the folder of a proxy.
pub(crate) const CERTIFICATE: &str = "server.pem";

/// Its key.
const KEY: &str = "server.key";

/// Where there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tls {
    /// Between the load generator and the proxies
    Client,
    /// There, and between the proxies and the backend
    Both,
}

/// The name in the certificate. Proxies are told it in their configurations.
const HOST: &str = "bench.test";

/// Writes a certificate (ECDSA, P-256) and its key to a folder: apart, and in one file for those who want it so.
pub(crate) fn write_pair(directory: &Path) -> Result<(), Failure> {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::write(directory.join(CERTIFICATE), &certificate)?;
    fs::write(directory.join(KEY), &key)?;
    fs::write(directory.join("both.pem"), certificate + &key)?;
    Ok(())
}

/// Who shakes hands with a proxy that has this certificate. Every connection is a new session. Keys are agreed on in the one
/// way that all proxies know, so that none does more work than the others.
pub(crate) fn connector(certificate: &Path) -> Result<TlsConnector, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Who shows the certificate in this folder.
pub(crate) fn acceptor(directory: &Path) -> Result<TlsAcceptor, Failure> {
    let chain = vec![CertificateDer::from_pem_file(directory.join(CERTIFICATE))?];
    let key = PrivateKeyDer::from_pem_file(directory.join(KEY))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Shakes hands over a socket, which is read in large pieces from then on.
pub(crate) async fn shake(
    connector: &TlsConnector,
    socket: TcpStream,
) -> io::Result<TlsStream<BufReader<TcpStream>>> {
    let host = ServerName::try_from(HOST).map_err(io::Error::other)?;
    let socket = BufReader::with_capacity(READ_MAX, socket);
    connector.connect(host, socket).await
}
