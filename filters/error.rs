//! Why the proxy ended a stream.
//!
//! A struct and not an enum of all failures: whoever raises an error names its code and reason in its own file, and
//! the one place that writes statuses (`respond`) needs no knowledge of it.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use http::{HeaderName, HeaderValue};
use thalweg_proto::status::Code;

/// Why the proxy ended a stream: small, cheap to clone, the same for gRPC and HTTP.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    http_status: Option<u16>,
    reason: &'static str,
    side: Side,
    message: Cow<'static, str>,
    detail: Option<Box<str>>,
    header: Option<(HeaderName, HeaderValue)>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// Whose doing it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client went away or broke a rule.
    Client,
    /// The upstream could not be reached, broke off or broke a rule.
    Upstream,
    /// The proxy refused: a limit, a setting, or a fault of its own.
    Proxy,
}

impl Error {
    /// `reason` is what the metric label and the trailer `thalweg-reason` say; `message` is safe to show to a stranger.
    pub fn new(
        code: Code,
        reason: &'static str,
        side: Side,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Arc::new(Inner {
            code,
            http_status: None,
            reason,
            side,
            message: message.into(),
            detail: None,
            header: None,
            source: None,
        }))
    }

    /// What only those may know who run the proxy: addresses, files, the words of other programs. It is for the log, and for
    /// clients of listeners that say so.
    #[must_use]
    pub fn with_detail(mut self, detail: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.0).detail = Some(detail.to_string().into());
        self
    }

    /// The status that plain HTTP hears, where it differs from [`Code::to_http`].
    #[must_use]
    pub fn with_http_status(mut self, status: u16) -> Self {
        Arc::make_mut(&mut self.0).http_status = Some(status);
        self
    }

    /// Whose doing it was, where that is known better than by whoever made it.
    #[must_use]
    pub fn with_side(mut self, side: Side) -> Self {
        Arc::make_mut(&mut self.0).side = side;
        self
    }

    /// A header that tells the client how to do better, such as `retry-after`. It goes where the status goes, as long as
    /// the answer has not begun.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        Arc::make_mut(&mut self.0).header = Some((name, value));
        self
    }

    /// What lies behind it, for the log. An [`h2::Error`] in there tells the reset code.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// What gRPC hears.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What plain HTTP hears.
    pub fn http_status(&self) -> u16 {
        self.0.http_status.unwrap_or_else(|| self.0.code.to_http())
    }

    /// A stable word for labels and for the trailer `thalweg-reason`.
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// Whose doing it was.
    pub fn side(&self) -> Side {
        self.0.side
    }

    /// What happened, in words that are safe for a stranger.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What happened, with the detail that strangers are not told.
    pub fn full_message(&self) -> Cow<'_, str> {
        match &self.0.detail {
            None => Cow::Borrowed(&self.0.message),
            Some(detail) => format!("{}: {detail}", self.0.message).into(),
        }
    }

    /// What the client is told besides.
    pub fn header(&self) -> Option<(&HeaderName, &HeaderValue)> {
        let (name, value) = self.0.header.as_ref()?;
        Some((name, value))
    }

    /// The HTTP/2 code for a stream that can only be reset: the one that the other side sent, if it sent one.
    pub fn reset_code(&self) -> h2::Reason {
        let mut source = self.source();
        while let Some(error) = source {
            if let Some(reason) = error
                .downcast_ref::<h2::Error>()
                .and_then(h2::Error::reason)
                && reason != h2::Reason::NO_ERROR
            {
                return reason;
            }
            source = error.source();
        }
        match self.0.code {
            Code::Cancelled | Code::DeadlineExceeded => h2::Reason::CANCEL,
            Code::ResourceExhausted => h2::Reason::ENHANCE_YOUR_CALM,
            _ => h2::Reason::INTERNAL_ERROR,
        }
    }
}

/// As the log has it, with all detail.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full_message())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            code,
            reason,
            side,
            message,
            detail,
            source,
            ..
        } = &*self.0;
        f.debug_struct("Error")
            .field("code", code)
            .field("reason", reason)
            .field("side", side)
            .field("message", message)
            .field("detail", detail)
            .field("source", source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_code_is_the_one_that_the_other_side_sent() {
        let plain = Error::new(Code::Unavailable, "upstream_reset", Side::Upstream, "gone");

        assert_eq!(plain.reset_code(), h2::Reason::INTERNAL_ERROR);
        assert_eq!(
            plain
                .with_source(h2::Error::from(h2::Reason::REFUSED_STREAM))
                .reset_code(),
            h2::Reason::REFUSED_STREAM
        );
    }

    #[test]
    fn plain_http_hears_its_own_status_where_one_is_set() {
        let error = Error::new(Code::Unimplemented, "no_route", Side::Client, "no route");

        assert_eq!(error.http_status(), 501);
        assert_eq!(error.with_http_status(404).http_status(), 404);
    }

    #[test]
    fn header_goes_with_the_error() {
        let error = Error::new(Code::Unavailable, "rejecting", Side::Proxy, "later");
        assert_eq!(error.header(), None);

        let (name, value) = (http::header::RETRY_AFTER, HeaderValue::from_static("7"));
        let error = error.with_header(name.clone(), value.clone());

        assert_eq!(error.header(), Some((&name, &value)));
    }

    #[test]
    fn detail_is_for_the_log_and_not_for_strangers() {
        let error = Error::new(Code::Unavailable, "x", Side::Upstream, "no connection");
        assert_eq!(error.full_message(), "no connection");

        let error = error.with_detail("10.0.0.1:80");

        assert_eq!(error.message(), "no connection");
        assert_eq!(error.full_message(), "no connection: 10.0.0.1:80");
        assert_eq!(error.to_string(), "no connection: 10.0.0.1:80");
    }
}
