//! `thalweg invoke`: streams a file or standard input into a binding, and its answer into a file or to standard output.
//!
//! Both directions move at once, and each only as fast as its slower end: nothing is collected, so memory stays flat
//! whatever the size.
//!
//! | file | what it holds |
//! |---|---|
//! | [`input`] | where the payload comes from |
//! | [`output`] | where the answer goes; a file appears only when it is whole |
//! | [`grpc`] | the call over gRPC: `InvokeBindingAlpha1` |
//! | [`http`] | the call over HTTP/1.1 |
//! | [`progress`] | how far it is, for people |

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, rc::Rc, time::Duration};

use ::http::{HeaderMap, HeaderName, HeaderValue};
use clap::Args;
use thalweg_filters::units::Unit;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

use self::{input::Input, output::Output, progress::Progress};
use super::{
    connect::{Server, Speak, Tls},
    exit::{self, Class, Failure},
};

mod grpc;
mod http;
mod input;
mod output;
mod progress;

/// How long a connection may take to say its last words, such as that a stream is cancelled.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Stream a file or standard input into a binding, and its answer out.
///
/// Exit codes: 0 done; 64 what the command line names cannot be used; 65 the request is refused; 66 no such binding, object or
/// input; 69 unavailable; 70 broken at the server; 73 the output cannot be written; 75 trying again may help; 76 the answer was
/// cut; 77 not trusted or not allowed; 128 and more: ended by that signal.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  thalweg invoke files -m key=big.bin -i big.bin
  thalweg invoke files --operation get -m key=big.bin -o back.bin
  tar c folder | thalweg invoke files -m key=folder.tar")]
pub(super) struct Invoke {
    /// The binding; `thalweg bindings` lists them.
    binding: String,
    /// What it shall do.
    #[arg(long, value_name = "NAME", default_value = "create")]
    operation: String,
    /// Metadata of the request; may be given several times.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// The payload; `-` is standard input. Default: standard input, unless that is a terminal.
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where the answer goes. The file appears when the answer is whole. Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The server: http://HOST:PORT, https://HOST:PORT or unix:/PATH.
    #[arg(long, env = "THALWEG_ADDRESS", default_value = "http://127.0.0.1:8080")]
    address: Server,
    /// Call over HTTP/1.1, and not over gRPC.
    #[arg(long)]
    http: bool,
    /// The longest that the whole call may take, such as 30s or 5m. Default: as long as it takes.
    #[arg(long, value_name = "TIME", value_parser = time)]
    timeout: Option<Duration>,
    /// Print the metadata of the answer to standard error.
    #[arg(short, long)]
    verbose: bool,
    /// Show no progress, not even on a terminal.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    tls: Tls,
}

/// One call, as its transport needs it.
struct Call<'a> {
    settings: &'a Invoke,
    metadata: BTreeMap<String, String>,
    input: Input,
    output: Output,
    progress: Rc<Progress>,
}

// === impl Invoke ===

impl Invoke {
    pub(super) fn run(&self) -> ExitCode {
        exit::run(self.invoke())
    }

    async fn invoke(&self) -> Result<(), Failure> {
        // Before signals are listened for: a pipe without another end would keep all waiting, and a signal ends that.
        let input = Input::open(self.input.as_deref())?;
        let output = Output::open(self.output.as_deref())?;
        let no_signals =
            |error| Failure::new(Class::Broken, format!("cannot listen for signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let shown = !self.quiet && !output.is_terminal();
        let progress = Rc::new(Progress::new(shown, self.verbose, input.size()));
        let call = Call {
            settings: self,
            metadata: self.metadata.iter().cloned().collect(),
            input,
            output,
            progress: Rc::clone(&progress),
        };

        let mut drivers = JoinSet::new();
        let outcome = tokio::select! {
            outcome = self.in_time(call.exchange(&mut drivers)) => outcome,
            never = progress.show() => match never {},
            _ = interrupt.recv() => Err(Failure::new(Class::Interrupted, "interrupted")),
            _ = terminate.recv() => Err(Failure::new(Class::Terminated, "terminated")),
        };
        progress.end(outcome.is_ok());
        // Whatever was left of the call has been dropped, and so cancelled: the server shall hear of it.
        let _ = timeout(LAST_WORDS, drivers.join_next()).await;
        outcome
    }

    async fn in_time(
        &self,
        exchange: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let Some(limit) = self.timeout else {
            return exchange.await;
        };
        timeout(limit, exchange).await.unwrap_or_else(|_| {
            let message = format!("it took longer than {limit:?} (--timeout)");
            Err(Failure::new(Class::TryAgain, message))
        })
    }
}

/// Reads `KEY=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

/// Reads `30s`.
fn time(text: &str) -> Result<Duration, String> {
    match Unit::Duration.parse(text) {
        Some(millis @ 1..) => Ok(Duration::from_millis(millis)),
        _ => Err(Unit::Duration.hint().into()),
    }
}

// === impl Call ===

impl Call<'_> {
    async fn exchange(self, drivers: &mut JoinSet<Result<(), h2::Error>>) -> Result<(), Failure> {
        let Invoke { address, tls, .. } = self.settings;
        if self.settings.http {
            let (connection, overheard) = address.connect("--address", tls, Speak::Http1).await?;
            http::exchange(self, connection, &overheard).await
        } else {
            let (connection, overheard) = address.connect("--address", tls, Speak::Http2).await?;
            grpc::exchange(self, connection, &overheard, drivers).await
        }
    }
}

// === what both transports share ===

/// Trailers and headers with this prefix are metadata of the answer.
const METADATA: &str = "metadata.";

/// What a server may want to know of a client, from the environment.
const TOKEN: (&str, HeaderName) = ("DAPR_API_TOKEN", HeaderName::from_static("dapr-api-token"));

/// Headers of every request.
fn headers() -> Result<HeaderMap, Failure> {
    const AGENT: &str = concat!("thalweg/", env!("CARGO_PKG_VERSION"));

    let mut headers = HeaderMap::new();
    headers.insert(::http::header::USER_AGENT, HeaderValue::from_static(AGENT));
    let (variable, name) = TOKEN;
    if let Some(token) = std::env::var_os(variable).filter(|token| !token.is_empty()) {
        let mut token = HeaderValue::from_bytes(token.as_encoded_bytes()).map_err(|_| {
            let message = format!("{variable} has characters that no header can carry");
            Failure::new(Class::Usage, message)
        })?;
        token.set_sensitive(true);
        headers.insert(name, token);
    }
    Ok(headers)
}

/// The metadata of an answer among its headers or trailers.
fn metadata(headers: &HeaderMap) -> BTreeMap<String, String> {
    let found = headers.iter().filter_map(|(name, value)| {
        let key = name.as_str().strip_prefix(METADATA)?;
        Some((
            key.to_owned(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        ))
    });
    found.collect()
}

/// What to do about a failure that the proxy itself has made, by its reason.
fn with_hint(failure: Failure, headers: &HeaderMap) -> Failure {
    match headers.get("thalweg-reason").map(HeaderValue::as_bytes) {
        Some(b"no_binding") => failure.hint("`thalweg bindings` lists those that there are"),
        Some(b"no_route") => failure.hint("its configuration has no `bindings`"),
        _ => failure,
    }
}
