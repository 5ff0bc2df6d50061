//! `thalweg routes explain`: which route a request takes, why the others do not, and what it meets on its way.
//!
//! The routes are asked by the same code that asks them when a request comes.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueHint};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts};
use serde_json::Value;

use super::{REFUSED, check::conditions, say, with_config};
use crate::{
    bindings::Call,
    config::{Config, Destination, Match},
    headers::Seen,
    health::Health,
    router::{Miss, miss},
    serve::stream_context,
};

/// Look at the routes of a configuration.
#[derive(Args, Debug)]
pub(super) struct Routes {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Explain(Explain),
}

/// Say which route a request takes, and why.
///
/// Nothing is sent. A gRPC call is one with `-H "content-type: application/grpc"`.
#[derive(Args, Debug)]
#[command(
    after_help = "Example: thalweg routes explain POST /helloworld.Greeter/SayHello -H 'x-tenant: blue'"
)]
struct Explain {
    /// The method of the request.
    method: Method,
    /// Its path, or a whole URL, whose host is then what the client asks for.
    path: Uri,
    /// A header of it.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The file to read. Default: config.yaml.
    #[arg(short, long, env = "THALWEG_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let hint = || "write `name: value`".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(hint)?;
    let name = name.trim().parse().map_err(|_| hint())?;
    let value = value.trim().parse().map_err(|_| hint())?;
    Ok((name, value))
}

// === impl Routes ===

impl Routes {
    pub(super) fn run(self) -> ExitCode {
        let Command::Explain(explain) = self.command;
        let mut request = Request::new(());
        *request.method_mut() = explain.method;
        *request.uri_mut() = explain.path;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().extend(
            explain
                .headers
                .into_iter()
                .map(|(name, value)| (Some(name), value)),
        );
        if !request.uri().path().starts_with('/') {
            eprintln!(
                "thalweg: `{}` is no path: write one such as /helloworld.Greeter/SayHello",
                request.uri()
            );
            return ExitCode::from(REFUSED);
        }
        with_config(explain.config, |_, config| {
            say(explanation(&config, request))
        })
    }
}

/// All that is to be said of a request.
fn explanation(config: &Config, mut request: Request<()>) -> String {
    let stream = stream_context(&request, &Seen::of(&request), None);
    request.extensions_mut().insert(stream);
    let serves_bindings = !config.bindings.is_empty() || config.component_sockets.is_some();
    if serves_bindings && let Some(call) = Call::of(&request) {
        return match call {
            Ok(call) => binding(config, &call),
            Err(error) => format!(
                "a call of a binding, which is refused: {error} ({})\n",
                error.reason()
            ),
        };
    }
    let (parts, ()) = request.into_parts();
    let mut text = String::new();
    let width = config
        .routes
        .iter()
        .map(|route| route.name.chars().count())
        .max()
        .unwrap_or(0);
    let asks_for_health =
        config.health_service.is_some() && miss(&Health::matches(), &parts).is_none();
    for (index, route) in config.routes.iter().enumerate() {
        if asks_for_health && index == Health::place(config) {
            let _ = writeln!(
                text,
                "the proxy answers itself, since it serves grpc.health.v1.Health and `{}` cannot carry gRPC over HTTP/1.1",
                route.name
            );
            return text;
        }
        let why = why(config, index, &parts);
        let verdict = match (&why, &route.destination) {
            (Some(why), _) => format!("no: {why}"),
            (None, Destination::RoutesBelow) => format!("applies: {}", conditions(&route.matches)),
            (None, Destination::Clusters(_)) => format!("taken: {}", conditions(&route.matches)),
        };
        let _ = writeln!(text, "{:width$}   {verdict}", route.name);
        if why.is_some() {
            continue;
        }
        effects(&mut text, config.route_to_json(index));
        match route.destination {
            Destination::RoutesBelow => {
                text.push_str("  and on to the routes below, as the filters leave the request\n");
            }
            Destination::Clusters(_) => return text,
        }
    }
    text.push_str(if asks_for_health {
        "no route takes it: the proxy answers itself, since it serves grpc.health.v1.Health\n"
    } else {
        "no route takes it: it is refused with UNIMPLEMENTED, or 404 (no_route)\n"
    });
    text
}

/// Why a route does not take a request, if it does not.
fn why(config: &Config, index: usize, parts: &Parts) -> Option<String> {
    let matches = &config.routes[index].matches;
    Some(match miss(matches, parts)? {
        Miss::Path => {
            let wanted = Match {
                path: matches.path.clone(),
                ..Match::default()
            };
            format!("the path is not {}", conditions(&wanted))
        }
        Miss::Authority(found) => {
            let wanted = Match {
                authority: matches.authority.clone(),
                ..Match::default()
            };
            match found {
                Some(found) => format!("the host is {found}, and not {}", conditions(&wanted)),
                None => format!(
                    "there is no host (-H 'host: NAME'), and wanted is {}",
                    conditions(&wanted)
                ),
            }
        }
        Miss::Header(name, wanted) => {
            let values: Vec<_> = parts.headers.get_all(name).iter().map(words).collect();
            let wanted = words(wanted);
            match values.is_empty() {
                true => format!("there is no header {name}, and wanted is `{wanted}`"),
                false => format!(
                    "the header {name} is `{}`, and not `{wanted}`",
                    values.join("`, `")
                ),
            }
        }
    })
}

fn words(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// What a stream of a route meets, and where each value comes from.
fn effects(text: &mut String, mut route: Value) {
    let from = route["from"].take();
    let lines: Vec<(&str, String, &str)> = (from.as_object().into_iter().flatten())
        .filter(|(key, _)| !["name", "match"].contains(&key.as_str()))
        .map(|(key, origin)| {
            let value = key.split('.').fold(&route, |value, key| &value[key]);
            let value = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (key.as_str(), value, origin.as_str().unwrap_or_default())
        })
        .collect();
    let width = |of: fn(&(&str, String, &str)) -> usize| lines.iter().map(of).max().unwrap_or(0);
    let (keys, values) = (
        width(|line| line.0.len()),
        width(|line| line.1.chars().count().min(40)),
    );
    for (key, value, origin) in &lines {
        let _ = writeln!(text, "  {key:keys$}   {value:values$}   {origin}");
    }
}

/// What becomes of a call of a binding.
fn binding(config: &Config, call: &Call) -> String {
    let name = match call {
        Call::HttpStream { name } | Call::HttpUnary { name } => name,
        Call::GrpcStream | Call::GrpcUnary => {
            return "a call of a binding: its first message says of which, and no route is asked\n"
                .into();
        }
    };
    if let Some(known) = config.bindings.iter().find(|binding| binding.name == *name) {
        let filters: Vec<_> = known.filters.iter().map(|filter| filter.name()).collect();
        return format!(
            "a call of the binding {name}, and no route is asked\n  filters   {}\n",
            if filters.is_empty() {
                "none".to_owned()
            } else {
                filters.join(", ")
            }
        );
    }
    match &config.component_sockets {
        Some(sockets) => format!(
            "a call of the binding {name}, which is not in the file: it is served if there is a socket of that name in {}\n",
            sockets.folder.display()
        ),
        None => {
            format!("a call of the binding {name}, and there is none of that name: it is refused\n")
        }
    }
}
