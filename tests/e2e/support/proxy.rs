//! The proxy under test, in this process.

use std::{fmt::Write as _, future::Future, net::SocketAddr};

use thalweg::{
    app::{App, Changes, Drained, ReloadError},
    config::{self, Address},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{operator::Operator, within};

/// A running proxy. It ends with the test.
pub(crate) struct TestProxy {
    /// The listener, or the first of several.
    pub(crate) address: Address,
    app: App,
    admin: SocketAddr,
}

/// A configuration in a few words: one listener, the cluster `main`, and a route of the same name that takes all streams.
pub(crate) struct Yaml {
    protocol: &'static str,
    endpoints: Vec<String>,
    address: String,
    listener: String,
    cluster: String,
    route: String,
}

// === impl Yaml ===

impl Yaml {
    /// To an HTTP/2 upstream.
    pub(crate) fn to(endpoint: impl ToString) -> Self {
        Self {
            protocol: "http2",
            endpoints: vec![endpoint.to_string()],
            address: "127.0.0.1:0".into(),
            listener: String::new(),
            cluster: String::new(),
            route: String::new(),
        }
    }

    /// To an HTTP/1.1 upstream.
    pub(crate) fn to_http1(endpoint: impl ToString) -> Self {
        Self {
            protocol: "http1",
            ..Self::to(endpoint)
        }
    }

    /// Another endpoint of the same cluster.
    pub(crate) fn and(mut self, endpoint: impl ToString) -> Self {
        self.endpoints.push(endpoint.to_string());
        self
    }

    /// Where the listener listens, if not on a port of its own.
    pub(crate) fn at(mut self, address: impl ToString) -> Self {
        self.address = address.to_string();
        self
    }

    /// More keys of the listener, such as `max_connections: 1`.
    pub(crate) fn listener(mut self, keys: &str) -> Self {
        let _ = write!(self.listener, ", {keys}");
        self
    }

    /// More keys of the cluster, such as `connect_timeout: 1s`.
    pub(crate) fn cluster(mut self, keys: &str) -> Self {
        let _ = write!(self.cluster, ", {keys}");
        self
    }

    /// More keys of the route, such as `match: {path: /}`.
    pub(crate) fn route(mut self, keys: &str) -> Self {
        let _ = write!(self.route, ", {keys}");
        self
    }

    /// Starts it.
    pub(crate) async fn start(self) -> TestProxy {
        let Self {
            protocol,
            endpoints,
            address,
            listener,
            mut cluster,
            route,
        } = self;
        if !cluster.contains("connect_timeout") {
            // A busy machine is no upstream that is down.
            cluster.push_str(", connect_timeout: 1m");
        }
        let endpoints = endpoints.join(", ");
        TestProxy::start(&format!(
            "listeners: [{{name: it, address: \"{address}\"{listener}}}]\n\
             clusters: {{main: {{endpoints: [{endpoints}], protocol: {protocol}{cluster}}}}}\n\
             routes: [{{name: main, cluster: main{route}}}]\n",
        ))
        .await
    }
}

// === impl TestProxy ===

impl TestProxy {
    /// Starts a proxy with one worker, the filter `metrics` and the admin endpoints; `yaml` is the rest.
    pub(crate) async fn start(yaml: &str) -> Self {
        Self::start_with_admin("{address: \"127.0.0.1:0\"}", yaml).await
    }

    /// The same, with settings of the admin endpoints.
    pub(crate) async fn start_with_admin(admin: &str, yaml: &str) -> Self {
        let yaml = format!(
            "admin: {admin}\nworkers: 1\ndrain: {{timeout: 5s}}\nfilters: [metrics]\n{yaml}"
        );
        Self::start_as(&yaml).await
    }

    /// The same, with filters of the test's own.
    pub(crate) async fn start_bare(yaml: &str) -> Self {
        let yaml = format!(
            "admin: {{address: \"127.0.0.1:0\"}}\nworkers: 1\ndrain: {{timeout: 5s}}\n{yaml}"
        );
        Self::start_as(&yaml).await
    }

    /// A proxy with nothing but what `yaml` says.
    pub(crate) async fn start_as(yaml: &str) -> Self {
        let config =
            config::parse(yaml, "test.yaml", &|_| None).unwrap_or_else(|faults| panic!("{faults}"));
        let app = within("the proxy starts", App::start(config))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            address: app.listeners[0].1.clone(),
            admin: app.admin.unwrap(),
            app,
        }
    }

    /// Takes up another configuration, as `start_as` does the first.
    pub(crate) async fn reload(&mut self, yaml: &str) -> Result<Changes, ReloadError> {
        let config = config::parse(yaml, "test.yaml", &|_| None).map_err(ReloadError::Faults)?;
        within("the proxy reloads", self.app.reload(config)).await
    }

    /// The address of a listener.
    pub(crate) fn listener(&self, name: &str) -> Address {
        let found = self.app.listeners.iter().find(|(known, _)| known == name);
        found.unwrap().1.clone()
    }

    /// The number in a line of `/metrics`, such as `thalweg_cluster_connections{cluster="main"}`; 0 when there is none.
    pub(crate) async fn metric(&self, line: &str) -> u64 {
        let text = self.admin("/metrics").await;
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0, |number| number.trim().parse().unwrap())
    }

    /// Waits until a line of `/metrics` has a number: counters follow what they count, and not at once.
    pub(crate) async fn metric_is(&self, line: &str, wanted: u64) {
        within(&format!("{line} is {wanted}"), async {
            while self.metric(line).await != wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until a line of `/metrics` has at least a number.
    pub(crate) async fn reaches(&self, line: &str, least: u64) {
        within(&format!("{line} is {least}"), async {
            while self.metric(line).await < least {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The answer of an admin endpoint.
    pub(crate) async fn admin(&self, path: &str) -> String {
        within("the admin endpoint answers", async {
            let mut socket = TcpStream::connect(self.admin).await.unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            body.to_owned()
        })
        .await
    }

    /// Who asks the admin endpoints.
    pub(crate) fn operator(&self) -> Operator {
        Operator(self.admin)
    }

    /// Ends the proxy in peace.
    pub(crate) fn drain(self) -> impl Future<Output = Drained> {
        within("the proxy drains", self.app.drain())
    }
}
