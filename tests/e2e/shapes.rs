//! Every kind of call, as client and upstream see it.

use bytes::Bytes;
use h2::Reason;
use thalweg_proto::status::Code;

use crate::support::{
    client::{self, Client, grpc},
    framed, headers,
    proxy::Yaml,
    raw::{self, RawUpstream},
    upstream::{Upstream, builder, echo},
    values,
};

// === the four shapes ===

#[tokio::test]
async fn one_message_comes_back_for_one() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary("/e2e.Echo/Unary", b"hello").await;

    assert_eq!(answer.messages(), ["hello"]);
    assert_eq!(answer.code(), Code::Ok);
    assert_eq!(answer.reason(), None);
}

#[tokio::test]
async fn many_messages_come_back_for_one() {
    let upstream = Upstream::start().await.serve(async |mut call| {
        let message = call.incoming.message().await.unwrap();
        let mut outgoing = call.respond();
        for _ in 0..1000 {
            outgoing.message(&message).await;
        }
        outgoing.trailers(&[("grpc-status", "0")]);
    });
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary("/e2e.Echo/Download", b"again").await;

    assert_eq!(answer.messages(), vec!["again"; 1000]);
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn one_message_comes_back_for_many() {
    let upstream = Upstream::start().await.serve(async |mut call| {
        let mut count = 0;
        while call.incoming.message().await.is_some() {
            count += 1;
        }
        let mut outgoing = call.respond();
        outgoing.message(format!("{count}").as_bytes()).await;
        outgoing.trailers(&[("grpc-status", "0")]);
    });
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Upload", &[])
        .await;

    for _ in 0..1000 {
        call.outgoing.message(b"one more").await;
    }
    call.outgoing.end();

    let answer = call.answer().await;
    assert_eq!(answer.messages(), ["1000"]);
    assert_eq!(answer.code(), Code::Ok);
}

/// Each side speaks only when it has heard the other, so a message that anyone held back would be the last.
#[tokio::test]
async fn each_message_is_passed_on_as_it_is_complete() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[])
        .await;
    let (head, mut incoming) = call.head().await;

    for turn in 0..200 {
        let word = format!("{turn}");
        call.outgoing.message(word.as_bytes()).await;
        assert_eq!(incoming.message().await.unwrap(), word);
    }
    call.outgoing.end();

    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
}

// === endings of one side ===

#[tokio::test]
async fn response_goes_on_after_the_client_has_ended_its_half() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[])
        .await;

    call.outgoing.end();
    let mut upstream = upstream.call().await;
    assert_eq!(upstream.incoming.message().await, None);
    let mut outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;
    for _ in 0..200 {
        outgoing.message(b"still here").await;
        assert_eq!(incoming.message().await.unwrap(), "still here");
    }
    outgoing.trailers(&[("grpc-status", "0")]);

    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
}

#[tokio::test]
async fn request_goes_on_after_the_head_of_the_response() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[])
        .await;
    let mut upstream = upstream.call().await;

    let mut outgoing = upstream.respond();
    let (head, mut incoming) = call.head().await;
    for _ in 0..200 {
        call.outgoing.message(b"more").await;
        assert_eq!(upstream.incoming.message().await.unwrap(), "more");
    }
    call.outgoing.end();
    assert_eq!(upstream.incoming.message().await, None);
    outgoing.trailers(&[("grpc-status", "0")]);

    assert_eq!(client::answer(head, &mut incoming).await.code(), Code::Ok);
}

#[tokio::test]
async fn early_answer_is_delivered_whole_and_the_request_is_stopped() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Upload", &[])
        .await;
    call.outgoing.message(b"the first of many").await;
    let mut upstream = upstream.call().await;
    upstream.incoming.message().await.unwrap();

    let mut outgoing = upstream.respond();
    for _ in 0..100 {
        outgoing.message(&[7; 1000]).await;
    }
    outgoing.trailers(&[("grpc-status", "9"), ("grpc-message", "enough")]);

    let answer = call.answer().await;
    assert_eq!(answer.messages(), vec![vec![7; 1000]; 100]);
    assert_eq!(
        (answer.code(), answer.text()),
        (Code::FailedPrecondition, "enough".into())
    );
    assert_eq!(answer.reason(), None);
    assert_eq!(call.outgoing.reset_by_peer().await, Reason::NO_ERROR);
    // The upstream is told too that no more will come.
    upstream.incoming.broken().await;
}

/// The client reads little by little and sends all the while, so the answer has to wait for it.
#[tokio::test]
async fn early_answer_is_delivered_whole_to_a_client_that_reads_slowly() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1000);
    let client = Client::connect_with(&proxy.address, &narrow).await;
    let mut call = client.call("/e2e.Echo/Upload", &[]).await;
    call.outgoing.message(b"the first of many").await;
    let mut upstream = upstream.call().await;
    upstream.incoming.message().await.unwrap();

    let mut outgoing = upstream.respond();
    outgoing.message(&[7; 100_000]).await;
    outgoing.trailers(&[("grpc-status", "0")]);
    let (head, mut incoming) = call.head().await;
    for _ in 0..50 {
        call.outgoing.message(b"and another").await;
        let some = incoming.chunk().await.unwrap().unwrap();
        assert!(some.iter().all(|byte| [0, 1, 0x86, 0xa0, 7].contains(byte)));
    }

    let answer = client::answer(head, &mut incoming).await;
    assert_eq!((answer.code(), answer.reset), (Code::Ok, None));
}

#[tokio::test]
async fn answer_without_a_body_is_delivered_while_the_request_still_comes() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Upload", &[])
        .await;
    call.outgoing.message(b"the first of many").await;

    let mut upstream = upstream.call().await;
    upstream.finish_with(
        200,
        &[("content-type", "application/grpc"), ("grpc-status", "16")],
    );

    assert_eq!(call.answer().await.code(), Code::Unauthenticated);
    assert_eq!(call.outgoing.reset_by_peer().await, Reason::NO_ERROR);
    upstream.incoming.broken().await;
}

// === heads before bodies ===

#[tokio::test]
async fn request_head_is_passed_on_before_a_byte_of_its_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;

    let _call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[("x-first", "yes")])
        .await;

    let call = upstream.call().await;
    assert_eq!(call.path(), "/e2e.Echo/Talk");
    assert_eq!(call.headers()["x-first"], "yes");
    assert_eq!(call.headers()["te"], "trailers");
    assert_eq!(call.head.uri.authority().unwrap(), "e2e.test");
}

#[tokio::test]
async fn response_head_is_passed_on_before_a_byte_of_its_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[])
        .await;

    let _outgoing = upstream
        .call()
        .await
        .respond_with(200, &[("x-first", "yes")]);

    let (head, _) = call.head().await;
    assert_eq!(
        (head.status().as_u16(), &head.headers()["x-first"]),
        (200, &"yes".parse().unwrap())
    );
}

// === metadata ===

/// Binary values are text of their own kind and may be joined by commas; whoever splits or joins them has changed them.
const METADATA: [(&str, &str); 6] = [
    ("x-bin", "AAECAwQ"),
    ("x-bin", "/+8=,AQI="),
    ("x-repeated", "one"),
    ("x-repeated", "two, three"),
    ("x-repeated", "one"),
    ("x-empty", ""),
];

fn assert_untouched(found: &http::HeaderMap) {
    assert_eq!(values(found, "x-bin"), ["AAECAwQ", "/+8=,AQI="]);
    assert_eq!(values(found, "x-repeated"), ["one", "two, three", "one"]);
    assert_eq!(values(found, "x-empty"), [""]);
}

#[tokio::test]
async fn metadata_is_untouched_in_headers_and_trailers_both_ways() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &METADATA)
        .await;
    call.outgoing.message(b"x").await;
    call.outgoing.trailers(&METADATA);

    let mut upstream = upstream.call().await;
    assert_untouched(upstream.headers());
    assert_untouched(&upstream.incoming.rest().await.1.unwrap());
    let mut outgoing = upstream.respond_with(200, &METADATA);
    outgoing.message(b"y").await;
    outgoing.trailers(&[&METADATA[..], &[("grpc-status", "0")]].concat());

    let answer = call.answer().await;
    assert_untouched(&answer.headers);
    assert_untouched(&answer.trailers);
    assert_eq!(answer.code(), Code::Ok);
}

#[tokio::test]
async fn fields_keep_their_order_among_their_like() {
    let upstream = RawUpstream::bind().await;
    let proxy = Yaml::to(&upstream.address).start().await;
    let client = Client::connect(&proxy).await;
    let mut call = client.call("/e2e.Echo/Talk", &[]).await;
    let mut peer = upstream.handshake(&[]).await;
    let stream = peer.until(|frame| frame.kind == raw::HEADERS).await.stream;

    peer.write(&raw::headers(
        stream,
        &[
            (":status", "200"),
            ("a", "1"),
            ("b", "2"),
            ("a", "3"),
            ("a", "0"),
        ],
        true,
    ))
    .await;

    assert_eq!(values(&call.answer().await.headers, "a"), ["1", "3", "0"]);
}

#[tokio::test]
async fn trailers_only_answer_stays_one_head() {
    let upstream = Upstream::start().await.serve(async |mut call| {
        let status = [
            ("content-type", "application/grpc"),
            ("grpc-status", "5"),
            ("grpc-message", "no%20such%20thing"),
        ];
        call.finish_with(200, &status);
    });
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let mut call = client.call("/e2e.Echo/Unary", &[]).await;
    let (head, mut incoming) = call.head().await;

    assert!(
        incoming.raw().is_end_stream(),
        "the head alone ends the stream"
    );
    assert_eq!(head.headers()["grpc-status"], "5");
    assert_eq!(head.headers()["grpc-message"], "no%20such%20thing");
    assert!(
        !head.headers().contains_key("thalweg-reason"),
        "the upstream's own status is traffic"
    );
}

#[tokio::test]
async fn trailers_follow_headers_without_a_body() {
    let upstream = Upstream::start().await.serve(async |mut call| {
        call.respond()
            .trailers(&[("grpc-status", "5"), ("x-late", "yes")]);
    });
    let proxy = Yaml::to(&upstream).start().await;

    let answer = Client::connect(&proxy)
        .await
        .unary("/e2e.Echo/Unary", b"x")
        .await;

    assert_eq!(answer.code(), Code::NotFound);
    assert_eq!(
        answer.trailers,
        headers(&[("grpc-status", "5"), ("x-late", "yes")])
    );
}

// === sizes ===

#[tokio::test]
async fn empty_messages_are_messages() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[])
        .await;

    for _ in 0..10 {
        call.outgoing.message(b"").await;
    }
    call.outgoing.end();

    assert_eq!(call.answer().await.messages(), vec![Bytes::new(); 10]);
}

#[tokio::test]
async fn message_far_larger_than_any_window_passes() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;
    let message: Vec<u8> = (0..16 << 20).map(|at: u32| (at % 251) as u8).collect();

    let answer = client.unary("/e2e.Echo/Unary", &message).await;

    assert!(
        answer.messages() == [message],
        "the message has changed on its way"
    );
    assert_eq!(answer.code(), Code::Ok);
}

/// A message may begin and end anywhere in a frame, and a head may be torn apart.
#[tokio::test]
async fn messages_torn_into_single_bytes_arrive_whole() {
    let upstream = Upstream::start().await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let mut call = Client::connect(&proxy)
        .await
        .call("/e2e.Echo/Talk", &[])
        .await;
    let bytes = [framed(b"one"), framed(b""), framed(b"three")].concat();

    for byte in bytes {
        call.outgoing.data(vec![byte]).await;
    }
    call.outgoing.end();

    assert_eq!(call.answer().await.messages(), ["one", "", "three"]);
}

#[tokio::test]
async fn narrow_windows_of_the_upstream_only_slow_things_down() {
    let mut narrow = builder();
    narrow
        .initial_window_size(100)
        .initial_connection_window_size(65_535);
    let upstream = Upstream::start_with(&narrow).await.serve(echo);
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let answer = client.unary("/e2e.Echo/Unary", &[3; 50_000]).await;

    assert_eq!(answer.messages(), [vec![3; 50_000]]);
}

#[tokio::test]
async fn request_that_ends_with_its_head_reaches_the_upstream_so() {
    let mut upstream = Upstream::start().await;
    let proxy = Yaml::to(&upstream).start().await;
    let client = Client::connect(&proxy).await;

    let mut call = client.open(grpc("/e2e.Echo/Upload"), true).await;

    let mut upstream = upstream.call().await;
    assert!(upstream.incoming.raw().is_end_stream());
    upstream.finish_with(200, &[("grpc-status", "0")]);
    assert_eq!(call.answer().await.code(), Code::Ok);
}
