//! Exit codes, words, and what is left of an answer that was cut.

use std::{path::Path, process::Stdio};

use h2::Reason;
use thalweg_proto::Code;

use super::{Client, TRANSPORTS, invoke, run};
use crate::support::{
    binding::{self, initial_response, payload},
    child::{Folder, binary},
    component::{Component, ready},
    plain::PlainUpstream,
    proxy::Yaml,
    raw::{self, RawUpstream},
    stream::Outgoing,
    upstream::{Call, Upstream, nobody},
    within,
};

// === exit codes ===

#[tokio::test]
async fn each_status_of_grpc_has_its_exit_code() {
    let mut server = Upstream::start().await;
    for (code, exit) in Code::ALL.into_iter().zip([
        0, 70, 70, 65, 75, 66, 65, 77, 75, 65, 75, 65, 70, 70, 69, 70, 77,
    ]) {
        let (said, ()) = tokio::join!(run(invoke(&server, &["it"])), async {
            let mut call = server.call().await;
            let status = [
                ("grpc-status", code.as_str()),
                ("grpc-message", "so%20it is"),
            ];
            // In the head for one half of them, and in trailers for the other.
            if code.number() % 2 == 0 {
                call.finish_with(
                    200,
                    &[&[("content-type", "application/grpc")], &status[..]].concat(),
                );
            } else {
                call.respond().trailers(&status);
            }
        });

        assert_eq!(said.code, Some(exit), "{code}");
        if exit != 0 {
            let expected = format!("thalweg: {code}: so it is\n");
            assert!(said.stderr.starts_with(&expected), "{}", said.stderr);
        }
    }
}

#[tokio::test]
async fn each_status_of_http_has_its_exit_code() {
    let server = PlainUpstream::bind().await;
    for (status, exit) in [
        (200, 0),
        (204, 0),
        (302, 76),
        (400, 65),
        (401, 77),
        (403, 77),
        (404, 66),
        (409, 65),
        (412, 65),
        (413, 75),
        (416, 65),
        (429, 75),
        (500, 70),
        (501, 70),
        (502, 69),
        (503, 69),
        (504, 75),
    ] {
        let (said, ()) = tokio::join!(run(invoke(&server.address, &["it", "--http"])), async {
            let mut peer = server.accept().await;
            peer.head().await;
            let body = match status {
                204 => "",
                _ => r#"{"errorCode": "ERR_IT", "message": "so it is"}"#,
            };
            let length = body.len();
            peer.write(format!(
                "HTTP/1.1 {status} It\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
        });

        assert_eq!(said.code, Some(exit), "{status}: {}", said.stderr);
        if status >= 400 {
            assert!(said.stderr.ends_with(": so it is\n"), "{}", said.stderr);
        }
    }
}

#[tokio::test]
async fn each_reset_of_http2_has_its_exit_code() {
    let mut server = Upstream::start().await;
    for (reason, exit) in [
        (Reason::PROTOCOL_ERROR, 76),
        (Reason::INTERNAL_ERROR, 76),
        (Reason::REFUSED_STREAM, 69),
        (Reason::CANCEL, 76),
        (Reason::ENHANCE_YOUR_CALM, 75),
        (Reason::INADEQUATE_SECURITY, 77),
    ] {
        let (said, ()) = tokio::join!(run(invoke(&server, &["it"])), async {
            server.call().await.reset(reason);
        });

        assert_eq!(said.code, Some(exit), "{reason:?}: {}", said.stderr);
        let name = thalweg_proto::status::reset_name(reason.into());
        assert!(said.stderr.contains(name), "{}", said.stderr);
    }
}

#[tokio::test]
async fn server_that_shuts_down_before_it_takes_the_call_is_unavailable() {
    let server = RawUpstream::bind().await;
    let (said, ()) = tokio::join!(run(invoke(&server.address, &["it"])), async {
        let mut peer = server.handshake(&[]).await;
        peer.until(|frame| frame.kind == raw::HEADERS).await;
        peer.write(&raw::goaway(0, Reason::NO_ERROR.into())).await;
        peer.closed().await;
    });

    assert_eq!(said.code, Some(69), "{}", said.stderr);
    assert!(
        said.stderr.contains("closed the connection: NO_ERROR"),
        "{}",
        said.stderr
    );
}

#[tokio::test]
async fn words_of_the_server_do_not_steer_the_terminal() {
    let mut server = Upstream::start().await;
    let (said, ()) = tokio::join!(run(invoke(&server, &["it"])), async {
        let status = [("grpc-status", "13"), ("grpc-message", "%1B[2J%0Agone")];
        server.call().await.respond().trailers(&status);
    });

    assert_eq!(said.stderr, "thalweg: INTERNAL: \\u{1b}[2J\\ngone\n");
}

#[tokio::test]
async fn proxy_without_bindings_is_told_as_such() {
    let proxy = Yaml::to(nobody().await)
        .route("match: {path: /elsewhere}")
        .start()
        .await;

    for (transport, exit) in TRANSPORTS.into_iter().zip([70, 66]) {
        let mut command = invoke(&proxy.address, &["it"]);
        command.args(transport);
        let said = run(command).await;

        assert_eq!(said.code, Some(exit), "{}", said.stderr);
        assert!(said.stderr.contains("has no `bindings`"), "{}", said.stderr);
    }
}

#[tokio::test]
async fn binding_that_is_not_there_leads_to_the_list() {
    let proxy = binding::proxy(&["echo: {echo: {}}"]).await;
    let folder = Folder::empty();
    let large = folder.path().join("large");
    std::fs::File::create(&large)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();

    for transport in TRANSPORTS {
        let mut command = invoke(&proxy.address, &["nowhere"]);
        // Much more than the proxy takes before it refuses.
        command.args(transport).arg("-i").arg(&large);
        let said = run(command).await;

        assert_eq!(said.code, Some(66), "{said:?}");
        assert!(said.stderr.contains("nowhere"), "{}", said.stderr);
        assert!(
            said.stderr.contains("`thalweg bindings`"),
            "{}",
            said.stderr
        );
    }
}

#[tokio::test]
async fn server_that_closes_before_it_has_taken_all_is_heard() {
    let server = PlainUpstream::bind().await;
    let folder = Folder::empty();
    let large = folder.path().join("large");
    let file = std::fs::File::create(&large).unwrap();
    file.set_len(64 << 20).unwrap();

    let mut command = invoke(&server.address, &["it", "--http"]);
    command.arg("-i").arg(&large);
    let (said, ()) = tokio::join!(run(command), async {
        let mut peer = server.accept().await;
        peer.head().await;
        peer.write("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 9\r\n\r\ntoo large")
            .await;
    });

    assert_eq!(said.code, Some(75), "{}", said.stderr);
    assert_eq!(said.stderr, "thalweg: 413 Payload Too Large: too large\n");
}

#[tokio::test]
async fn wrong_command_lines_are_refused_before_anything_is_asked() {
    let nobody = nobody().await;
    for (wrong, words) in [
        (&["it", "-m", "key"][..], "write KEY=VALUE"),
        (&["it", "-m", "=value"], "write KEY=VALUE"),
        (&["it", "--timeout", "5"], "such as `5s`"),
        (&["it", "--timeout", "0s"], "such as `5s`"),
        (&["it", "--cert", "cert.pem"], "--key"),
        (&[], "<BINDING>"),
    ] {
        let said = run(invoke(&nobody, wrong)).await;
        assert_eq!(said.code, Some(2), "{wrong:?}");
        assert!(said.stderr.contains(words), "{}", said.stderr);
    }
    for address in [
        "ftp://127.0.0.1:1",
        "127.0.0.1:8080",
        "http://a/b",
        "http://",
        "unix:",
    ] {
        let mut command = binary();
        let said = run({
            command.args(["invoke", "it", "--address", address]);
            command
        })
        .await;
        assert_eq!(said.code, Some(2), "{address}");
        assert!(said.stderr.contains("write "), "{}", said.stderr);
    }
}

// === nobody, and somebody else ===

#[tokio::test]
async fn address_without_a_server_is_told_with_a_hint() {
    let nobody = nobody().await;
    let folder = Folder::empty();
    let socket = format!("unix:{}", folder.path().join("it.sock").display());

    for transport in TRANSPORTS {
        for address in [nobody.to_string(), socket.clone()] {
            let mut command = invoke(&address, &["it"]);
            command.args(transport);
            let said = run(command).await;

            assert_eq!(said.code, Some(69));
            let expected = format!(
                "thalweg: nothing listens on {address}: is `thalweg` running?\n\
                 --address says where else to ask\n"
            );
            assert_eq!(said.stderr, expected);
        }
    }
}

#[tokio::test]
async fn server_of_another_protocol_is_told_apart() {
    let http1 = PlainUpstream::bind().await;
    let (said, ()) = tokio::join!(run(invoke(&http1.address, &["it"])), async {
        let mut peer = http1.accept().await;
        peer.write("HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n")
            .await;
        peer.rest().await;
    });
    assert_eq!(said.code, Some(76));
    assert!(
        said.stderr.contains("does not speak HTTP/2\n--http "),
        "{}",
        said.stderr
    );

    let http2 = Upstream::start().await;
    let said = run(invoke(&http2, &["it", "--http"])).await;
    assert_eq!(said.code, Some(76));
    assert!(
        said.stderr.contains("speaks HTTP/2 only\nleave out --http"),
        "{}",
        said.stderr
    );

    let proxy = binding::proxy(&["echo: {echo: {}}"]).await;
    let address = format!("https://{}", proxy.address);
    for transport in TRANSPORTS {
        let mut command = invoke(&address, &["echo"]);
        command.args(transport);
        let said = run(command).await;
        assert_eq!(said.code, Some(76), "{}", said.stderr);
        let hint = format!("write http://{}", proxy.address);
        assert!(said.stderr.contains(&hint), "{}", said.stderr);
    }

    let mut other = Upstream::start().await;
    let (said, ()) = tokio::join!(run(invoke(&other, &["it"])), async {
        other.call().await.finish_with(503, &[]);
    });
    assert_eq!(said.code, Some(69));
    assert!(
        said.stderr
            .contains("HTTP 503 Service Unavailable and no gRPC"),
        "{}",
        said.stderr
    );
}

// === answers that are not whole ===

/// How an answer of gRPC goes wrong, after some of it has come.
type Break = fn(&mut Call, &mut Outgoing);

#[tokio::test]
async fn answer_that_is_not_whole_leaves_no_file() {
    let breaks: [(Break, &str); 7] = [
        (
            |_, outgoing| outgoing.reset(Reason::INTERNAL_ERROR),
            "INTERNAL_ERROR",
        ),
        (|call, _| call.connection.vanish(), "broke off"),
        (|_, outgoing| outgoing.end(), "without a status"),
        (
            |_, outgoing| outgoing.data_now(&b"\0\0\0"[..]),
            "within a message",
        ),
        (
            |_, outgoing| outgoing.data_now(crate::support::framed(&payload(2, b"two"))),
            "got 2, expected 1",
        ),
        (
            |_, outgoing| outgoing.data_now(crate::support::framed(&initial_response("", &[]))),
            "after the first message",
        ),
        (
            |_, outgoing| outgoing.data_now(&b"\x01\0\0\0\0"[..]),
            "compressed",
        ),
    ];
    let mut server = Upstream::start().await;
    let folder = Folder::empty();
    for (before, (break_off, words)) in [None, Some("old")].into_iter().cycle().zip(breaks) {
        let out = folder.path().join("out");
        if let Some(before) = before {
            std::fs::write(&out, before).unwrap();
        }
        let client = Client::start(to_file(&server, &[], &out));
        let mut call = server.call().await;
        let mut outgoing = call.respond();
        outgoing.message(&payload(0, b"some of it")).await;
        break_off(&mut call, &mut outgoing);
        if words == "within a message" {
            outgoing.trailers(&[("grpc-status", "0")]);
        }
        // The call is still held here, so nothing else ends it.
        let said = client.ends().await;

        assert_eq!(said.code, Some(76), "{words}: {}", said.stderr);
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
        only_out(&folder, before);
    }
}

#[tokio::test]
async fn answer_over_http_that_is_not_whole_leaves_no_file() {
    let server = PlainUpstream::bind().await;
    let folder = Folder::empty();
    for (before, framing) in [
        (None, "transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n"),
        (Some("old"), "transfer-encoding: chunked\r\n\r\n8\r\nsome"),
        (Some("old"), "content-length: 10\r\n\r\nsome"),
    ] {
        let out = folder.path().join("out");
        if let Some(before) = before {
            std::fs::write(&out, before).unwrap();
        }
        let command = to_file(&server.address, &["--http"], &out);
        let (said, ()) = tokio::join!(run(command), async {
            let mut peer = server.accept().await;
            peer.head().await;
            peer.write(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        });

        assert_eq!(said.code, Some(76), "{}", said.stderr);
        only_out(&folder, before);
    }
}

#[tokio::test]
async fn failure_after_some_payload_leaves_no_file() {
    let mut server = Upstream::start().await;
    let folder = Folder::empty();
    let command = to_file(&server, &[], &folder.path().join("out"));
    let (said, ()) = tokio::join!(run(command), async {
        let mut call = server.call().await;
        let mut outgoing = call.respond();
        outgoing.message(&payload(0, b"some of it")).await;
        outgoing.trailers(&[("grpc-status", "14"), ("grpc-message", "gone")]);
    });

    assert_eq!(
        (said.code, &*said.stderr),
        (Some(69), "thalweg: UNAVAILABLE: gone\n")
    );
    only_out(&folder, None);
}

#[tokio::test]
async fn file_is_replaced_behind_its_link_and_keeps_its_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let proxy = binding::proxy(&["echo: {echo: {}}"]).await;
    let folder = Folder::empty();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&file, &link).unwrap();

    let mut client = Client::start(to_file_of(&proxy.address, "echo", &[], &link));
    client.write(b"new").await;
    assert_eq!(client.ends().await.code, Some(0));

    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_no_plain_file_is_written_to_and_not_replaced() {
    let proxy = binding::proxy(&["echo: {echo: {}}"]).await;

    let mut client = Client::start(to_file_of(
        &proxy.address,
        "echo",
        &[],
        Path::new("/dev/stdout"),
    ));
    client.write(b"hello").await;

    let said = client.ends().await;
    assert_eq!(
        (said.code, &*said.stdout),
        (Some(0), "hello"),
        "{}",
        said.stderr
    );
}

// === this side ===

#[tokio::test]
async fn files_that_cannot_be_used_are_named_before_anything_is_asked() {
    let nobody = nobody().await;
    for (arguments, exit, words) in [
        (
            &["it", "-i", "nowhere/file"][..],
            66,
            "nowhere/file cannot be read",
        ),
        (
            &["it", "-o", "nowhere/file"],
            73,
            "nowhere/file cannot be written",
        ),
    ] {
        let said = run(invoke(&nobody, arguments)).await;
        assert_eq!(said.code, Some(exit), "{}", said.stderr);
        assert!(said.stderr.contains(words), "{}", said.stderr);
    }
}

#[tokio::test]
async fn input_that_fails_on_the_way_cancels_the_call() {
    let mut component = Component::start().await;
    let it = format!("it: {{component: {{address: \"{}\"}}}}", component.address);
    let proxy = binding::proxy(&[&it]).await;
    ready(&proxy, "it").await;

    for transport in TRANSPORTS {
        let mut command = invoke(&proxy.address, &["it", "-i", "/"]);
        command.args(transport);
        let said = run(command).await;

        assert_eq!(said.code, Some(66), "{transport:?}: {}", said.stderr);
        assert!(said.stderr.contains("/ cannot be read"), "{}", said.stderr);
        // If the call has come so far, then not as one that ended well.
        while component.has_call() {
            let mut call = component.call().await;
            call.incoming.broken().await;
        }
    }
}

#[tokio::test]
async fn whoever_stops_reading_ends_it_quietly() {
    let mut server = Upstream::start().await;
    let mut client = Client::start(invoke(&server, &["it"]));
    let mut call = server.call().await;
    let mut outgoing = call.respond();
    outgoing.message(&payload(0, b"enough")).await;
    assert_eq!(client.read(6).await, b"enough");

    drop(client.stdout.take());
    outgoing.message(&payload(1, b"too much")).await;
    assert_eq!(call.incoming.broken().await, Reason::CANCEL);

    let said = client.ends().await;
    assert_eq!((said.code, &*said.stderr), (Some(141), ""));
}

#[tokio::test]
async fn timeout_ends_the_call_and_tells_the_server_of_it() {
    let mut server = Upstream::start().await;
    let command = invoke(&server, &["it", "--timeout", "100ms"]);
    let (said, ()) = tokio::join!(run(command), async {
        let mut call = server.call().await;
        assert!(call.headers().contains_key("grpc-timeout"));
        assert_eq!(call.reset_by_peer().await, Reason::CANCEL);
    });
    assert_eq!(said.code, Some(75));
    assert!(said.stderr.contains("--timeout"), "{}", said.stderr);

    let server = PlainUpstream::bind().await;
    let command = invoke(&server.address, &["it", "--http", "--timeout", "100ms"]);
    let (said, ()) = tokio::join!(run(command), async {
        let mut peer = server.accept().await;
        peer.rest().await;
    });
    assert_eq!(said.code, Some(75));
}

#[tokio::test]
async fn signal_cancels_the_call_and_leaves_no_file() {
    let mut component = Component::start().await;
    let it = format!("it: {{component: {{address: \"{}\"}}}}", component.address);
    let proxy = binding::proxy(&[&it]).await;
    ready(&proxy, "it").await;
    let folder = Folder::empty();

    for transport in TRANSPORTS {
        for (signal, exit) in [("INT", 130), ("TERM", 143)] {
            let out = folder.path().join("out");
            let mut client = Client::start(to_file_of(&proxy.address, "it", transport, &out));
            client.write(b"some").await;
            let (mut call, mut outgoing) = component.stream().await;
            assert!(call.told().await.is_some());
            outgoing
                .message(&binding::component_data(0, b"some of it"))
                .await;

            client.signal(signal).await;

            assert_eq!(
                call.incoming.broken().await,
                Reason::CANCEL,
                "{transport:?}"
            );
            let said = client.ends().await;
            assert_eq!((said.code, &*said.stderr), (Some(exit), ""));
            only_out(&folder, None);
        }
    }
}

#[tokio::test]
async fn signal_ends_it_also_while_it_waits_for_input_that_never_comes() {
    let mut server = Upstream::start().await;
    let client = Client::start({
        let mut command = invoke(&server, &["it"]);
        command.stdout(Stdio::piped());
        command
    });
    let mut call = server.call().await;
    within("the first message", call.incoming.message()).await;

    client.signal("INT").await;
    assert_eq!(call.reset_by_peer().await, Reason::CANCEL);

    // Its input stays open to the end.
    let mut process = client.process;
    let status = within("the command ends", process.wait()).await.unwrap();
    assert_eq!(status.code(), Some(130));
    drop(client.stdin);
}

// === words ===

fn to_file(address: &impl ToString, transport: &[&str], out: &Path) -> tokio::process::Command {
    to_file_of(&address.to_string(), "it", transport, out)
}

fn to_file_of(
    address: &impl std::fmt::Display,
    binding: &str,
    transport: &[&str],
    out: &Path,
) -> tokio::process::Command {
    let mut command = invoke(address, &[binding]);
    command.args(transport).arg("-o").arg(out);
    command
}

/// The output is what it was before, and nothing lies beside it.
fn only_out(folder: &Folder, before: Option<&str>) {
    let mut names = vec![];
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        names.push(entry.unwrap().file_name());
    }
    match before {
        None => assert!(names.is_empty(), "{names:?}"),
        Some(before) => {
            assert_eq!(names, ["out"]);
            let out = folder.path().join("out");
            assert_eq!(std::fs::read_to_string(&out).unwrap(), before);
            std::fs::remove_file(out).unwrap();
        }
    }
}
