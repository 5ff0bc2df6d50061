//! The target `http`: one streaming HTTP request to a URL, whose response streams back.
//!
//! Metadata of the client become headers of the request, but for those that [`headers`] refuses, and `path` is appended to the
//! URL's, as with Dapr's own HTTP binding; headers of the response become metadata, with `statusCode` beside them. A status of 400 or
//! above is a failure of the binding.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use ::http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery,
};
use thalweg_filters::{Body, Error, Side, StreamContext, stream::Protocol};
use thalweg_proto::{
    bindings::{Form, InitialResponse, framed_initial},
    path,
    status::{Code, encode_message},
};

use super::{
    Invocation, bad_request, response,
    translate::{Plan, Sender, Translate},
};
use crate::{config, forward, upstream::Cluster};

mod headers;

/// The operations of a binding whose method is not fixed.
pub(super) const OPERATIONS: [&str; 8] = [
    "create", "get", "head", "post", "put", "patch", "delete", "options",
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
        // A header that is there several times is one entry, as with Dapr.
        let mut metadata = BTreeMap::<String, String>::new();
        for (name, value) in &parts.headers {
            let joined = metadata.entry(name.to_string()).or_default();
            if !joined.is_empty() {
                joined.push_str(", ");
            }
            joined.push_str(&text(value));
        }
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
        headers::set(
            headers,
            &invocation.metadata,
            self.settings.pass_credentials,
        )?;
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
        let own = &self.settings.path_and_query;
        match more {
            None => Ok(Uri::from(own.clone())),
            Some(more) => below(own, more).map_err(|why| {
                bad_request(format!("metadata path is no path below the URL: {why}"))
            }),
        }
    }
}

/// A URL with more of a path, and perhaps more of a query, than the binding's own.
fn below(own: &PathAndQuery, more: &str) -> Result<Uri, String> {
    let (path, query) = match more.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (more, None),
    };
    path::check(path).map_err(|fault| fault.to_string())?;
    let base = own.path().trim_end_matches('/');
    let mut target = format!("{base}/{}", path.trim_start_matches('/'));
    let queries = own.query().into_iter().chain(query);
    for (separator, query) in ["?", "&"].into_iter().zip(queries) {
        target.push_str(separator);
        target.push_str(query);
    }
    // Of a parameter that is there twice, some servers take the first and some the last.
    let names = |query| form_urlencoded::parse(query).map(|(name, _)| name);
    let (own, query) = (own.query().unwrap_or_default(), query.unwrap_or_default());
    if let Some(name) =
        names(query.as_bytes()).find(|name| names(own.as_bytes()).any(|own| own == *name))
    {
        return Err(format!("the URL has its own {name:.64}"));
    }
    let uri: Uri = target
        .parse()
        .map_err(|_| "it is not how paths are written")?;
    // What was looked at must be what is sent: a parser leaves out what it takes for a fragment.
    match uri.path_and_query() {
        Some(sent) if sent.as_str() == target => Ok(uri),
        _ => Err("a part of it would be left out".into()),
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
