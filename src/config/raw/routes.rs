//! Which stream goes where.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{FilterEntry, Status};
use thalweg_filters::units::{Count, Duration, Size};

/// Which streams go where.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Route {
    /// What metrics and logs call it.
    #[schemars(length(min = 1))]
    pub(in crate::config) name: String,

    /// What a stream must look like: all that is said here must hold. Default: any stream.
    #[serde(rename = "match")]
    pub(in crate::config) matches: Option<Match>,

    /// The cluster that takes the streams. Either this, `clusters` or `continue`.
    pub(in crate::config) cluster: Option<String>,

    /// Several clusters that share the streams by weight. Either this, `cluster` or `continue`.
    #[schemars(length(min = 1))]
    pub(in crate::config) clusters: Option<Vec<WeightedCluster>>,

    /// `true` sends the streams on to the routes below, after the filters of this one: those match
    /// again, and find the headers that a filter has set, such as those that `initial_message`
    /// takes from the first message. A stream that none of them matches is refused. The filters of
    /// both routes apply, and the timeouts of the lower one. Default `false`.
    #[serde(rename = "continue")]
    pub(in crate::config) goes_on: Option<bool>,

    /// How long streams may take.
    pub(in crate::config) timeouts: Option<RouteTimeouts>,

    /// What becomes of streams that fail before their answer begins.
    pub(in crate::config) retry: Option<RouteRetry>,

    /// The filters of this route, the outermost first, in place of the default ones; `[]` for
    /// none.
    pub(in crate::config) filters: Option<Vec<FilterEntry>>,
}

/// What becomes of streams that fail before their answer begins. A stream that the upstream has
/// refused, so that nobody has begun with it, is tried again in any case; one that was perhaps begun
/// only if its status is in `matching`. Once the head of an answer has come there is no retry, nor
/// when it would come after the client's deadline. Only for upstreams that speak HTTP/2.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RouteRetry {
    /// Attempts after the first. Default `1`, as gRPC's clients do with streams that were refused:
    /// an upstream that restarts refuses a few, and another endpoint takes them. `0` tries none
    /// again.
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) max_retries: Option<Count>,

    /// The gRPC statuses that are worth another attempt, by name or by number, when the upstream
    /// answers with nothing else or there is no answer. Default: none, since the upstream may have
    /// begun with the stream, and only you know whether it may be done twice. An upstream says in
    /// `grpc-retry-pushback-ms` when it wants to hear of the stream again, or with `-1` that it
    /// does not.
    pub(in crate::config) matching: Option<Vec<Status>>,

    /// The first wait; each further one is half as long again, spread at random. Default `100ms`. A
    /// stream that was refused is first tried again without a wait.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) duration: Option<Duration>,

    /// The longest wait. Default `5s`. An upstream that asks for a longer one has its answer passed
    /// on, so that the client may wait itself.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) max_interval: Option<Duration>,

    /// Bytes of the request that are kept so that they can be sent again. A stream that has sent more
    /// is not tried again. Default `64KiB`: most requests whole, and the most memory that it costs a
    /// stream until its answer begins.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(in crate::config) replay_bytes: Option<Size>,

    /// How many retries there may be, so that they do not drown an upstream that is in need.
    pub(in crate::config) budget: Option<RetryBudget>,
}

/// How many retries there may be, for each worker.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RetryBudget {
    /// Retries for each hundred streams, in the long run. Default `20`: an upstream at its limit
    /// hears at most a fifth more.
    #[schemars(range(min = 0, max = 1000))]
    pub(in crate::config) percent: Option<Count>,

    /// Retries that there may be at once, when there were none for a while. Default `100`: the streams
    /// of a connection that goes away.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(in crate::config) burst: Option<Count>,
}

/// What a stream must look like. At most one of `path`, `path_prefix` and `grpc`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Match {
    /// The whole path, without the query: `/status`.
    pub(in crate::config) path: Option<String>,

    /// How the path begins: `/helloworld.Greeter/`. `/` is every path.
    pub(in crate::config) path_prefix: Option<String>,

    /// A gRPC service, or one method of it.
    pub(in crate::config) grpc: Option<Grpc>,

    /// The host the client asks for: `api.example.test`, `"*.example.test"` for any host below it,
    /// or `"*"` (in quotes: a bare star means something else). Default: any.
    #[schemars(length(min = 1))]
    pub(in crate::config) authority: Option<String>,

    /// Headers that must be there with just this value. Default: none.
    pub(in crate::config) headers: Option<BTreeMap<String, String>>,
}

/// A gRPC service, or one method of it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Grpc {
    /// The full name of the service: `helloworld.Greeter`.
    #[schemars(length(min = 1))]
    pub(in crate::config) service: String,

    /// The name of the method: `SayHello`. Default: every method.
    #[schemars(length(min = 1))]
    pub(in crate::config) method: Option<String>,
}

/// A cluster and its share of the streams.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct WeightedCluster {
    /// The name of the cluster.
    pub(in crate::config) name: String,

    /// Its share, in proportion to the other weights. `0` sends it nothing.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(in crate::config) weight: Count,
}

/// How long streams may take.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct RouteTimeouts {
    /// Longest wait for a place on a connection, dials included, where the cluster's
    /// `pool.wait_timeout` is too long for this kind of stream. Default `0s`, which leaves it to the
    /// cluster.
    pub(in crate::config) connect: Option<Duration>,

    /// Longest wait for the head of the answer, from the time that the stream has passed the filters;
    /// a wait for a connection counts. Default `0s`, for ever: an upload may take its time, and who
    /// calls knows best and says `grpc-timeout`.
    pub(in crate::config) first_response: Option<Duration>,

    /// How long bytes of a stream may wait while the upstream takes none; `0s` is for ever.
    /// Default `60s`. A stream on which nobody speaks is not stalled and may last for ever.
    pub(in crate::config) stall: Option<Duration>,

    /// How many bytes the upstream must take within `stall` while any wait; fewer are a stall too,
    /// unless no more waited. Default `1KiB`, 17 bytes a second: one that is slow is not ill.
    #[schemars(range(min = 1))]
    pub(in crate::config) stall_min_progress: Option<Size>,

    /// How long a client may say nothing that has not half-closed, unless its bytes wait for the
    /// upstream. It is noticed after once to twice this time. Default `0s`, for ever. How long the first
    /// message may take, the filter `initial_message` says.
    pub(in crate::config) idle_request: Option<Duration>,

    /// The same for the upstream, from the head of its answer on. Default `0s`, for ever.
    pub(in crate::config) idle_response: Option<Duration>,

    /// Age at which a stream ends between two messages, with UNAVAILABLE and a word when to come
    /// back; each a little earlier, up to a fifth and by chance. So long streams come to new endpoints,
    /// too. Plain HTTP is cut, `drain.force` later. Default `0s`, never.
    pub(in crate::config) max_age: Option<Duration>,
}
