//! The file as people write it. Each comment on a field is its line in the manual.
//!
//! These types are read twice: as a JSON Schema, which editors show and against which
//! [`check`](super::check) finds every slip in a file at once, and by serde.
//!
//! | file | what it holds |
//! |---|---|
//! | [`listeners`] | where clients connect |
//! | [`clusters`] | where streams are forwarded to |
//! | [`http2`] | what both have of HTTP/2 |
//! | [`routes`] | which stream goes where |
//! | [`bindings`] | names that clients may invoke |

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::Value;

use thalweg_filters::units::{Count, Duration, Size};
use thalweg_proto::status::Code;

mod bindings;
mod clusters;
mod http2;
mod listeners;
mod routes;

pub(super) use self::{bindings::*, clusters::*, http2::*, listeners::*, routes::*};

/// What Thalweg does, in one file: where it listens, where it forwards to, and which stream goes
/// where.
///
/// Durations are written `250ms`, `5s`, `1m` or `1h`; sizes `64KiB`, `4MiB`, `1GiB` or in plain
/// bytes. `${NAME}` and `${NAME:-default}` in a value are filled in from the environment.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Thalweg")]
pub(super) struct Config {
    /// The port of the operator: metrics, health, this configuration as it was understood.
    pub(super) admin: Option<Admin>,

    /// Threads that carry streams. Default: one per core, since a worker never waits for another.
    #[schemars(range(min = 1, max = 1024))]
    pub(super) workers: Option<Count>,

    /// Most bytes that all streams together should hold: what waits for its far side, in either
    /// direction, and what is kept to be sent again; large headers count until they are passed on.
    /// From seven eighths of it on new streams are refused, and those that stand still are ended,
    /// the ones that hold the most first. Default: half of the memory that the machine or the
    /// control group of the process has, since connections and the like need some as well.
    #[schemars(range(min = 1_048_576))]
    pub(super) max_held: Option<Size>,

    /// Lets a new process listen on the addresses of this one while this one still runs, the port of the
    /// operator among them, so that a new binary takes over without a refused connection. Both must
    /// have it, and run as the same user. Default `false`: a second process is mostly a mistake, and hears
    /// that the address is in use.
    pub(super) takeover: Option<bool>,

    /// When this file is read again, beside SIGHUP and `POST /reload`.
    pub(super) reload: Option<Reload>,

    /// How Thalweg stops.
    pub(super) drain: Option<Drain>,

    /// Where clients connect. At least one; each answers HTTP/1.1 and HTTP/2 on the same port.
    #[schemars(length(min = 1))]
    pub(super) listeners: Vec<Listener>,

    /// The proxy's own `grpc.health.v1.Health`, on every listener.
    pub(super) health_service: Option<HealthService>,

    /// Labels of the metrics that have Dapr's names.
    pub(super) dapr: Option<Dapr>,

    /// The filters of every route and binding that has none of its own, the outermost first.
    /// Default: `metrics`; `[]` for none. Bindings take `initial_message` from here alone, with its
    /// settings: their first message is always read, since it names the binding.
    pub(super) filters: Option<Vec<FilterEntry>>,

    /// Names that clients may invoke, by `InvokeBinding` and by `/bindings/NAME/stream`, and where
    /// each leads. Each has one of `echo`, `object_store`, `component`, `dapr` and `http`.
    pub(super) bindings: Option<BTreeMap<String, Binding>>,

    /// A folder in which every socket becomes a binding with the name of its file, less the
    /// ending; or a map, to say more; or `none`. Default: the folder that
    /// `DAPR_COMPONENTS_SOCKETS_FOLDER`, `DAPR_COMPONENT_SOCKETS_FOLDER` or
    /// `DAPR_COMPONENT_SOCKET_FOLDER` names in the environment, the first that is set, as Dapr and
    /// its SDKs spell it; if none is, no folder. A binding that is written here comes before
    /// a socket of its name.
    pub(super) component_sockets: Option<ComponentSockets>,

    /// Where streams are forwarded to: sets of interchangeable endpoints, by name.
    pub(super) clusters: Option<BTreeMap<String, Cluster>>,

    /// Which stream goes where. The first route in the list that matches takes the stream, so
    /// put the narrow ones before the broad; a stream that none matches is refused.
    pub(super) routes: Option<Vec<Route>>,
}

/// The port of the operator.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// Where the operator's port listens; `none` switches it off. Default `127.0.0.1:9901`, which
    /// only this machine can reach. Any other than a loopback address needs a token.
    pub(super) address: Option<String>,

    /// The word that requests must carry as `authorization: Bearer TOKEN`. Default: none, as
    /// befits a loopback address. Take it from the environment rather than write it here.
    #[schemars(length(min = 1))]
    pub(super) token: Option<String>,
}

/// When this file is read again.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reload {
    /// How often the file is looked at for changes, links followed; one that has changed and looks the
    /// same a second time is taken up. Default `0s`, which is never: a file that is saved in the
    /// middle of an edit may be good and still not be what was meant.
    pub(super) interval: Option<Duration>,
}

/// How Thalweg stops.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    /// How long connections are still accepted after the order to stop, while `/readyz` already
    /// says that no more should come. Default `0s`, since it is a plain wait for whoever has no load
    /// balancer; behind one, a little more than the time between two of its probes.
    pub(super) delay: Option<Duration>,

    /// How long open streams may go on when the listeners have closed. Then they end behind their
    /// current messages. Default `25s`, a little under the 30s after which orchestrators commonly
    /// kill.
    pub(super) timeout: Option<Duration>,

    /// How long the current messages of a stream may take when it is to end, here and wherever
    /// streams are ended between messages; then it is cut. Plain HTTP, which has no messages, has
    /// this time as well. Default `3s`, which together with `timeout` is still under 30s.
    pub(super) force: Option<Duration>,

    /// A client whose stream was ended so is told to come back after a random time up to this, in
    /// `grpc-retry-pushback-ms` or `retry-after`, so that not all come back at once. Default `5s`.
    pub(super) spread: Option<Duration>,
}

/// The proxy's own `grpc.health.v1.Health`. A route that takes its calls comes first.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthService {
    /// `false` answers these calls with no more than routes do. Default `true`: load balancers and
    /// probes that speak gRPC ask there, and it tells no more than whether Thalweg takes streams.
    pub(super) enabled: Option<bool>,

    /// Streams of `Watch` open at once, on all listeners together; further ones are refused. Default
    /// `1000`, as each costs a stream that only waits.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) max_watchers: Option<Count>,
}

/// Labels of the metrics that have Dapr's names.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dapr {
    /// The label `app_id`. Default `thalweg`; `${APP_ID:-thalweg}` takes it from where Dapr's
    /// tools put it.
    pub(super) app_id: Option<String>,

    /// The label `namespace`. Default empty, as with Dapr outside of Kubernetes;
    /// `${NAMESPACE:-}` takes it from where Dapr puts it inside.
    pub(super) namespace: Option<String>,
}

/// The status of a failed call, by name or by number.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Status(pub(super) Value);

impl JsonSchema for Status {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Code::ALL[1..].iter().map(|code| code.name()).collect();
        json_schema!({
            "description": "The status of a failed gRPC call, by name or by number.",
            "anyOf": [
                {"type": "string", "enum": names},
                {"type": "integer", "minimum": 1, "maximum": names.len()},
            ],
        })
    }
}

/// A filter by its bare name, or a map of its name to its settings.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct FilterEntry(pub(super) Value);

impl JsonSchema for FilterEntry {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let filter = thalweg_filters::chain::Filter::json_schema(generator);
        let variants = filter.get("oneOf").and_then(Value::as_array);
        let names: Vec<&String> = (variants.into_iter().flatten())
            .filter_map(|variant| variant["properties"].as_object()?.keys().next())
            .collect();
        json_schema!({
            "description": "A filter by its bare name, or a map of its name to its settings.",
            "anyOf": [{"type": "string", "enum": names}, filter],
        })
    }
}
