//! Bindings: the names that clients may invoke, and where each leads.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::uri::{Authority, PathAndQuery};
use thalweg_filters::chain::Filter;
use thalweg_proto::status::Code;

use super::{
    Address, Balance, Cluster, Endpoints, Http2, Pool, Protocol, RouteTimeouts, UpstreamTls,
};

/// What the metrics that have Dapr's names say in Dapr's labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Dapr {
    /// The label `app_id`.
    pub app_id: String,
    /// The label `namespace`.
    pub namespace: String,
}

/// A name that clients may invoke, and where it leads.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// What clients and metrics call it; no other binding has this name. It is not empty and has
    /// no `/` and no control characters.
    pub name: String,
    /// Where it leads.
    pub target: BindingTarget,
    /// Most bytes of one message that is kept whole: for a far side that does not stream.
    pub buffer_max_bytes: usize,
    /// Most metadata of a call, and of an answer that is read.
    pub max_metadata: usize,
    /// What becomes of handshakes that fail.
    pub resiliency: Resiliency,
    /// How long streams may take.
    pub timeouts: RouteTimeouts,
    /// What the stream passes, the outermost first; none is there twice, and none of them is
    /// `initial_message`, which comes before the binding is known.
    pub filters: Vec<Filter>,
}

/// Where a binding leads.
#[derive(Clone, Debug, PartialEq)]
pub enum BindingTarget {
    /// To a folder or an object store.
    ObjectStore(ObjectStore),
    /// Back to the client.
    Echo,
    /// To a pluggable component of Dapr.
    Component(Component),
    /// To another server of bindings: one that streams, or a stock daprd.
    Dapr {
        /// Its endpoints, which speak HTTP/2. One of [`Config::clusters`](super::Config::clusters).
        cluster: Arc<Cluster>,
    },
    /// To a plain HTTP service.
    Http(HttpTarget),
}

/// Where the objects of a binding are.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectStore {
    /// The store.
    pub place: Place,
    /// Bytes of an object that are kept until the store has taken them; not below
    /// [`Place::least_part`].
    pub part_size: usize,
}

/// A store of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A folder; relative to where the process was started, unless it is absolute.
    Files(PathBuf),
    /// The process itself, until it ends.
    Memory {
        /// Most bytes of all objects together.
        max_bytes: usize,
    },
    /// Amazon S3, or what speaks like it.
    S3 {
        /// Where in the store.
        bucket: Bucket,
        /// As people write it; `None` is for the environment to say.
        region: Option<String>,
        /// Who asks; `None` is for the environment to say.
        access_key_id: Option<String>,
        /// What proves it.
        secret_access_key: Option<Secret>,
        /// What proves that it may be used for now.
        session_token: Option<Secret>,
    },
    /// Azure Blob Storage, or what speaks like it.
    Azure {
        /// Where in the store.
        bucket: Bucket,
        /// The storage account; `None` is for the environment to say.
        account: Option<String>,
        /// Its key; `None` is for the environment to say.
        account_key: Option<Secret>,
    },
    /// Google Cloud Storage, or what speaks like it.
    Google {
        /// Where in the store.
        bucket: Bucket,
        /// What a service account's file says; `None` is for the environment to say.
        service_account: Option<Secret>,
    },
    /// A web server that knows GET, PUT and DELETE.
    Http {
        /// What stands before the keys. It has no query.
        url: String,
    },
}

/// A place in a store of many.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    /// The name of the bucket, or of the container.
    pub name: String,
    /// What stands before the keys, without a `/` at either end; empty for nothing.
    pub prefix: String,
    /// The URL of the service; `None` for the maker's own.
    pub endpoint: Option<String>,
}

/// What a file holds that nobody else should see.
#[derive(Clone, PartialEq)]
pub struct Secret {
    /// Where it was read from.
    pub file: PathBuf,
    /// The secret, without blanks around it.
    pub text: String,
}

/// A pluggable component of Dapr.
#[derive(Clone, PartialEq)]
pub struct Component {
    /// Its one endpoint. Not among [`Config::clusters`](super::Config::clusters).
    pub cluster: Arc<Cluster>,
    /// Which of its instances is meant: the value of `x-component-instance`, visible ASCII.
    pub instance: String,
    /// What `Init` is called with. The values may be secrets.
    pub metadata: BTreeMap<String, String>,
    /// How often `Ping` is called; never zero.
    pub ping: Duration,
}

/// A plain HTTP service.
#[derive(Clone, PartialEq)]
pub struct HttpTarget {
    /// Its one endpoint. Not among [`Config::clusters`](super::Config::clusters).
    pub cluster: Arc<Cluster>,
    /// The `Host` of its requests.
    pub authority: Authority,
    /// The target of its requests. The query may hold a secret.
    pub path_and_query: PathAndQuery,
    /// The method of its requests; that of the operation if absent.
    pub method: Option<Method>,
    /// Whether clients may prove themselves to it, by metadata.
    pub pass_credentials: bool,
}

/// What becomes of handshakes that fail. A handshake ends with the first message of the response,
/// or with a failure before it; nothing here touches a stream that is established.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resiliency {
    /// Longest that one attempt may take.
    pub timeout: Option<Duration>,
    /// Whether and when to try again.
    pub retry: Option<Retry>,
    /// When to stop trying.
    pub circuit_breaker: Option<CircuitBreaker>,
}

/// Whether and when to try again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// How long to wait between two attempts.
    pub backoff: Backoff,
    /// Attempts after the first.
    pub max_retries: u32,
    /// The statuses that are worth another attempt; at least one, and never OK.
    pub matching: Vec<Code>,
    /// Bytes of the request that are kept to be sent again. A stream that has passed on more than
    /// these is not tried again.
    pub replay_bytes: usize,
}

/// How long to wait between two attempts.
#[derive(Clone, Debug, PartialEq)]
pub enum Backoff {
    /// Always as long.
    Constant(Duration),
    /// Half as long again each time, give or take the jitter.
    Exponential {
        /// The first wait.
        first: Duration,
        /// The longest wait; not shorter than the first.
        max_interval: Duration,
    },
}

pub use thalweg_filters::circuit_breaker::Config as CircuitBreaker;

/// Where components are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentSockets {
    /// The folder. Each socket in it becomes a binding, unless one of that name is configured.
    pub folder: PathBuf,
    /// How often it is looked into; never zero.
    pub interval: Duration,
    /// Most bindings that come of it.
    pub max: usize,
}

// === impl Binding ===

impl Binding {
    /// The binding of a component whose socket was found, with the defaults of everything.
    /// `filters` are [`Config::binding_filters`](super::Config::binding_filters).
    pub fn discovered(name: &str, socket: &Path, filters: &[Filter]) -> Self {
        let address = Address::Unix(socket.to_owned());
        let component = Component {
            cluster: Cluster::of_binding(name, address, Protocol::Http2, None),
            instance: name.to_owned(),
            metadata: BTreeMap::new(),
            ping: Component::PING,
        };
        Self {
            name: name.to_owned(),
            target: BindingTarget::Component(component),
            buffer_max_bytes: Self::BUFFER_MAX_BYTES,
            max_metadata: Self::MAX_METADATA,
            resiliency: Resiliency::default(),
            timeouts: RouteTimeouts::default(),
            filters: filters.to_vec(),
        }
    }

    pub(crate) const BUFFER_MAX_BYTES: usize = 4 << 20;
    pub(crate) const MAX_METADATA: usize = 128;
}

// === impl Place ===

impl Place {
    /// How the URLs of such places begin.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Files(_) => "file",
            Self::Memory { .. } => "memory",
            Self::S3 { .. } => "s3",
            Self::Azure { .. } => "az",
            Self::Google { .. } => "gs",
            Self::Http { .. } => "http",
        }
    }

    /// The least that such a store takes as a part of an object.
    pub fn least_part(&self) -> usize {
        match self {
            Self::S3 { .. } | Self::Google { .. } => 5 << 20,
            _ => 64 << 10,
        }
    }

    pub(super) fn part_size(&self) -> usize {
        match self {
            Self::Files(_) | Self::Memory { .. } => 1 << 20,
            _ => 8 << 20,
        }
    }

    pub(super) const MAX_BYTES: usize = 256 << 20;
}

// === impl Secret ===

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.file.display())
    }
}

// === impl Backoff ===

impl Backoff {
    pub(super) const CONSTANT: Duration = Duration::from_secs(5);
    pub(super) const FIRST: Duration = Duration::from_millis(500);
    pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(60);

    /// The longest wait, but for the jitter.
    pub(crate) fn longest(&self) -> Duration {
        match *self {
            Self::Constant(wait) => wait,
            Self::Exponential { max_interval, .. } => max_interval,
        }
    }
}

// === impl ComponentSockets ===

impl ComponentSockets {
    pub(super) const INTERVAL: Duration = Duration::from_secs(1);
    pub(super) const MAX: usize = 256;
}

// === impl Component ===

impl Component {
    pub(super) const PING: Duration = Duration::from_secs(10);
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component")
            .field("cluster", &self.cluster)
            .field("instance", &self.instance)
            .field("metadata", &self.metadata.keys())
            .field("ping", &self.ping)
            .finish()
    }
}

// === impl HttpTarget ===

impl fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTarget")
            .field("cluster", &self.cluster)
            .field("authority", &self.authority)
            .field("path", &self.path_and_query.path())
            .field("method", &self.method)
            .field("pass_credentials", &self.pass_credentials)
            .finish()
    }
}

// === impl Cluster ===

impl Cluster {
    /// The cluster that a binding makes for itself, with the defaults of clusters.
    pub(super) fn of_binding(
        name: &str,
        address: Address,
        protocol: Protocol,
        tls: Option<UpstreamTls>,
    ) -> Arc<Self> {
        let pool = Pool::default();
        let mut http2 = Http2::default();
        http2.connection_window = http2.stream_window * pool.max_streams_per_connection;
        http2.data_frame_budget = http2.connection_window as usize / 2;
        Arc::new(Self {
            name: format!("{BINDING_CLUSTER}{name}"),
            label: format!("binding {name}"),
            endpoints: Endpoints::one(address),
            balance: Balance::default(),
            slow_start: Duration::ZERO,
            dismiss_removed: false,
            health_check: None,
            outlier: None,
            protocol,
            tls,
            http2,
            connect_timeout: Self::CONNECT_TIMEOUT,
            pool,
            stall: Self::STALL,
        })
    }

    pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    pub(super) const STALL: Duration = Duration::from_secs(60);
}

/// How the names of such clusters begin; no other cluster's may.
pub(super) const BINDING_CLUSTER: &str = "binding/";

// === the defaults; `raw` tells why ===

impl Default for Dapr {
    fn default() -> Self {
        Self {
            app_id: "thalweg".into(),
            namespace: String::new(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            backoff: Backoff::Constant(Backoff::CONSTANT),
            max_retries: 3,
            matching: vec![Code::Unavailable],
            replay_bytes: 64 << 10,
        }
    }
}
