//! A connection to a server, in the clear or over TLS, and what it means when there is none.
//!
//! A server that speaks another protocol than it was asked in gives itself away with its first bytes, and one that refuses a
//! client's certificate may say so after the handshake only. The codecs above tell neither, so [`Overheard`] keeps both.

use std::{
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use clap::Args;
use http::{Uri, uri::Authority};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, InvalidMessage, pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::exit::{Class, Failure};
use crate::{
    config,
    tls::{Fault, client_config},
    upstream::connect::connect,
};

/// The longest wait for a connection, and again for the TLS handshake on it.
const CONNECT: Duration = Duration::from_secs(10);

/// Where a server is: `http://host:port`, `https://host:port` or `unix:/path`.
#[derive(Clone, Debug)]
pub(super) struct Server {
    address: config::Address,
    /// What requests call it.
    pub(super) authority: Authority,
    tls: bool,
}

/// Whom to trust over TLS, and with what to prove oneself.
#[derive(Args, Debug)]
pub(super) struct Tls {
    /// Trust the certificates in this PEM file, in place of those that this machine trusts.
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    ca: Option<PathBuf>,
    /// The certificate to show to the server, in PEM, with those that it was issued by.
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "TLS")]
    cert: Option<PathBuf>,
    /// The private key of --cert, in PEM.
    #[arg(long, value_name = "FILE", requires = "cert", help_heading = "TLS")]
    key: Option<PathBuf>,
    /// The name that the server's certificate must be for, if not the host of the address.
    #[arg(long, value_name = "NAME", value_parser = server_name, help_heading = "TLS")]
    server_name: Option<ServerName<'static>>,
}

/// The protocol that a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speak {
    Http1,
    Http2,
}

/// A connection, whatever it is made of.
pub(super) type Connection = Pin<Box<dyn Duplex>>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// What a connection has told that explains its failure.
#[derive(Clone, Debug, Default)]
pub(super) struct Overheard(Arc<Heard>);

#[derive(Debug, Default)]
struct Heard {
    /// The first bytes that the server sent.
    first: OnceLock<Vec<u8>>,
    /// What broke TLS.
    tls: OnceLock<rustls::Error>,
}

/// A connection that is listened to.
struct Tapped<S> {
    inner: S,
    overheard: Overheard,
    /// The server takes no more.
    refused: bool,
}

// === impl Server ===

impl Server {
    /// Connects, within a limit. `flag` is what the address was given by.
    pub(super) async fn connect(
        &self,
        flag: &str,
        tls: &Tls,
        speak: Speak,
    ) -> Result<(Connection, Overheard), Failure> {
        let connector = match self.tls {
            true => Some(TlsConnector::from(Arc::new(tls.config(speak)?))),
            false => None,
        };
        let socket = match timeout(CONNECT, connect(&self.address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return Err(self.unreachable(flag, &error)),
            Err(_) => return Err(self.silent("did not answer the dial")),
        };
        let Some(connector) = connector else {
            return Ok(tap(socket));
        };
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => self.name()?,
        };
        match timeout(CONNECT, connector.connect(name, socket)).await {
            Ok(Ok(stream)) => {
                let chosen = stream.get_ref().1.alpn_protocol();
                if speak == Speak::Http2 && chosen != Some(b"h2") {
                    return Err(only_http1(self));
                }
                Ok(tap(stream))
            }
            Ok(Err(error)) => Err(match tls_error(&error) {
                Some(error) => self.tls_failure(error),
                None => Failure::new(Class::Protocol, format!("no TLS with {self}: {error}")).hint(
                    format!(
                        "if the server speaks no TLS, write http://{}",
                        self.authority
                    ),
                ),
            }),
            Err(_) => Err(self.silent("did not answer the TLS handshake")),
        }
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// The name that its certificate must be for.
    fn name(&self) -> Result<ServerName<'static>, Failure> {
        let host = self.authority.host().trim_matches(['[', ']']).to_owned();
        ServerName::try_from(host).map_err(|_| {
            let message = format!(
                "{} is no name that a certificate can be for",
                self.authority
            );
            Failure::new(Class::Usage, message).hint("--server-name says which it is for")
        })
    }

    fn unreachable(&self, flag: &str, error: &io::Error) -> Failure {
        let nothing = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        );
        if nothing {
            let message = format!("nothing listens on {}: is `thalweg` running?", self.address);
            return Failure::new(Class::Unavailable, message)
                .hint(format!("{flag} says where else to ask"));
        }
        let message = format!("cannot connect to {}: {error}", self.address);
        Failure::new(Class::Unavailable, message)
    }

    fn silent(&self, what: &str) -> Failure {
        let message = format!("{self} {what} within {} s", CONNECT.as_secs());
        Failure::new(Class::Unavailable, message)
    }

    fn tls_failure(&self, error: &rustls::Error) -> Failure {
        let refused = |message: String| Failure::new(Class::NoPermission, message);
        match error {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                Failure::new(Class::Protocol, format!("{self} does not speak TLS"))
                    .hint(format!("write http://{}", self.authority))
            }
            rustls::Error::InvalidCertificate(why) => {
                let hint = match why {
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. } => {
                        "--server-name says which name it is for"
                    }
                    CertificateError::UnknownIssuer => {
                        "--ca names a file with the certificate of its issuer"
                    }
                    _ => "--ca names a file with the certificates to trust",
                };
                refused(format!("the certificate of {self} is not trusted: {why}")).hint(hint)
            }
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                let message = format!("{self} does not speak this version of HTTP over TLS");
                Failure::new(Class::Protocol, message)
                    .hint("--http asks over HTTP/1.1; without it, the server must speak HTTP/2")
            }
            rustls::Error::AlertReceived(alert) => {
                let hint = match alert {
                    AlertDescription::CertificateRequired
                    | AlertDescription::HandshakeFailure
                    | AlertDescription::BadCertificate
                    | AlertDescription::UnknownCA
                    | AlertDescription::AccessDenied => {
                        "--cert and --key say how to prove who you are, to a server that wants that"
                    }
                    _ => "the server's log may tell why",
                };
                refused(format!("{self} refuses the TLS connection: {alert:?}")).hint(hint)
            }
            other => refused(format!("no TLS with {self}: {other}")),
        }
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const HINT: &str = "write http://127.0.0.1:8080, https://HOST:PORT or unix:/PATH";
        if text.starts_with("unix:") {
            return Ok(Self {
                address: text
                    .parse()
                    .map_err(|fault: config::BadAddress| fault.to_string())?,
                authority: Authority::from_static("localhost"),
                tls: false,
            });
        }
        let uri: Uri = text.parse().map_err(|_| HINT.to_owned())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(HINT.into()),
        };
        let authority = uri.authority().cloned().ok_or(HINT)?;
        if uri.path_and_query().is_some_and(|path| path != "/") || authority.as_str().contains('@')
        {
            return Err(format!("no more than a host and a port are taken: {HINT}"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let address = match host.parse::<IpAddr>() {
            Ok(ip) => config::Address::Tcp((ip, port).into()),
            Err(_) => config::Address::Host(host.to_owned(), port),
        };
        Ok(Self {
            address,
            authority,
            tls,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    let name = ServerName::try_from(text.to_owned());
    name.map_err(|_| "write a host name or an IP address".into())
}

// === impl Tls ===

impl Tls {
    fn config(&self, speak: Speak) -> Result<ClientConfig, Failure> {
        let pair = self.cert.clone().zip(self.key.clone());
        let settings = config::UpstreamTls {
            ca: self.ca.clone(),
            server_name: None,
            certificate: pair.map(|(cert, key)| config::CertificateFiles { cert, key }),
            reload_interval: Duration::ZERO,
        };
        let alpn: &[u8] = match speak {
            Speak::Http1 => b"http/1.1",
            Speak::Http2 => b"h2",
        };
        match client_config(&settings, alpn) {
            Ok((config, _)) => Ok(config),
            Err(faults) => Err(self.unusable(&faults[0])),
        }
    }

    /// The flags name the files here, and no keys.
    fn unusable(&self, fault: &Fault) -> Failure {
        let (flag, file) = match fault.key.as_str() {
            "certificate.cert" => ("--cert", &self.cert),
            "certificate.key" => ("--key", &self.key),
            _ => ("--ca", &self.ca),
        };
        let Some(file) = file else {
            let failure = Failure::new(Class::Usage, fault.message.clone());
            return failure.hint("--ca names a file with those to trust");
        };
        let message = format!("{flag} {}: {}", file.display(), fault.message);
        let failure = Failure::new(Class::Usage, message);
        match fault.hint {
            "" => failure,
            hint => failure.hint(hint),
        }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

// === impl Overheard ===

impl Overheard {
    /// Why the connection failed, if it has told.
    pub(super) fn explain(&self, server: &Server, speak: Speak) -> Option<Failure> {
        /// The type and the version of TLS records.
        const TLS_ALERT: &[u8] = &[21, 3];
        /// The type of SETTINGS, and the stream of the connection, behind three bytes of length.
        const SETTINGS: u8 = 4;

        if let Some(error) = self.0.tls.get() {
            return Some(server.tls_failure(error));
        }
        let first = self.0.first.get()?;
        if first.starts_with(TLS_ALERT) {
            let failure = Failure::new(Class::Protocol, format!("{server} speaks TLS"));
            return Some(failure.hint(format!("write https://{}", server.authority)));
        }
        match speak {
            Speak::Http2 if first.starts_with(b"HTTP") => Some(only_http1(server)),
            Speak::Http1 if first.starts_with(&[0]) && first.get(3) == Some(&SETTINGS) => Some(
                Failure::new(Class::Protocol, format!("{server} speaks HTTP/2 only"))
                    .hint("leave out --http"),
            ),
            _ => None,
        }
    }
}

fn only_http1(server: &Server) -> Failure {
    Failure::new(Class::Protocol, format!("{server} does not speak HTTP/2"))
        .hint("--http asks over HTTP/1.1")
}

// === impl Tapped ===

fn tap(inner: impl Duplex + Unpin + 'static) -> (Connection, Overheard) {
    let overheard = Overheard::default();
    let tapped = Tapped {
        inner,
        overheard: overheard.clone(),
        refused: false,
    };
    (Box::pin(tapped), overheard)
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        /// As much as the head of a frame of HTTP/2.
        const FIRST: usize = 9;

        let before = space.filled().len();
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, space));
        let heard = &self.overheard.0;
        if let Some(error) = result.as_ref().err().and_then(tls_error) {
            heard.tls.get_or_init(|| error.clone());
        }
        let read = &space.filled()[before..];
        if !read.is_empty() {
            heard
                .first
                .get_or_init(|| read[..read.len().min(FIRST)].to_vec());
        }
        Poll::Ready(result)
    }
}

/// A server that refuses a call, or a client, may close before it has taken all. So a write that fails says nothing, and what
/// is written after it goes nowhere: the codec reads on, and with it why, or the end.
impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_refused(bytes.len(), |inner| inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        self.unless_refused(all, |inner| inner.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_refused((), |inner| inner.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_refused((), |inner| inner.poll_shutdown(cx))
    }
}

impl<S: Unpin> Tapped<S> {
    fn unless_refused<T>(
        &mut self,
        all: T,
        write: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if !self.refused {
            match ready!(write(Pin::new(&mut self.inner))) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(_) => self.refused = true,
            }
        }
        Poll::Ready(Ok(all))
    }
}
