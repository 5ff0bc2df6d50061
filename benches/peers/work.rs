//! The workloads: what each one is called, and how much of what it does.

use std::time::Duration;

use clap::ValueEnum;

use crate::binding::Way;
use crate::object::Store;

/// Payload of the small messages, and of every answer that only reports.
pub(crate) const SMALL_MESSAGE: usize = 100;

/// Payload of the large messages.
pub(crate) const LARGE_MESSAGE: usize = 64 * 1024;

/// Large messages in a file of 10 GiB.
const FILE_MESSAGES: u64 = 10 * (1 << 30) / LARGE_MESSAGE as u64;

/// How long the streams of a storm may take to open. Those that are not open then are neither open nor refused.
pub(crate) const STORM_LIMIT: Duration = Duration::from_secs(90);

/// One kind of load. The order is the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Calls of 100 bytes each way, 4 connections x 8 in flight
    Unary,
    /// Streams of 64 KiB messages to the backend, 2 connections x 2
    Upload,
    /// Streams of 64 KiB messages from the backend, 2 connections x 2
    Download,
    /// Messages of 100 bytes there and back on open streams, 4 connections x 8
    #[value(name = "pingpong")]
    PingPong,
    /// 80 uploads at once, 8 connections x 10
    Uploads80,
    /// 10,000 streams that stay open and silent, on 100 connections
    IdleStreams,
    /// 3,000 connections with one silent stream each
    IdleConnections,
    /// 10,000 streams at once, on 100 connections at once, through a proxy that has just started
    #[value(name = "storm_10k")]
    Storm10k,
    /// 100,000 streams at once, on 1,000 connections at once, through a proxy that has just started
    #[value(name = "storm_100k")]
    Storm100k,
    /// 1,000 connections, one after the other, with a full handshake and one call each; only with `--tls`
    Handshakes,
    /// As `upload`, with the messages of a binding, on a plain route
    BindingUploadPlain,
    /// The same through a binding that leads to another runtime
    BindingUploadDapr,
    /// The same through a binding that leads to a component
    BindingUploadComponent,
    /// As `pingpong`, with the messages of a binding, on a plain route
    #[value(name = "binding_pingpong_plain")]
    BindingPingPongPlain,
    /// The same through a binding that leads to another runtime
    #[value(name = "binding_pingpong_dapr")]
    BindingPingPongDapr,
    /// The same through a binding that leads to a component
    #[value(name = "binding_pingpong_component")]
    BindingPingPongComponent,
    /// One stream of 10 GiB to a component
    BindingFile,
    /// One HTTP/1.1 request of 10 GiB to a component
    BindingFileHttp,
    /// One stream of 10 GiB on a plain route to a backend that counts
    ObjectPlain,
    /// The same through a binding into a file
    ObjectFile,
    /// The same in one HTTP/1.1 request
    ObjectFileHttp,
    /// An object of 10 GiB out of a file
    ObjectFileGet,
    /// One stream of 10 GiB into an S3 server, in parts of 8 MiB
    ObjectS3,
    /// An object of 10 GiB from an S3 server
    ObjectS3Get,
}

/// How a workload is spread out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    /// Streams at once on each connection.
    pub(crate) streams: usize,
    /// Calls or messages, one after the other, on each stream.
    pub(crate) repeats: u64,
}

// === impl Work ===

impl Work {
    /// Those that nobody minds to run.
    pub(crate) fn usual() -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|work| !work.is_object() && !work.is_storm() && *work != Self::Handshakes)
            .collect()
    }

    /// Its name on the command line and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Upload => "upload",
            Self::Download => "download",
            Self::PingPong => "pingpong",
            Self::Uploads80 => "uploads80",
            Self::IdleStreams => "idle_streams",
            Self::IdleConnections => "idle_connections",
            Self::Storm10k => "storm_10k",
            Self::Storm100k => "storm_100k",
            Self::Handshakes => "handshakes",
            Self::BindingUploadPlain => "binding_upload_plain",
            Self::BindingUploadDapr => "binding_upload_dapr",
            Self::BindingUploadComponent => "binding_upload_component",
            Self::BindingPingPongPlain => "binding_pingpong_plain",
            Self::BindingPingPongDapr => "binding_pingpong_dapr",
            Self::BindingPingPongComponent => "binding_pingpong_component",
            Self::BindingFile => "binding_file",
            Self::BindingFileHttp => "binding_file_http",
            Self::ObjectPlain => "object_plain",
            Self::ObjectFile => "object_file",
            Self::ObjectFileHttp => "object_file_http",
            Self::ObjectFileGet => "object_file_get",
            Self::ObjectS3 => "object_s3",
            Self::ObjectS3Get => "object_s3_get",
        }
    }

    /// What it does at this scale. Memory is the question of the idle ones, so their connections shrink with the
    /// scale; the others keep theirs and are repeated less often.
    pub(crate) fn shape(self, scale: f64) -> Shape {
        let (connections, streams, repeats) = match self {
            Self::Unary => (4, 8, scaled(1_500, scale)),
            Self::Upload
            | Self::Download
            | Self::BindingUploadPlain
            | Self::BindingUploadDapr
            | Self::BindingUploadComponent => (2, 2, scaled(5_000, scale)),
            Self::PingPong
            | Self::BindingPingPongPlain
            | Self::BindingPingPongDapr
            | Self::BindingPingPongComponent => (4, 8, scaled(4_000, scale)),
            Self::Uploads80 => (8, 10, scaled(400, scale)),
            Self::IdleStreams => (scaled(100, scale), 100, 1),
            Self::IdleConnections => (scaled(3_000, scale), 1, 1),
            Self::Storm10k => (scaled(100, scale), 100, 1),
            Self::Storm100k => (scaled(1_000, scale), 100, 1),
            Self::Handshakes => (scaled(1_000, scale), 1, 1),
            Self::BindingFile
            | Self::BindingFileHttp
            | Self::ObjectPlain
            | Self::ObjectFile
            | Self::ObjectFileHttp
            | Self::ObjectFileGet
            | Self::ObjectS3
            | Self::ObjectS3Get => (1, 1, scaled(FILE_MESSAGES, scale)),
        };
        Shape {
            connections: connections as usize,
            streams,
            repeats,
        }
    }

    /// Whether each measurement needs a proxy that has done nothing before.
    pub(crate) fn wants_fresh_proxy(self) -> bool {
        matches!(self, Self::Uploads80) || self.is_idle() || self.is_storm() || self.is_binding()
    }

    /// Whether only Thalweg can do it.
    pub(crate) fn is_binding(self) -> bool {
        self.way().is_some() || self.store().is_some()
    }

    /// The way that a binding's stream takes through the proxy.
    pub(crate) fn way(self) -> Option<Way> {
        match self {
            Self::BindingUploadPlain | Self::BindingPingPongPlain | Self::ObjectPlain => {
                Some(Way::Plain)
            }
            Self::BindingUploadDapr | Self::BindingPingPongDapr => Some(Way::Dapr),
            Self::BindingUploadComponent
            | Self::BindingPingPongComponent
            | Self::BindingFile
            | Self::BindingFileHttp => Some(Way::Component),
            _ => None,
        }
    }

    /// The store that an object goes into, or comes from.
    pub(crate) fn store(self) -> Option<Store> {
        match self {
            Self::ObjectFile | Self::ObjectFileHttp | Self::ObjectFileGet => Some(Store::Files),
            Self::ObjectS3 | Self::ObjectS3Get => Some(Store::S3),
            _ => None,
        }
    }

    /// Whether it reads an object that has to be there.
    pub(crate) fn is_get(self) -> bool {
        matches!(self, Self::ObjectFileGet | Self::ObjectS3Get)
    }

    /// The work of the same messages on a plain route, which a binding is compared with.
    pub(crate) fn plain(self) -> Option<Self> {
        match self {
            Self::BindingUploadDapr | Self::BindingUploadComponent => {
                Some(Self::BindingUploadPlain)
            }
            Self::BindingPingPongDapr | Self::BindingPingPongComponent => {
                Some(Self::BindingPingPongPlain)
            }
            Self::ObjectFile | Self::ObjectFileHttp | Self::ObjectS3 => Some(Self::ObjectPlain),
            _ => None,
        }
    }

    /// Whether it is one file that takes its time.
    pub(crate) fn is_file(self) -> bool {
        matches!(self, Self::BindingFile | Self::BindingFileHttp) || self.is_object()
    }

    /// Whether it is one of those that are about objects.
    fn is_object(self) -> bool {
        self.store().is_some() || self == Self::ObjectPlain
    }

    /// Whether the streams are only held open.
    pub(crate) fn is_idle(self) -> bool {
        matches!(self, Self::IdleStreams | Self::IdleConnections)
    }

    /// Whether everybody comes at once to a proxy that has no connection yet.
    pub(crate) fn is_storm(self) -> bool {
        matches!(self, Self::Storm10k | Self::Storm100k)
    }

    /// Rounds that say something new: memory of silent streams, or of one file, comes out the same each time. Disks do not.
    pub(crate) fn rounds_max(self) -> u32 {
        if self.is_object() || self.is_storm() {
            3
        } else if self.is_file() {
            1
        } else if self.is_idle() {
            2
        } else {
            u32::MAX
        }
    }

    /// Longest wait for one measurement at this scale; past it, the measurement has failed.
    pub(crate) fn time_limit(self, scale: f64) -> Duration {
        let seconds = if self.is_file() {
            300
        } else if self.is_storm() {
            STORM_LIMIT.as_secs() + 60
        } else {
            60
        };
        Duration::from_secs(seconds).mul_f64(scale.max(1.0))
    }
}

fn scaled(amount: u64, scale: f64) -> u64 {
    ((amount as f64 * scale) as u64).max(1)
}
