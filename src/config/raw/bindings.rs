//! Names that clients may invoke, and where each leads.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use serde_json::Value;

use super::{FilterEntry, RouteTimeouts, Status, UpstreamTls};
use crate::config::{CircuitBreaker, Protocol};
use thalweg_filters::units::{Count, Duration, Size};

/// A name that clients may invoke, and where it leads: one of `object_store`, `echo`, `component`,
/// `dapr` and `http`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Binding {
    /// Files in a folder, or objects in a store: S3, Azure Blob, Google Cloud Storage and those
    /// that speak like them.
    pub(in crate::config) object_store: Option<ObjectStore>,

    /// Answers with what the client sends, for tests: `{}`.
    pub(in crate::config) echo: Option<Echo>,

    /// A pluggable component of Dapr. One that has no `InvokeStream` is called by `Invoke`, with
    /// the stream collected first.
    pub(in crate::config) component: Option<Component>,

    /// Another server of bindings: one that streams, or a stock daprd, for which the stream is
    /// collected first.
    pub(in crate::config) dapr: Option<DaprServer>,

    /// A plain HTTP service: the stream is the body of one request, and the body of its response
    /// is the answer.
    pub(in crate::config) http: Option<Http>,

    /// What is kept whole of a call.
    pub(in crate::config) buffer: Option<Buffer>,

    /// What becomes of handshakes that fail. A handshake ends with the first message of the
    /// response, or with a failure before it; nothing here touches a stream that is established.
    pub(in crate::config) resiliency: Option<Resiliency>,

    /// How long streams may take.
    pub(in crate::config) timeouts: Option<RouteTimeouts>,

    /// The filters of this binding, the outermost first, in place of the default ones; `[]` for
    /// none. Default: the top-level list, and behind it `sequence`, since the payload of bindings
    /// is numbered and a stream with a hole in it must not look whole. `initial_message` is not among them: it comes before the binding is known, and stands
    /// in the top-level list.
    pub(in crate::config) filters: Option<Vec<FilterEntry>>,
}

/// Files in a folder, or objects in a store. Credentials that no key names come from the
/// environment, where the tools of the store's maker look for them: `AWS_*`, `AZURE_*`, `GOOGLE_*`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ObjectStore {
    /// Where the objects are: `file://./data` (made if it is not there), `memory://`,
    /// `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX`, or
    /// `http://HOST/PATH` for a server that knows GET, PUT and DELETE. The prefix may be left out.
    #[schemars(length(min = 1))]
    pub(in crate::config) url: String,

    /// Where the store's service is, for one that speaks like S3, Azure Blob or Google Cloud
    /// Storage: `http://127.0.0.1:9000`. Default: the maker's own.
    #[schemars(length(min = 1))]
    pub(in crate::config) endpoint: Option<String>,

    /// The region of an S3 bucket. Default: `AWS_REGION`, or `us-east-1`.
    #[schemars(length(min = 1))]
    pub(in crate::config) region: Option<String>,

    /// Who asks, with S3. Default: `AWS_ACCESS_KEY_ID`, or what the machine is.
    #[schemars(length(min = 1))]
    pub(in crate::config) access_key_id: Option<String>,

    /// A file that holds the secret of `access_key_id`. Files with secrets are read when the
    /// configuration is, and blanks around what they hold are left out.
    #[schemars(length(min = 1))]
    pub(in crate::config) secret_access_key_file: Option<String>,

    /// A file that holds the token of temporary credentials of S3.
    #[schemars(length(min = 1))]
    pub(in crate::config) session_token_file: Option<String>,

    /// The storage account, with Azure. Default: `AZURE_STORAGE_ACCOUNT_NAME`.
    #[schemars(length(min = 1))]
    pub(in crate::config) account: Option<String>,

    /// A file that holds a key of the storage account.
    #[schemars(length(min = 1))]
    pub(in crate::config) account_key_file: Option<String>,

    /// The file of a service account of Google Cloud. Default: `GOOGLE_APPLICATION_CREDENTIALS`,
    /// or what the machine is.
    #[schemars(length(min = 1))]
    pub(in crate::config) service_account_file: Option<String>,

    /// Bytes of an object that are kept until the store has taken them: what an upload costs in
    /// memory. Default `8MiB`, so that an object of 80 GB has no more parts than stores allow, and
    /// `1MiB` for files and memory. S3 and Google Cloud Storage want at least `5MiB`.
    #[schemars(extend("minimum" = 65536, "maximum" = 1_073_741_824))]
    pub(in crate::config) part_size: Option<Size>,

    /// Most bytes of all objects in `memory://` together; further ones are refused. Each counts its
    /// name, what is stored beside it, and 1 KiB for its place. Default `256MiB`: enough to try
    /// things out.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) max_bytes: Option<Size>,
}

/// Answers with what the client sends.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Echo {}

/// A pluggable component of Dapr. One of `socket` and `address`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Component {
    /// The path of its Unix socket: `/tmp/dapr-components-sockets/orders.sock`.
    #[schemars(length(min = 1))]
    pub(in crate::config) socket: Option<String>,

    /// Its TCP address, `127.0.0.1:50051`, in place of a socket.
    pub(in crate::config) address: Option<String>,

    /// Which instance of the component is meant, as it is told by `x-component-instance`. Default:
    /// the name of the binding, as Dapr has it.
    #[schemars(length(min = 1))]
    pub(in crate::config) instance: Option<String>,

    /// What its `Init` is called with. Default: nothing. Values may be secrets, so none is ever
    /// shown; take them from the environment rather than write them here.
    pub(in crate::config) metadata: Option<BTreeMap<String, String>>,

    /// How often `Ping` is called to see whether the component is well. Default `10s`: soon enough
    /// for people to wait for, and nothing to a component.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) ping: Option<Duration>,
}

/// Another server of bindings.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct DaprServer {
    /// The cluster where it is, with `protocol: http2`. It is asked for a binding of the same name.
    pub(in crate::config) cluster: String,
}

/// A plain HTTP service.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Http {
    /// Where requests go: `http://127.0.0.1:8000/in`, or `https` for TLS. A name is looked up at
    /// each dial.
    #[schemars(length(min = 1))]
    pub(in crate::config) url: String,

    /// The method of every request, in capitals. Default: by the operation that the client names.
    /// `create` is POST; `get`, `post`, `put`, `delete`, `head`, `patch` and `options` are
    /// themselves.
    #[schemars(length(min = 1))]
    pub(in crate::config) method: Option<String>,

    /// Whether metadata of clients may become the headers `authorization` and `cookie`. Default `false`: a service that
    /// knows the proxy may trust it with more than its clients. Headers that only the proxy may set, such as
    /// `x-forwarded-for`, are refused in either case.
    pub(in crate::config) pass_credentials: Option<bool>,

    /// What the service speaks. Default `http1`, which every HTTP server speaks; `http2` in the
    /// clear needs one that takes it without being asked first, as gRPC servers do.
    pub(in crate::config) protocol: Option<Protocol>,

    /// Whom to trust, and how to prove oneself, where the URL begins with `https`. Default: as this
    /// machine does, and nothing is shown.
    pub(in crate::config) tls: Option<UpstreamTls>,
}

/// What is kept whole of a call.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Buffer {
    /// Most bytes of a request, and of an answer, that is kept whole: for components without
    /// `InvokeStream`, a stock daprd, and unary calls. Beyond, the call is refused. Default
    /// `4MiB`, the largest message that gRPC libraries and Dapr take by default.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub(in crate::config) max_bytes: Option<Size>,

    /// Most metadata of a call, and of an answer that is read for plain HTTP or kept whole. Beyond, the call is refused, as it is
    /// when they have more than 60 KiB together. Default `128`, more than HTTP servers commonly take headers.
    #[schemars(range(min = 1, max = 10_000))]
    pub(in crate::config) max_metadata: Option<Count>,
}

/// What becomes of handshakes that fail.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Resiliency {
    /// Longest that one attempt at a handshake may take: up to the first message of the response.
    /// It never ends a stream that is established. Default: none, as with Dapr, since some answers
    /// only begin when the last byte of the request is there.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) timeout: Option<Duration>,

    /// When a handshake that failed is tried again. Default: never, as with Dapr. `{}` takes all
    /// defaults below.
    pub(in crate::config) retry: Option<Retry>,

    /// When a binding whose handshakes fail is given a rest: the settings of the filter
    /// `circuit_breaker`. Each attempt counts. Default: never, as with Dapr. `{}` takes all
    /// defaults.
    pub(in crate::config) circuit_breaker: Option<CircuitBreakerEntry>,
}

/// When a handshake that failed is tried again. It is only tried again while the request that was
/// passed on can be said again word for word: that is, up to `replay_bytes` of it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Retry {
    /// How the waits grow. Default `constant`, as with Dapr.
    pub(in crate::config) policy: Option<RetryPolicy>,

    /// The wait between two attempts; with `exponential`, the first. Default `5s` for `constant`
    /// and `500ms` for `exponential`, as with Dapr.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) duration: Option<Duration>,

    /// The longest wait, with `exponential` alone. Default `60s`, as with Dapr.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) max_interval: Option<Duration>,

    /// Attempts after the first; the client waits for all of them. Default `3`. Dapr tries for
    /// ever by default; here every retry has a limit.
    #[schemars(range(min = 0, max = 1000))]
    pub(in crate::config) max_retries: Option<Count>,

    /// The gRPC statuses that are worth another attempt, by name or by number. Default
    /// `[UNAVAILABLE]`, the one status that means that the call was most likely not begun: a
    /// connection that failed, a component that starts. Dapr tries again after any; but an
    /// operation that failed midway and is not safe to repeat, such as `create`, would be done
    /// twice. Add `DEADLINE_EXCEEDED` to try again after `timeout` as well, and further ones, where
    /// all operations are safe to repeat.
    #[schemars(length(min = 1))]
    pub(in crate::config) matching: Option<Vec<Status>>,

    /// Bytes of the request that are kept so that they can be sent again. A stream that has passed
    /// on more is not tried again. Default `64KiB`: most requests whole, and the memory that it
    /// costs each handshake.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(in crate::config) replay_bytes: Option<Size>,
}

/// How the waits between attempts grow.
#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RetryPolicy {
    /// Always the same wait.
    #[default]
    Constant,
    /// Each wait half as long again as the one before, spread at random, so that clients which
    /// failed together do not come back together.
    Exponential,
}

/// A folder, or a map to say more.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum ComponentSockets {
    /// The folder, or `none`.
    Folder(#[schemars(length(min = 1))] String),
    /// The folder and how it is looked into.
    More(MoreComponentSockets),
}

/// The folder and how it is looked into.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct MoreComponentSockets {
    /// The folder, or `none`. Default: the one that the environment names.
    #[schemars(length(min = 1))]
    pub(in crate::config) folder: Option<String>,

    /// How often the folder is looked into. Default `1s`: one who starts a component waits no
    /// longer, and a look costs microseconds.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) interval: Option<Duration>,

    /// Most bindings that come of it; further sockets are passed over. Default `256`, far more than
    /// components on one machine.
    #[schemars(range(min = 1, max = 65_536))]
    pub(in crate::config) max: Option<Count>,
}

/// The settings of a circuit breaker, which it reads itself.
#[derive(Deserialize)]
#[serde(transparent)]
pub(in crate::config) struct CircuitBreakerEntry(pub(in crate::config) Value);

impl JsonSchema for CircuitBreakerEntry {
    fn schema_name() -> Cow<'static, str> {
        CircuitBreaker::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        CircuitBreaker::json_schema(generator)
    }
}
