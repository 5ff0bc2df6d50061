//! The load generator: does one workload through one proxy and says what it saw.
//!
//! **How.** It runs as a process of its own on one thread, and talks to the parent in lines:
//!
//! 1. It connects and warms up (idle workloads do not: there, connections are what is measured), then prints `ready`.
//! 2. When told `go` it works, checks every count, and prints [`Report`] as one line.
//! 3. It keeps its connections until standard input ends, so that the parent may look at the proxy's memory.

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;

use crate::binding::{self, Count, Messages, Operation, Way};
use crate::grpc::{self, Body, Failure};
use crate::object::{self, Store};
use crate::work::{LARGE_MESSAGE, SMALL_MESSAGE, STORM_LIMIT, Shape, Work};
use crate::{http1, tls, transport};

/// Calls on each connection before anything is measured: the proxy dials its upstream in that time.
const WARM_UP_CALLS: u64 = 50;

/// Longest wait for a binding: Thalweg lets nothing through to a component that it has not introduced itself to.
const BINDING_LIMIT: Duration = Duration::from_secs(5);

/// What one run of a workload was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Calls, messages there and back, or streams opened.
    pub(crate) operations: u64,
    /// Payload that crossed the proxy, heads of messages included.
    pub(crate) bytes: u64,
    /// Half of the calls or messages took no longer.
    pub(crate) p50_ns: u64,
    /// 99 of a hundred took no longer.
    pub(crate) p99_ns: u64,
    /// None took longer.
    pub(crate) last_ns: u64,
    /// Streams of a storm that were not to be opened.
    pub(crate) refused: u64,
}

/// What streams have to report so far.
#[derive(Debug, Default)]
struct Tally {
    operations: u64,
    bytes: u64,
    latencies_ns: Vec<u64>,
    refused: u64,
    /// Why one of them was refused.
    why: Option<String>,
    /// Idle streams, to be kept open.
    held: Vec<Held>,
}

type Connection = SendRequest<Bytes>;
type Held = (Body, h2::SendStream<Bytes>);

/// Does `work` through the proxy at `address`, under TLS if there is a certificate to trust.
pub(crate) async fn run(
    address: SocketAddr,
    work: Work,
    scale: f64,
    certificate: Option<&Path>,
) -> Result<(), Failure> {
    let tls = certificate.map(tls::connector).transpose()?;
    let tls = tls.as_ref();
    let shape = work.shape(scale);
    let mut commands = BufReader::new(tokio::io::stdin()).lines();

    let mut connections = Vec::new();
    if !work.is_idle() && !work.is_storm() && work != Work::Handshakes {
        for _ in 0..shape.connections {
            let connection = connect(address, tls).await?;
            unary(connection.clone(), WARM_UP_CALLS).await?;
            if let Some(way) = work.way() {
                warm_up_binding(&connection, way).await?;
            }
            if let Some(store) = work.store() {
                let pieces = if work.is_get() { shape.repeats } else { 1 };
                object_create(connection.clone(), store, pieces).await?;
            }
            connections.push(connection);
        }
    }
    println!("ready");
    match commands.next_line().await? {
        Some(line) if line == "go" => {}
        other => return Err(format!("expected \"go\", got {other:?}").into()),
    }

    let mut total = Tally::default();
    if work == Work::BindingFileHttp {
        total.add(file_over_http(address, shape.repeats).await?);
    } else if work == Work::ObjectFileHttp {
        total.add(object_over_http(address, shape.repeats).await?);
    } else if work == Work::Handshakes {
        for _ in 0..shape.connections {
            let started = Instant::now();
            let mut tally = unary(connect(address, tls).await?, 1).await?;
            tally.latencies_ns = vec![elapsed_ns(started)];
            total.add(tally);
        }
    } else if work.is_storm() {
        total = storm(address, tls, shape).await?;
    } else if work.is_idle() {
        // One after the other: ten thousand at once would overflow the backlog of whoever dials once a stream.
        for _ in 0..shape.connections {
            total.add(work_on(&[connect(address, tls).await?], work, shape).await?);
        }
    } else {
        total.add(work_on(&connections, work, shape).await?);
    }
    println!("{}", total.report());

    while commands.next_line().await?.is_some() {}
    drop(total);
    Ok(())
}

async fn connect(address: SocketAddr, tls: Option<&TlsConnector>) -> Result<Connection, Failure> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (transport, flusher) = match tls {
        Some(tls) => transport::split(tls::shake(tls, socket).await?),
        None => transport::split(socket),
    };
    let (requests, connection) = grpc::client_builder().handshake(transport).await?;
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        // Losing the connection fails its streams, and they report it.
        let _ = poll_fn(|cx| {
            let state = connection.as_mut().poll(cx).map_err(Failure::from);
            match flusher.poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                _ => state,
            }
        })
        .await;
    });
    Ok(requests)
}

/// Starts all streams of these connections at once and waits for the last.
async fn work_on(connections: &[Connection], work: Work, shape: Shape) -> Result<Tally, Failure> {
    let mut streams = JoinSet::new();
    for connection in connections {
        for _ in 0..shape.streams {
            let connection = connection.clone();
            match work {
                Work::Unary | Work::Handshakes => streams.spawn(unary(connection, shape.repeats)),
                Work::Upload | Work::Uploads80 => streams.spawn(upload(connection, shape.repeats)),
                Work::Download => streams.spawn(download(connection, shape.repeats)),
                Work::PingPong => streams.spawn(ping_pong(connection, shape.repeats)),
                Work::IdleStreams | Work::IdleConnections | Work::Storm10k | Work::Storm100k => {
                    streams.spawn(hold(connection))
                }
                Work::BindingUploadPlain | Work::ObjectPlain => {
                    streams.spawn(binding_upload(connection, Way::Plain, shape.repeats))
                }
                Work::BindingUploadDapr => {
                    streams.spawn(binding_upload(connection, Way::Dapr, shape.repeats))
                }
                Work::BindingUploadComponent | Work::BindingFile | Work::BindingFileHttp => {
                    streams.spawn(binding_upload(connection, Way::Component, shape.repeats))
                }
                Work::ObjectFile | Work::ObjectFileHttp => {
                    streams.spawn(object_create(connection, Store::Files, shape.repeats))
                }
                Work::ObjectS3 => {
                    streams.spawn(object_create(connection, Store::S3, shape.repeats))
                }
                Work::ObjectFileGet => {
                    streams.spawn(object_get(connection, Store::Files, shape.repeats))
                }
                Work::ObjectS3Get => {
                    streams.spawn(object_get(connection, Store::S3, shape.repeats))
                }
                Work::BindingPingPongPlain => {
                    streams.spawn(binding_ping_pong(connection, Way::Plain, shape.repeats))
                }
                Work::BindingPingPongDapr => {
                    streams.spawn(binding_ping_pong(connection, Way::Dapr, shape.repeats))
                }
                Work::BindingPingPongComponent => {
                    streams.spawn(binding_ping_pong(connection, Way::Component, shape.repeats))
                }
            };
        }
    }
    let mut total = Tally::default();
    while let Some(tally) = streams.join_next().await {
        total.add(tally??);
    }
    Ok(total)
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted
        .get(sorted.len() * percent / 100)
        .copied()
        .unwrap_or(0)
}

async fn open(
    connection: &mut Connection,
    path: &str,
) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), Failure> {
    poll_fn(|cx| connection.poll_ready(cx)).await?;
    Ok(connection.send_request(grpc::request(path)?, false)?)
}

async fn answer(response: h2::client::ResponseFuture) -> Result<Body, Failure> {
    let response = response.await?;
    if response.status() != 200 {
        return Err(format!("HTTP status {}", response.status()).into());
    }
    if let Some(status) = response.headers().get("grpc-status") {
        let message = response.headers().get("grpc-message");
        return Err(format!("grpc-status {status:?}, {message:?}").into());
    }
    Ok(Body::new(response.into_body()))
}

async fn unary(mut connection: Connection, calls: u64) -> Result<Tally, Failure> {
    let message = grpc::message(SMALL_MESSAGE, &[]);
    let mut tally = Tally::default();
    for _ in 0..calls {
        let started = Instant::now();
        let (response, mut stream) = open(&mut connection, "/bench.Bench/Unary").await?;
        stream.send_data(message.clone(), true)?;
        let mut body = answer(response).await?;
        let count = body.count().await?;
        body.finish().await?;
        expect_bytes(message.len() as u64, count)?;
        tally.latencies_ns.push(elapsed_ns(started));
        tally.operations += 1;
        tally.bytes += 2 * count;
    }
    Ok(tally)
}

async fn upload(mut connection: Connection, messages: u64) -> Result<Tally, Failure> {
    let message = grpc::message(LARGE_MESSAGE, &[]);
    let bytes = messages * message.len() as u64;
    let (response, mut stream) = open(&mut connection, "/bench.Bench/Upload").await?;
    for _ in 0..messages {
        grpc::send(&mut stream, message.clone()).await?;
    }
    stream.send_data(Bytes::new(), true)?;
    let mut body = answer(response).await?;
    let summary = body.gather(grpc::HEAD_LENGTH + SMALL_MESSAGE).await?;
    expect_bytes(bytes, grpc::number(&summary, 0).ok_or("no count")?)?;
    expect_bytes(0, body.count().await?)?;
    body.finish().await?;
    Ok(Tally {
        operations: messages,
        bytes,
        ..Tally::default()
    })
}

async fn download(mut connection: Connection, messages: u64) -> Result<Tally, Failure> {
    let bytes = messages * (grpc::HEAD_LENGTH + LARGE_MESSAGE) as u64;
    let (response, mut stream) = open(&mut connection, "/bench.Bench/Download").await?;
    stream.send_data(
        grpc::message(SMALL_MESSAGE, &[messages, LARGE_MESSAGE as u64]),
        true,
    )?;
    let mut body = answer(response).await?;
    expect_bytes(bytes, body.count().await?)?;
    body.finish().await?;
    Ok(Tally {
        operations: messages,
        bytes,
        ..Tally::default()
    })
}

async fn ping_pong(mut connection: Connection, messages: u64) -> Result<Tally, Failure> {
    let message = grpc::message(SMALL_MESSAGE, &[]);
    let mut tally = Tally::default();
    let (response, mut stream) = open(&mut connection, "/bench.Bench/PingPong").await?;
    // Some servers answer a call only when its first message is there.
    stream.send_data(message.clone(), false)?;
    let mut body = answer(response).await?;
    body.gather(message.len()).await?;
    for _ in 0..messages {
        let started = Instant::now();
        stream.send_data(message.clone(), false)?;
        let echo = body.gather(message.len()).await?;
        expect_bytes(message.len() as u64, echo.len() as u64)?;
        tally.latencies_ns.push(elapsed_ns(started));
        tally.operations += 1;
        tally.bytes += 2 * echo.len() as u64;
    }
    stream.send_data(Bytes::new(), true)?;
    expect_bytes(0, body.count().await?)?;
    body.finish().await?;
    Ok(tally)
}

async fn hold(mut connection: Connection) -> Result<Tally, Failure> {
    let (response, mut stream) = open(&mut connection, "/bench.Bench/Hold").await?;
    stream.send_data(grpc::message(SMALL_MESSAGE, &[]), false)?;
    let body = answer(response).await?;
    Ok(Tally {
        operations: 1,
        held: vec![(body, stream)],
        ..Tally::default()
    })
}

/// Everybody comes at once: connections and their streams are opened without a wait for one another, and held.
async fn storm(
    address: SocketAddr,
    tls: Option<&TlsConnector>,
    shape: Shape,
) -> Result<Tally, Failure> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..shape.connections {
        let tls = tls.cloned();
        clients.spawn(async move {
            let mut streams = JoinSet::new();
            match connect(address, tls.as_ref()).await {
                Ok(connection) => {
                    for _ in 0..shape.streams {
                        streams.spawn(storm_stream(connection.clone(), started));
                    }
                }
                Err(_) => {
                    let refused = shape.streams as u64;
                    streams.spawn(async move {
                        Tally {
                            refused,
                            ..Tally::default()
                        }
                    });
                }
            }
            streams
        });
    }
    let mut total = Tally::default();
    let limit = started + STORM_LIMIT;
    let mut streams = Vec::new();
    while let Ok(Some(client)) = timeout_at(limit, clients.join_next()).await {
        streams.push(client?);
    }
    for streams in &mut streams {
        while let Ok(Some(tally)) = timeout_at(limit, streams.join_next()).await {
            total.add(tally?);
        }
    }
    if let Some(why) = total.why.take() {
        eprintln!("refused: {why}");
    }
    Ok(total)
}

async fn storm_stream(connection: Connection, started: Instant) -> Tally {
    match hold(connection).await {
        Ok(mut tally) => {
            tally.latencies_ns = vec![elapsed_ns(started)];
            tally
        }
        Err(error) => Tally {
            refused: 1,
            why: Some(error.to_string()),
            ..Tally::default()
        },
    }
}

/// Opens streams until one goes well; a component may still be on its way up.
async fn warm_up_binding(connection: &Connection, way: Way) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        match binding_ping_pong(connection.clone(), way, WARM_UP_CALLS).await {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > BINDING_LIMIT => return Err(error),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn binding_upload(
    mut connection: Connection,
    way: Way,
    messages: u64,
) -> Result<Tally, Failure> {
    let mut source = Messages::new(LARGE_MESSAGE);
    let mut bytes = 0;
    let (response, mut stream) = open(&mut connection, way.method()).await?;
    stream.send_data(Messages::first(way, Operation::Count), false)?;
    for _ in 0..messages {
        let message = source.next();
        bytes += message.len() as u64;
        grpc::send(&mut stream, message).await?;
    }
    stream.send_data(Bytes::new(), true)?;
    let mut body = answer(response).await?;
    let count = binding::read_count(&mut body).await?;
    expect_bytes(messages * LARGE_MESSAGE as u64, count.bytes)?;
    if count.messages != messages {
        return Err(format!("{} messages arrived, not {messages}", count.messages).into());
    }
    body.finish().await?;
    Ok(Tally {
        operations: messages,
        bytes,
        ..Tally::default()
    })
}

async fn binding_ping_pong(
    mut connection: Connection,
    way: Way,
    messages: u64,
) -> Result<Tally, Failure> {
    let mut source = Messages::new(SMALL_MESSAGE);
    let mut tally = Tally::default();
    let (response, mut stream) = open(&mut connection, way.method()).await?;
    stream.send_data(Messages::first(way, Operation::Echo), false)?;
    let mut body = answer(response).await?;
    let first = binding::first_of_answer();
    expect_echo(&first, &body.gather(first.len()).await?)?;
    for _ in 0..messages {
        let started = Instant::now();
        let message = source.next();
        stream.send_data(message.clone(), false)?;
        expect_echo(&message, &body.gather(message.len()).await?)?;
        tally.latencies_ns.push(elapsed_ns(started));
        tally.operations += 1;
        tally.bytes += 2 * message.len() as u64;
    }
    stream.send_data(Bytes::new(), true)?;
    expect_bytes(0, body.count().await?)?;
    body.finish().await?;
    Ok(tally)
}

async fn file_over_http(address: SocketAddr, pieces: u64) -> Result<Tally, Failure> {
    let path = format!("/v1.0-alpha1/bindings/{}/stream", Way::Component.name());
    let bytes = pieces * LARGE_MESSAGE as u64;
    let answer = http1::post(
        address,
        &path,
        Operation::Count.name(),
        LARGE_MESSAGE,
        pieces,
    )
    .await?;
    // How many messages the proxy makes of it is its own affair.
    expect_bytes(bytes, Count::from_bytes(&answer)?.bytes)?;
    Ok(Tally {
        operations: pieces,
        bytes,
        ..Tally::default()
    })
}

async fn object_create(
    mut connection: Connection,
    store: Store,
    messages: u64,
) -> Result<Tally, Failure> {
    let mut source = Messages::new(LARGE_MESSAGE);
    let mut bytes = 0;
    let (response, mut stream) = open(&mut connection, Way::Dapr.method()).await?;
    stream.send_data(store.first(object::Operation::Create), false)?;
    for _ in 0..messages {
        let message = source.next();
        bytes += message.len() as u64;
        grpc::send(&mut stream, message).await?;
    }
    stream.send_data(Bytes::new(), true)?;
    let mut body = answer(response).await?;
    let (size, _) = object::read_answer(&mut body).await?;
    expect_bytes(messages * LARGE_MESSAGE as u64, size)?;
    body.finish().await?;
    Ok(Tally {
        operations: messages,
        bytes,
        ..Tally::default()
    })
}

async fn object_get(
    mut connection: Connection,
    store: Store,
    messages: u64,
) -> Result<Tally, Failure> {
    let (response, mut stream) = open(&mut connection, Way::Dapr.method()).await?;
    stream.send_data(store.first(object::Operation::Get), true)?;
    let mut body = answer(response).await?;
    let (size, bytes) = object::read_answer(&mut body).await?;
    expect_bytes(messages * LARGE_MESSAGE as u64, size)?;
    expect_bytes(size, bytes)?;
    body.finish().await?;
    Ok(Tally {
        operations: messages,
        bytes,
        ..Tally::default()
    })
}

async fn object_over_http(address: SocketAddr, pieces: u64) -> Result<Tally, Failure> {
    let (name, key) = (Store::Files.name(), object::KEY);
    let path = format!("/v1.0-alpha1/bindings/{name}/stream?metadata.key={key}");
    let operation = object::Operation::Create.name();
    let answer = http1::post(address, &path, operation, LARGE_MESSAGE, pieces).await?;
    let bytes = pieces * LARGE_MESSAGE as u64;
    let size = format!("\"size\":{bytes}");
    if !String::from_utf8_lossy(&answer).contains(&size) {
        return Err("the answer tells of another size".into());
    }
    Ok(Tally {
        operations: pieces,
        bytes,
        ..Tally::default()
    })
}

/// What comes back has the same numbers, so it is the same.
fn expect_echo(sent: &Bytes, echo: &Bytes) -> Result<(), Failure> {
    if sent == echo {
        return Ok(());
    }
    Err("what came back is not what was sent".into())
}

fn expect_bytes(expected: u64, count: u64) -> Result<(), Failure> {
    if count == expected {
        return Ok(());
    }
    Err(format!("{count} bytes arrived, not {expected}").into())
}

fn elapsed_ns(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.latencies_ns.extend(other.latencies_ns);
        self.refused += other.refused;
        self.why = self.why.take().or(other.why);
        self.held.extend(other.held);
    }

    fn report(&mut self) -> Report {
        self.latencies_ns.sort_unstable();
        Report {
            operations: self.operations,
            bytes: self.bytes,
            p50_ns: percentile(&self.latencies_ns, 50),
            p99_ns: percentile(&self.latencies_ns, 99),
            last_ns: self.latencies_ns.last().copied().unwrap_or(0),
            refused: self.refused,
        }
    }
}

// === impl Report ===

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operations,
            bytes,
            p50_ns,
            p99_ns,
            last_ns,
            refused,
        } = self;
        write!(
            f,
            "{operations} {bytes} {p50_ns} {p99_ns} {last_ns} {refused}"
        )
    }
}

impl FromStr for Report {
    type Err = Failure;

    fn from_str(line: &str) -> Result<Self, Failure> {
        let numbers = line
            .split(' ')
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()?;
        let &[operations, bytes, p50_ns, p99_ns, last_ns, refused] = numbers.as_slice() else {
            return Err(format!("not a report: {line:?}").into());
        };
        Ok(Self {
            operations,
            bytes,
            p50_ns,
            p99_ns,
            last_ns,
            refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_survives_the_pipe() {
        let report = Report {
            operations: 1,
            bytes: 2,
            p50_ns: 3,
            p99_ns: 4,
            last_ns: 5,
            refused: 6,
        };

        assert_eq!(report.to_string().parse::<Report>().unwrap(), report);
        assert!("1 2 3".parse::<Report>().is_err());
    }

    #[test]
    fn percentiles_of_nothing_are_zero() {
        assert_eq!(percentile(&[], 99), 0);
        assert_eq!(percentile(&[1, 2, 3, 4], 50), 3);
    }
}
