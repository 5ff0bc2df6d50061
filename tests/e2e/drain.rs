//! How the proxy stops, and what its streams notice of it.

use bytes::Bytes;
use h2::Reason;
use thalweg::app::Drained;
use thalweg::config::Address;
use thalweg_proto::status::Code;
use tokio::{net::TcpStream, task::JoinHandle};

use crate::support::{
    binding::payload,
    child::Folder,
    client::{self, Call, Client},
    framed, plain,
    proxy::TestProxy,
    raw,
    stream::Answer,
    upstream::{self, Upstream, builder, echo},
    within,
};

const PATH: &str = "/e2e.Echo/Talk";

/// A proxy that waits for no stream when it drains, with these further keys of `drain`.
async fn start(upstream: &Upstream, drain: &str) -> TestProxy {
    start_with(1, upstream, drain).await
}

async fn start_with(workers: usize, upstream: &Upstream, drain: &str) -> TestProxy {
    TestProxy::start_as(&format!(
        "admin: {{address: \"127.0.0.1:0\"}}\n\
         workers: {workers}\n\
         drain: {{timeout: 0s, {drain}}}\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{upstream}], connect_timeout: 1m}}}}\n\
         routes: [{{name: main, cluster: main}}]\n"
    ))
    .await
}

/// A stream on which nothing happens. It is between two messages, so that its end tells that the others are dismissed too.
struct Witness {
    call: Call,
    _running: upstream::Call,
}

impl Witness {
    async fn open(client: &Client, upstream: &mut Upstream) -> Self {
        let call = client.call(PATH, &[]).await;
        let running = upstream.call().await;
        Self {
            call,
            _running: running,
        }
    }

    /// Drains the proxy, and waits until its streams are dismissed.
    async fn drain(mut self, proxy: TestProxy) -> JoinHandle<Drained> {
        let drained = tokio::spawn(proxy.drain());
        assert_dismissed(&self.call.answer().await);
        drained
    }
}

#[track_caller]
fn assert_dismissed(answer: &Answer) {
    assert_eq!(
        (answer.code(), answer.reason(), answer.reset),
        (Code::Unavailable, Some("drain"), None),
        "{answer:?}"
    );
    assert!(answer.text().contains("drain.timeout"), "{answer:?}");
}

fn pushback(answer: &Answer) -> u64 {
    let found = |headers: &http::HeaderMap| Some(headers.get("grpc-retry-pushback-ms")?.clone());
    let value = found(&answer.trailers).or_else(|| found(&answer.headers));
    value.unwrap().to_str().unwrap().parse().unwrap()
}

// === between two messages ===

#[tokio::test]
async fn download_ends_behind_the_message_that_is_on_its_way() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1m").await;
    let client = Client::connect(&proxy).await;
    let witness = Witness::open(&client, &mut upstream).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    let mut outgoing = running.respond();
    let second = framed(&[2; 1000]);
    outgoing.message(b"first").await;
    outgoing.data(second.slice(..500)).await;
    let (head, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), "first");
    let part = incoming.chunk().await.unwrap().unwrap();

    let drained = witness.drain(proxy).await;
    let rest = [second.slice(500..), framed(b"third"), framed(b"fourth")];
    outgoing.data(rest.concat()).await;

    let answer = client::answer(head, &mut incoming).await;
    assert_dismissed(&answer);
    let all = [part, answer.body.clone()].concat();
    assert_eq!(
        all, second,
        "the second message, whole, and nothing of the third"
    );
    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
    within("the drain ends", drained).await.unwrap();
}

#[tokio::test]
async fn upload_ends_behind_the_message_that_is_on_its_way() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1m").await;
    let client = Client::connect(&proxy).await;
    let witness = Witness::open(&client, &mut upstream).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    let second = framed(&[2; 1000]);
    call.outgoing.message(b"first").await;
    call.outgoing.data(second.slice(..500)).await;
    assert_eq!(running.incoming.message().await.unwrap(), "first");
    let mut got = running.incoming.chunk().await.unwrap().unwrap().to_vec();

    let drained = witness.drain(proxy).await;
    let rest = [second.slice(500..), framed(b"third"), framed(b"fourth")];
    call.outgoing.data(rest.concat()).await;

    assert_dismissed(&call.answer().await);
    let (rest, end) = running.incoming.rest().await;
    got.extend_from_slice(&rest);
    assert_eq!(
        got, second,
        "the second message, whole, and nothing of the third"
    );
    assert_eq!(end.unwrap_err().reason(), Some(Reason::CANCEL));
    within("the drain ends", drained).await.unwrap();
}

#[tokio::test]
async fn workers_drain_at_the_same_time() {
    let mut upstream = Upstream::start().await;
    let proxy = start_with(2, &upstream, "force: 1m").await;
    // One client on each worker, both within a message: neither worker ends before its stream does.
    let mut open = Vec::new();
    for _ in 0..2 {
        let client = Client::connect(&proxy).await;
        let mut call = client.call(PATH, &[]).await;
        let mut running = upstream.call().await;
        let mut outgoing = running.respond();
        outgoing.data(framed(b"whole").slice(..7)).await;
        let (head, mut incoming) = call.head().await;
        incoming.chunk().await.unwrap().unwrap();
        open.push((client, call, running, outgoing, head, incoming));
    }

    let drained = tokio::spawn(proxy.drain());

    for (_client, _call, _running, mut outgoing, head, mut incoming) in open.into_iter().rev() {
        outgoing.data(framed(b"whole").slice(7..)).await;
        assert_dismissed(&client::answer(head, &mut incoming).await);
    }
    within("the drain ends", drained).await.unwrap();
}

/// The proxy has the whole message; the upstream does not take it yet.
#[tokio::test]
async fn message_is_not_cut_although_the_upstream_takes_it_late() {
    let mut narrow = builder();
    narrow.initial_window_size(100);
    let mut upstream = Upstream::start_with(&narrow).await;
    let proxy = start(&upstream, "force: 1m").await;
    let client = Client::connect(&proxy).await;
    let witness = Witness::open(&client, &mut upstream).await;
    let mut call = client.call(PATH, &[]).await;
    call.outgoing.message(&[1; 1000]).await;
    call.outgoing.data(&b"\0\0\0\0\x05"[..]).await;
    let mut running = upstream.call().await;

    let drained = witness.drain(proxy).await;
    call.outgoing.data(&b"whole"[..]).await;
    call.outgoing.message(b"too late").await;

    assert_eq!(running.incoming.message().await.unwrap(), [1; 1000][..]);
    assert_eq!(running.incoming.message().await.unwrap(), "whole");
    assert_eq!(running.incoming.broken().await, Reason::CANCEL);
    assert_dismissed(&call.answer().await);
    within("the drain ends", drained).await.unwrap();
}

#[tokio::test]
async fn upload_that_was_cut_never_looks_complete() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1m").await;
    let client = Client::connect(&proxy).await;
    let witness = Witness::open(&client, &mut upstream).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    let mut outgoing = running.respond();
    // The answer is within a message, and so the stream goes on.
    outgoing.data(framed(b"answer").slice(..7)).await;
    let (head, mut incoming) = call.head().await;
    let part = incoming.chunk().await.unwrap().unwrap();

    let drained = witness.drain(proxy).await;
    call.outgoing.message(b"too late").await;
    call.outgoing.end();
    outgoing.data(framed(b"answer").slice(7..)).await;

    let answer = client::answer(head, &mut incoming).await;
    assert_dismissed(&answer);
    assert_eq!([part, answer.body].concat(), framed(b"answer"));
    assert_eq!(running.incoming.broken().await, Reason::CANCEL);
    within("the drain ends", drained).await.unwrap();
}

#[tokio::test]
async fn answer_that_never_pauses_ends_between_two_messages() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1m").await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    let mut outgoing = running.respond();
    let sending = tokio::spawn(async move {
        let message = framed(&[7; 3333]);
        // Chunks that end anywhere but with a message.
        let mut pieces = message.chunks(1000).map(Bytes::copy_from_slice).cycle();
        while outgoing.try_data(pieces.next().unwrap()).await.is_ok() {}
    });
    let (head, mut incoming) = call.head().await;
    assert_eq!(incoming.message().await.unwrap(), [7; 3333][..]);

    let drained = tokio::spawn(proxy.drain());

    let answer = client::answer(head, &mut incoming).await;
    assert_dismissed(&answer);
    assert!(
        answer
            .messages()
            .iter()
            .all(|message| message == &[7; 3333][..])
    );
    within("the upstream is told", sending).await.unwrap();
    within("the drain ends", drained).await.unwrap();
}

#[tokio::test]
async fn call_without_an_answer_hears_when_to_come_back() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1m, spread: 200s").await;
    let client = Client::connect(&proxy).await;
    let mut calls = Vec::new();
    for _ in 0..8 {
        let mut call = client.call(PATH, &[]).await;
        call.outgoing.message(b"hello").await;
        call.outgoing.end();
        let mut running = upstream.call().await;
        assert_eq!(running.incoming.message().await.unwrap(), "hello");
        calls.push((call, running));
    }

    let drained = tokio::spawn(proxy.drain());

    let mut waits = Vec::new();
    for (mut call, mut running) in calls {
        let answer = call.answer().await;
        assert_dismissed(&answer);
        assert_eq!(running.reset_by_peer().await, Reason::CANCEL);
        waits.push(pushback(&answer));
    }
    assert!(waits.iter().all(|wait| *wait <= 200_000), "{waits:?}");
    // Eight of the same by chance: once in 10^37 runs.
    assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    within("the drain ends", drained).await.unwrap();
}

#[tokio::test]
async fn real_end_goes_before_the_one_of_the_drain() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1m").await;
    let client = Client::connect(&proxy).await;
    let witness = Witness::open(&client, &mut upstream).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    let mut outgoing = running.respond();
    outgoing.data(framed(b"last").slice(..6)).await;
    let (head, mut incoming) = call.head().await;
    let part = incoming.chunk().await.unwrap().unwrap();

    let drained = witness.drain(proxy).await;
    // In one segment, and so both are there when the proxy looks.
    outgoing.data_now(framed(b"last").slice(6..));
    outgoing.trailers(&[("grpc-status", "0")]);

    let answer = client::answer(head, &mut incoming).await;
    assert_eq!((answer.code(), answer.reason()), (Code::Ok, None));
    assert_eq!([part, answer.body].concat(), framed(b"last"));
    within("the drain ends", drained).await.unwrap();
}

// === by force ===

#[tokio::test]
async fn message_that_does_not_end_is_cut() {
    let mut upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 100ms").await;
    let operator = proxy.operator();
    let client = Client::connect(&proxy).await;
    let mut call = client.call(PATH, &[]).await;
    let mut running = upstream.call().await;
    call.outgoing.data(framed(b"never whole").slice(..9)).await;
    running.incoming.chunk().await.unwrap().unwrap();

    let drained = tokio::spawn(proxy.drain());

    assert_dismissed(&call.answer().await);
    assert_eq!(running.incoming.broken().await, Reason::CANCEL);
    within("the drain ends", drained).await.unwrap();
    assert_eq!(operator.metric("thalweg_forced_ends_total").await, 1);
}

#[tokio::test]
async fn plain_http_goes_on_until_it_is_cut_and_looks_cut() {
    let upstream = plain::PlainUpstream::bind().await;
    let proxy = TestProxy::start_as(&format!(
        "admin: {{address: \"127.0.0.1:0\"}}\n\
         workers: 1\n\
         drain: {{timeout: 0s, force: 300ms}}\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{}], protocol: http1, connect_timeout: 1m}}}}\n\
         routes: [{{name: main, cluster: main}}]\n",
        upstream.address
    ))
    .await;
    let (address, operator) = (proxy.address.clone(), proxy.operator());
    let mut client = plain::Peer::connect(&address).await;
    client
        .write(b"GET / HTTP/1.1\r\nhost: e2e.test\r\n\r\n")
        .await;
    let mut server = upstream.accept().await;
    server.head().await;
    server
        .write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    client.head().await;

    let drained = tokio::spawn(proxy.drain());
    refused(&address).await;
    server.write(b"3\r\ntwo\r\n").await;

    let rest = client.rest().await;
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("one") && rest.contains("two"), "{rest}");
    assert!(!rest.ends_with("0\r\n\r\n"), "it looks complete: {rest}");
    within("the drain ends", drained).await.unwrap();
    assert_eq!(operator.metric("thalweg_forced_ends_total").await, 1);
}

// === the order of things ===

async fn refused(address: &Address) {
    let Address::Tcp(address) = address else {
        unreachable!("it listens on TCP")
    };
    within("connections are refused", async {
        while TcpStream::connect(address).await.is_ok() {}
    })
    .await;
}

#[tokio::test]
async fn proxy_that_is_not_ready_still_serves_until_the_delay_is_over() {
    let mut upstream = Upstream::start().await;
    // Nothing ends this wait but the end of the test.
    let proxy = start(&upstream, "delay: 1h").await;
    let (address, operator) = (proxy.address.clone(), proxy.operator());
    let old = Client::connect(&proxy).await;
    let draining = tokio::spawn(async move { proxy.drain().await });
    within("the proxy is no longer ready", async {
        while operator.get("/readyz").await.status != 503 {}
    })
    .await;

    let new = Client::connect_with(&address, &h2::client::Builder::new()).await;
    for client in [old, new] {
        let mut call = client.call(PATH, &[]).await;
        upstream
            .call()
            .await
            .finish_with(200, &[("grpc-status", "0")]);
        assert_eq!(call.answer().await.code(), Code::Ok);
    }
    assert!(!draining.is_finished());
    draining.abort();
}

#[tokio::test]
async fn goaway_comes_in_two_phases_and_at_once() {
    let mut upstream = Upstream::start().await;
    let proxy = TestProxy::start(&format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: [{upstream}], connect_timeout: 1m}}}}\n\
         routes: [{{name: main, cluster: main}}]\n"
    ))
    .await;
    let mut peer = raw::Peer::connect(&proxy.address).await;
    peer.write(raw::PREFACE).await;
    peer.write(&[raw::settings(&[]), raw::settings_ack()].concat())
        .await;
    peer.until(|frame| frame.kind == raw::SETTINGS).await;

    let drained = tokio::spawn(proxy.drain());
    let first = peer.until(|frame| frame.kind == raw::GOAWAY).await;
    let ping = peer.until(|frame| frame.kind == raw::PING).await;
    // This one was on its way when the first came.
    peer.write(&raw::headers(1, &raw::grpc(PATH), false)).await;
    let mut call = upstream.call().await;
    peer.write(&raw::frame(raw::PING, raw::ACK, 0, &ping.payload))
        .await;
    let second = peer.until(|frame| frame.kind == raw::GOAWAY).await;
    call.finish_with(200, &[("grpc-status", "0")]);
    let answer = peer.until(|frame| frame.kind == raw::HEADERS).await;

    assert_eq!(first.payload[..4], 0x7fff_ffff_u32.to_be_bytes());
    assert_eq!(second.payload[..4], 1_u32.to_be_bytes());
    assert_eq!(answer.stream, 1);
    within("the drain ends", drained).await.unwrap();
}

/// Dead or deaf, it does not keep the proxy from stopping for longer than a stream could.
#[tokio::test]
async fn connection_without_streams_that_does_not_answer_is_cut_at_the_timeout() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream, "force: 1h").await;
    let mut peer = raw::Peer::connect(&proxy.address).await;
    peer.write(raw::PREFACE).await;
    peer.write(&[raw::settings(&[]), raw::settings_ack()].concat())
        .await;
    peer.until(|frame| frame.kind == raw::SETTINGS).await;

    let drained = tokio::spawn(proxy.drain());

    peer.until(|frame| frame.kind == raw::GOAWAY).await;
    within("the drain ends", drained).await.unwrap();
}

// === bindings ===

/// A part of an upload never becomes an object.
#[tokio::test]
async fn upload_to_a_binding_is_given_up_between_two_messages() {
    let folder = Folder::empty();
    let proxy = TestProxy::start_as(&format!(
        "admin: {{address: \"127.0.0.1:0\"}}\n\
         workers: 1\n\
         drain: {{timeout: 0s, force: 1m}}\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         bindings: {{files: {{object_store: {{url: \"file://{}\"}}}}, echo: {{echo: {{}}}}}}\n",
        folder.path().display()
    ))
    .await;
    let client = Client::connect(&proxy).await;
    let mut echo = client.invoke("echo", &[]).await;
    echo.outgoing.message(&payload(0, b"hello")).await;
    let (head, mut incoming) = echo.head().await;
    for _ in 0..2 {
        incoming.message().await.unwrap();
    }
    let mut upload = client.invoke("files", &[("key", "whole.bin")]).await;
    for number in 0..10 {
        upload
            .outgoing
            .message(&payload(number, &[7; 10_000]))
            .await;
    }
    // Within a message, which the drain waits for.
    let last = framed(&payload(10, &[7; 10_000]));
    upload.outgoing.data(last.slice(..5000)).await;

    let drained = tokio::spawn(proxy.drain());
    assert_dismissed(&client::answer(head, &mut incoming).await);
    upload.outgoing.data(last.slice(5000..)).await;

    assert_dismissed(&upload.answer().await);
    within("the drain ends", drained).await.unwrap();
    assert!(!folder.path().join("whole.bin").exists());
    let own = std::fs::read_dir(folder.path().join(".thalweg")).unwrap();
    let own: Vec<_> = own.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(own, ["lock"], "the draft is gone as well");
}

/// A client that was still sending fails to write when its connection is reset, and may never look at the status that came before.
#[tokio::test]
async fn connection_that_has_said_all_is_not_reset_by_what_still_comes() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream, "").await;
    let _upstream = upstream.serve(echo);
    let mut peer = raw::Peer::client(&proxy.address, &[]).await;
    peer.write(&raw::headers(1, &raw::grpc(PATH), false)).await;
    peer.write(&raw::data(1, &framed(b"hello"), false)).await;
    peer.until(|frame| frame.kind == raw::DATA).await;

    let drained = tokio::spawn(proxy.drain());
    let mut has_ended = false;
    while let Some(frame) = peer.next().await {
        if frame.kind == raw::PING {
            let ack = raw::frame(raw::PING, raw::ACK, 0, &frame.payload);
            peer.write(&ack).await;
        }
        has_ended |= frame.stream == 1 && frame.kind == raw::HEADERS && frame.ends_stream();
    }

    assert!(has_ended);
    for _ in 0..10 {
        peer.write(&raw::frame(raw::PING, 0, 0, b"and more")).await;
        tokio::task::yield_now().await;
    }
    drop(peer);
    assert_eq!(drained.await.unwrap().dismissed, 1);
}
