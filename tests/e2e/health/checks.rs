//! Endpoints that are asked whether they are well, and who hears of it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::SeqCst},
};

use thalweg_proto::{
    bindings::Message,
    health::{CHECK, HealthCheckRequest, HealthCheckResponse, ServingStatus},
    status::Code,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    client::Client,
    framed,
    proxy::Yaml,
    upstream::{Call, Served, Upstream, nobody},
};

const PATH: &str = "/e2e.Echo/Who";
const AVAILABLE: &str = "thalweg_cluster_endpoints_available{cluster=\"main\"}";
const TURNED: &str = "thalweg_cluster_endpoints_turned_unhealthy_total{cluster=\"main\"}";

/// What an upstream says of itself; it may change its mind.
#[derive(Clone)]
struct Says(Arc<AtomicU8>);

impl Says {
    fn new(status: ServingStatus) -> Self {
        Self(Arc::new(AtomicU8::new(status as u8)))
    }

    fn now(&self, status: ServingStatus) {
        self.0.store(status as u8, SeqCst);
    }
}

/// Tells its name, and how it is if that is asked for `service`.
async fn named(name: &'static str, service: &'static str, says: &Says) -> Served {
    let says = says.clone();
    Upstream::start().await.serve(move |call| {
        let says = says.clone();
        async move { answer(call, name, service, &says).await }
    })
}

async fn answer(mut call: Call, name: &'static str, service: &str, says: &Says) {
    if call.path() != CHECK {
        let mut outgoing = call.respond();
        outgoing.message(name.as_bytes()).await;
        while let Ok(Some(message)) = call.incoming.try_message().await {
            outgoing.message(&message).await;
        }
        return outgoing.trailers(&[("grpc-status", "0")]);
    }
    let asked = call.incoming.message().await.unwrap();
    let asked = HealthCheckRequest::decode(asked).unwrap();
    let mut outgoing = call.respond();
    if asked.service != service {
        return outgoing.trailers(&[("grpc-status", "5")]);
    }
    let status = i32::from(says.0.load(SeqCst));
    let answer = HealthCheckResponse { status }.encode_to_vec();
    outgoing.message(&answer).await;
    outgoing.trailers(&[("grpc-status", "0")]);
}

/// Who answers so many calls.
async fn answered(client: &Client, calls: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..calls {
        let answer = client.unary(PATH, b"").await;
        assert_eq!(answer.code(), Code::Ok);
        names.push(String::from_utf8(answer.messages()[0].to_vec()).unwrap());
    }
    names
}

#[tokio::test]
async fn endpoint_that_is_not_well_gets_no_new_streams_keeps_the_old_and_comes_back() {
    let says = Says::new(ServingStatus::Serving);
    let ill = named("ill", "it", &says).await;
    let well = named("well", "it", &Says::new(ServingStatus::Serving)).await;
    let proxy = Yaml::to(&ill)
        .and(&well)
        .cluster("health_check: {grpc: {service: it}, interval: 20ms, healthy: 1, unhealthy: 2}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    // A stream that stays open at the one that will be ill.
    let (mut open, mut news) = loop {
        let mut call = client.call(PATH, &[]).await;
        let (_, mut news) = call.head().await;
        if news.message().await.unwrap() == b"ill"[..] {
            break (call, news);
        }
    };

    says.now(ServingStatus::NotServing);
    proxy.metric_is(AVAILABLE, 1).await;
    assert_eq!(proxy.metric(TURNED).await, 1);
    assert!(
        answered(&client, 20)
            .await
            .iter()
            .all(|name| name == "well")
    );
    open.outgoing.message(b"still here").await;
    assert_eq!(news.message().await.unwrap(), b"still here"[..]);

    // It is to have no more streams than the other, or that would be preferred.
    open.outgoing.end();
    assert_eq!(news.message().await, None);

    says.now(ServingStatus::Serving);
    proxy.metric_is(AVAILABLE, 2).await;
    while !answered(&client, 1).await.contains(&"ill".to_owned()) {}
    assert_eq!(proxy.metric(TURNED).await, 1);
}

#[tokio::test]
async fn streams_of_an_endpoint_that_is_not_well_end_between_two_messages_where_that_is_wanted() {
    let says = Says::new(ServingStatus::Serving);
    let ill = named("ill", "it", &says).await;
    let well = named("well", "it", &Says::new(ServingStatus::Serving)).await;
    let proxy = Yaml::to(&ill)
        .and(&well)
        .cluster("balance: round_robin")
        .cluster("health_check: {grpc: {service: it}, interval: 20ms, unhealthy: 1, dismiss: true}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut call = client.call(PATH, &[]).await;
        let (_, mut news) = call.head().await;
        let name = news.message().await.unwrap();
        // Half a message is on its way when the endpoint falls ill.
        call.outgoing.data(framed(b"cut in two").slice(..7)).await;
        streams.push((name, call, news));
    }

    says.now(ServingStatus::NotServing);
    proxy.metric_is(AVAILABLE, 1).await;

    for (name, mut call, mut news) in streams {
        call.outgoing.data(framed(b"cut in two").slice(7..)).await;
        if name == b"well"[..] {
            assert_eq!(news.message().await.unwrap(), b"cut in two"[..]);
            call.outgoing.end();
            assert_eq!(news.rest().await.1.unwrap()["grpc-status"], "0");
            continue;
        }
        let trailers = news.rest().await.1.unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["thalweg-reason"], "endpoint_unhealthy");
        let text = trailers["grpc-message"].to_str().unwrap();
        assert!(text.contains("health_check.dismiss"), "{text}");
    }
}

#[tokio::test]
async fn streams_are_tried_anywhere_when_no_endpoint_is_well() {
    let says = Says::new(ServingStatus::NotServing);
    let upstream = named("it", "", &says).await;
    let proxy = Yaml::to(&upstream)
        .cluster("health_check: {grpc: {}, interval: 20ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    proxy.metric_is(AVAILABLE, 0).await;

    assert_eq!(answered(&client, 1).await, ["it"]);

    let tried = "thalweg_cluster_none_available_total{cluster=\"main\"}";
    assert_eq!(proxy.metric(tried).await, 1);
}

#[tokio::test]
async fn service_that_the_upstream_does_not_know_is_not_well() {
    let upstream = named("it", "known", &Says::new(ServingStatus::Serving)).await;
    let proxy = Yaml::to(&upstream)
        .cluster("health_check: {grpc: {service: other}, interval: 20ms}")
        .start()
        .await;
    answered(&Client::connect(&proxy).await, 1).await;

    proxy.metric_is(AVAILABLE, 0).await;
}

#[tokio::test]
async fn endpoint_that_nobody_listens_at_is_found_before_a_stream_meets_it() {
    let well = named("well", "", &Says::new(ServingStatus::Serving)).await;
    let proxy = Yaml::to(nobody().await)
        .and(&well)
        .cluster("health_check: {tcp: {}, interval: 20ms}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;
    proxy.metric_is(TURNED, 1).await;

    assert_eq!(answered(&client, 20).await, ["well"; 20]);

    let failed = "thalweg_cluster_connect_failures_total{cluster=\"main\"}";
    assert_eq!(proxy.metric(failed).await, 0, "a stream has met it");
}

#[tokio::test]
async fn page_tells_over_either_protocol_whether_a_server_is_well() {
    // HTTP/1.1, by hand: the status changes when the test says so.
    let says = Arc::new(AtomicU8::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let said = Arc::clone(&says);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n")
                && socket.read_buf(&mut request).await.unwrap() > 0
            {}
            let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
            assert!(
                request.starts_with("get /healthz?full http/1.1\r\n"),
                "{request}"
            );
            assert!(
                request.contains(&format!("host: {address}\r\n")),
                "{request}"
            );
            let status = if said.load(SeqCst) == 0 {
                "204 Fine"
            } else {
                "503 Ill"
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let check =
        "health_check: {http: {path: \"/healthz?full\"}, interval: 20ms, unhealthy: 1, healthy: 1}";
    let proxy = Yaml::to_http1(address).cluster(check).start().await;
    proxy.metric_is(AVAILABLE, 1).await;

    says.store(1, SeqCst);
    proxy.metric_is(AVAILABLE, 0).await;
    says.store(0, SeqCst);
    proxy.metric_is(AVAILABLE, 1).await;

    // HTTP/2, with a status of its own.
    let upstream = Upstream::start().await.serve(|mut call| async move {
        assert_eq!(call.path(), "/healthz");
        call.finish_with(418, &[]);
    });
    for (expect, available) in [("418", 1), ("204", 0)] {
        let check =
            format!("health_check: {{http: {{path: /healthz, expect: {expect}}}, interval: 20ms}}");
        let proxy = Yaml::to(&upstream).cluster(&check).start().await;
        proxy.metric_is(AVAILABLE, available).await;
    }
}
