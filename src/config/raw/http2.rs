//! How HTTP/2 is spoken, on either side.

use schemars::JsonSchema;
use serde::Deserialize;

use thalweg_filters::units::{Count, Duration, Size};

/// How HTTP/2 is spoken on one connection.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Http2 {
    /// Bytes the peer may send ahead on one stream: the memory a stalled stream costs in that
    /// direction. Default `256KiB`, full speed at 100 Mbit/s and 20 ms.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(in crate::config) stream_window: Option<Size>,

    /// Bytes the peer may send ahead on all streams of a connection together. Default on a
    /// listener `4MiB`, and never under four times `stream_window`, or a few stalled streams
    /// would stop the others; in a cluster `stream_window` times `max_streams_per_connection`,
    /// so that the stalled streams of one client cannot hold up those of strangers.
    #[schemars(range(min = 65_535, max = 2_147_483_647))]
    pub(in crate::config) connection_window: Option<Size>,

    /// Largest frame the peer may send. Default `64KiB`: larger ones gain little, and each delays
    /// the other streams of its connection.
    #[schemars(range(min = 16_384, max = 1_048_576))]
    pub(in crate::config) max_frame_size: Option<Size>,

    /// Most bytes of the headers of one message, as HTTP/2 counts them. Default `32KiB`, twice the
    /// hard limit of common gRPC libraries.
    #[schemars(range(min = 1024, max = 1_048_576))]
    pub(in crate::config) max_header_list_size: Option<Size>,

    /// Most headers in one message. Default `128`: many tiny ones cost more than their bytes tell.
    #[schemars(range(min = 8, max = 10_000))]
    pub(in crate::config) max_headers: Option<Count>,

    /// Bytes kept for one stream while the peer's socket takes none. Default `64KiB`: enough to
    /// keep a socket busy, little enough for thousands of streams.
    #[schemars(range(min = 16_384, max = 16_777_216))]
    pub(in crate::config) send_buffer: Option<Size>,

    /// Size of the table with which the peer compresses headers. Default `4KiB`, the protocol's
    /// own; `0` forbids such a table.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub(in crate::config) header_table_size: Option<Size>,

    /// Reset streams remembered, so that frames still on their way are told from errors. Default
    /// `1000`: a proxy resets streams all day.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(in crate::config) max_reset_streams: Option<Count>,

    /// Streams the peer may open and reset before we look at them; beyond, the connection ends.
    /// Default `200`: impatient clients stay below, a rapid reset attack does not.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) max_pending_resets: Option<Count>,

    /// Streams we may reset because of the peer's errors in the life of a connection; beyond, it
    /// ends. Default `100000`, since connections to a proxy live long.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(in crate::config) max_local_resets: Option<Count>,

    /// How long a reset stream is remembered. Default `5s`, longer than any round trip.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) reset_memory: Option<Duration>,

    /// PINGs, by which a peer is found that is gone without a word.
    pub(in crate::config) keepalive: Option<Keepalive>,

    /// Allowance for the overhead of small data frames; beyond, the connection ends, as whoever
    /// sends a byte a frame costs more than he says. Default half of `connection_window`.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub(in crate::config) data_frame_budget: Option<Size>,
}

/// PINGs, by which a peer is found that is gone without a word.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Keepalive {
    /// How long nothing comes from the peer before it is sent a PING; `0s` is never. The PING goes out
    /// after one to two such waits. Clients are asked at any time, upstreams only while streams
    /// are open. Default `5m`, what gRPC servers permit: they send away those who ask more often.
    pub(in crate::config) interval: Option<Duration>,

    /// How long nothing comes after that until the connection is given up; whatever comes is an
    /// answer. Default `60s`, as long as a peer may stall: one that is merely busy is back by then.
    #[schemars(extend("minimum" = 1))]
    pub(in crate::config) timeout: Option<Duration>,
}
