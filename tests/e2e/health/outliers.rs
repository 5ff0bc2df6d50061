//! Endpoints that are judged by how their streams end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use h2::Reason;
use thalweg_proto::status::Code;
use tokio::time::Instant;

use crate::support::{
    client::Client,
    plain::{Peer, PlainUpstream},
    proxy::{TestProxy, Yaml},
    upstream::{Call, Served, Upstream, nobody},
};

const PATH: &str = "/e2e.Echo/Who";
const AVAILABLE: &str = "thalweg_cluster_endpoints_available{cluster=\"main\"}";
const EJECTIONS: &str = "thalweg_cluster_ejections_total{cluster=\"main\"}";
const OVERFLOWS: &str = "thalweg_cluster_ejection_overflows_total{cluster=\"main\"}";

/// Each in its turn, so that a test knows who is asked how often.
const IN_TURN: &str = "balance: round_robin";

/// How an upstream ends its streams; it may change.
#[derive(Clone, Copy)]
enum Ends {
    Well,
    Unavailable,
    NotFound,
    Reset,
}

#[derive(Clone)]
struct Ending(Arc<AtomicU8>);

impl Ending {
    fn new(ends: Ends) -> Self {
        Self(Arc::new(AtomicU8::new(ends as u8)))
    }

    fn now(&self, ends: Ends) {
        self.0.store(ends as u8, SeqCst);
    }

    fn is(&self, ends: Ends) -> bool {
        self.0.load(SeqCst) == ends as u8
    }
}

/// Tells its name and echoes, and ends as it is to.
async fn named(name: &'static str, ending: &Ending) -> Served {
    let ending = ending.clone();
    Upstream::start().await.serve(move |call| {
        let ending = ending.clone();
        async move { answer(call, name, &ending).await }
    })
}

async fn answer(mut call: Call, name: &'static str, ending: &Ending) {
    let mut outgoing = call.respond();
    outgoing.message(name.as_bytes()).await;
    while let Ok(Some(message)) = call.incoming.try_message().await {
        outgoing.message(&message).await;
    }
    if ending.is(Ends::Reset) {
        outgoing.reset(Reason::INTERNAL_ERROR);
    } else if ending.is(Ends::Unavailable) {
        outgoing.trailers(&[("grpc-status", "14")]);
    } else if ending.is(Ends::NotFound) {
        outgoing.trailers(&[("grpc-status", "5")]);
    } else {
        outgoing.trailers(&[("grpc-status", "0")]);
    }
}

async fn before(one: &Served, other: &Served, outlier: &str) -> TestProxy {
    let yaml = Yaml::to(one).and(other).cluster(IN_TURN);
    yaml.cluster(&format!("outlier: {{{outlier}}}"))
        .start()
        .await
}

/// The names of those who answer so many calls, and the statuses.
async fn answered(client: &Client, calls: usize) -> Vec<(String, Code)> {
    let mut answers = Vec::new();
    for _ in 0..calls {
        let answer = client.unary(PATH, b"").await;
        // A reset may come before the name.
        let name = answer.messages().first().cloned();
        let name = String::from_utf8(name.unwrap_or_else(|| "bad".into()).to_vec()).unwrap();
        answers.push((name, answer.code_or_unknown()));
    }
    answers
}

fn of<'a>(name: &str, answers: &'a [(String, Code)]) -> Vec<&'a Code> {
    let of = answers.iter().filter(|(from, _)| from == name);
    of.map(|(_, code)| code).collect()
}

#[tokio::test]
async fn endpoint_that_fails_its_streams_gets_no_more() {
    for ends in [Ends::Unavailable, Ends::Reset] {
        let bad = named("bad", &Ending::new(ends)).await;
        let good = named("good", &Ending::new(Ends::Well)).await;
        let proxy = before(
            &bad,
            &good,
            "consecutive: 3, ejection: 1h, max_ejection: 1h, statuses: [UNAVAILABLE, INTERNAL]",
        )
        .await;
        let client = Client::connect(&proxy).await;

        let answers = answered(&client, 20).await;

        assert_eq!(of("bad", &answers).len(), 3, "{answers:?}");
        assert_eq!(of("good", &answers), [&Code::Ok; 17]);
        proxy.metric_is(AVAILABLE, 1).await;
        assert_eq!(proxy.metric(EJECTIONS).await, 1);
        assert!(proxy.admin("/clusters").await.contains("\"ejected\""));
    }
}

#[tokio::test]
async fn endpoint_comes_back_when_its_time_is_over() {
    let ending = Ending::new(Ends::Unavailable);
    let ill = named("ill", &ending).await;
    let good = named("good", &Ending::new(Ends::Well)).await;
    let proxy = before(&ill, &good, "consecutive: 1, ejection: 10ms").await;
    let client = Client::connect(&proxy).await;
    while proxy.metric(EJECTIONS).await == 0 {
        answered(&client, 1).await;
    }

    ending.now(Ends::Well);

    while of("ill", &answered(&client, 1).await) != [&Code::Ok] {}
    proxy.metric_is(AVAILABLE, 2).await;
}

#[tokio::test]
async fn what_a_service_means_to_say_takes_nobody_out() {
    let missing = named("missing", &Ending::new(Ends::NotFound)).await;
    let good = named("good", &Ending::new(Ends::Well)).await;
    let proxy = before(&missing, &good, "consecutive: 1").await;
    let client = Client::connect(&proxy).await;

    let answers = answered(&client, 20).await;

    assert_eq!(of("missing", &answers), [&Code::NotFound; 10]);
    assert_eq!(proxy.metric(EJECTIONS).await, 0);
}

#[tokio::test]
async fn statuses_that_count_are_the_operators_choice() {
    let missing = named("missing", &Ending::new(Ends::NotFound)).await;
    let good = named("good", &Ending::new(Ends::Well)).await;
    let proxy = before(&missing, &good, "consecutive: 1, statuses: [NOT_FOUND]").await;
    let client = Client::connect(&proxy).await;

    let answers = answered(&client, 20).await;

    assert_eq!(of("missing", &answers), [&Code::NotFound]);
}

#[tokio::test]
async fn streams_that_fail_with_good_ones_between_them_take_nobody_out() {
    let ending = Ending::new(Ends::Well);
    let flaky = named("flaky", &ending).await;
    let good = named("good", &Ending::new(Ends::Well)).await;
    let proxy = before(&flaky, &good, "consecutive: 2").await;
    let client = Client::connect(&proxy).await;

    for ends in [Ends::Unavailable, Ends::Well].into_iter().cycle().take(20) {
        ending.now(ends);
        answered(&client, 2).await;
    }

    assert_eq!(proxy.metric(EJECTIONS).await, 0);
}

#[tokio::test]
async fn old_streams_that_are_cut_take_nobody_out() {
    let ending = Ending::new(Ends::Reset);
    let stopping = named("stopping", &ending).await;
    let good = named("good", &Ending::new(Ends::Well)).await;
    let proxy = before(&stopping, &good, "consecutive: 1, young: 5ms").await;
    let client = Client::connect(&proxy).await;
    let (mut calls, mut began) = (Vec::new(), Instant::now());
    for _ in 0..6 {
        let mut call = client.call(PATH, &[]).await;
        let (_, mut incoming) = call.head().await;
        incoming.message().await.unwrap();
        calls.push((call, incoming));
        began = Instant::now();
    }

    // They are in use until they are old.
    while began.elapsed() < Duration::from_millis(10) {
        for (call, incoming) in &mut calls {
            call.outgoing.message(b"on").await;
            assert_eq!(incoming.message().await.unwrap(), "on");
        }
    }
    for (call, incoming) in &mut calls {
        call.outgoing.end();
        let _ = incoming.rest().await;
    }

    assert_eq!(proxy.metric(EJECTIONS).await, 0);
    assert_eq!(proxy.metric(AVAILABLE).await, 2);
}

#[tokio::test]
async fn no_more_are_out_than_may_be() {
    let one = named("one", &Ending::new(Ends::Unavailable)).await;
    let other = named("other", &Ending::new(Ends::Unavailable)).await;
    let proxy = before(
        &one,
        &other,
        "consecutive: 2, ejection: 1h, max_ejection: 1h",
    )
    .await;
    let client = Client::connect(&proxy).await;

    let answers = answered(&client, 20).await;

    let mut counts = [of("one", &answers).len(), of("other", &answers).len()];
    counts.sort_unstable();
    assert_eq!(counts, [2, 18]);
    assert_eq!(proxy.metric(EJECTIONS).await, 1);
    assert!(proxy.metric(OVERFLOWS).await > 0);
    assert_eq!(proxy.metric(AVAILABLE).await, 1);
}

#[tokio::test]
async fn endpoint_that_cannot_be_dialed_is_taken_out_too() {
    let good = named("good", &Ending::new(Ends::Well)).await;
    let proxy = Yaml::to(nobody().await)
        .and(&good)
        .cluster(IN_TURN)
        .cluster("outlier: {consecutive: 1, ejection: 1h, max_ejection: 1h}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    let answers = answered(&client, 10).await;

    assert_eq!(of("good", &answers), [&Code::Ok; 10]);
    assert_eq!(proxy.metric(EJECTIONS).await, 1);
}

#[tokio::test]
async fn plain_http_server_that_fails_is_taken_out() {
    let (bad, good) = (PlainUpstream::bind().await, PlainUpstream::bind().await);
    let proxy = Yaml::to_http1(&bad.address)
        .and(&good.address)
        .cluster(IN_TURN)
        .cluster("outlier: {consecutive: 2, ejection: 1h, max_ejection: 1h}")
        .start()
        .await;
    for (upstream, status) in [(bad, "503 Ill"), (good, "200 OK")] {
        tokio::spawn(async move {
            loop {
                let mut peer = upstream.accept().await;
                tokio::spawn(async move {
                    peer.head().await;
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"
                    );
                    peer.write(answer).await;
                });
            }
        });
    }

    let mut bad = 0;
    for _ in 0..20 {
        let mut client = Peer::connect(&proxy.address).await;
        client
            .write("GET / HTTP/1.1\r\nhost: e2e.test\r\nconnection: close\r\n\r\n")
            .await;
        bad += usize::from(client.head().await.line.contains("503"));
        client.rest().await;
    }

    assert_eq!(bad, 2);
    assert_eq!(proxy.metric(EJECTIONS).await, 1);
}
