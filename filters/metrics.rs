//! Counts streams, bytes and messages, by route.
//!
//! **Why.** What a stream costs and how it ended is known when it is over, and a counter that looks at its beginning
//! reports successes that never were. So each stream is counted once, by its real ending.
//!
//! **How.** Both bodies are watched: a [`FrameInspector`] counts the gRPC messages where they lie. The numbers go to
//! [`RouteStats`], one per route and worker, whatever chains the worker builds for it. A worker is the only writer of its own, so that counting is a load and a store
//! without a locked instruction; a scrape, on another thread, adds up what the workers wrote.
//!
//! A chain that serves a binding is also counted in Dapr's words, once a stream: by component, operation and success.
//!
//! ```yaml
//! filters:
//!   - metrics
//! ```

mod dapr;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thalweg_proto::{frame::FrameInspector, status::Code};
use tokio::time::Instant;
use tower::{Layer, Service};

pub use self::dapr::BindingStats;
use crate::{
    Body, Chunk, Error, StreamContext,
    ending::{Ending, grpc_status},
    stream::Protocol,
};

/// Settings of `metrics`; there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// What a binding is asked to do, in the extensions of the request. If it is known or has succeeded, it becomes the label `operation`
/// of Dapr's metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation(pub Arc<str>);

/// Adds [`Metrics`] to a route.
#[derive(Clone, Debug)]
pub struct MetricsLayer {
    stats: Arc<RouteStats>,
    binding: Option<Arc<BindingStats>>,
}

/// Counts what passes; see the [module docs](self).
#[derive(Clone, Debug)]
pub struct Metrics<S> {
    inner: S,
    stats: Arc<RouteStats>,
    binding: Option<Arc<BindingStats>>,
}

pin_project! {
    /// Waits for the response's head, and counts the stream if none comes.
    #[derive(Debug)]
    pub struct MetricsFuture<F> {
        #[pin]
        inner: F,
        tally: Option<Tally>,
    }
}

/// Counts what passes one way.
struct CountedBody {
    inner: Body,
    meter: Meter,
    stats: Arc<RouteStats>,
    direction: Direction,
    /// Only on the way back, where the stream's real ending is seen.
    tally: Option<Tally>,
}

/// Counts bytes and messages; the frames of plain HTTP are not gRPC's, and only their bytes count.
struct Meter {
    frames: Option<FrameInspector>,
    started_at: Instant,
    first_seen: bool,
}

/// One live stream; counts it by its ending, once, at the latest when dropped.
#[derive(Debug)]
struct Tally {
    stats: Arc<RouteStats>,
    started_at: Instant,
    grpc: bool,
    http_class: usize,
    binding: Option<(Arc<BindingStats>, Option<Operation>)>,
    ended: bool,
}

#[derive(Clone, Copy)]
enum Direction {
    Request,
    Response,
}

/// The label `status`: gRPC's names, or the class of an HTTP status.
const STATUSES: usize = 17 + HTTP_CLASSES.len();
const HTTP_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const DIRECTIONS: [&str; 2] = ["request", "response"];

/// Upper bounds in seconds: from a unary call on one host to a stream of a day.
const BOUNDS: [f64; 18] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
    600.0, 3600.0, 86400.0,
];

/// What one worker has counted for one route.
#[derive(Default)]
#[repr(align(128))]
pub struct RouteStats {
    started: Counter,
    live: Counter,
    ended: [[Counter; 4]; STATUSES],
    bytes: [Counter; 2],
    messages: [Counter; 2],
    duration: Histogram,
    first_message: [Histogram; 2],
}

/// All routes of all workers, as `/metrics` prints them.
#[derive(Default)]
pub struct Registry {
    routes: Mutex<Routes>,
    bindings: dapr::Bindings,
}

/// By the name of the route, and by the number of the worker.
type Routes = BTreeMap<String, BTreeMap<usize, Arc<RouteStats>>>;

/// A counter with one writer: a load and a store, no locked instruction.
#[derive(Default)]
struct Counter(AtomicU64);

#[derive(Default)]
struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    sum_micros: Counter,
}

// === impl MetricsLayer ===

impl MetricsLayer {
    /// Counts into `stats`, which nobody else may write.
    pub fn new(stats: Arc<RouteStats>) -> Self {
        Self {
            stats,
            binding: None,
        }
    }

    /// Counts for a binding as well, together with all others who do.
    #[must_use]
    pub fn with_binding(mut self, binding: Option<Arc<BindingStats>>) -> Self {
        self.binding = binding;
        self
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics {
            inner,
            stats: Arc::clone(&self.stats),
            binding: self.binding.clone(),
        }
    }
}

// === impl Metrics ===

impl<S> Service<Request<Body>> for Metrics<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let context = request.extensions().get::<StreamContext>();
        let grpc = context.is_some_and(|context| context.protocol() == Protocol::Grpc);
        let started_at = context.map_or_else(Instant::now, StreamContext::started_at);
        let stats = &self.stats;
        stats.started.add(1);
        stats.live.add(1);
        let tally = Tally {
            stats: Arc::clone(stats),
            started_at,
            grpc,
            http_class: 0,
            binding: self
                .binding
                .clone()
                .map(|binding| (binding, request.extensions().get().cloned())),
            ended: false,
        };
        let request = request.map(|body| {
            body.wrap(|inner| CountedBody {
                inner,
                meter: Meter::new(grpc, started_at),
                stats: Arc::clone(stats),
                direction: Direction::Request,
                tally: None,
            })
        });
        MetricsFuture {
            inner: self.inner.call(request),
            tally: Some(tally),
        }
    }
}

// === impl MetricsFuture ===

impl<F> Future for MetricsFuture<F>
where
    F: Future<Output = Result<Response<Body>, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let Some(mut tally) = this.tally.take() else {
            return Poll::Ready(result);
        };
        Poll::Ready(match result {
            Err(error) => {
                tally.end(Ending::of_error(&error));
                Err(error)
            }
            Ok(response) if response.body().is_end_stream() => {
                tally.head(&response);
                tally.end(
                    grpc_status(response.headers())
                        .map_or(Ending::Clean, |code| Ending::Trailers(Some(code))),
                );
                Ok(response)
            }
            Ok(response) => {
                tally.head(&response);
                Ok(response.map(|body| {
                    body.wrap(|inner| CountedBody {
                        inner,
                        meter: Meter::new(tally.grpc, tally.started_at),
                        stats: Arc::clone(&tally.stats),
                        direction: Direction::Response,
                        tally: Some(tally),
                    })
                }))
            }
        })
    }
}

// === impl CountedBody ===

impl http_body::Body for CountedBody {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let this = &mut *self;
        if let Some(Ok(frame)) = &frame
            && let Some(chunk) = frame.data_ref()
        {
            this.meter
                .count(chunk.as_slice(), &this.stats, this.direction);
        }
        if let Some(tally) = &mut this.tally
            && let Some(ending) = Ending::of_frame(frame.as_ref())
        {
            tally.end(ending);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        // A reader that knows the length need not ask for the end to have reached it.
        if let Some(tally) = &mut self.tally
            && self.inner.is_end_stream()
        {
            tally.end(Ending::Clean);
        }
    }
}

// === impl Meter ===

impl Meter {
    fn new(grpc: bool, started_at: Instant) -> Self {
        Self {
            frames: grpc.then(FrameInspector::new),
            started_at,
            first_seen: false,
        }
    }

    fn count(&mut self, chunk: &[u8], stats: &RouteStats, direction: Direction) {
        stats.bytes[direction as usize].add(chunk.len() as u64);
        let Some(frames) = &mut self.frames else {
            return;
        };
        // A malformed frame is the peers' business; here it only stops the count.
        let Ok(messages) = frames.count(chunk) else {
            return;
        };
        if messages > 0 {
            stats.messages[direction as usize].add(messages);
            if !self.first_seen {
                self.first_seen = true;
                stats.first_message[direction as usize].observe(self.started_at.elapsed());
            }
        }
    }
}

// === impl Tally ===

impl Tally {
    fn head(&mut self, response: &Response<Body>) {
        self.http_class =
            usize::from(response.status().as_u16() / 100).clamp(1, HTTP_CLASSES.len()) - 1;
    }

    fn end(&mut self, ending: Ending) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let status = match (self.grpc, ending) {
            (true, Ending::Trailers(Some(code))) | (_, Ending::Error(code)) => code as usize,
            (_, Ending::Dropped) => Code::Cancelled as usize,
            // An answer without a status: to gRPC that is UNKNOWN.
            (true, Ending::Trailers(None) | Ending::Clean) => Code::Unknown as usize,
            (false, _) => 17 + self.http_class,
        };
        self.stats.ended[status][ending.index()].add(1);
        self.stats.live.subtract(1);
        let elapsed = self.started_at.elapsed();
        self.stats.duration.observe(elapsed);
        if let Some((binding, operation)) = self.binding.take() {
            // The index of "2xx", or gRPC's own word.
            let ok = if self.grpc { Code::Ok as usize } else { 17 + 1 };
            let operation = operation.as_ref().map_or("", |Operation(name)| name);
            binding.ended(operation, status == ok, elapsed);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.end(Ending::Dropped);
    }
}

// === impl Counter ===

impl Counter {
    fn add(&self, amount: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    fn subtract(&self, amount: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Histogram ===

impl Histogram {
    fn observe(&self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        self.buckets[BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len())]
        .add(1);
        self.sum_micros
            .add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
    }
}

impl fmt::Debug for RouteStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RouteStats(started {}, live {})",
            self.started.read(),
            self.live.read()
        )
    }
}

// === impl Registry ===

impl Registry {
    /// Without counters yet. Dapr's metrics bear `app_id` and `namespace` as labels.
    pub fn new(app_id: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            routes: Mutex::default(),
            bindings: dapr::Bindings::new(app_id.into(), namespace.into()),
        }
    }

    /// Dapr's counters of a binding, shared by all workers.
    pub fn binding(&self, name: &str) -> Arc<BindingStats> {
        self.bindings.binding(name)
    }

    /// The counters of a route for one worker alone, which asks for them on one thread.
    pub fn route(&self, route: &str, worker: usize) -> Arc<RouteStats> {
        let mut routes = self.routes();
        let workers = match routes.get_mut(route) {
            Some(workers) => workers,
            None => routes.entry(route.to_owned()).or_default(),
        };
        Arc::clone(workers.entry(worker).or_default())
    }

    /// Forgets what nobody counts any more.
    pub fn forget_unused(&self) {
        self.routes().retain(|_, workers| {
            let mut workers = workers.values();
            workers.any(|stats| Arc::strong_count(stats) > 1)
        });
        self.bindings.forget_unused();
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes by name, each with the stats of its workers.
    fn by_route(&self) -> Vec<(String, Vec<Arc<RouteStats>>)> {
        let routes = self.routes();
        routes
            .iter()
            .map(|(name, workers)| (name.clone(), workers.values().cloned().collect()))
            .collect()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({} routes)", self.by_route().len())
    }
}

fn total(workers: &[Arc<RouteStats>], counter: impl Fn(&RouteStats) -> &Counter) -> u64 {
    workers
        .iter()
        .fold(0, |sum, stats| sum.wrapping_add(counter(stats).read()))
}

fn encode_histogram(
    encoder: &mut MetricEncoder<'_>,
    workers: &[Arc<RouteStats>],
    histogram: impl Fn(&RouteStats) -> &Histogram,
) -> fmt::Result {
    let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds
        .enumerate()
        .map(|(index, bound)| {
            (
                bound,
                total(workers, |stats| &histogram(stats).buckets[index]),
            )
        })
        .collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sum of microseconds, read as seconds"
    )]
    let sum = total(workers, |stats| &histogram(stats).sum_micros) as f64 / 1e6;
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

impl Collector for Registry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let routes = self.by_route();

        let mut family = encoder.encode_descriptor(
            "thalweg_streams_started",
            "Streams that a route took up",
            None,
            MetricType::Counter,
        )?;
        for (route, workers) in &routes {
            family
                .encode_family(&[("route", route.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(
                    &total(workers, |stats| &stats.started),
                    None,
                )?;
        }

        let mut family = encoder.encode_descriptor(
            "thalweg_streams_live",
            "Streams that are open now",
            None,
            MetricType::Gauge,
        )?;
        for (route, workers) in &routes {
            let live = total(workers, |stats| &stats.live);
            family
                .encode_family(&[("route", route.as_str())])?
                .encode_gauge(&live)?;
        }

        let mut family = encoder.encode_descriptor(
            "thalweg_streams_ended",
            "Streams by status (gRPC's name or HTTP's class) and by how they really ended",
            None,
            MetricType::Counter,
        )?;
        for (route, workers) in &routes {
            for status in 0..STATUSES {
                for (ending, ending_name) in Ending::NAMES.into_iter().enumerate() {
                    let count = total(workers, |stats| &stats.ended[status][ending]);
                    if count > 0 {
                        let labels = [
                            ("route", route.as_str()),
                            ("status", status_name(status)),
                            ("ending", ending_name),
                        ];
                        family
                            .encode_family(&labels)?
                            .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                    }
                }
            }
        }

        type ByDirection = fn(&RouteStats) -> &[Counter; 2];
        let counters: [(&str, &str, ByDirection); 2] = [
            (
                "thalweg_bytes",
                "Bytes of bodies that passed, with gRPC's message heads",
                |stats| &stats.bytes,
            ),
            (
                "thalweg_messages",
                "Whole gRPC messages that passed",
                |stats| &stats.messages,
            ),
        ];
        for (name, help, counter) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (route, workers) in &routes {
                for (direction, direction_name) in DIRECTIONS.into_iter().enumerate() {
                    let count = total(workers, |stats| &counter(stats)[direction]);
                    family
                        .encode_family(&[("route", route.as_str()), ("direction", direction_name)])?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }

        let mut family = encoder.encode_descriptor(
            "thalweg_stream_duration_seconds",
            "From a stream's headers to its real end",
            None,
            MetricType::Histogram,
        )?;
        for (route, workers) in &routes {
            let labels = [("route", route.as_str())];
            let mut encoder = family.encode_family(&labels)?;
            encode_histogram(&mut encoder, workers, |stats| &stats.duration)?;
        }

        let mut family = encoder.encode_descriptor(
            "thalweg_first_message_seconds",
            "From a stream's headers to its first whole gRPC message",
            None,
            MetricType::Histogram,
        )?;
        for (route, workers) in &routes {
            for (direction, direction_name) in DIRECTIONS.into_iter().enumerate() {
                let labels = [("route", route.as_str()), ("direction", direction_name)];
                let mut encoder = family.encode_family(&labels)?;
                encode_histogram(&mut encoder, workers, |stats| {
                    &stats.first_message[direction]
                })?;
            }
        }
        self.bindings.encode(&mut encoder)
    }
}

fn status_name(status: usize) -> &'static str {
    match status.checked_sub(17) {
        Some(class) => HTTP_CLASSES[class],
        None => Code::from_number(status as u32).name(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use prometheus_client::{encoding::text, registry};
    use tower::service_fn;

    use super::*;

    /// Frames in a row, then the end.
    struct Script(std::vec::IntoIter<Result<Frame<Chunk>, Error>>);

    impl http_body::Body for Script {
        type Data = Chunk;
        type Error = Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
            Poll::Ready(self.0.next())
        }
    }

    fn body(frames: Vec<Result<Frame<Chunk>, Error>>) -> Body {
        Body::new(Script(frames.into_iter()))
    }

    fn message() -> Result<Frame<Chunk>, Error> {
        Ok(Frame::data(Chunk::from(bytes::Bytes::from_static(
            b"\0\0\0\0\x02hi",
        ))))
    }

    fn trailers(status: &'static str) -> Result<Frame<Chunk>, Error> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static(status));
        Ok(Frame::trailers(trailers))
    }

    async fn run(
        protocol: Protocol,
        answer: impl Fn() -> Result<Response<Body>, Error> + Clone,
        drain: bool,
    ) -> String {
        let registry = Arc::new(Registry::default());
        let mut service = MetricsLayer::new(registry.route("r", 0)).layer(service_fn(move |_| {
            let answer = answer();
            async move { answer }
        }));
        let mut request = Request::new(Body::empty());
        request
            .extensions_mut()
            .insert(StreamContext::new(protocol, Instant::now(), None));
        if let Ok(response) = service.call(request).await
            && drain
        {
            let mut body = response.into_body();
            while std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))
                .await
                .is_some()
            {}
        }
        let mut all = registry::Registry::default();
        all.register_collector(Box::new(registry));
        let mut text = String::new();
        text::encode(&mut text, &all).unwrap();
        text
    }

    fn assert_line(text: &str, line: &str) {
        assert!(
            text.lines().any(|found| found == line),
            "no line `{line}` in\n{text}"
        );
    }

    #[tokio::test]
    async fn stream_is_counted_by_its_trailers() {
        let answer = || {
            Ok(Response::new(body(vec![
                message(),
                message(),
                trailers("5"),
            ])))
        };

        let text = run(Protocol::Grpc, answer, true).await;

        assert_line(&text, r#"thalweg_streams_started_total{route="r"} 1"#);
        assert_line(&text, r#"thalweg_streams_live{route="r"} 0"#);
        assert_line(
            &text,
            r#"thalweg_streams_ended_total{route="r",status="NOT_FOUND",ending="trailers"} 1"#,
        );
        assert_line(
            &text,
            r#"thalweg_messages_total{route="r",direction="response"} 2"#,
        );
        assert_line(
            &text,
            r#"thalweg_bytes_total{route="r",direction="response"} 14"#,
        );
        assert_line(
            &text,
            r#"thalweg_stream_duration_seconds_count{route="r"} 1"#,
        );
        assert_line(
            &text,
            r#"thalweg_stream_duration_seconds_bucket{le="+Inf",route="r"} 1"#,
        );
        assert_line(
            &text,
            r#"thalweg_first_message_seconds_count{route="r",direction="response"} 1"#,
        );
    }

    #[tokio::test]
    async fn stream_that_is_let_go_is_counted_as_dropped() {
        let text = run(
            Protocol::Grpc,
            || Ok(Response::new(body(vec![message(), trailers("0")]))),
            false,
        )
        .await;

        assert_line(
            &text,
            r#"thalweg_streams_ended_total{route="r",status="CANCELLED",ending="dropped"} 1"#,
        );
    }

    #[tokio::test]
    async fn error_in_the_middle_is_counted_by_its_code() {
        let error = || Error::new(Code::Unavailable, "x", crate::Side::Upstream, "gone");

        let early = run(Protocol::Grpc, move || Err(error()), true).await;
        let late = run(
            Protocol::Grpc,
            move || Ok(Response::new(body(vec![message(), Err(error())]))),
            true,
        )
        .await;

        for text in [early, late] {
            assert_line(
                &text,
                r#"thalweg_streams_ended_total{route="r",status="UNAVAILABLE",ending="error"} 1"#,
            );
        }
    }

    #[tokio::test]
    async fn answer_of_headers_alone_is_counted_by_its_status() {
        let answer = || {
            let mut response = Response::new(Body::empty());
            response
                .headers_mut()
                .insert("grpc-status", http::HeaderValue::from_static("0"));
            Ok(response)
        };

        let text = run(Protocol::Grpc, answer, true).await;

        assert_line(
            &text,
            r#"thalweg_streams_ended_total{route="r",status="OK",ending="trailers"} 1"#,
        );
    }

    #[tokio::test]
    async fn plain_http_is_counted_by_class() {
        let text = run(
            Protocol::Http,
            || Ok(Response::new(Body::full("hello"))),
            true,
        )
        .await;

        assert_line(
            &text,
            r#"thalweg_streams_ended_total{route="r",status="2xx",ending="clean"} 1"#,
        );
        assert_line(
            &text,
            r#"thalweg_bytes_total{route="r",direction="response"} 5"#,
        );
    }

    /// Dapr's lines after streams that each take `elapsed` and end so.
    async fn run_binding(
        protocol: Protocol,
        answer: Result<Response<Body>, Error>,
        elapsed: Duration,
        drain: bool,
    ) -> String {
        let registry = Arc::new(Registry::new("shop", "prod"));
        registry.binding("orders").know(Some(&["create"]));
        let mut answer = Some(answer);
        let mut service = MetricsLayer::new(registry.route("r", 0))
            .with_binding(Some(registry.binding("orders")))
            .layer(service_fn(move |_| {
                let answer = answer.take().unwrap();
                async move {
                    tokio::time::sleep(elapsed).await;
                    answer
                }
            }));
        let mut request = Request::new(Body::empty());
        let context = StreamContext::new(protocol, Instant::now(), None);
        request.extensions_mut().insert(context);
        request.extensions_mut().insert(Operation("create".into()));
        if let Ok(response) = service.call(request).await
            && drain
        {
            let mut body = response.into_body();
            while std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))
                .await
                .is_some()
            {}
        }
        let mut all = registry::Registry::default();
        all.register_collector(Box::new(registry));
        let mut text = String::new();
        text::encode(&mut text, &all).unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn binding_is_counted_in_dapr_s_words() {
        let answer = Ok(Response::new(body(vec![message(), trailers("0")])));

        let text = run_binding(Protocol::Grpc, answer, Duration::from_millis(7), true).await;

        let labels = r#"app_id="shop",component="orders",namespace="prod",operation="create",success="true""#;
        for line in [
            "# TYPE dapr_component_output_binding_count unknown".to_owned(),
            format!("dapr_component_output_binding_count{{{labels}}} 1"),
            "# TYPE dapr_component_output_binding_latencies histogram".to_owned(),
            format!("dapr_component_output_binding_latencies_sum{{{labels}}} 7.0"),
            format!("dapr_component_output_binding_latencies_count{{{labels}}} 1"),
            format!("dapr_component_output_binding_latencies_bucket{{le=\"6.0\",{labels}}} 0"),
            format!("dapr_component_output_binding_latencies_bucket{{le=\"8.0\",{labels}}} 1"),
            format!("dapr_component_output_binding_latencies_bucket{{le=\"+Inf\",{labels}}} 1"),
        ] {
            assert_line(&text, &line);
        }
        let buckets = text
            .lines()
            .filter(|line| line.starts_with("dapr_component_output_binding_latencies_bucket"));
        assert_eq!(buckets.count(), 35);
        assert!(!text.contains(r#"success="false""#), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn binding_succeeds_by_its_real_end_alone() {
        let grpc = |frames| Ok(Response::new(body(frames)));
        let http = |status: u16| {
            let mut response = Response::new(Body::full("x"));
            *response.status_mut() = status.try_into().unwrap();
            Ok(response)
        };
        let gone = || Error::new(Code::Unavailable, "x", crate::Side::Upstream, "gone");
        for (protocol, answer, drain, success) in [
            (
                Protocol::Grpc,
                grpc(vec![message(), trailers("5")]),
                true,
                false,
            ),
            (Protocol::Grpc, grpc(vec![message()]), true, false),
            (
                Protocol::Grpc,
                grpc(vec![message(), Err(gone())]),
                true,
                false,
            ),
            (
                Protocol::Grpc,
                grpc(vec![message(), trailers("0")]),
                false,
                false,
            ),
            (Protocol::Grpc, Err(gone()), true, false),
            (Protocol::Http, http(200), true, true),
            (Protocol::Http, http(404), true, false),
            (Protocol::Http, http(200), false, false),
        ] {
            let case = format!("{protocol:?} {answer:?} {drain}");
            let text = run_binding(protocol, answer, Duration::ZERO, drain).await;

            let line = format!(
                r#"dapr_component_output_binding_count{{app_id="shop",component="orders",namespace="prod",operation="create",success="{success}"}} 1"#
            );
            assert!(text.lines().any(|found| found == line), "{case}: {text}");
            assert!(
                !text.contains("dapr_component_output_binding_latencies_count"),
                "what took no time has no latency"
            );
        }
    }

    #[tokio::test]
    async fn bodies_keep_their_size_hints() {
        let registry = Registry::default();
        let mut service = MetricsLayer::new(registry.route("r", 0)).layer(service_fn(async |_| {
            Ok::<_, Error>(Response::new(Body::full("hello")))
        }));

        let response = service.call(Request::new(Body::empty())).await.unwrap();

        assert_eq!(response.body().size_hint().exact(), Some(5));
    }
}
