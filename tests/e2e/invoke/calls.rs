//! What reaches the binding, and what comes back.

use thalweg_proto::bindings::{ComponentInitialRequest, FirstRequest, Message};

use super::{Client, TRANSPORTS, invoke, run};
use crate::support::{
    binding::{self, STREAM, Told, initial_response, metadata, payload, runtime, yaml},
    child::{Folder, Running},
    component::{Component, ready},
    plain::PlainUpstream,
    proxy::TestProxy,
    upstream::{Upstream, builder},
};

const ECHO: &str = "echo: {echo: {}}";
const MIB: usize = 1 << 20;

/// Bytes that are nowhere alike.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[tokio::test]
async fn file_comes_back_whole_from_an_echo() {
    let proxy = binding::proxy(&[ECHO]).await;
    let folder = Folder::empty();
    let sent = bytes(3 * MIB + 1);
    std::fs::write(folder.path().join("in"), &sent).unwrap();

    for transport in TRANSPORTS {
        let mut command = invoke(&proxy.address, &["echo", "-i", "in", "-o", "out"]);
        let said = run_in(&folder, command.args(transport)).await;

        assert_eq!((said.code, &*said.stdout, &*said.stderr), (Some(0), "", ""));
        let received = std::fs::read(folder.path().join("out")).unwrap();
        assert!(received == sent, "{transport:?}");
        std::fs::remove_file(folder.path().join("out")).unwrap();
        assert_eq!(names(&folder), ["in"], "nothing else is left");
    }
}

#[tokio::test]
async fn answer_streams_out_while_the_input_still_comes() {
    let proxy = binding::proxy(&[ECHO]).await;

    for transport in TRANSPORTS {
        let mut client = Client::start({
            let mut command = invoke(&proxy.address, &["echo"]);
            command.args(transport);
            command
        });
        for word in ["first", "then", "last"] {
            client.write(word.as_bytes()).await;
            assert_eq!(client.read(word.len()).await, word.as_bytes());
        }
        let said = client.ends().await;

        assert_eq!((said.code, &*said.stdout, &*said.stderr), (Some(0), "", ""));
    }
}

#[tokio::test]
async fn empty_input_is_an_empty_stream() {
    let proxy = binding::proxy(&[ECHO]).await;

    for transport in TRANSPORTS {
        for input in [&[][..], &["-i", "-"], &["-i", "/dev/null"]] {
            let mut command = invoke(&proxy.address, &["echo"]);
            command.args(transport).args(input);
            let said = run(command).await;

            assert_eq!((said.code, &*said.stdout, &*said.stderr), (Some(0), "", ""));
        }
    }
}

#[tokio::test]
async fn redirected_file_is_read_from_where_it_stands() {
    use std::io::{Seek, SeekFrom};

    let proxy = binding::proxy(&[ECHO]).await;
    let folder = Folder::empty();
    std::fs::write(folder.path().join("in"), "before and after").unwrap();

    for transport in TRANSPORTS {
        let mut file = std::fs::File::open(folder.path().join("in")).unwrap();
        file.seek(SeekFrom::Start(7)).unwrap();
        let mut command = invoke(&proxy.address, &["echo"]);
        command.args(transport).stdin(file);
        let said = run(command).await;

        assert_eq!((said.code, &*said.stdout), (Some(0), "and after"));
    }
}

#[tokio::test]
async fn component_is_told_operation_and_metadata() {
    let mut component = Component::start().await;
    let it = format!("it: {{component: {{address: \"{}\"}}}}", component.address);
    let proxy = binding::proxy(&[&it]).await;
    ready(&proxy, "it").await;

    for transport in TRANSPORTS {
        let mut command = invoke(&proxy.address, &["it", "--operation", "get"]);
        command.args(transport);
        command.args(["-m", "Key=a b&c=d", "-m", "key2=", "--metadata", "über=ä"]);
        let (said, ()) = tokio::join!(run(command), async {
            let mut call = component.call().await;
            let Some(Told::Initial(initial)) = call.told().await else {
                panic!("no initial message");
            };
            let initial = ComponentInitialRequest::decode(initial).unwrap();
            assert_eq!(initial.operation, "get");
            let expected = metadata(&[("Key", "a b&c=d"), ("key2", ""), ("über", "ä")]);
            assert_eq!(initial.metadata, expected);
            call.incoming.data(1).await;
            call.respond().trailers(&[("grpc-status", "0")]);
        });

        assert_eq!((said.code, &*said.stderr), (Some(0), ""));
    }
}

#[tokio::test]
async fn payload_is_cut_into_numbered_messages() {
    let mut server = Upstream::start().await;
    let folder = Folder::empty();
    let sent = bytes(200_000);
    std::fs::write(folder.path().join("in"), &sent).unwrap();

    let mut command = invoke(&server, &["it", "-i", "in"]);
    command.env("DAPR_API_TOKEN", "sesame");
    let (said, ()) = tokio::join!(run_in(&folder, &mut command), async {
        let mut call = server.call().await;
        assert_eq!(call.path(), STREAM);
        assert_eq!(call.headers()["dapr-api-token"], "sesame");
        assert_eq!(call.headers()["content-type"], "application/grpc");
        assert_eq!(call.headers()["te"], "trailers");
        let first = call.incoming.message().await.unwrap();
        let first = FirstRequest::decode(first)
            .unwrap()
            .initial_request
            .unwrap();
        assert_eq!((&*first.name, &*first.operation), ("it", "create"));
        for (number, piece) in sent.chunks(64 * 1024).enumerate() {
            let message = call.incoming.message().await.unwrap();
            let expected = Told::Payload(number as u64, piece.to_vec().into());
            assert!(runtime(&message) == expected, "{number}");
        }
        assert_eq!(call.incoming.message().await, None);
        call.respond().trailers(&[("grpc-status", "0")]);
    });

    assert_eq!((said.code, &*said.stderr), (Some(0), ""));
}

#[tokio::test]
async fn file_goes_over_http_with_its_length_and_a_pipe_in_chunks() {
    let server = PlainUpstream::bind().await;
    let folder = Folder::empty();
    std::fs::write(folder.path().join("in"), "four").unwrap();

    let mut command = invoke(
        &server.address,
        &["a/b", "--http", "-i", "in", "-m", "K=1 &"],
    );
    let (said, ()) = tokio::join!(run_in(&folder, &mut command), async {
        let mut peer = server.accept().await;
        let head = peer.head().await;
        let expected =
            "POST /v1.0-alpha1/bindings/a%2Fb/stream?operation=create&metadata.K=1+%26 HTTP/1.1";
        assert_eq!(head.line, expected);
        assert_eq!(head.values("content-length"), ["4"]);
        assert_eq!(head.values("host"), [&*server.address]);
        assert_eq!(peer.bytes(4).await, "four");
        peer.write("HTTP/1.1 204 No Content\r\n\r\n").await;
    });
    assert_eq!((said.code, &*said.stderr), (Some(0), ""));

    let mut client = Client::start(invoke(&server.address, &["it", "--http"]));
    let mut peer = server.accept().await;
    client.write(b"pipe").await;
    let head = peer.head().await;
    assert_eq!(head.values("transfer-encoding"), ["chunked"]);
    assert_eq!(peer.chunk().await, "pipe");
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await;
    // Its input is still open.
    assert_eq!(client.read(2).await, b"ok");
    assert_eq!(client.ends().await.code, Some(0));
}

#[tokio::test]
async fn verbose_shows_the_metadata_of_the_answer() {
    let mut server = Upstream::start().await;
    let (said, ()) = tokio::join!(run(invoke(&server, &["it", "-v"])), async {
        let mut call = server.call().await;
        let mut outgoing = call.respond();
        let pairs = [("key", "big.bin"), ("etag", "\"1\"\u{1b}[2J")];
        outgoing
            .message(&initial_response("text/plain", &pairs))
            .await;
        outgoing.message(&payload(0, b"it")).await;
        outgoing.trailers(&[("grpc-status", "0"), ("metadata.sha256", "abc")]);
    });
    assert_eq!((said.code, &*said.stdout), (Some(0), "it"));
    let escaped = "contentType: text/plain\netag: \"1\"\\u{1b}[2J\nkey: big.bin\nsha256: abc\n";
    assert_eq!(said.stderr, escaped);

    let server = PlainUpstream::bind().await;
    let command = invoke(&server.address, &["it", "-v", "--http"]);
    let (said, ()) = tokio::join!(run(command), async {
        let mut peer = server.accept().await;
        peer.head().await;
        peer.write(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nmetadata.key: big.bin\r\n\
             x-dapr-metadata-key: big.bin\r\ntrailer: metadata.sha256\r\n\
             transfer-encoding: chunked\r\n\r\n2\r\nit\r\n0\r\nmetadata.sha256: abc\r\n\r\n",
        )
        .await;
    });
    assert_eq!((said.code, &*said.stdout), (Some(0), "it"));
    assert_eq!(
        said.stderr,
        "contenttype: text/plain\nkey: big.bin\nsha256: abc\n"
    );
}

#[tokio::test]
async fn memory_stays_flat_while_much_passes() {
    const PIECE: usize = 4 * MIB;
    const WARM: usize = 4;
    const PIECES: usize = 25;
    const GROWTH: usize = 8 * MIB;

    let proxy = Running::start(&yaml(&[ECHO])).await;
    let piece = bytes(PIECE);
    for transport in TRANSPORTS {
        let mut client = Client::start({
            let mut command = invoke(&proxy.address, &["echo"]);
            command.args(transport);
            command
        });
        let mut base = 0;
        for number in 0..PIECES {
            assert!(client.exchange(&piece).await == piece, "{transport:?}");
            if number == WARM {
                base = client.peak();
            }
        }
        // What the kernel tells is no more than roughly the peak, and may shrink.
        let grown = client.peak().saturating_sub(base);
        assert!(grown <= GROWTH, "{transport:?}: {grown}");
        assert_eq!(client.ends().await.code, Some(0));
    }
}

#[tokio::test]
async fn answer_waits_for_whoever_reads_it() {
    // More than the client's windows, its buffers and a pipe hold together.
    const PIECES: usize = 48;
    const HELD: usize = 8 * MIB;

    let mut server = Upstream::start_with(&builder()).await;
    let mut client = Client::start(invoke(&server, &["it"]));
    let mut call = server.call().await;
    let mut outgoing = call.respond();
    let piece = bytes(MIB);
    let sent = piece.clone();
    let sending = tokio::spawn(async move {
        for number in 0..PIECES {
            outgoing.message(&payload(number as u64, &sent)).await;
        }
        outgoing.trailers(&[("grpc-status", "0")]);
    });
    assert!(client.read(MIB).await == piece);
    let before = client.peak();

    // It is read more slowly than it can come.
    for _ in 2..PIECES {
        assert!(client.read(MIB).await == piece);
    }
    assert!(client.peak().saturating_sub(before) <= HELD);
    assert!(client.read(MIB).await == piece);
    sending.await.unwrap();
    assert_eq!(client.ends().await.code, Some(0));
}

#[tokio::test]
async fn socket_of_the_file_system_is_an_address() {
    let folder = Folder::empty();
    let socket = format!("unix:{}", folder.path().join("it.sock").display());
    let yaml = format!("listeners: [{{name: it, address: \"{socket}\"}}]\nbindings: {{{ECHO}}}\n");
    let _proxy = TestProxy::start(&yaml).await;

    for transport in TRANSPORTS {
        let mut client = Client::start({
            let mut command = invoke(&socket, &["echo"]);
            command.args(transport);
            command
        });
        client.write(b"hello").await;
        let said = client.ends().await;
        assert_eq!((said.code, &*said.stdout), (Some(0), "hello"), "{said:?}");
    }
}

#[tokio::test]
async fn address_may_come_from_the_environment() {
    let proxy = binding::proxy(&[ECHO]).await;

    let mut command = crate::support::child::binary();
    command.args(["invoke", "echo"]);
    command.env("THALWEG_ADDRESS", format!("http://{}", proxy.address));
    let said = run(command).await;

    assert_eq!((said.code, &*said.stderr), (Some(0), ""));
}

async fn run_in(
    folder: &Folder,
    command: &mut tokio::process::Command,
) -> crate::support::child::Said {
    let output = command.current_dir(folder.path()).output();
    super::said(
        crate::support::within("the command ends", output)
            .await
            .unwrap(),
    )
}

fn names(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}
