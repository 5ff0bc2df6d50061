//! What each reset code of one side becomes on the other. `docs/status.md` has the table, and is held to it here.

use std::{fs, path::Path};

use h2::Reason;
use thalweg_proto::status::{Code, reset_name};

use crate::support::{
    client::Client,
    framed,
    proxy::Yaml,
    raw::{self, RawUpstream},
    upstream::Upstream,
};

const PATH: &str = "/e2e.Echo/Talk";
const CODES: std::ops::RangeInclusive<u32> = 0..=13;

/// The code that a client of plain HTTP hears after the head.
fn passed_on(code: u32) -> Reason {
    match Reason::from(code) {
        Reason::NO_ERROR => Reason::INTERNAL_ERROR,
        code => code,
    }
}

// === from the upstream ===

#[tokio::test]
async fn grpc_hears_a_status_for_each_code_before_the_head() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("retry: {max_retries: 0}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let mut call = client.call(PATH, &[]).await;
        upstream.call().await.reset(code.into());

        let answer = call.answer().await;
        assert_eq!(answer.code(), Code::from_reset(code), "code {code}");
        assert_eq!(answer.reason(), Some("upstream_reset"), "code {code}");
        assert_eq!(answer.status, 200);
        let text = answer.text();
        assert!(
            text.contains("cluster main") && text.contains(reset_name(code)),
            "{text}"
        );
    }
}

#[tokio::test]
async fn grpc_hears_a_status_for_each_code_in_the_middle() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let mut call = client.call(PATH, &[]).await;
        let mut outgoing = upstream.call().await.respond();
        outgoing.message(b"whole").await;
        let (head, mut incoming) = call.head().await;
        assert_eq!(incoming.message().await.unwrap(), "whole");
        outgoing.reset(code.into());

        let answer = crate::support::client::answer(head, &mut incoming).await;
        assert_eq!(answer.code(), Code::from_reset(code), "code {code}");
        assert_eq!(answer.reason(), Some("upstream_reset"), "code {code}");
        assert!(
            answer.text().contains(reset_name(code)),
            "{}",
            answer.text()
        );
    }
}

/// All in one segment: the reset is known before the bytes were looked at.
#[tokio::test]
async fn bytes_before_a_reset_are_delivered_whatever_its_code() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let client = Client::connect(&proxy).await;
    let mut calls = vec![client.call(PATH, &[]).await];
    let mut peer = upstream.handshake(&[]).await;

    for code in CODES {
        let stream = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;
        let answer = [
            raw::headers(stream, &[(":status", "200")], false),
            raw::data(stream, &framed(b"whole"), false),
            raw::rst_stream(stream, code),
        ];
        peer.write(&answer.concat()).await;

        let answer = calls.pop().unwrap().answer().await;
        assert_eq!(answer.messages(), ["whole"], "code {code}");
        assert_eq!(answer.code(), Code::from_reset(code), "code {code}");
        calls.push(client.call(PATH, &[]).await);
    }
}

#[tokio::test]
async fn plain_http_hears_bad_gateway_for_each_code_before_the_head() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream)
        .route("retry: {max_retries: 0}")
        .start()
        .await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let request = http::Request::get("http://e2e.test/file");
        let mut call = client.open(request, true).await;
        upstream.call().await.reset(code.into());

        let answer = call.answer().await;
        assert_eq!(answer.status, 502, "code {code}");
        assert_eq!(answer.reason(), Some("upstream_reset"), "code {code}");
    }
}

#[tokio::test]
async fn plain_http_hears_the_same_code_in_the_middle() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let request = http::Request::get("http://e2e.test/file");
        let mut call = client.open(request, true).await;
        let mut outgoing = upstream.call().await.respond_with(200, &[]);
        outgoing.data("half of").await;
        let (_, mut incoming) = call.head().await;
        assert_eq!(incoming.chunk().await.unwrap().unwrap(), "half of");
        outgoing.reset(code.into());

        assert_eq!(incoming.broken().await, passed_on(code), "code {code}");
    }
}

// === from the client ===

/// What the upstream hears.
fn cancelled(code: u32) -> Reason {
    match Reason::from(code) {
        Reason::NO_ERROR => Reason::CANCEL,
        code => code,
    }
}

#[tokio::test]
async fn upstream_hears_each_code_of_the_client_before_the_head() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let mut call = client.call(PATH, &[]).await;
        let mut upstream = upstream.call().await;
        call.outgoing.reset(code.into());

        assert_eq!(
            upstream.reset_by_peer().await,
            cancelled(code),
            "code {code}"
        );
    }
}

#[tokio::test]
async fn upstream_hears_each_code_of_the_client_in_the_middle() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let mut call = client.call(PATH, &[]).await;
        let mut outgoing = upstream.call().await.respond();
        let _head = call.head().await;
        call.outgoing.reset(code.into());

        assert_eq!(
            outgoing.reset_by_peer().await,
            cancelled(code),
            "code {code}"
        );
    }
}

#[tokio::test]
async fn upstream_hears_each_code_of_the_client_after_half_close() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    for code in CODES {
        let mut call = client.call(PATH, &[]).await;
        call.outgoing.end();
        let mut upstream = upstream.call().await;
        upstream.incoming.rest().await.1.unwrap();
        let mut outgoing = upstream.respond();
        let _head = call.head().await;
        call.outgoing.reset(code.into());

        assert_eq!(
            outgoing.reset_by_peer().await,
            cancelled(code),
            "code {code}"
        );
    }
}

// === the manual ===

fn manual() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status.md")).unwrap()
}

/// The cells of the rows whose first cell begins so.
fn rows(text: &str, first: impl Fn(&str) -> bool) -> Vec<Vec<&str>> {
    let cells = text.lines().filter_map(|line| {
        let line = line.strip_prefix('|')?.strip_suffix('|')?;
        Some(line.split('|').map(str::trim).collect::<Vec<_>>())
    });
    cells.filter(|cells| first(cells[0])).collect()
}

#[test]
fn manual_tells_what_each_code_becomes() {
    let manual = manual();

    let rows = rows(&manual, |first| first.parse::<u32>().is_ok());

    let true_rows: Vec<_> = CODES
        .map(|code| {
            let heard = reset_name(passed_on(code).into());
            [
                code.to_string(),
                reset_name(code).into(),
                Code::from_reset(code).to_string(),
                heard.into(),
            ]
        })
        .collect();
    assert_eq!(rows, true_rows);
}
