//! Clients that shake hands.

use std::{io, sync::Arc};

use h2::client::Builder;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use thalweg::config::Address;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    authority::{Authority, Pair, roots},
    client::Client,
    within,
};

/// How a client shakes hands. A clone remembers the same sessions.
#[derive(Clone)]
pub(crate) struct Hands {
    roots: RootCertStore,
    versions: Vec<&'static SupportedProtocolVersion>,
    pair: Option<Pair>,
    config: ClientConfig,
}

// === impl Hands ===

impl Hands {
    /// Trusts what this authority signs, and knows both versions and both protocols.
    pub(crate) fn trusting(authority: &Authority) -> Self {
        Self::trusting_pem(authority.pem())
    }

    /// The same, with an authority's own certificate.
    pub(crate) fn trusting_pem(pem: &str) -> Self {
        let roots = roots(pem);
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
        self.shake_on(dial(address).await, host).await
    }

    /// The same, on a connection that is there already.
    pub(crate) async fn shake_on<S>(&self, socket: S, host: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
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
            let (cert, key) = pair.der();
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
