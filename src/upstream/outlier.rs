//! Takes endpoints out for a while whose streams end badly.
//!
//! **Why.** A server may be well by its own account, take every connection, and fail every stream: a bad release, a full disk, a
//! machine whose network loses packets. Least streams makes it worse, since one that fails at once always has the fewest.
//!
//! **How.** A [`Trial`] goes with each stream and hears of its real end. A bad end is one of the statuses that count: in the answer,
//! or standing for what happened to it, as UNAVAILABLE does for a connection that is lost, INTERNAL for most resets and for HTTP 500.
//! What a client can bring about at will does not count by default, or one client could take endpoints from all others. And only while the stream is young, since any server ends old streams when it
//! is stopped in good order. A dial that fails is a bad end too. So many in a row, of all workers together, and the endpoint
//! is out: the first time for `ejection`, and longer each further time until a stream goes well there. How a client leaves, and
//! what the proxy ends itself, says nothing about an endpoint.
//!
//! Never are more of them out than `max_ejected_percent`: where most fail, the fault is mostly elsewhere, and the last ones
//! would fall under the load of all.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};
use thalweg_filters::{
    Error, Side,
    ending::{Ending, grpc_status},
};
use thalweg_proto::status::Code;
use tokio::time::Instant;

use super::{directory::Directory, endpoint::Endpoint};
use crate::config::Outlier;

/// What one stream says about its endpoint. It is judged once; one that is dropped before says nothing.
#[derive(Debug)]
pub(crate) struct Trial {
    directory: Arc<Directory>,
    endpoint: Arc<Endpoint>,
    began: Instant,
    /// Of the answer's head: plain HTTP says there how it went.
    status: StatusCode,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Well,
    Badly,
    /// It says nothing about the endpoint.
    Neither,
}

// === impl Trial ===

impl Trial {
    /// Of a stream that begins now; `None` where endpoints are not judged.
    pub(super) fn begin(directory: &Arc<Directory>, endpoint: &Arc<Endpoint>) -> Option<Self> {
        directory.settings.outlier.as_ref()?;
        Some(Self {
            directory: Arc::clone(directory),
            endpoint: Arc::clone(endpoint),
            began: Instant::now(),
            status: StatusCode::OK,
        })
    }

    /// The head of the answer is there.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// The stream has ended with the head of its answer.
    pub(crate) fn ends_with_head(self, headers: &HeaderMap) {
        self.ends(Ending::Trailers(grpc_status(headers)));
    }

    /// The stream has ended with an error. What the client did says nothing.
    pub(crate) fn fails(self, error: &Error) {
        if error.side() == Side::Upstream {
            self.ends(Ending::of_error(error));
        }
    }

    /// The stream has ended.
    pub(crate) fn ends(self, ending: Ending) {
        let Some(settings) = &self.directory.settings.outlier else {
            return;
        };
        match verdict(settings, ending, self.status, self.began.elapsed()) {
            Verdict::Well => self.endpoint.went_well(),
            Verdict::Badly => went_badly(&self.directory, &self.endpoint),
            Verdict::Neither => {}
        }
    }
}

fn verdict(settings: &Outlier, ending: Ending, status: StatusCode, age: Duration) -> Verdict {
    let bad = match ending {
        Ending::Dropped => return Verdict::Neither,
        Ending::Trailers(Some(code)) => settings.statuses.contains(&code),
        Ending::Error(code) => settings.statuses.contains(&code),
        Ending::Trailers(None) | Ending::Clean => {
            of_http(status).is_some_and(|code| settings.statuses.contains(&code))
        }
    };
    match bad {
        false => Verdict::Well,
        true if age < settings.young => Verdict::Badly,
        true => Verdict::Neither,
    }
}

/// The status that an error of a plain HTTP server stands for.
fn of_http(status: StatusCode) -> Option<Code> {
    match status.as_u16() {
        502 | 503 => Some(Code::Unavailable),
        504 => Some(Code::DeadlineExceeded),
        500.. => Some(Code::Internal),
        _ => None,
    }
}

/// A stream ended badly at an endpoint, or it could not be dialed.
pub(super) fn went_badly(directory: &Directory, endpoint: &Endpoint) {
    let Some(settings) = &directory.settings.outlier else {
        return;
    };
    if endpoint.went_badly() < settings.consecutive {
        return;
    }
    let cluster = &directory.settings.name;
    match eject(directory, endpoint, settings) {
        Some(time) => {
            directory.stats.ejections.increment();
            let endpoint = endpoint.address();
            tracing::warn!(%cluster, %endpoint, ?time, "an endpoint is taken out: too many streams ended badly there, one after another (outlier.consecutive)");
        }
        None => directory.stats.ejection_overflows.increment(),
    }
}

/// How long the endpoint is out from now on; `None` if it may not be.
fn eject(directory: &Directory, endpoint: &Endpoint, settings: &Outlier) -> Option<Duration> {
    // One at a time, or two workers might take out one more than may be.
    let _one = directory.ejecting();
    if endpoint.is_ejected() {
        return None;
    }
    let roster = directory.roster();
    let all = roster.endpoints();
    let out = 1 + all.iter().filter(|other| other.is_ejected()).count();
    let most = all.len() * settings.max_ejected_percent as usize;
    (out * 100 <= most).then(|| endpoint.eject(settings.ejection, settings.max_ejection))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YOUNG: Duration = Duration::from_secs(1);
    const OLD: Duration = Duration::from_secs(10);

    fn judged(ending: Ending, status: u16, age: Duration) -> Verdict {
        let status = StatusCode::from_u16(status).unwrap();
        verdict(&Outlier::default(), ending, status, age)
    }

    #[test]
    fn bad_ends_of_young_streams_count_against_an_endpoint() {
        for (ending, status) in [
            (Ending::Trailers(Some(Code::Unavailable)), 200),
            (Ending::Error(Code::Unavailable), 200),
            (Ending::Clean, 503),
            (Ending::Trailers(None), 502),
        ] {
            assert_eq!(judged(ending, status, YOUNG), Verdict::Badly, "{ending:?}");
            assert_eq!(judged(ending, status, OLD), Verdict::Neither, "{ending:?}");
        }
    }

    #[test]
    fn what_the_service_means_to_say_and_what_the_client_does_count_not() {
        for (ending, status) in [
            (Ending::Trailers(Some(Code::Ok)), 200),
            (Ending::Trailers(Some(Code::NotFound)), 200),
            (Ending::Clean, 404),
            // What a malformed message, or one that is too large, brings about on any server.
            (Ending::Trailers(Some(Code::Internal)), 200),
            (Ending::Trailers(Some(Code::ResourceExhausted)), 200),
            (Ending::Error(Code::Internal), 200),
            (Ending::Clean, 500),
        ] {
            assert_ne!(judged(ending, status, YOUNG), Verdict::Badly, "{ending:?}");
        }
        assert_eq!(judged(Ending::Dropped, 200, YOUNG), Verdict::Neither);
    }
}
