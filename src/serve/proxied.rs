//! Where a connection comes from: what a balancer says in a PROXY header, or else the socket.
//!
//! Whoever is in a trusted network must send a header; it is taken off before anything else is read. Nobody else's is looked
//! at: it is the beginning of a request that makes no sense, so nobody can claim an address that is not theirs.

use std::{io, net::IpAddr};

use super::Front;
use crate::{config::ProxyProtocol, patience::Patience, transport::Transport};

/// The client's address. `None` when the connection is not to be served.
pub(super) async fn address(
    transport: &Transport,
    settings: &ProxyProtocol,
    front: &Front,
    patience: &mut Patience,
) -> Option<IpAddr> {
    let peer = transport.peer()?;
    let mut address = peer;
    if settings.trusts(peer) {
        let stats = &front.stats;
        let listener = &front.settings.name;
        let header = std::future::poll_fn(|cx| transport.poll_proxied(cx));
        match patience.with(header).await {
            Some(Ok(source)) => {
                stats.proxy_headers.increment();
                address = source.map_or(peer, |source| source.ip());
            }
            // A balancer that looks whether anybody listens.
            Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            Some(Err(error)) => {
                stats.proxy_header_failures.increment();
                tracing::debug!(listener, %peer, %error, "a connection without a good PROXY header was closed");
                return None;
            }
            None => {
                stats.proxy_header_timeouts.increment();
                return None;
            }
        }
    }
    Some(address)
}
