//! The end of a client's certificate while its connection is open.
//!
//! **Why.** Certificates are made to be short-lived so that one which was stolen is soon worth nothing. A stream may last for weeks,
//! and whoever opened it would otherwise keep, for as long as it lasts, a right that has ended.
//!
//! **How.** At that moment the client is told to open its streams on another connection (GOAWAY), where it has to show a new
//! certificate. What it has open here ends between two messages.

use std::{rc::Rc, time::Duration};

use thalweg_filters::{Error, Side, StreamContext};
use thalweg_proto::status::Code;
use tokio::time::Instant;

use crate::dismissal::{Group, Member};

/// When the certificate of a connection's client ends, and the streams that end with it.
#[derive(Clone, Debug)]
pub(super) struct Expiry {
    pub(super) at: Instant,
    streams: Rc<Group>,
}

impl Expiry {
    /// `None` if the end is beyond all time.
    pub(super) fn after(left: Duration) -> Option<Self> {
        Some(Self {
            at: Instant::now().checked_add(left)?,
            streams: Rc::default(),
        })
    }

    /// Lets a stream end with the certificate.
    pub(super) fn join(&self, stream: &StreamContext) -> Member {
        self.streams.join(stream)
    }

    /// Ends the streams, with the error that those hear which still come.
    pub(super) fn dismiss(&self) -> Error {
        let error = Error::new(
            Code::Unavailable,
            "client_certificate_expired",
            Side::Client,
            "the client's certificate has expired; connect again with a new one",
        );
        self.streams.dismiss(&error);
        error
    }
}
