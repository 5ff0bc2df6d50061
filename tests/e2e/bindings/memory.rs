//! That memory stays flat, whatever passes and whoever does not read.

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use h2::client::Builder;
use thalweg::config::Address;
use thalweg_proto::status::Code;

use crate::support::{
    binding::{self, STREAM, Told, initial, payload, yaml},
    child::Running,
    client::Client,
    component::{Component, Traits, reply},
    flood::{Backend, Flood, Hoard, SINK, STUCK},
    framed,
    plain::{Peer, PlainUpstream},
    raw,
    upstream::{self, Call},
    within,
};

/// How much more memory may be held at any time than when it was measured first.
const GROWTH: usize = 16 << 20;
/// What passes.
const TOTAL: usize = 192 << 20;
/// What is not measured: pools fill up, the allocator takes its share.
const WARM: usize = 32 << 20;
const HTTP: &str = "/v1.0-alpha1/bindings/it/stream?operation=create";

/// The proxy as a process, before a component, which is ready.
async fn before(component: &Component, more: &str) -> Running {
    let address = &component.address;
    let it = format!("it: {{component: {{address: \"{address}\"}}{more}}}");
    let proxy = Running::start(&yaml(&[&it, "echo: {echo: {}}"])).await;
    let ready = "thalweg_binding_component_ready{binding=\"it\"}";
    proxy.operator.metric_is(ready, 1).await;
    proxy
}

async fn client(address: &Address) -> Client {
    Client::connect_with(address, &Builder::new()).await
}

/// Reads all and says how much it was.
async fn drain(mut call: Call) {
    let mut outgoing = call.respond();
    let mut count = 0_usize;
    while let Some(Ok(bytes)) = call.incoming.chunk().await {
        count += bytes.len();
    }
    let count = count.to_string();
    outgoing
        .message(&binding::component_data(0, count.as_bytes()))
        .await;
    outgoing.trailers(&[("grpc-status", "0")]);
}

/// Watches the memory of a process while bytes pass.
struct Watch<'a> {
    proxy: &'a Running,
    passed: usize,
    base: Option<usize>,
}

impl Watch<'_> {
    fn new(proxy: &Running) -> Watch<'_> {
        Watch {
            proxy,
            passed: 0,
            base: None,
        }
    }

    fn pass(&mut self, bytes: usize) {
        let before = self.passed / (8 << 20);
        self.passed += bytes;
        if self.passed / (8 << 20) == before || self.passed < WARM {
            return;
        }
        let now = self.proxy.memory();
        let base = *self.base.get_or_insert(now);
        assert!(
            now < base + GROWTH,
            "{now} bytes after {} had passed, and {base} at first",
            self.passed
        );
    }
}

// === what passes ===

#[tokio::test]
async fn long_stream_to_a_component_holds_no_more_than_a_short_one() {
    let component = Component::start().await;
    let proxy = before(&component, "").await;
    component.serve(drain);
    let client = client(&proxy.address).await;
    let mut call = client.invoke("it", &[]).await;
    let data = vec![7; 64 * 1024];
    let mut watch = Watch::new(&proxy);

    for number in 0..(TOTAL / data.len()) as u64 {
        call.outgoing.message(&payload(number, &data)).await;
        watch.pass(data.len());
    }
    call.outgoing.end();

    let answer = call.answer().await;
    assert_eq!(answer.code(), Code::Ok);
    let count: usize = String::from_utf8_lossy(&answer.payload()).parse().unwrap();
    assert!(count > TOTAL);
}

#[tokio::test]
async fn long_upload_over_http_holds_no_more_than_a_short_one() {
    let component = Component::start().await;
    let proxy = before(&component, "").await;
    component.serve(drain);
    let mut client = Peer::connect(&proxy.address).await;
    client
        .write(format!(
            "POST {HTTP} HTTP/1.1\r\nhost: e2e\r\ntransfer-encoding: chunked\r\n\r\n"
        ))
        .await;
    let data = vec![7; 64 * 1024];
    let mut watch = Watch::new(&proxy);

    for _ in 0..TOTAL / data.len() {
        client.write_chunk(&data).await;
        watch.pass(data.len());
    }
    client.write("0\r\n\r\n").await;

    assert_eq!(client.head().await.line, "HTTP/1.1 200 OK");
    let count = client.chunked().await.0;
    let count: usize = String::from_utf8_lossy(&count).parse().unwrap();
    assert!(count > TOTAL);
}

#[tokio::test]
async fn long_answer_holds_no_more_than_a_short_one() {
    let component = Component::start().await;
    let proxy = before(&component, "").await;
    component.serve(|mut call| async move {
        let mut outgoing = call.respond();
        let data = vec![7; 64 * 1024];
        for number in 0..(TOTAL / data.len()) as u64 {
            let message = binding::component_data(number, &data);
            outgoing.message(&message).await;
        }
        outgoing.trailers(&[("grpc-status", "0")]);
    });
    let client = client(&proxy.address).await;
    let mut call = client.request("POST", HTTP, &[]).await;
    call.outgoing.end();
    let (_head, mut incoming) = call.head().await;
    let mut watch = Watch::new(&proxy);

    while let Some(chunk) = incoming.chunk().await {
        watch.pass(chunk.unwrap().len());
    }

    assert_eq!(watch.passed, TOTAL);
}

// === who does not read ===

/// What `count` says once calls through the same connections leave it unchanged.
async fn at_rest(client: &Client, count: impl Fn() -> usize) -> usize {
    within("the bytes come to rest", async {
        let mut seen = count();
        let mut calls = 0;
        while calls < 8 {
            assert_eq!(client.stream("echo", &[b"hi"]).await.payload(), "hi");
            calls = if count() == seen { calls + 1 } else { 0 };
            seen = count();
        }
        seen
    })
    .await
}

#[tokio::test]
async fn component_that_does_not_read_stops_its_client_and_nobody_else() {
    let mut component = Component::start().await;
    let proxy = before(&component, "").await;
    let client = client(&proxy.address).await;
    let message = framed(&payload(0, &vec![7; 16 << 20]));
    let mut stalled = vec![];
    for _ in 0..8 {
        let call = client.invoke("it", &[]).await;
        let served = component.call().await;
        stalled.push((
            Flood::start(call.outgoing, message.clone()),
            call.response,
            Hoard::start(served.incoming),
            served.respond,
        ));
    }

    let sent = || stalled.iter().map(|(flood, ..)| flood.sent.get()).sum();
    let sent: usize = at_rest(&client, sent).await;
    // A window of the component's, which is 1 MiB, one of the proxy's, which is 256 KiB, and the same once more on the way.
    let most = 8 * ((1 << 20) + 2 * (256 << 10));
    assert!(sent <= most, "{sent} bytes were taken, and {most} at most");

    // A ninth stream is not held up, though all share the connections.
    let data = [7; 100_000];
    let whole = [data.as_slice()];
    let ninth = client.stream("it", &whole);
    let served = async {
        let (mut call, mut outgoing) = component.stream().await;
        assert_eq!(call.incoming.data(1).await.len(), 100_000);
        outgoing.trailers(&[("grpc-status", "0")]);
    };
    let (answer, ()) = tokio::join!(ninth, served);
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn web_service_that_does_not_read_stops_its_client() {
    let upstream = PlainUpstream::bind_narrow().await;
    let it = format!("it: {{http: {{url: \"http://{}/in\"}}}}", upstream.address);
    let proxy = Running::start(&yaml(&[&it, "echo: {echo: {}}"])).await;
    let client = client(&proxy.address).await;
    let call = client.request("POST", HTTP, &[]).await;
    let flood = Flood::start(call.outgoing, vec![7; 1 << 20].into());
    let _peer = upstream.accept().await;

    let sent = at_rest(&client, || flood.sent.get()).await;

    // Windows, and what the sockets between proxy and service take.
    assert!(sent < 8 << 20, "{sent} bytes were taken");
}

// === who means ill ===

/// A stream to `it`, frame by frame, up to and with the beginning of a payload that never ends.
async fn endless(proxy: &Running) -> raw::Peer {
    let mut peer = raw::Peer::client(&proxy.address, &[]).await;
    peer.write(&raw::headers(1, &raw::grpc(STREAM), false))
        .await;
    let opening = framed(&initial("it", "create", &[]));
    peer.write(&raw::data(1, &opening, false)).await;
    // A message of 4 GiB less a little, in it a payload of almost as much, in that the same of data.
    let mut begun = b"\0\xff\xff\xff\x00".to_vec();
    for (tag, length) in [(0x12, 0xffff_fefa_u64), (0x0a, 0xffff_fef0)] {
        begun.push(tag);
        let mut rest = length;
        while rest >= 0x80 {
            begun.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        begun.push(rest as u8);
    }
    peer.write(&raw::data(1, &begun, false)).await;
    peer.synchronize().await;
    peer
}

#[tokio::test]
async fn trickle_of_a_huge_message_moves_no_memory() {
    // To a component that streams; to one of which that is not known yet, and which does not say; and to one that cannot.
    for traits in [
        Traits::streaming(),
        Traits::streaming().no_reflection(),
        Traits::unary(),
    ] {
        let component = traits.start().await;
        let proxy = before(&component, "").await;
        component.serve(|mut call| async move {
            while let Some(Ok(_)) = call.incoming.chunk().await {}
        });
        let mut peer = endless(&proxy).await;
        let before = proxy.memory();

        for _ in 0..20_000 {
            peer.write(&raw::data(1, b"x", false)).await;
            // So that each is read by itself.
            peer.synchronize().await;
        }

        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes more");
    }
}

#[tokio::test]
async fn trickle_while_a_retry_is_waited_for_moves_no_memory() {
    let component = Component::start().await;
    let more = ", resiliency: {retry: {duration: 1h}}";
    let proxy = before(&component, more).await;
    component.serve(|mut call| async move {
        let told = call.told().await;
        assert!(matches!(told, Some(Told::Initial(_))));
        crate::support::component::refuse(&mut call, "14", "later");
    });
    let mut peer = endless(&proxy).await;
    let retries = "thalweg_binding_retries_total{binding=\"it\"}";
    proxy.operator.metric_is(retries, 1).await;
    let before = proxy.memory();

    for _ in 0..20_000 {
        peer.write(&raw::data(1, b"x", false)).await;
        peer.synchronize().await;
    }

    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more");
}

/// DATA of one byte, and as much padding as there may be: nobody counts it, and it lies in the same read buffer.
fn padded(stream: u32) -> Vec<u8> {
    let mut payload = vec![255, b'x'];
    payload.resize(2 + 255, 0);
    raw::frame(raw::DATA, PADDED, stream, &payload)
}

const PADDED: u8 = 8;

#[tokio::test]
async fn padded_bytes_that_are_kept_cost_what_they_count() {
    let upstream = PlainUpstream::bind().await;
    let it = format!(
        "it: {{http: {{url: \"http://{}/in\"}}, resiliency: {{retry: {{}}}}}}",
        upstream.address
    );
    let component = Traits::streaming().no_reflection().start().await;
    let unproven = format!("it: {{component: {{address: \"{}\"}}}}", component.address);
    component
        .serve(|mut call| async move { while let Some(Ok(_)) = call.incoming.chunk().await {} });
    for (binding, count) in [(&it, 60_000), (&unproven, 120_000)] {
        let proxy = Running::start(&yaml(&[binding])).await;
        if *binding == unproven {
            let ready = "thalweg_binding_component_ready{binding=\"it\"}";
            proxy.operator.metric_is(ready, 1).await;
        }
        let mut peer = endless(&proxy).await;
        if *binding == it {
            // It takes all that comes, and says nothing.
            let mut service = upstream.accept().await.into_socket();
            tokio::spawn(async move {
                let _ = tokio::io::copy(&mut service, &mut tokio::io::sink()).await;
            });
        }
        let before = proxy.memory();

        let hundred = padded(1).repeat(100);
        for _ in 0..count / 100 {
            peer.write(&hundred).await;
            peer.synchronize().await;
        }

        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < GROWTH / 2, "{grown} bytes more by {binding}");
    }
}

/// Their windows bound what they hold, and what lies between is other streams'.
#[tokio::test]
async fn chunks_of_middle_size_that_wait_cost_what_they_count() {
    const STALLED: u32 = 15;
    let mut builder = upstream::builder();
    builder.initial_window_size(64 << 10);
    let backend = Backend::start(&builder, Bytes::new()).await;
    let proxy = Running::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{far: {{endpoints: [\"{}\"], protocol: http2}}}}\n\
         routes: [{{name: all, match: {{path_prefix: /}}, cluster: far}}]\n",
        backend.upstream
    ))
    .await;
    let mut peer = raw::Peer::client(&proxy.address, &[]).await;
    let path = |stream: u32| if stream == 1 { SINK } else { STUCK };
    for stream in (0..=STALLED).map(|index| 2 * index + 1) {
        peer.write(&raw::headers(stream, &raw::grpc(path(stream)), false))
            .await;
    }
    peer.synchronize().await;
    let before = proxy.memory();

    let (middle, other) = ([7; 1025], [8; 16_384]);
    // As much as fits into a window; a part of it goes on into the upstream's.
    for _ in 0..250 {
        for stream in (1..=STALLED).map(|index| 2 * index + 1) {
            peer.write(&raw::data(stream, &middle, false)).await;
            peer.write(&raw::data(1, &other, false)).await;
            peer.synchronize().await;
        }
    }

    let grown = proxy.memory().saturating_sub(before);
    let held = 250 * 15 * 1025;
    assert!(grown < 3 * held, "{grown} bytes more for {held}");
}

fn gzip(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(vec![], Compression::best());
    std::io::Write::write_all(&mut encoder, message).unwrap();
    let mut framed = framed(&encoder.finish().unwrap()).to_vec();
    framed[0] = 1;
    framed.into()
}

#[tokio::test]
async fn many_compressed_messages_that_nobody_reads_are_inflated_when_they_are_read() {
    let mut component = Component::start().await;
    let proxy = before(&component, "").await;
    let client = client(&proxy.address).await;
    let mut call = client.call(STREAM, &[("grpc-encoding", "gzip")]).await;
    call.outgoing
        .data(gzip(&initial("it", "create", &[])))
        .await;
    let served = component.call().await;
    let _hoard = Hoard::start(served.incoming);
    let _respond = served.respond;
    assert_eq!(client.stream("echo", &[b"hi"]).await.payload(), "hi");
    let before = proxy.memory();

    // Each is 4 KiB on the wire and 4 MiB in the end.
    let data = vec![0; 4_000_000];
    let messages: Vec<Bytes> = (0..40)
        .map(|number| gzip(&payload(number, &data)))
        .collect();
    let flood = Flood::start(call.outgoing, messages.concat().into());
    at_rest(&client, || flood.sent.get()).await;

    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 2 * GROWTH, "{grown} bytes more");
}

// === a buffer is given back ===

#[tokio::test]
async fn what_was_collected_is_let_go_of() {
    let mut component = Traits::unary().start().await;
    let proxy = before(&component, "").await;
    let client = client(&proxy.address).await;
    let data = vec![7; 4 << 20];
    let whole = [data.as_slice()];
    let mut first = None;

    for _ in 0..20 {
        let (answer, ()) = tokio::join!(client.stream("it", &whole), async {
            let mut call = component.call().await;
            call.incoming.message().await.unwrap();
            reply(call, &thalweg_proto::bindings::Empty {}).await;
        });
        assert_eq!(answer.code(), Code::Ok);
        let now = proxy.memory();
        let first = *first.get_or_insert(now);
        assert!(
            now < first + 3 * GROWTH,
            "{now} bytes, and {first} at first"
        );
    }
}

/// Read into values, 4 MiB of JSON take 365 MiB.
#[tokio::test]
async fn json_costs_no_more_than_its_text() {
    let proxy = Running::start(&yaml(&["echo: {echo: {}}"])).await;
    let client = client(&proxy.address).await;
    let count = ((4 << 20) - 64) / 7;
    let json = format!(
        "{{\"operation\":\"create\",\"data\":[{}1]}}",
        "{\"\":0},".repeat(count)
    );
    let before = proxy.memory();

    let answer = client.post("/v1.0/bindings/echo", json.as_bytes()).await;

    assert_eq!(
        (answer.status.as_u16(), answer.body.len()),
        (200, count * 7 + 3)
    );
    let more = proxy.memory().saturating_sub(before);
    assert!(more < 48 << 20, "{more} bytes more");
}
