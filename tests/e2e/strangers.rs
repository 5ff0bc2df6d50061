//! What clients get that do not keep to the protocol, or keep to the least of it.

use thalweg_proto::status::Code;

use crate::support::{
    framed, plain,
    proxy::Yaml,
    raw::{self, Peer},
    upstream::{Upstream, nobody},
    within,
};

/// It does not answer the proxy's PING either, so nothing that waits for it would ever end.
#[tokio::test]
async fn client_that_opens_no_stream_is_closed() {
    let proxy = Yaml::to(nobody().await)
        .listener("timeouts: {first_headers: 50ms}")
        .start()
        .await;
    let mut client = Peer::connect(&proxy.listener("it")).await;

    client
        .write(&[raw::PREFACE, &raw::settings(&[])].concat())
        .await;

    within("the proxy closes the connection", client.closed()).await;
    let timeouts = "thalweg_listener_first_headers_timeouts_total{listener=\"it\"}";
    assert_eq!(proxy.metric(timeouts).await, 1);
}

#[tokio::test]
async fn client_that_begins_its_headers_and_never_ends_them_is_closed() {
    let proxy = Yaml::to(nobody().await)
        .listener("timeouts: {first_headers: 50ms}")
        .start()
        .await;
    let mut client = Peer::client(&proxy.listener("it"), &[]).await;
    let whole = raw::headers(1, &[(":method", "GET"), (":path", "/")], true);

    client.write(&whole[..whole.len() - 1]).await;

    within("the proxy closes the connection", client.closed()).await;
}

#[tokio::test]
async fn request_whose_host_is_in_doubt_is_refused() {
    let proxy = Yaml::to_http1(nobody().await).start().await;

    for hosts in ["", "host: a\r\nhost: b\r\n"] {
        let mut client = plain::Peer::connect(&proxy.listener("it")).await;
        client.write(format!("GET / HTTP/1.1\r\n{hosts}\r\n")).await;
        let head = client.head().await;

        assert_eq!(
            head.line,
            format!("HTTP/1.1 {} Bad Request", Code::InvalidArgument.to_http())
        );
        assert_eq!(head.values("thalweg-reason"), ["bad_host"]);
    }
}

/// All of it lies in the proxy's socket before it is read, and one turn's worth of frames is less than the codec lets wait.
#[tokio::test]
async fn client_that_sends_tiny_messages_at_full_speed_is_not_cut_off() {
    let upstream = Upstream::start().await.serve(async |mut call| {
        let mut outgoing = call.respond();
        let (bytes, _) = call.incoming.rest().await;
        outgoing.trailers(&[("grpc-status", "0"), ("bytes", &bytes.len().to_string())]);
    });
    let proxy = Yaml::to(&upstream)
        .listener("http2: {data_frame_budget: 600KiB}")
        .start()
        .await;
    let mut client = Peer::client(&proxy.listener("it"), &[]).await;
    let head = raw::headers(1, &raw::grpc("/e2e.Echo/Collect"), false);
    let message = raw::data(1, &framed(&[7; 20]), false);
    let last = raw::data(1, b"", true);

    client
        .write(&[head, message.repeat(10_000), last].concat())
        .await;

    let end = client
        .until(|frame| frame.kind == raw::GOAWAY || frame.ends_stream())
        .await;
    assert_eq!((end.kind, end.stream), (raw::HEADERS, 1), "{end:?}");
}
