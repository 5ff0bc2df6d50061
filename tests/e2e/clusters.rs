//! Where endpoints come from, which of them takes a stream, and what becomes of streams when endpoints come and go.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tempfile::TempDir;
use thalweg_proto::status::Code;

use crate::support::{
    client::{Call, Client},
    framed,
    proxy::TestProxy,
    stream::Incoming,
    upstream::{Served, Upstream, nobody},
    within,
};

const PATH: &str = "/e2e.Echo/Talk";
const ENDPOINTS: &str = "thalweg_cluster_endpoints{cluster=\"main\"}";
const AVAILABLE: &str = "thalweg_cluster_endpoints_available{cluster=\"main\"}";
const CHANGES: &str = "thalweg_cluster_endpoint_changes_total{cluster=\"main\"}";
const FAILURES: &str = "thalweg_cluster_endpoint_failures_total{cluster=\"main\"}";
const STALE: &str = "thalweg_cluster_endpoints_stale{cluster=\"main\"}";
const CONNECTIONS: &str = "thalweg_cluster_connections{cluster=\"main\"}";

/// A file that lists endpoints.
struct List {
    _folder: TempDir,
    path: PathBuf,
}

impl List {
    fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let list = Self {
            path: folder.path().join("endpoints.yaml"),
            _folder: folder,
        };
        list.write(text);
        list
    }

    /// As an editor does it: another file in its place.
    fn write(&self, text: &str) {
        let fresh = self.path.with_extension("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, &self.path).unwrap();
    }

    /// As the cluster has it.
    fn yaml(&self) -> String {
        format!("{{file: {}, refresh: 10ms}}", self.path.display())
    }
}

/// A proxy with one cluster, as `endpoints` and further keys say it.
async fn start(endpoints: &str, cluster: &str, route: &str) -> TestProxy {
    TestProxy::start_as(&format!(
        "admin: {{address: \"127.0.0.1:0\"}}\nworkers: 2\nfilters: [metrics]\n\
         listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\n\
         clusters: {{main: {{endpoints: {endpoints}, connect_timeout: 1m{cluster}}}}}\n\
         routes: [{{name: main, cluster: main{route}}}]\n"
    ))
    .await
}

/// An upstream that tells its name at once and then echoes.
async fn named(name: &'static str) -> Served {
    Upstream::start().await.serve(move |mut call| async move {
        let mut outgoing = call.respond_with(200, &[("x-name", name)]);
        while let Ok(Some(message)) = call.incoming.try_message().await {
            outgoing.message(&message).await;
        }
        outgoing.trailers(&[("grpc-status", "0")]);
    })
}

/// Three of them, by the names `a`, `b` and `c`.
async fn three() -> [Served; 3] {
    [named("a").await, named("b").await, named("c").await]
}

/// An open stream, and who has it.
async fn open(client: &Client, headers: &[(&str, &str)]) -> (Call, Incoming, String) {
    let mut call = client.call(PATH, headers).await;
    let (head, incoming) = call.head().await;
    let name = head.headers()["x-name"].to_str().unwrap().to_owned();
    (call, incoming, name)
}

/// Who takes each of so many short streams.
async fn counted(client: &Client, count: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let (mut call, mut incoming, name) = open(client, &[]).await;
        call.outgoing.end();
        incoming.rest().await.1.unwrap();
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// One message there and back.
async fn assert_alive((call, incoming, _): &mut (Call, Incoming, String)) {
    call.outgoing.message(b"still here").await;
    assert_eq!(&incoming.message().await.unwrap()[..], b"still here");
}

// === where they come from ===

#[tokio::test]
async fn streams_go_on_when_the_file_names_other_endpoints() {
    let [a, b, _] = three().await;
    let list = List::of(&format!("[\"{}\"]", a.address));
    let proxy = start(&list.yaml(), "", "").await;
    let client = Client::connect(&proxy).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(open(&client, &[]).await);
    }

    list.write(&format!("- {}\n- address: {}\n", a.address, b.address));
    proxy.metric_is(ENDPOINTS, 2).await;
    list.write(&format!("[\"{}\"]", b.address));
    proxy.metric_is(ENDPOINTS, 1).await;

    // The worker hears of it soon after.
    within("new streams go to the new endpoint", async {
        while open(&client, &[]).await.2 != "b" {}
    })
    .await;
    for stream in &mut streams {
        assert_eq!(stream.2, "a");
        assert_alive(stream).await;
    }
    // The connections to what is gone close after its last stream.
    for (mut call, mut incoming, _) in streams {
        call.outgoing.end();
        incoming.rest().await.1.unwrap();
    }
    drop(a);
    proxy.metric_is(CONNECTIONS, 1).await;
}

#[tokio::test]
async fn faulty_file_leaves_the_endpoints_and_is_told() {
    let [a, b, _] = three().await;
    let list = List::of(&format!("[\"{}\"]", a.address));
    let proxy = start(&list.yaml(), "", "").await;
    let client = Client::connect(&proxy).await;

    list.write("[localhost");
    proxy.reaches(FAILURES, 1).await;
    assert_eq!(proxy.metric(STALE).await, 1);
    assert!(proxy.admin("/clusters").await.contains("fault"));
    assert_eq!(open(&client, &[]).await.2, "a");

    list.write(&format!("[\"{}\", \"{}\"]", a.address, b.address));
    proxy.metric_is(ENDPOINTS, 2).await;
    assert_eq!(proxy.metric(STALE).await, 0);
}

#[tokio::test]
async fn many_changes_in_a_row_cost_no_stream() {
    let [a, b, c] = three().await;
    let all = [&a.address, &b.address, &c.address];
    let list = List::of(&format!("[\"{}\"]", a.address));
    let proxy = start(&list.yaml(), "", "").await;
    let client = Client::connect(&proxy).await;
    let mut long = open(&client, &[]).await;

    for round in 0..30 {
        let kept = all
            .iter()
            .zip(0..)
            .filter(|(_, index)| (round + index) % 3 != 0);
        let kept: Vec<String> = kept.map(|(kept, _)| format!("\"{kept}\"")).collect();
        list.write(&format!("[{}]", kept.join(", ")));
        within("the file is taken up", async {
            while proxy.metric(CHANGES).await <= round {
                let answer = client.unary(PATH, b"x").await;
                assert_eq!(answer.code(), Code::Ok, "{}", answer.text());
            }
        })
        .await;
        assert_alive(&mut long).await;
    }
}

#[tokio::test]
async fn file_that_is_not_there_keeps_the_proxy_from_starting() {
    let yaml = "admin: {address: none}\nlisteners: [{name: it, address: \"127.0.0.1:0\"}]\n\
                clusters: {main: {endpoints: {file: /no/such/file}}}\n";
    let config = thalweg::config::parse(yaml, "test.yaml", &|_| None).unwrap();

    let error = thalweg::app::App::start(config).await.unwrap_err();

    let text = error.to_string();
    assert!(
        text.contains("cluster main") && text.contains("/no/such/file"),
        "{text}"
    );
}

#[tokio::test]
async fn name_is_looked_up() {
    let a = named("a").await;
    let (_, port) = a.address.rsplit_once(':').unwrap();
    let proxy = start(&format!("{{dns: \"localhost:{port}\"}}"), "", "").await;
    let client = Client::connect(&proxy).await;

    assert_eq!(open(&client, &[]).await.2, "a");
    assert!(proxy.admin("/clusters").await.contains(&a.address));
}

#[tokio::test]
async fn name_that_nobody_knows_yet_lets_the_proxy_start() {
    let proxy = start("{dns: \"no-such-name.invalid:1\"}", "", "").await;
    let client = Client::connect(&proxy).await;

    let answer = client.call(PATH, &[]).await.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_no_endpoints"))
    );
    assert_eq!(proxy.metric(STALE).await, 1);
}

#[tokio::test]
async fn streams_of_a_removed_endpoint_end_between_two_messages_where_that_is_wanted() {
    let [a, b, _] = three().await;
    let list = List::of(&format!("[\"{}\"]", a.address));
    let proxy = start(&list.yaml(), ", dismiss_removed: true", "").await;
    let client = Client::connect(&proxy).await;
    let mut stream = open(&client, &[]).await;
    assert_alive(&mut stream).await;
    // Half a message is on its way when the endpoint goes.
    let message = framed(b"cut in two");
    let (half, rest) = message.split_at(7);
    stream.0.outgoing.data(half.to_vec()).await;

    list.write(&format!("[\"{}\"]", b.address));
    proxy.metric_is(ENDPOINTS, 1).await;
    within("new streams go to the new endpoint", async {
        // One that was just being opened ends like the others.
        while client
            .unary(PATH, b"x")
            .await
            .headers
            .get("x-name")
            .is_none_or(|name| name != "b")
        {}
    })
    .await;
    stream.0.outgoing.data(rest.to_vec()).await;

    let (_, trailers) = stream.1.rest().await;
    let trailers = trailers.unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    assert_eq!(trailers["thalweg-reason"], "endpoint_removed");
    let text = trailers["grpc-message"].to_str().unwrap();
    assert!(
        text.contains("dismiss_removed") && !text.contains(&a.address),
        "{text}"
    );
}

#[tokio::test]
async fn stream_beyond_the_clusters_limit_is_refused_at_once() {
    let a = named("a").await;
    let endpoints = format!("[\"{}\"]", a.address);
    let proxy = start(&endpoints, ", pool: {max_streams: 2}", "").await;
    let (one, other) = (Client::connect(&proxy).await, Client::connect(&proxy).await);
    let (mut first, _second) = (open(&one, &[]).await, open(&other, &[]).await);

    let answer = one.call(PATH, &[]).await.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::Unavailable, Some("upstream_too_many_streams"))
    );
    assert!(
        answer.text().contains("pool.max_streams"),
        "{}",
        answer.text()
    );
    let refused = "thalweg_cluster_too_many_streams_total{cluster=\"main\"}";
    assert_eq!(proxy.metric(refused).await, 1);
    // A place that is given back is there for the next.
    first.0.outgoing.end();
    first.1.rest().await.1.unwrap();
    proxy
        .metric_is("thalweg_cluster_streams{cluster=\"main\"}", 1)
        .await;
    assert_eq!(open(&one, &[]).await.2, "a");
}

// === who takes a stream ===

#[tokio::test]
async fn turns_follow_the_weights() {
    let [a, b, c] = three().await;
    let endpoints = format!(
        "[\"{}\", {{address: \"{}\", weight: 2}}, {{address: \"{}\", weight: 5}}]",
        a.address, b.address, c.address
    );
    let proxy = start(&endpoints, ", balance: round_robin", "").await;
    let client = Client::connect(&proxy).await;

    let counts = counted(&client, 80).await;

    // The times at which each is first due are random, which is one turn at most.
    for (name, wanted) in [("a", 10), ("b", 20), ("c", 50_usize)] {
        assert!(counts[name].abs_diff(wanted) <= 1, "{counts:?}");
    }
}

#[tokio::test]
async fn long_streams_are_spread_evenly_by_all_workers_together() {
    let [a, b, c] = three().await;
    let endpoints = format!("[\"{}\", \"{}\", \"{}\"]", a.address, b.address, c.address);
    let proxy = start(&endpoints, "", "").await;
    let (one, other) = (Client::connect(&proxy).await, Client::connect(&proxy).await);

    let mut streams = Vec::new();
    let mut counts = BTreeMap::<String, usize>::new();
    for client in [&one, &other].into_iter().cycle().take(60) {
        let stream = open(client, &[]).await;
        *counts.entry(stream.2.clone()).or_default() += 1;
        streams.push(stream);
    }

    assert!(
        counts.len() == 3 && counts.values().all(|count| count.abs_diff(20) <= 3),
        "{counts:?}"
    );
}

#[tokio::test]
async fn same_value_of_the_header_goes_to_the_same_endpoint() {
    let [a, b, c] = three().await;
    let list = List::of(&format!("[\"{}\", \"{}\"]", a.address, b.address));
    let balance = ", balance: {ring_hash: {header: x-user}}";
    let proxy = start(&list.yaml(), balance, "").await;
    let clients = [Client::connect(&proxy).await, Client::connect(&proxy).await];
    let users: Vec<String> = (0..50).map(|user| format!("user-{user}")).collect();
    let owners = async || {
        let mut owners = Vec::new();
        for user in &users {
            let headers = [("x-user", user.as_str())];
            let [one, other] = [
                open(&clients[0], &headers).await.2,
                open(&clients[1], &headers).await.2,
            ];
            assert_eq!(one, other, "{user} has one owner, on every worker");
            owners.push(one);
        }
        owners
    };
    let before = owners().await;

    list.write(&format!(
        "[\"{}\", \"{}\", \"{}\"]",
        a.address, b.address, c.address
    ));
    proxy.metric_is(ENDPOINTS, 3).await;
    for client in &clients {
        within("the worker hears of it", async {
            let mut user = 0;
            while open(client, &[("x-user", &user.to_string())]).await.2 != "c" {
                user += 1;
            }
        })
        .await;
    }

    let after = owners().await;
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(one, other)| one != other);
    let moved: Vec<_> = moved.collect();
    assert!(moved.iter().all(|(_, owner)| *owner == "c"), "{moved:?}");
    assert!((5..30).contains(&moved.len()), "{} of 50", moved.len());
}

#[tokio::test]
async fn field_of_the_first_message_chooses_the_endpoint() {
    let [a, b, c] = three().await;
    let endpoints = format!("[\"{}\", \"{}\", \"{}\"]", a.address, b.address, c.address);
    let balance = ", balance: {ring_hash: {header: x-user}}";
    let filter = ", filters: [{initial_message: {headers: {x-user: \"1\"}}}]";
    let proxy = start(&endpoints, balance, filter).await;
    let client = Client::connect(&proxy).await;

    let mut owners = BTreeMap::<u8, String>::new();
    for round in 0..3 {
        for user in b'a'..=b'p' {
            // Field 1, a text of one letter.
            let mut call = client.call(PATH, &[]).await;
            call.outgoing.message(&[0x0a, 1, user]).await;
            call.outgoing.end();
            let owner = call.answer().await.headers["x-name"].clone();
            let owner = owner.to_str().unwrap().to_owned();
            let first = owners.entry(user).or_insert_with(|| owner.clone());
            assert_eq!(*first, owner, "round {round}");
        }
    }
    let mut used: Vec<_> = owners.into_values().collect();
    used.sort();
    used.dedup();
    assert!(used.len() > 1, "all sixteen at {used:?}");
}

#[tokio::test]
async fn endpoint_that_is_down_costs_no_stream() {
    let a = named("a").await;
    let endpoints = format!("[\"{}\", \"{}\"]", nobody().await, a.address);
    for balance in [
        "least_streams",
        "round_robin",
        "{ring_hash: {header: x-user}}",
    ] {
        let proxy = start(&endpoints, &format!(", balance: {balance}"), "").await;
        let client = Client::connect(&proxy).await;

        for user in 0..20 {
            let stream = open(&client, &[("x-user", &user.to_string())]).await;
            assert_eq!(stream.2, "a");
        }
        proxy.metric_is(AVAILABLE, 1).await;
        assert!(proxy.admin("/clusters").await.contains("unreachable"));
    }
}

// === balance of long streams ===

/// Streams that are opened again whenever they end, and what is known of them.
#[derive(Default)]
struct Long {
    /// Open at each backend.
    live: [AtomicUsize; 4],
    /// Ended since the last backend came.
    renewed: AtomicUsize,
}

#[tokio::test]
async fn added_endpoint_has_its_share_of_long_streams_one_max_age_later() {
    const STREAMS: usize = 300;
    let names = ["0", "1", "2", "3"];
    let mut backends = Vec::new();
    for name in names {
        backends.push(named(name).await);
    }
    let listed = |count: usize| {
        let backends = backends[..count].iter();
        let all: Vec<_> = backends.map(|it| format!("\"{}\"", it.address)).collect();
        format!("[{}]", all.join(", "))
    };
    let list = List::of(&listed(3));
    let proxy = start(&list.yaml(), "", ", timeouts: {max_age: 2s}").await;
    let long = Arc::<Long>::default();
    let came = Arc::<AtomicUsize>::default();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = Arc::new(Client::connect(&proxy).await);
        for _ in 0..STREAMS / 6 {
            let (client, long, came) = (Arc::clone(&client), Arc::clone(&long), Arc::clone(&came));
            tasks.spawn(async move {
                let mut is_renewed = false;
                loop {
                    let opened_after = came.load(SeqCst) == 1;
                    let (_call, mut incoming, name) = open(&client, &[]).await;
                    let live = &long.live[name.parse::<usize>().unwrap()];
                    live.fetch_add(1, SeqCst);
                    if opened_after && !std::mem::replace(&mut is_renewed, true) {
                        long.renewed.fetch_add(1, SeqCst);
                    }
                    while let Some(Ok(_)) = incoming.chunk().await {}
                    live.fetch_sub(1, SeqCst);
                }
            });
        }
    }
    let live = || long.live.each_ref().map(|live| live.load(SeqCst));
    within("all are open", async {
        while live().iter().sum::<usize>() < STREAMS {
            tokio::task::yield_now().await;
        }
    })
    .await;

    list.write(&listed(4));
    proxy.metric_is(ENDPOINTS, 4).await;
    came.store(1, SeqCst);
    within("each stream was opened again", async {
        while long.renewed.load(SeqCst) < STREAMS {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let loads = live();
    let most = STREAMS as f64 / 4.0 * 1.15;
    assert!(loads.iter().all(|load| *load as f64 <= most), "{loads:?}");
    assert!(loads.iter().sum::<usize>() > STREAMS / 2, "{loads:?}");
}
