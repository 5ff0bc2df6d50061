//! The proxy's own `grpc.health.v1.Health`.

use thalweg_proto::{
    bindings::Message,
    health::{CHECK, HealthCheckRequest, HealthCheckResponse, ServingStatus, WATCH},
    status::Code,
};

use crate::support::{
    client::{Call, Client},
    proxy::{TestProxy, Yaml},
    stream::{Answer, Incoming},
    upstream::{Upstream, echo, nobody},
};

const WATCHERS: &str = "thalweg_health_watchers";
const OVERFLOWS: &str = "thalweg_health_watcher_overflows_total";
const LISTENER: &str = "listeners: [{name: it, address: \"127.0.0.1:0\"}]\n";

fn named(service: &str) -> Vec<u8> {
    let service = service.to_owned();
    HealthCheckRequest { service }.encode_to_vec()
}

async fn check(client: &Client, service: &str) -> Answer {
    client.unary(CHECK, &named(service)).await
}

async fn watch(client: &Client, service: &str) -> Call {
    let mut call = client.call(WATCH, &[]).await;
    call.outgoing.message(&named(service)).await;
    call.outgoing.end();
    call
}

fn status(message: &[u8]) -> ServingStatus {
    HealthCheckResponse::decode(message).unwrap().status()
}

async fn told(news: &mut Incoming) -> ServingStatus {
    status(&news.message().await.unwrap())
}

#[tokio::test]
async fn proxy_serves_without_a_route_for_it() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;

    let answer = check(&client, "").await;

    assert_eq!(answer.code(), Code::Ok);
    let [message] = &answer.messages()[..] else {
        panic!("one message is an answer: {answer:?}")
    };
    assert_eq!(status(message), ServingStatus::Serving);
}

#[tokio::test]
async fn watcher_hears_of_the_drain_at_once_and_does_not_hold_it_up() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;
    let mut call = watch(&client, "").await;
    let (_, mut news) = call.head().await;
    assert_eq!(told(&mut news).await, ServingStatus::Serving);

    let drained = tokio::spawn(proxy.drain());

    assert_eq!(told(&mut news).await, ServingStatus::NotServing);
    let (rest, end) = news.rest().await;
    let end = end.unwrap();
    assert!(rest.is_empty());
    assert_eq!(end["grpc-status"], "14");
    assert_eq!(end["thalweg-reason"], "drain");
    drained.await.unwrap();
}

#[tokio::test]
async fn service_that_is_not_known_is_not_found_and_may_be_watched() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;

    let answer = check(&client, "no.such.Service").await;
    assert_eq!(answer.code(), Code::NotFound);
    assert_eq!(answer.reason(), Some("unknown_service"));

    let (_, mut news) = watch(&client, "no.such.Service").await.head().await;
    assert_eq!(told(&mut news).await, ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn route_that_takes_these_calls_comes_first() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let answer = check(&client, "theirs").await;

    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.messages(), [named("theirs")], "it was not echoed");
}

/// As in the configuration that is shipped: a web server takes all that no other route does.
#[tokio::test]
async fn route_that_cannot_carry_these_calls_does_not_take_them() {
    let nobody = nobody().await;
    let proxy = Yaml::to_http1(nobody).start().await;
    let client = Client::connect(&proxy).await;

    let answer = check(&client, "").await;

    assert_eq!(answer.code(), Code::Ok);
    let other = client.unary("/e2e.Echo/Talk", b"").await;
    assert_eq!(other.code(), Code::Unimplemented);
}

#[tokio::test]
async fn service_can_be_switched_off() {
    let proxy = TestProxy::start(&format!("{LISTENER}health_service: {{enabled: false}}\n")).await;
    let client = Client::connect(&proxy).await;

    let answer = check(&client, "").await;

    assert_eq!(answer.code(), Code::Unimplemented);
    assert_eq!(answer.reason(), Some("no_route"));
}

#[tokio::test]
async fn one_watcher_too_many_is_refused_until_another_leaves() {
    let limit = format!("{LISTENER}health_service: {{max_watchers: 1}}\n");
    let proxy = TestProxy::start(&limit).await;
    let client = Client::connect(&proxy).await;
    let mut first = watch(&client, "").await;
    let (_, mut news) = first.head().await;
    assert_eq!(told(&mut news).await, ServingStatus::Serving);

    let refused = watch(&client, "").await.answer().await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.reason(), Some("too_many_watchers"));
    assert!(
        refused.text().contains("health_service.max_watchers"),
        "{}",
        refused.text()
    );
    assert_eq!(proxy.metric(OVERFLOWS).await, 1);

    first.outgoing.reset(h2::Reason::CANCEL);
    proxy.metric_is(WATCHERS, 0).await;
    let (_, mut news) = watch(&client, "").await.head().await;
    assert_eq!(told(&mut news).await, ServingStatus::Serving);
}

#[tokio::test]
async fn watch_ends_with_the_deadline_of_its_client() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(WATCH, &[("grpc-timeout", "50m")]).await;
    call.outgoing.message(&named("")).await;
    call.outgoing.end();

    let answer = call.answer().await;

    assert_eq!(answer.code(), Code::DeadlineExceeded);
    proxy.metric_is(WATCHERS, 0).await;
}

#[tokio::test]
async fn request_that_is_none_is_refused() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;

    for bytes in [
        &b""[..],
        b"\0\0\0",
        b"\0\xff\xff\xff\xff",
        b"\x01\0\0\0\x01x",
        b"\0\0\0\0\x01x",
    ] {
        let mut call = client.call(CHECK, &[]).await;
        call.outgoing.data(bytes.to_vec()).await;
        call.outgoing.end();

        let answer = call.answer().await;

        assert_eq!(answer.code(), Code::InvalidArgument, "{bytes:?}");
        assert_eq!(answer.reason(), Some("malformed_message"), "{bytes:?}");
    }
}

#[tokio::test]
async fn name_that_comes_in_pieces_is_put_together_without_the_end_of_the_request() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call(CHECK, &[]).await;
    for byte in crate::support::framed(&named("")) {
        call.outgoing.data(vec![byte]).await;
    }

    assert_eq!(call.answer().await.code(), Code::Ok);
}

#[tokio::test]
async fn methods_that_there_are_not_and_plain_http_find_no_route() {
    let proxy = TestProxy::start(LISTENER).await;
    let client = Client::connect(&proxy).await;

    let missing = client.unary("/grpc.health.v1.Health/List", b"").await;
    let plain = http::Request::post(format!("http://e2e.test{CHECK}"));
    let plain = client.open(plain, true).await.answer().await;

    assert_eq!(missing.code(), Code::Unimplemented);
    assert_eq!(plain.status, 404);
}
