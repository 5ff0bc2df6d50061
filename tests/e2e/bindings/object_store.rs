//! Objects in a folder and in memory. Stores behind a network are tested with real servers, in `tests/interop`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use h2::Reason;
use thalweg_proto::{
    bindings::{InvokeBindingRequest, InvokeBindingResponse, Message},
    status::Code,
};

use crate::support::{
    binding::{STREAM, UNARY, initial, metadata, payload},
    child::Running,
    client::{Call, Client},
    flood::Hoard,
    plain::{Peer, PlainUpstream},
    proxy::TestProxy,
    stream::Answer,
    within,
};

mod storm;

/// Parts are small, so that objects have several.
const MEMORY: &str = "it: {object_store: {url: \"memory://\", part_size: 64KiB}}";
const PART: usize = 64 * 1024;

/// Stores that need nothing else.
#[derive(Clone, Copy)]
enum Kind {
    Files,
    Memory,
}

const KINDS: [Kind; 2] = [Kind::Files, Kind::Memory];

/// A store behind the binding `it`.
struct Store {
    folder: tempfile::TempDir,
    proxy: TestProxy,
    client: Client,
}

impl Store {
    async fn of(kind: Kind) -> Self {
        match kind {
            Kind::Files => Self::files().await,
            Kind::Memory => Self::memory().await,
        }
    }

    async fn files() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::at(folder, "").await
    }

    async fn at(folder: tempfile::TempDir, more: &str) -> Self {
        let url = folder.path().join("data");
        let binding = format!(
            "it: {{object_store: {{url: \"file://{}\", part_size: 64KiB}}{more}}}",
            url.display()
        );
        Self::with(folder, &binding).await
    }

    async fn memory() -> Self {
        Self::with(tempfile::tempdir().unwrap(), MEMORY).await
    }

    async fn with(folder: tempfile::TempDir, binding: &str) -> Self {
        let proxy = crate::support::binding::proxy(&[binding]).await;
        let client = Client::connect(&proxy).await;
        Self {
            folder,
            proxy,
            client,
        }
    }

    /// What a key is on the disk.
    fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join("data").join(key)
    }

    /// What is on the disk, temporaries among it, by relative path.
    fn all(&self) -> Vec<String> {
        let root = self.folder.path().join("data");
        let mut found = vec![];
        walk(&root, &root, &mut found);
        found.retain(|path| path != ".thalweg/lock");
        found.sort();
        found
    }

    async fn create(&self, key: &str, body: &[u8]) -> Answer {
        self.client
            .post(&target("create", &[("key", key)]), body)
            .await
    }

    async fn ask(&self, operation: &str, pairs: &[(&str, &str)]) -> Answer {
        self.client.post(&target(operation, pairs), b"").await
    }

    async fn get(&self, key: &str) -> Answer {
        self.ask("get", &[("key", key)]).await
    }
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            walk(root, &path, found);
        } else {
            let path = path.strip_prefix(root).unwrap();
            found.push(path.to_str().unwrap().to_owned());
        }
    }
}

fn target(operation: &str, pairs: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("operation", operation);
    for (name, value) in pairs {
        query.append_pair(&format!("metadata.{name}"), value);
    }
    format!("/v1.0-alpha1/bindings/it/stream?{}", query.finish())
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 / 3) as u8).collect()
}

fn json(answer: &Answer) -> serde_json::Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{:?}", answer.body))
}

fn sha256(bytes: &[u8]) -> String {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    sum.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn refusal(answer: &Answer) -> (u16, String) {
    (answer.status.as_u16(), answer.error().0)
}

// === objects ===

#[tokio::test]
async fn object_comes_back_as_it_went() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        for size in [0, 1, PART - 1, PART, PART + 1, 5 * PART + 3] {
            let data = bytes(size);

            let created = store.create("a/b", &data).await;
            let read = store.get("a/b").await;

            assert_eq!(created.status, 200);
            assert_eq!(created.headers["content-type"], "application/json");
            assert_eq!(json(&created)["key"], "a/b");
            assert_eq!(json(&created)["size"], size);
            assert_eq!(read.body, data, "{size}");
            assert_eq!(read.headers["metadata.size"], size.to_string().as_str());
            assert_eq!(
                read.headers["metadata.etag"],
                created.headers["metadata.etag"]
            );
        }
    }
}

#[tokio::test]
async fn file_is_the_object_and_nothing_else_is_there() {
    let store = Store::files().await;

    store.create("a/b/c.txt", &bytes(3 * PART)).await;

    assert_eq!(fs::read(store.path("a/b/c.txt")).unwrap(), bytes(3 * PART));
    assert_eq!(store.all(), ["a/b/c.txt"]);
}

#[tokio::test]
async fn grpc_streams_an_object_there_and_back() {
    let store = Store::memory().await;
    let data = bytes(300_000);
    let mut call = store.client.invoke("it", &[("blobName", "x")]).await;
    for (number, piece) in data.chunks(10_000).enumerate() {
        call.outgoing.message(&payload(number as u64, piece)).await;
    }
    call.outgoing.end();
    let created = call.answer().await;
    assert_eq!(created.code(), Code::Ok);
    assert_eq!(created.told()[0].response().metadata["size"], "300000");

    let mut call = store.client.call(STREAM, &[]).await;
    let opening = initial("it", "get", &[("file_name", "x"), ("sha256", "true")]);
    call.outgoing.message(&opening).await;
    call.outgoing.end();
    let read = call.answer().await;

    assert_eq!(read.payload(), data);
    assert_eq!(read.trailers["metadata.sha256"], sha256(&data).as_str());
}

#[tokio::test]
async fn unary_calls_reach_the_same_objects() {
    let store = Store::memory().await;
    let call = |operation: &str, data: &'static [u8]| InvokeBindingRequest {
        name: "it".into(),
        data: Bytes::from_static(data),
        metadata: metadata(&[("key", "x")]),
        operation: operation.into(),
    };

    let created = store
        .client
        .unary(UNARY, &call("create", b"hello").encode_to_vec())
        .await;
    assert_eq!(created.code(), Code::Ok);
    let read = store
        .client
        .unary(UNARY, &call("get", b"").encode_to_vec())
        .await;

    let answer = InvokeBindingResponse::decode(read.messages()[0].clone()).unwrap();
    assert_eq!(
        (&*answer.data, &*answer.metadata["size"]),
        (&b"hello"[..], "5")
    );
    let body = br#"{"operation": "list", "data": {"prefix": "x"}}"#;
    let listed = store.client.post("/v1.0/bindings/it", body).await;
    assert_eq!(json(&listed)[0]["key"], "x");
}

#[tokio::test]
async fn object_without_a_name_is_given_one() {
    let store = Store::files().await;

    let created = store.ask("create", &[]).await;

    let key = json(&created)["key"].as_str().unwrap().to_owned();
    assert_eq!(store.all(), [key]);
}

#[tokio::test]
async fn content_type_is_kept_where_a_store_keeps_it() {
    let store = Store::memory().await;

    store
        .ask("create", &[("key", "x"), ("contentType", "text/plain")])
        .await;

    assert_eq!(store.get("x").await.headers["content-type"], "text/plain");
    let head = store.ask("head", &[("key", "x")]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.headers["metadata.contenttype"], "text/plain");
    assert!(head.headers.contains_key("metadata.lastmodified"));
}

#[tokio::test]
async fn range_is_a_part_of_an_object() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        let data = bytes(3 * PART);
        store.create("x", &data).await;
        let cases = [
            ("bytes=0-0", 0..1),
            ("bytes=65530-65545", 65_530..65_546),
            ("bytes=196600-", 196_600..data.len()),
            ("bytes=-10", data.len() - 10..data.len()),
            ("196600-999999999", 196_600..data.len()),
        ];
        for (range, expected) in cases {
            let read = store.ask("get", &[("key", "x"), ("range", range)]).await;
            assert_eq!(read.body, data[expected.clone()], "{range}");
            let told = format!(
                "bytes {}-{}/{}",
                expected.start,
                expected.end - 1,
                data.len()
            );
            assert_eq!(read.headers["metadata.contentrange"], told.as_str());
        }

        let beyond = store
            .ask("get", &[("key", "x"), ("range", "bytes=196608-")])
            .await;
        assert_eq!(refusal(&beyond), (416, "ERR_BAD_RANGE".into()));
    }
}

#[tokio::test]
async fn deleted_object_is_gone_and_may_be_deleted_again() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        store.create("a/x", b"hello").await;

        assert_eq!(store.ask("delete", &[("key", "a/x")]).await.status, 200);

        assert_eq!(
            refusal(&store.get("a/x").await),
            (404, "ERR_NO_OBJECT".into())
        );
        assert_eq!(store.ask("delete", &[("key", "a/x")]).await.status, 200);
        assert_eq!(json(&store.ask("list", &[]).await), serde_json::json!([]));
    }
}

// === lists ===

#[tokio::test]
async fn list_has_every_object_once_and_in_the_order_of_names() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        // `a.b` comes before `a/b`, as its bytes do.
        let mut keys = ["a/b/c", "a.b", "a/d", "b", "ü"].map(String::from).to_vec();
        keys.extend((0..300).map(|index| format!("many/{index:04}")));
        for key in &keys {
            assert_eq!(store.create(key, b"hello").await.status, 200);
        }
        keys.sort();
        let listed = async |pairs: &[(&str, &str)]| -> Vec<String> {
            let answer = json(&store.ask("list", pairs).await);
            let key = |line: &serde_json::Value| line["key"].as_str().unwrap().to_owned();
            answer.as_array().unwrap().iter().map(key).collect()
        };

        assert_eq!(listed(&[]).await, keys);
        assert_eq!(listed(&[("prefix", "a/")]).await, ["a/b/c", "a/d"]);
        assert_eq!(listed(&[("prefix", "many/005")]).await.len(), 10);
        assert_eq!(
            listed(&[("marker", "a.b"), ("maxResults", "3")]).await,
            ["a/b/c", "a/d", "b"]
        );
        assert_eq!(listed(&[("marker", "many/0298")]).await, ["many/0299", "ü"]);
        assert_eq!(listed(&[("prefix", "nowhere/")]).await.len(), 0);
    }
}

#[tokio::test]
async fn list_may_be_asked_for_in_json() {
    let store = Store::memory().await;
    for key in ["a1", "a2", "b"] {
        store.create(key, b"").await;
    }

    let listed = store
        .client
        .post(&target("list", &[]), br#"{"prefix": "a", "maxResults": 1}"#)
        .await;
    let wrong = store.client.post(&target("list", &[]), b"[]").await;
    let delimiter = store.ask("list", &[("delimiter", "/")]).await;

    assert_eq!(json(&listed).as_array().unwrap().len(), 1);
    assert_eq!(json(&listed)[0]["size"], 0);
    assert_eq!(refusal(&wrong), (400, "ERR_BAD_REQUEST".into()));
    assert_eq!(refusal(&delimiter), (400, "ERR_BAD_REQUEST".into()));
}

// === conditions and sums ===

#[tokio::test]
async fn object_is_created_only_if_there_is_none() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        for size in [10, 3 * PART] {
            let key = size.to_string();
            let target = target("create", &[("key", &key), ("ifNoneMatch", "*")]);
            let first = bytes(size);

            assert_eq!(store.client.post(&target, &first).await.status, 200);
            let second = store.client.post(&target, &vec![1; size]).await;

            assert_eq!(refusal(&second), (412, "ERR_OBJECT_EXISTS".into()));
            assert_eq!(store.get(&key).await.body, first);
        }
    }
}

#[tokio::test]
async fn one_of_many_creates_wins() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        let target = target("create", &[("key", "x"), ("if_none_match", "*")]);
        let data: Vec<Vec<u8>> = (0..8).map(|index| vec![index; 3 * PART]).collect();

        let all = data.iter().map(|data| store.client.post(&target, data));
        let answers = futures_util::future::join_all(all).await;

        let won: Vec<_> = (0..8)
            .filter(|index| answers[*index].status == 200)
            .collect();
        assert_eq!(won.len(), 1, "{won:?}");
        assert_eq!(store.get("x").await.body, data[won[0]]);
    }
}

#[tokio::test]
async fn object_is_replaced_only_if_it_is_the_one_that_was_meant() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        let first = store.create("x", b"first").await;
        let tag = first.headers["metadata.etag"].to_str().unwrap();
        let replace = target("create", &[("key", "x"), ("ifMatch", tag)]);

        let second = store.client.post(&replace, b"second").await;
        let third = store.client.post(&replace, b"third").await;
        let stale = store.ask("get", &[("key", "x"), ("ifMatch", tag)]).await;

        assert_eq!(second.status, 200);
        assert_eq!(refusal(&third), (412, "ERR_OBJECT_DIFFERS".into()));
        assert_eq!(refusal(&stale), (412, "ERR_OBJECT_DIFFERS".into()));
        assert_eq!(store.get("x").await.body, "second");
    }
}

#[tokio::test]
async fn sum_of_what_was_read_is_a_trailer_of_http1_too() {
    let store = Store::memory().await;
    store.create("x", b"hello").await;
    let mut peer = Peer::connect(&store.proxy.address).await;
    let target = target("get", &[("key", "x"), ("sha256", "true")]);

    let head =
        format!("POST {target} HTTP/1.1\r\nhost: e2e\r\nte: trailers\r\ncontent-length: 0\r\n\r\n");
    peer.write(head).await;

    assert_eq!(peer.head().await.values("trailer"), ["metadata.sha256"]);
    let sum = format!("metadata.sha256: {}", sha256(b"hello"));
    assert_eq!(peer.chunked().await, (Bytes::from("hello"), vec![sum]));
}

#[tokio::test]
async fn object_with_another_sum_is_not_stored() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        for size in [10, 3 * PART] {
            let data = bytes(size);
            let with = |sum: &str| target("create", &[("key", "x"), ("sha256", sum)]);

            let wrong = store.client.post(&with(&sha256(b"other")), &data).await;
            assert_eq!(refusal(&wrong), (400, "ERR_CHECKSUM_DIFFERS".into()));
            assert_eq!(store.get("x").await.status, 404);

            let right = store.client.post(&with(&sha256(&data)), &data).await;
            assert_eq!(json(&right)["sha256"], sha256(&data));
            assert_eq!(store.ask("delete", &[("key", "x")]).await.status, 200);
        }
    }
}

// === uploads that are cut ===

/// Waits until nothing is under way in the folder.
async fn at_rest(store: &Store, expected: &[&str]) {
    within("only what is complete is left", async {
        while store.all() != expected {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// An upload of which several parts have been written.
async fn half_way(store: &Store, key: &str) -> Call {
    let mut call = store
        .client
        .request("POST", &target("create", &[("key", key)]), &[])
        .await;
    call.outgoing.data(bytes(5 * PART)).await;
    within("a temporary is there", async {
        while !store.all().iter().any(|path| path.starts_with(".thalweg/")) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    call
}

#[tokio::test]
async fn upload_that_is_reset_leaves_nothing_behind() {
    let store = Store::files().await;
    let mut call = half_way(&store, "a/x").await;

    call.outgoing.reset(Reason::CANCEL);

    at_rest(&store, &[]).await;
    let aborted = "thalweg_binding_aborted_uploads_total{binding=\"it\"}";
    store.proxy.metric_is(aborted, 1).await;
}

#[tokio::test]
async fn upload_that_is_cut_does_not_touch_what_was_there() {
    let store = Store::files().await;
    store.create("x", b"before").await;
    let call = half_way(&store, "x").await;

    let Store { client, .. } = &store;
    drop(call);
    // The connection is still of use, and the object is as it was.
    assert_eq!(
        client.post(&target("get", &[("key", "x")]), b"").await.body,
        "before"
    );

    at_rest(&store, &["x"]).await;
}

#[tokio::test]
async fn upload_over_http1_that_is_cut_leaves_nothing_behind() {
    for framing in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let store = Store::files().await;
        let mut peer = Peer::connect(&store.proxy.address).await;
        let target = target("create", &[("key", "x")]);
        let head = format!("POST {target} HTTP/1.1\r\nhost: e2e\r\n{framing}\r\n\r\n");
        peer.write(head).await;
        for _ in 0..4 {
            match framing {
                "transfer-encoding: chunked" => peer.write_chunk(&bytes(PART)).await,
                _ => peer.write(bytes(PART)).await,
            }
        }
        within("a temporary is there", async {
            while store.all().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;

        drop(peer);

        at_rest(&store, &[]).await;
    }
}

#[tokio::test]
async fn upload_with_a_hole_in_its_numbers_is_not_stored() {
    let store = Store::files().await;
    let mut call = store.client.invoke("it", &[("key", "x")]).await;
    for number in [0, 1, 3] {
        call.outgoing.message(&payload(number, &bytes(PART))).await;
    }
    call.outgoing.end();

    let answer = call.answer().await;

    assert_eq!(
        (answer.code(), answer.reason()),
        (Code::InvalidArgument, Some("bad_sequence"))
    );
    at_rest(&store, &[]).await;
}

#[tokio::test]
async fn upload_is_given_up_when_the_drain_is_over() {
    let store = Store::files().await;
    let _call = half_way(&store, "x").await;
    let Store {
        folder,
        proxy,
        client,
    } = store;

    proxy.drain().await;

    let left = fs::read_dir(folder.path().join("data/.thalweg")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
    drop(client);
}

#[tokio::test]
async fn what_a_killed_process_left_is_swept_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("data/.thalweg");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("123-0"), b"half").unwrap();

    let store = Store::at(folder, "").await;

    assert_eq!(store.all(), [""; 0]);
}

#[tokio::test]
async fn what_another_process_is_writing_is_left_alone() {
    let store = Store::files().await;
    let mut call = half_way(&store, "x").await;
    let yaml = format!(
        "it: {{object_store: {{url: \"file://{}\"}}}}",
        store.path("").display()
    );

    let other = crate::support::binding::proxy(&[&yaml]).await;

    call.outgoing.end();
    assert_eq!(call.answer().await.status, 200);
    let client = Client::connect(&other).await;
    assert_eq!(
        client.post(&target("get", &[("key", "x")]), b"").await.body,
        bytes(5 * PART)
    );
}

// === keys ===

#[tokio::test]
async fn key_cannot_leave_the_folder() {
    let store = Store::files().await;
    fs::write(store.folder.path().join("secret"), b"secret").unwrap();
    fs::create_dir(store.folder.path().join("outside")).unwrap();
    symlink(store.folder.path().join("secret"), store.path("link")).unwrap();
    symlink("../secret", store.path("relative")).unwrap();
    symlink(store.folder.path().join("outside"), store.path("folder")).unwrap();
    let keys = [
        ("../secret", 400),
        ("a/../../secret", 400),
        ("/etc/passwd", 400),
        ("./x", 400),
        (".thalweg/lock", 400),
        (".thalweg/x", 400),
        ("link", 403),
        ("relative", 403),
        ("folder/x", 403),
    ];
    for (key, status) in keys {
        let read = store.get(key).await;
        assert_eq!(read.status, status, "get {key}: {:?}", read.body);
        assert_ne!(read.body, "secret");
        if !["link", "relative"].contains(&key) {
            let written = store.create(key, b"overwritten").await;
            // A link stands where a folder would have to be.
            let instead = if key == "folder/x" { 400 } else { status };
            assert_eq!(written.status, instead, "create {key}: {:?}", written.body);
            let deleted = store.ask("delete", &[("key", key)]).await;
            assert_eq!(deleted.status, status, "delete {key}: {:?}", deleted.body);
        }
    }

    // An object takes the place of a link, and not of what that leads to.
    assert_eq!(store.create("link", b"mine").await.status, 200);

    assert_eq!(
        fs::read(store.folder.path().join("secret")).unwrap(),
        b"secret"
    );
    assert_eq!(
        fs::read_dir(store.folder.path().join("outside"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(store.get("link").await.body, "mine");
    let listed = json(&store.ask("list", &[]).await);
    let keys: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|line| &line["key"])
        .collect();
    assert_eq!(keys, ["link"], "links are no objects");
}

#[tokio::test]
async fn object_cannot_be_where_a_folder_is_nor_below_another() {
    let store = Store::files().await;
    store.create("a/b", b"hello").await;

    let long = "x".repeat(300);
    let cases = [
        ("a", "there are objects below it", 404),
        ("a/b/c", "the name of an object already", 404),
        (&*long, "longer than the file system allows", 400),
        (".thalweg/x", "the store's own", 400),
        (".THALWEG/x", "the store's own", 400),
    ];
    for (key, why, read) in cases {
        let refused = store.create(key, b"x").await;
        assert_eq!(refused.status, 400, "{key}");
        let (_, message) = refused.error();
        assert!(message.contains(why), "{message}");
        assert_eq!(store.get(key).await.status, read, "{key}");
    }
    // A folder is no object, and so there is none of that name.
    assert_eq!(store.ask("delete", &[("key", "a")]).await.status, 200);
    assert_eq!(store.all(), ["a/b"]);
}

#[tokio::test]
async fn folder_goes_with_its_last_object_and_leaves_its_name_to_others() {
    let store = Store::files().await;
    store.create("a/b/c.txt", b"hello").await;
    store.create("a/d", b"hello").await;

    store.ask("delete", &[("key", "a/b/c.txt")]).await;
    assert!(!store.path("a/b").exists());
    assert_eq!(store.create("a/b", b"mine").await.status, 200);
    assert_eq!(store.all(), ["a/b", "a/d"]);

    for key in ["a/b", "a/d"] {
        store.ask("delete", &[("key", key)]).await;
    }
    assert_eq!(store.create("a", b"mine").await.status, 200);
    // Nor does an object that did not come to be leave any behind.
    let unmet = [("key", "x/y/z"), ("ifMatch", "\"1\"")];
    let unmet = store.client.post(&target("create", &unmet), b"x").await;
    assert_eq!(unmet.status, 412);
    assert!(!store.path("x").exists());
    // Or somebody else.
    fs::create_dir(store.path("empty")).unwrap();
    assert_eq!(store.create("empty", b"mine").await.status, 200);
}

#[tokio::test]
async fn folder_that_is_removed_while_an_object_comes_is_made_again() {
    let store = Store::files().await;
    let one = async |number: usize| {
        for round in 0..40 {
            let key = format!("a/b/{number}");
            let created = store.create(&key, b"hello").await;
            assert_eq!(created.status, 200, "{round}: {:?}", created.body);
            assert_eq!(store.ask("delete", &[("key", &key)]).await.status, 200);
        }
    };

    futures_util::future::join_all((0..8).map(one)).await;

    assert!(!store.path("a").exists());
}

#[tokio::test]
async fn what_is_the_stores_own_is_not_listed() {
    let store = Store::files().await;
    let _call = half_way(&store, "x").await;

    for prefix in [".thalweg/", ".thalweg/l", ".Thalweg/"] {
        let listed = store.ask("list", &[("prefix", prefix)]).await;
        assert_eq!(refusal(&listed), (400, "ERR_BAD_REQUEST".into()));
    }
    for prefix in ["", ".", ".thalweg"] {
        let listed = store.ask("list", &[("prefix", prefix)]).await;
        assert_eq!(json(&listed), serde_json::json!([]), "{prefix}");
    }
}

/// Else all of them would be one key, and overwrite each other.
#[tokio::test]
async fn name_that_is_not_utf8_is_refused() {
    let store = Store::files().await;
    for query in [
        "metadata.key=%FF",
        "metadata.key=x&metadata.%FE=1",
        "metadata.key=a%C3",
    ] {
        let target = format!("/v1.0-alpha1/bindings/it/stream?operation=create&{query}");
        let refused = store.client.post(&target, b"x").await;
        assert_eq!(
            refusal(&refused),
            (400, "ERR_BAD_REQUEST".into()),
            "{query}"
        );
    }
    assert_eq!(store.all(), [""; 0]);

    // What stands for such bytes elsewhere is a name like others.
    let target = "/v1.0-alpha1/bindings/it/stream?operation=create&metadata.key=%EF%BF%BD+x";
    assert_eq!(store.client.post(target, b"x").await.status, 200);
    assert_eq!(store.all(), ["\u{fffd} x"]);
}

#[tokio::test]
async fn store_whose_folder_was_removed_says_so_and_does_not_speak_of_objects() {
    let store = Store::files().await;
    store.create("x", b"hello").await;
    fs::remove_dir_all(store.path("")).unwrap();

    for operation in ["create", "get", "head", "delete", "list"] {
        let failed = store.ask(operation, &[("key", "x")]).await;
        assert_ne!(failed.status, 200, "{operation}");
        assert_eq!(
            refusal(&failed),
            (503, "ERR_STORE_FAILED".into()),
            "{operation}"
        );
    }
}

#[tokio::test]
async fn pipe_in_the_folder_holds_up_nobody() {
    let store = Store::files().await;
    let made = std::process::Command::new("mkfifo")
        .arg(store.path("pipe"))
        .status();
    assert!(made.unwrap().success());

    assert_eq!(store.get("pipe").await.status, 404);
}

#[tokio::test]
async fn odd_names_are_kept_as_they_are() {
    let store = Store::files().await;
    for key in ["a b", "100%25", "x#1", "a+b&c=d", "ü/ñ", "~", "a?b", "-rf"] {
        assert_eq!(store.create(key, key.as_bytes()).await.status, 200, "{key}");
        assert_eq!(fs::read(store.path(key)).unwrap(), key.as_bytes());
        assert_eq!(store.get(key).await.body, key);
    }
}

// === what cannot be done ===

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_what_can() {
    let store = Store::memory().await;
    let refused = async |operation: &str, pairs: &[(&str, &str)], words: &str| {
        let refused = store.ask(operation, pairs).await;
        assert_eq!(refused.status, 400, "{operation} {pairs:?}");
        let (_, message) = refused.error();
        assert!(message.contains(words), "{message}");
    };

    refused("get", &[], "metadata key is required").await;
    refused("get", &[("key", "x"), ("range", "9-1")], "bytes=0-99").await;
    refused("create", &[("key", "x"), ("ttl", "60")], "lifecycle").await;
    refused(
        "create",
        &[("key", "x"), ("sha256", "abc")],
        "64 hexadecimal",
    )
    .await;
    refused(
        "create",
        &[("key", "x"), ("ifNoneMatch", "y")],
        "ifNoneMatch with `*`",
    )
    .await;
    refused("patch", &[("key", "x")], "create get head delete list").await;
}

#[tokio::test]
async fn full_memory_refuses_and_recovers() {
    let binding = "it: {object_store: {url: \"memory://\", part_size: 64KiB, max_bytes: 300KiB}}";
    let store = Store::with(tempfile::tempdir().unwrap(), binding).await;
    assert_eq!(store.create("a", &bytes(200 * 1024)).await.status, 200);

    let refused = store.create("b", &bytes(200 * 1024)).await;
    assert_eq!(refusal(&refused), (507, "ERR_STORE_FULL".into()));

    store.ask("delete", &[("key", "a")]).await;
    assert_eq!(store.create("b", &bytes(200 * 1024)).await.status, 200);
}

#[tokio::test]
async fn empty_objects_fill_a_memory_too() {
    let binding = "it: {object_store: {url: \"memory://\", max_bytes: 1MiB}}";
    let store = Store::with(tempfile::tempdir().unwrap(), binding).await;
    let attributes = "x".repeat(8000);
    let create = async |number: usize, kind: &str| {
        let key = number.to_string();
        let pairs = [("key", &*key), ("contentType", kind)];
        store.ask("create", &pairs).await.status.as_u16()
    };

    let mut stored = 0;
    while create(stored, &attributes[..]).await == 200 {
        stored += 1;
        assert!(stored < 200, "more is kept than there is room for");
    }
    assert!(stored > 30, "{stored}");
    // Room is there again for as many, however small they are.
    for number in 0..stored {
        store.ask("delete", &[("key", &number.to_string())]).await;
    }
    let mut empty = 0;
    while create(empty, "t").await == 200 {
        empty += 1;
        assert!(empty < 2000, "more is kept than there is room for");
    }
}

#[tokio::test]
async fn long_list_of_a_memory_is_complete() {
    let store = Store::memory().await;
    for number in 0..600 {
        store.create(&format!("many/{number:04}"), b"").await;
    }
    store.create("other", b"").await;

    let listed = json(&store.ask("list", &[("prefix", "many/")]).await);

    let keys: Vec<_> = (listed.as_array().unwrap().iter())
        .map(|line| line["key"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<_> = (0..600).map(|number| format!("many/{number:04}")).collect();
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn folder_that_cannot_be_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"").unwrap();
    let yaml = format!(
        "listeners: [{{name: it, address: \"127.0.0.1:0\"}}]\nbindings: {{it: {{object_store: {{url: \"file://{}/file/data\"}}}}}}\n",
        folder.path().display()
    );
    let config = thalweg::config::parse(&yaml, "test.yaml", &|_| None).unwrap();

    let error = thalweg::app::App::start(config)
        .await
        .unwrap_err()
        .to_string();

    assert!(error.contains("binding it"), "{error}");
    assert!(error.contains("file/data"), "{error}");
}

// === what is read ===

#[tokio::test]
async fn file_that_becomes_shorter_while_it_is_read_is_a_break() {
    let store = Store::files().await;
    store.create("x", &bytes(16 << 20)).await;
    let mut call = store
        .client
        .request("POST", &target("get", &[("key", "x")]), &[])
        .await;
    call.outgoing.end();
    let (head, mut incoming) = call.head().await;
    assert_eq!(head.status(), 200);
    incoming.chunk().await.unwrap().unwrap();

    let file = fs::OpenOptions::new()
        .write(true)
        .open(store.path("x"))
        .unwrap();
    file.set_len(1 << 20).unwrap();

    let (_, end) = incoming.rest().await;
    assert!(end.is_err(), "a reset, and no clean end");
}

/// Keeps to its old content though it is replaced meanwhile.
#[tokio::test]
async fn reader_of_a_replaced_object_reads_the_old_one_to_its_end() {
    for kind in KINDS {
        let store = Store::of(kind).await;
        let old = bytes(4 << 20);
        store.create("x", &old).await;
        let mut call = store
            .client
            .request("POST", &target("get", &[("key", "x")]), &[])
            .await;
        call.outgoing.end();
        let (_, mut incoming) = call.head().await;

        // On a connection of its own: the window of the first is full of the old object.
        let other = Client::connect(&store.proxy).await;
        let created = other.post(&target("create", &[("key", "x")]), b"new").await;
        assert_eq!(created.status, 200);

        let (body, end) = incoming.rest().await;
        assert!(end.is_ok());
        assert_eq!(body, old);
        assert_eq!(store.get("x").await.body, "new");
    }
}

#[tokio::test]
async fn slow_reader_of_a_large_object_costs_a_window() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let file = fs::File::create(data.join("x")).unwrap();
    file.set_len(1 << 30).unwrap();
    let yaml = crate::support::binding::yaml(&[&format!(
        "it: {{object_store: {{url: \"file://{}\"}}}}",
        data.display()
    )]);
    let proxy = Running::start(&yaml).await;
    let client = Client::connect_with(&proxy.address, &h2::client::Builder::new()).await;
    let before = proxy.memory();

    let mut readers = vec![];
    for _ in 0..8 {
        let mut call = client
            .request("POST", &target("get", &[("key", "x")]), &[])
            .await;
        call.outgoing.end();
        let (_, incoming) = call.head().await;
        readers.push((call, Hoard::start(incoming)));
    }
    // Calls that come and go tell that the proxy has done what there was to do; on another connection, for the window of this one is full.
    let other = Client::connect_with(&proxy.address, &h2::client::Builder::new()).await;
    for _ in 0..50 {
        assert_eq!(
            other
                .post(&target("head", &[("key", "x")]), b"")
                .await
                .status,
            200
        );
    }

    let grown = proxy.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}

#[tokio::test]
async fn large_object_passes_in_constant_memory() {
    const TOTAL: usize = 192 << 20;
    let folder = tempfile::tempdir().unwrap();
    let yaml = crate::support::binding::yaml(&[&format!(
        "it: {{object_store: {{url: \"file://{}/data\"}}}}",
        folder.path().display()
    )]);
    let proxy = Running::start(&yaml).await;
    let client = Client::connect_with(&proxy.address, &h2::client::Builder::new()).await;
    let mut call = client
        .request("POST", &target("create", &[("key", "x")]), &[])
        .await;
    let piece = Bytes::from(vec![7; 1 << 20]);
    let mut base = None;

    for megabyte in 0..TOTAL >> 20 {
        call.outgoing.data(piece.clone()).await;
        if megabyte >= 32 && megabyte % 8 == 0 {
            let now = proxy.memory();
            let base = *base.get_or_insert(now);
            assert!(now < base + (16 << 20), "{now} bytes, and {base} at first");
        }
    }
    call.outgoing.end();
    assert_eq!(call.answer().await.status, 200);

    assert_eq!(
        fs::metadata(folder.path().join("data/x")).unwrap().len(),
        TOTAL as u64
    );
}

// === a store behind a network, word by word ===

/// A proxy before an S3 store that is written by hand.
async fn before_s3(upstream: &PlainUpstream) -> Store {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    let binding = format!(
        "it: {{object_store: {{url: \"s3://bucket\", endpoint: \"http://{}\", part_size: 5MiB, access_key_id: me, secret_access_key_file: {}/secret}}}}",
        upstream.address,
        folder.path().display()
    );
    Store::with(folder, &binding).await
}

/// The upload of an object that needs a second part.
async fn large(store: &Store) -> Call {
    let mut call = store
        .client
        .request("POST", &target("create", &[("key", "x")]), &[])
        .await;
    call.outgoing.data(bytes((5 << 20) + 1)).await;
    call
}

async fn answer(peer: &mut Peer, status: &str, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
    peer.write(head + body).await;
}

const BEGUN: &str =
    "<InitiateMultipartUploadResult><UploadId>seven</UploadId></InitiateMultipartUploadResult>";

#[tokio::test]
async fn upload_that_begins_after_its_client_has_left_is_aborted() {
    let upstream = PlainUpstream::bind().await;
    let store = before_s3(&upstream).await;
    let mut call = large(&store).await;
    let mut s3 = upstream.accept().await;
    assert_eq!(s3.head().await.line, "POST /bucket/x?uploads= HTTP/1.1");

    call.outgoing.reset(Reason::CANCEL);
    // Its place is free again, so the proxy has seen the reset.
    store
        .proxy
        .metric_is("thalweg_streams_live{route=\"binding/it\"}", 0)
        .await;
    answer(&mut s3, "200 OK", BEGUN).await;

    let line = s3.head().await.line;
    assert_eq!(line, "DELETE /bucket/x?uploadId=seven HTTP/1.1");
    answer(&mut s3, "204 No Content", "").await;
    let aborted = "thalweg_binding_aborted_uploads_total{binding=\"it\"}";
    store.proxy.metric_is(aborted, 1).await;
    assert_eq!(
        store
            .proxy
            .metric("thalweg_binding_failed_aborts_total{binding=\"it\"}")
            .await,
        0
    );
}

#[tokio::test]
async fn refusal_of_a_store_names_no_secret_and_no_address() {
    let upstream = PlainUpstream::bind().await;
    let store = before_s3(&upstream).await;
    let asked = store.create("x", b"hello");
    let served = async {
        let mut s3 = upstream.accept().await;
        let head = s3.head().await;
        assert_eq!(head.line, "PUT /bucket/x HTTP/1.1");
        answer(
            &mut s3,
            "403 Forbidden",
            "<Error><Code>AccessDenied</Code></Error>",
        )
        .await;
        s3
    };

    let (refused, _s3) = tokio::join!(asked, served);

    assert_eq!(refusal(&refused), (403, "ERR_STORE_REFUSED".into()));
    let (_, message) = refused.error();
    assert!(!message.contains(&upstream.address), "{message}");
}
