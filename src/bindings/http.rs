//! The target `http`: one streaming HTTP request to a URL, whose response streams back.
//!
//! Metadata of the client become headers of the request, and `path` is appended to the URL's, as with Dapr's own HTTP binding; headers
//! of the response become metadata, with `statusCode` beside them. A status of 400 or above is a failure of the binding.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use ::http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
};
use percent_encoding::percent_decode_str;
use thalweg_filters::{Body, Error, Side, StreamContext, stream::Protocol};
use thalweg_proto::{
    bindings::{Form, InitialResponse, framed_initial},
    status::{Code, encode_message},
};

use super::{
    Invocation, bad_request, response,
    translate::{Plan, Sender, Translate},
};
use crate::{config, forward, upstream::Cluster};

/// The operations of a binding whose method is not fixed.
pub(super) const OPERATIONS: [&str; 8] = [
    "create", "get", "head", "post", "put", "patch", "delete", "options",
];

/// Headers that belong to the connection or to the framing, and are nobody's to set.
const OURS: [HeaderName; 10] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The status with which a web service refused, in the extensions of the answer: plain HTTP hears the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal(pub(super) StatusCode);

/// A web service, as one worker reaches it.
pub(super) struct Http {
    label: Arc<str>,
    cluster: Rc<Cluster>,
    settings: config::HttpTarget,
    timeouts: config::RouteTimeouts,
}

// === impl Http ===

impl Http {
    pub(super) fn new(
        binding: &config::Binding,
        settings: &config::HttpTarget,
        cluster: Rc<Cluster>,
    ) -> Self {
        Self {
            label: format!("binding {}", binding.name).into(),
            cluster,
            settings: settings.clone(),
            timeouts: binding.timeouts,
        }
    }

    pub(super) async fn open(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let request = self.request(invocation, request)?;
        let (parts, body) = forward::send(&self.cluster, request, &self.timeouts)
            .await?
            .into_parts();
        if parts.status.is_client_error() || parts.status.is_server_error() {
            return Ok(refused(parts.status));
        }
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let content_type = parts.headers.get(header::CONTENT_TYPE).map(text);
        let mut metadata: BTreeMap<String, String> = (parts.headers.iter())
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect();
        metadata.insert("statusCode".into(), parts.status.as_str().into());
        let initial = framed_initial(&InitialResponse {
            metadata,
            content_type: content_type.unwrap_or_default(),
        });
        let plan = Plan {
            from: Form::Raw,
            to: Form::Runtime,
            sender: Sender::Upstream(Arc::clone(&self.label)),
        };
        Ok(response(
            Translate::new(body, plan, 0, Some(initial))
                .without_initial()
                .into_body(),
        ))
    }

    fn request(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Request<Body>, Error> {
        let (parts, body) = request.into_parts();
        let plan = Plan {
            from: Form::Runtime,
            to: Form::Raw,
            sender: Sender::Client,
        };
        let body = Translate::new(body, plan, 0, None).without_initial();
        let mut request = Request::new(body.into_body());
        *request.method_mut() = self.method(&invocation.operation)?;
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = self.uri(invocation.metadata.get("path"))?;
        *request.extensions_mut() = parts.extensions;
        // From here on the stream is plain HTTP.
        if let Some(stream) = request.extensions_mut().remove::<StreamContext>() {
            (request.extensions_mut()).insert(stream.speaking(Protocol::Http));
        }
        let headers = request.headers_mut();
        for (name, value) in &invocation.metadata {
            let Ok(header) = HeaderName::try_from(name.as_str()) else {
                continue; // A name that HTTP cannot carry means nothing to a web service.
            };
            if name == "path" || OURS.contains(&header) {
                continue;
            }
            let value = HeaderValue::from_str(value)
                .map_err(|_| bad_request(format!("metadata {name} cannot be a header's value")))?;
            headers.insert(header, value);
        }
        for name in super::TRACE {
            if let Some(value) = parts.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let authority = HeaderValue::from_str(self.settings.authority.as_str())
            .map_err(|_| bad_request("the URL's host cannot be a header's value"))?;
        headers.insert(header::HOST, authority);
        Ok(request)
    }

    fn method(&self, operation: &str) -> Result<Method, Error> {
        if let Some(method) = &self.settings.method {
            return Ok(method.clone());
        }
        Ok(match operation {
            "create" | "post" => Method::POST,
            "get" => Method::GET,
            "put" => Method::PUT,
            "delete" => Method::DELETE,
            "head" => Method::HEAD,
            "patch" => Method::PATCH,
            "options" => Method::OPTIONS,
            _ => {
                return Err(Error::new(
                    Code::FailedPrecondition,
                    "unsupported_operation",
                    Side::Client,
                    format!(
                        "{} does not support operation {operation}. supported operations: {}",
                        self.label,
                        OPERATIONS.join(" ")
                    ),
                ));
            }
        })
    }

    fn uri(&self, more: Option<&String>) -> Result<Uri, Error> {
        let Some(more) = more else {
            return Ok(Uri::from(self.settings.path_and_query.clone()));
        };
        let base = self.settings.path_and_query.path().trim_end_matches('/');
        let path = more.trim_start_matches('/');
        let climbs = path
            .split(['/', '\\', '?'])
            .any(|part| percent_decode_str(part).eq(*b".."));
        let target = match self.settings.path_and_query.query() {
            Some(query) if !path.contains('?') => format!("{base}/{path}?{query}"),
            _ => format!("{base}/{path}"),
        };
        match target.parse() {
            Ok(uri) if !climbs => Ok(uri),
            _ => Err(bad_request(format!(
                "metadata path is no path below the URL: {more}"
            ))),
        }
    }
}

/// What a status of 400 or above is in the one form. It is the service's answer and not a breakdown, so filters see it as such.
fn refused(status: StatusCode) -> Response<Body> {
    let code = match status.as_u16() {
        400 | 422 => Code::InvalidArgument,
        404 | 410 => Code::NotFound,
        409 => Code::Aborted,
        412 => Code::FailedPrecondition,
        413 | 429 => Code::ResourceExhausted,
        500 => Code::Internal,
        501 => Code::Unimplemented,
        status => Code::from_http(status),
    };
    let mut refused = response(Body::empty());
    let headers = refused.headers_mut();
    headers.insert("grpc-status", HeaderValue::from_static(code.as_str()));
    let message = format!("the service answered {status}");
    if let Ok(message) = HeaderValue::from_str(&encode_message(&message)) {
        headers.insert("grpc-message", message);
    }
    refused.extensions_mut().insert(Refusal(status));
    refused
}
