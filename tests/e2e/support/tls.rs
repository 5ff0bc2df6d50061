//! Servers that shake hands: TLS in front of a server that knows none.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rustls::{
    HandshakeKind, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::authority::{Authority, Pair};

/// How a server shakes hands.
pub(crate) struct Manners {
    pair: Pair,
    clients: Option<Believes>,
    versions: Vec<&'static SupportedProtocolVersion>,
    protocols: Vec<Vec<u8>>,
    says_goodbye: bool,
}

type Believes = Arc<dyn rustls::server::danger::ClientCertVerifier>;

/// A server that takes TLS off what comes, and hands it on.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    shaken: Arc<Mutex<Vec<Shaken>>>,
    accepting: AbortHandle,
}

/// What a client has shown in a handshake.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shaken {
    /// The host that it asked for.
    pub(crate) host: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) certificate: bool,
    pub(crate) resumed: bool,
}

// === impl Manners ===

impl Manners {
    /// Shows a certificate, and knows both versions and both protocols.
    pub(crate) fn with(pair: Pair) -> Self {
        Self {
            pair,
            clients: None,
            versions: vec![&TLS13, &TLS12],
            protocols: Vec::new(),
            says_goodbye: true,
        }
        .speaking(&["h2", "http/1.1"])
    }

    /// Wants a certificate of this authority's.
    pub(crate) fn knowing(mut self, clients: &Authority) -> Self {
        let roots = Arc::new(clients.roots());
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
        self.clients = Some(verifier.build().unwrap());
        self
    }

    /// Knows one version alone.
    pub(crate) fn only(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    /// Knows other protocols.
    pub(crate) fn speaking(mut self, protocols: &[&str]) -> Self {
        self.protocols = protocols.iter().map(|name| (*name).into()).collect();
        self
    }

    /// Closes the socket at the end, without the word that TLS has for it.
    pub(crate) fn rude(mut self) -> Self {
        self.says_goodbye = false;
        self
    }

    /// Begins to serve, in front of `server`.
    pub(crate) async fn before(self, server: SocketAddr) -> Front {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap();
        let builder = match self.clients {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let (cert, key) = self.pair.der();
        let mut config = builder.with_single_cert(vec![cert], key).unwrap();
        config.alpn_protocols = self.protocols;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shaken = Arc::<Mutex<Vec<Shaken>>>::default();
        let seen = Arc::clone(&shaken);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    // A client that is refused, or that refuses, is what some tests are about.
                    let Ok(near) = acceptor.accept(socket).await else {
                        return;
                    };
                    seen.lock().unwrap().push(Shaken::of(&near));
                    join(near, server, self.says_goodbye).await;
                });
            }
        });
        Front {
            address,
            shaken,
            accepting: accepting.abort_handle(),
        }
    }
}

/// Carries bytes both ways until the server has said all.
async fn join(near: TlsStream<TcpStream>, server: SocketAddr, says_goodbye: bool) {
    let mut far = TcpStream::connect(server).await.unwrap();
    let (mut from_far, mut to_far) = far.split();
    let (mut from_near, mut to_near) = tokio::io::split(near);
    let up = async {
        let _ = copy(&mut from_near, &mut to_far).await;
        let _ = to_far.shutdown().await;
        std::future::pending().await
    };
    let down = copy(&mut from_far, &mut to_near);
    tokio::select! {
        () = up => {}
        _ = down => {}
    }
    let mut near = from_near.unsplit(to_near);
    let _ = near.flush().await;
    if says_goodbye {
        let _ = near.shutdown().await;
    } else {
        let _ = near.get_mut().0.shutdown().await;
    }
}

// === impl Shaken ===

impl Shaken {
    fn of(stream: &TlsStream<TcpStream>) -> Self {
        let tls = stream.get_ref().1;
        Self {
            host: tls.server_name().map(Into::into),
            protocol: tls
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            certificate: tls.peer_certificates().is_some(),
            resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

// === impl Front ===

impl Front {
    /// The handshakes so far.
    pub(crate) fn shaken(&self) -> Vec<Shaken> {
        self.shaken.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
