//! HTTP/2 and its windows, which bound each other.

use super::{Resolve, or};
use crate::config::{Http2, Keepalive, raw};
use thalweg_filters::units::{Count, Size, Unit};

/// The largest window HTTP/2 knows.
const WINDOW_MAX: u64 = (1 << 31) - 1;

/// The smallest window of a connection HTTP/2 knows.
const CONNECTION_WINDOW_MIN: u64 = (1 << 16) - 1;

/// How many stalled streams a connection must bear before the others stand still.
const STALLED_STREAMS_MIN: u32 = 4;

/// Stream window and connection window.
type Windows = (u32, u32);

impl Resolve<'_> {
    pub(super) fn server_windows(&mut self, raw: &raw::Http2, path: &str) -> Windows {
        let default = u64::from(Http2::default().connection_window);
        let stream = stream_window(raw);
        let least = stream * u64::from(STALLED_STREAMS_MIN);
        self.windows(raw, least, least.max(default), path)
    }

    pub(super) fn upstream_windows(
        &mut self,
        raw: &raw::Http2,
        streams: u32,
        path: &str,
    ) -> Windows {
        let stream = stream_window(raw);
        let least = stream * u64::from(streams.min(STALLED_STREAMS_MIN));
        self.windows(raw, least, stream * u64::from(streams), path)
    }

    /// A PING more often than gRPC's servers permit by default ends the connection that it should keep.
    pub(super) fn pings_to_upstreams(&mut self, raw: &raw::Http2, path: &str) {
        let Keepalive { interval, .. } = keepalive(raw.keepalive.as_ref());
        let permitted = Keepalive::default().interval;
        if !interval.is_zero() && interval < permitted {
            self.faults.warn(
                &format!("{path}.keepalive.interval"),
                "gRPC servers permit a PING every 5m by default, and end the connections of those who send more",
                "write `5m` or more, unless the upstreams are set to permit this",
            );
        }
    }

    fn windows(&mut self, raw: &raw::Http2, least: u64, default: u64, path: &str) -> Windows {
        let stream = stream_window(raw);
        let show = |size| Unit::Size.show(size);
        let connection = match raw.connection_window {
            Some(Size(written)) => {
                if written < least {
                    self.faults.add(
                        &format!("{path}.connection_window"),
                        format!(
                            "{} is too little for a `stream_window` of {}: a few stalled streams \
                             would stop all others",
                            show(written),
                            show(stream),
                        ),
                        format!("write {} or more, or lower `stream_window`", show(least)),
                    );
                }
                written
            }
            None => {
                if default > WINDOW_MAX {
                    self.faults.add(
                        &format!("{path}.stream_window"),
                        format!(
                            "{} for each stream makes {} for a connection, and HTTP/2 ends below {}",
                            show(stream),
                            show(default),
                            show(WINDOW_MAX + 1),
                        ),
                        "lower it, lower the streams on a connection, or write `connection_window`",
                    );
                }
                default.max(CONNECTION_WINDOW_MIN)
            }
        };
        (Size(stream).u32(), Size(connection.min(WINDOW_MAX)).u32())
    }
}

fn stream_window(raw: &raw::Http2) -> u64 {
    let default = Http2::default().stream_window.into();
    raw.stream_window.map_or(default, |size| size.0)
}

pub(super) fn resolve(raw: &raw::Http2, (stream_window, connection_window): Windows) -> Http2 {
    let default = Http2::default();
    Http2 {
        stream_window,
        connection_window,
        max_frame_size: raw.max_frame_size.map_or(default.max_frame_size, Size::u32),
        max_header_list_size: (raw.max_header_list_size)
            .map_or(default.max_header_list_size, Size::u32),
        max_headers: raw.max_headers.map_or(default.max_headers, Count::usize),
        send_buffer: raw.send_buffer.map_or(default.send_buffer, Size::usize),
        header_table_size: (raw.header_table_size).map_or(default.header_table_size, Size::u32),
        max_reset_streams: (raw.max_reset_streams).map_or(default.max_reset_streams, Count::usize),
        max_pending_resets: (raw.max_pending_resets)
            .map_or(default.max_pending_resets, Count::usize),
        max_local_resets: raw
            .max_local_resets
            .map_or(default.max_local_resets, Count::usize),
        reset_memory: or(raw.reset_memory, default.reset_memory),
        keepalive: keepalive(raw.keepalive.as_ref()),
        data_frame_budget: (raw.data_frame_budget)
            .map_or(connection_window as usize / 2, Size::usize),
    }
}

fn keepalive(raw: Option<&raw::Keepalive>) -> Keepalive {
    let default = Keepalive::default();
    Keepalive {
        interval: or(raw.and_then(|it| it.interval), default.interval),
        timeout: or(raw.and_then(|it| it.timeout), default.timeout),
    }
}
