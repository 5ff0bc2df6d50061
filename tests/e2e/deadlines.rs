//! What `grpc-timeout` promises to the client, and what it tells the upstream.

use std::time::{Duration, Instant};

use h2::Reason;
use thalweg_proto::{deadline, status::Code};
use tokio::net::TcpListener;

use crate::support::{
    client::{self, Client},
    proxy::Yaml,
    stream::Answer,
    upstream::{Upstream, builder, echo},
};

const PATH: &str = "/e2e.Echo/Talk";
const SHORT: [(&str, &str); 1] = [("grpc-timeout", "100m")];

fn assert_exceeded(answer: &Answer) {
    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::DeadlineExceeded, Some("grpc_timeout")),
        "{answer:?}"
    );
    assert!(answer.text().contains("grpc-timeout"), "{}", answer.text());
}

// === enforced ===

#[tokio::test]
async fn silent_upstream_is_cut_off_with_a_status() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let started = Instant::now();
    let mut call = Client::connect(&proxy).await.call(PATH, &SHORT).await;
    let mut upstream = upstream.call().await;

    let answer = call.answer().await;

    assert_exceeded(&answer);
    assert_eq!(answer.reset, None);
    assert!(
        started.elapsed() >= Duration::from_millis(100),
        "ended before its time"
    );
    assert_eq!(upstream.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn stream_is_cut_off_in_the_middle_with_trailers() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &SHORT).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    outgoing.message(b"whole").await;

    let answer = call.answer().await;

    assert_eq!(answer.messages(), ["whole"]);
    assert_exceeded(&answer);
    assert!(
        answer.trailers.contains_key("grpc-status"),
        "the head was sent already"
    );
    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn talkative_upstream_is_cut_off_too() {
    let upstream = Upstream::start().await.serve(async |mut call| {
        let mut outgoing = call.respond();
        while outgoing
            .try_data(crate::support::framed(b"and another"))
            .await
            .is_ok()
        {}
    });
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &SHORT).await;

    assert_exceeded(&call.answer().await);
}

#[tokio::test]
async fn wait_for_a_connection_counts() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Yaml::to(silent.local_addr().unwrap())
        .cluster("connect_timeout: 1h")
        .start()
        .await;
    let mut call = Client::connect(&proxy).await.call(PATH, &SHORT).await;

    assert_exceeded(&call.answer().await);
    proxy
        .metric_is("thalweg_cluster_pending{cluster=\"main\"}", 0)
        .await;
}

#[tokio::test]
async fn upload_that_the_upstream_does_not_take_is_cut_off() {
    let mut closed = builder();
    closed.initial_window_size(0);
    let mut upstream = Upstream::start_with(&closed).await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &SHORT).await;
    call.outgoing.data_now(vec![0; 1 << 20]);
    let mut upstream = upstream.call().await;

    assert_exceeded(&call.answer().await);
    assert_eq!(upstream.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn upstream_is_let_go_although_the_client_reads_nothing() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &SHORT).await;
    let mut upstream = upstream.call().await;
    let mut outgoing = upstream.respond();
    outgoing.data_now(vec![0; 4 << 20]);
    let _unread = call.head().await;

    assert_eq!(outgoing.reset_by_peer().await, Reason::CANCEL);
}

#[tokio::test]
async fn no_time_at_all_is_exceeded_at_once() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call(PATH, &[("grpc-timeout", "0n")])
        .await;

    assert_exceeded(&call.answer().await);
}

#[tokio::test]
async fn answer_in_time_is_left_alone() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for longest in ["9S", "99999999H"] {
        let mut call = client.call(PATH, &[("grpc-timeout", longest)]).await;
        call.outgoing.message(b"hello").await;
        call.outgoing.end();

        let answer = call.answer().await;
        assert_eq!(
            (answer.code(), answer.messages()),
            (Code::Ok, vec!["hello".into()]),
            "{longest}"
        );
    }
}

#[tokio::test]
async fn stream_without_a_timeout_has_no_deadline_and_none_is_made_up() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy).await.call(PATH, &[]).await;

    let mut upstream = upstream.call().await;
    assert!(!upstream.headers().contains_key("grpc-timeout"));
    let mut outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;
    outgoing.trailers(&[("grpc-status", "0")]);
    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
}

// === told ===

#[tokio::test]
async fn upstream_is_told_less_than_the_client_gave_by_the_time_spent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Yaml::to(listener.local_addr().unwrap()).start().await;
    let given = Duration::from_secs(60);
    let spent = Duration::from_millis(50);
    let started = Instant::now();
    let _call = Client::connect(&proxy)
        .await
        .call(PATH, &[("grpc-timeout", "60S")])
        .await;

    // The call waits for a connection until somebody speaks on the listener's behalf.
    proxy
        .metric_is("thalweg_cluster_pending{cluster=\"main\"}", 1)
        .await;
    tokio::time::sleep(spent).await;
    let mut upstream = Upstream::listen(listener, builder());
    let call = upstream.call().await;
    let most_spent = started.elapsed();

    let told = deadline::parse(call.headers()["grpc-timeout"].as_bytes()).unwrap();
    assert!(told <= given - spent, "{told:?}");
    assert!(
        told + Duration::from_millis(1) >= given - most_spent,
        "{told:?} after {most_spent:?}"
    );
}

#[tokio::test]
async fn upstream_is_never_told_more_than_the_client_gave() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for given in [
        "1S",
        "2M",
        "3H",
        "5000m",
        "5000000u",
        "99999999n",
        "99999999H",
    ] {
        let _call = client.call(PATH, &[("grpc-timeout", given)]).await;
        let call = upstream.call().await;

        let told = deadline::parse(call.headers()["grpc-timeout"].as_bytes()).unwrap();
        assert!(
            told <= deadline::parse(given.as_bytes()).unwrap(),
            "{told:?} of {given}"
        );
        assert_eq!(call.headers().get_all("grpc-timeout").iter().count(), 1);
    }
}

#[tokio::test]
async fn plain_http_has_no_deadline_of_grpc() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let request = http::Request::get("http://e2e.test/file").header("grpc-timeout", "1n");

    let mut call = client.open(request, true).await;

    let mut upstream = upstream.call().await;
    assert_eq!(upstream.headers()["grpc-timeout"], "1n");
    upstream.finish_with(204, &[]);
    assert_eq!(call.answer().await.status, 204);
}

// === malformed ===

#[tokio::test]
async fn malformed_timeout_is_refused_and_never_reaches_the_upstream() {
    let upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for bad in [
        "",
        "5",
        "S",
        "5x",
        "5s",
        "-5S",
        "+5S",
        "5 S",
        "1.5S",
        "123456789S",
        "5S5S",
    ] {
        let mut call = client.call(PATH, &[("grpc-timeout", bad)]).await;

        let answer = call.answer().await;
        assert_eq!(
            (answer.code(), answer.reason()),
            (Code::InvalidArgument, Some("bad_grpc_timeout")),
            "{bad:?}"
        );
        assert!(answer.text().contains("grpc-timeout"), "{}", answer.text());
    }
    assert!(!upstream.has_call());
}
