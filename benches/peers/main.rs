//! Runs Thalweg, Envoy, nginx, HAProxy and a plain TCP relay on the same work, and prints what each of them cost.
//!
//! **Why.** A figure of one proxy on one day says nothing. Ratios between proxies that took turns on the same machine,
//! with the same load generator and the same backend, do.
//!
//! **How.**
//!
//! 1. Every proxy is found ([`proxy`]) and started with one worker, each in front of a [`backend`] of its own.
//! 2. Round after round, each workload ([`work`]) goes through each proxy in turn ([`mod@measure`]), done by a [`load`]
//!    generator. Idle proxies wait meanwhile, which costs nothing.
//! 3. The workloads about memory start a new proxy for each measurement.
//! 4. [`table`] prints medians, ratios to Envoy's, and the spread.
//!
//! Backend, load generator and relay are this same program, run as processes of their own. All of it stays on loopback.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use mimalloc::MiMalloc;
use tempfile::TempDir;

use crate::grpc::Failure;
use crate::measure::measure;
use crate::proxy::{Kind, Running};
use crate::table::Table;
use crate::tls::Tls;
use crate::work::Work;

mod backend;
mod binding;
mod grpc;
mod http1;
mod load;
mod measure;
mod object;
mod process;
mod proxy;
mod relay;
mod s3;
mod table;
mod tls;
mod transport;
mod work;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Runs proxies side by side on the same work and prints CPU, latency and memory.
#[derive(Debug, Parser)]
#[command(name = "peers", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,

    #[command(flatten)]
    comparison: Comparison,
}

/// What to compare.
#[derive(Debug, clap::Args)]
struct Comparison {
    /// Proxies to run; those that are not installed are skipped
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::value_variants().to_vec())]
    proxies: Vec<Kind>,

    /// Workloads to run; by default all but those about objects, which need 20 GiB of disk
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Work::usual())]
    work: Vec<Work>,

    /// Times each measurement is taken; the table has the medians
    #[arg(long, default_value_t = 5)]
    rounds: u32,

    /// Factor on the amount of work, for a quick look
    #[arg(long, default_value_t = 1.0)]
    scale: f64,

    /// The `thalweg` program [default: beside this one]
    #[arg(long)]
    thalweg: Option<PathBuf>,

    /// TLS between the load generator and the proxies, or to the backend as well; bindings and the relay stay away
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "client")]
    tls: Option<Tls>,

    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
}

/// The parts that run as processes of their own.
#[derive(Debug, Subcommand)]
enum Role {
    /// Answer calls; prints its address
    #[command(hide = true)]
    Backend {
        /// The folder with the certificate to show, for TLS
        #[arg(long)]
        tls: Option<PathBuf>,
    },
    /// Do one workload when told
    #[command(hide = true)]
    Load {
        address: std::net::SocketAddr,
        work: Work,
        scale: f64,
        /// The certificate to trust, for TLS
        #[arg(long)]
        certificate: Option<PathBuf>,
    },
    /// Copy bytes between sockets
    #[command(hide = true)]
    Relay {
        listen: std::net::SocketAddr,
        upstream: std::net::SocketAddr,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match arguments.role {
            None => compare(arguments.comparison).await,
            Some(Role::Backend { tls }) => backend::run(tls.as_deref()).await,
            Some(Role::Load {
                address,
                work,
                scale,
                certificate,
            }) => load::run(address, work, scale, certificate.as_deref()).await,
            Some(Role::Relay { listen, upstream }) => relay::run(listen, upstream).await,
        }
    });
    // Standard input may still be waited for, on a thread that cannot be woken.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A proxy that takes part.
struct Peer {
    kind: Kind,
    program: PathBuf,
    directory: PathBuf,
    tls: Option<Tls>,
    /// Kept from round to round, so that memory after all of them can be read.
    running: Option<Running>,
}

async fn compare(mut comparison: Comparison) -> Result<(), Failure> {
    let directory = TempDir::new()?;
    let mut peers = find_peers(&comparison, directory.path()).await;
    comparison.work.sort_unstable();
    comparison.work.dedup();
    let (fresh, kept): (Vec<Work>, Vec<Work>) = comparison
        .work
        .iter()
        .partition(|work| work.wants_fresh_proxy());

    let mut table = Table::new(&peers.iter().map(|peer| peer.kind).collect::<Vec<_>>());
    for round in 1..=comparison.rounds {
        for &work in kept
            .iter()
            .chain(&fresh)
            .filter(|work| round <= work.rounds_max())
        {
            for peer in peers
                .iter_mut()
                .filter(|peer| peer.kind.can(work, peer.tls))
            {
                eprintln!(
                    "round {round} of {}: {} on {}",
                    comparison.rounds,
                    work.name(),
                    peer.kind.name()
                );
                peer.measure(work, comparison.scale, &mut table).await;
            }
        }
    }
    for peer in &mut peers {
        peer.finish(&mut table).await;
    }

    println!(
        "Medians of {} rounds, (ratio to Envoy's, of a binding to its plain row), least..greatest. us = microseconds.\n",
        comparison.rounds
    );
    print!("{}", table.render(comparison.markdown));
    Ok(())
}

async fn find_peers(comparison: &Comparison, directory: &Path) -> Vec<Peer> {
    let mut peers: Vec<Peer> = Vec::new();
    for &kind in &comparison.proxies {
        match kind.find(comparison.thalweg.as_deref()) {
            Ok(program) => {
                eprintln!("{}: {}", kind.name(), kind.version(&program).await);
                peers.push(Peer {
                    kind,
                    program,
                    directory: directory.join(kind.name()),
                    tls: comparison.tls,
                    running: None,
                });
            }
            Err(reason) => eprintln!("{} is skipped; {reason}", kind.name()),
        }
    }
    peers
}

// === impl Peer ===

impl Peer {
    /// Takes one measurement, and puts it or the reason why there is none into the table.
    async fn measure(&mut self, work: Work, scale: f64, table: &mut Table) {
        match self.try_measure(work, scale).await {
            Ok(measurement) => table.record(work, self.kind, &measurement),
            Err(error) => {
                eprintln!("{} on {} failed: {error}", work.name(), self.kind.name());
                table.fail(work, self.kind, &error.to_string());
            }
        }
    }

    async fn try_measure(
        &mut self,
        work: Work,
        scale: f64,
    ) -> Result<measure::Measurement, Failure> {
        let kept = if work.wants_fresh_proxy() {
            None
        } else {
            self.running.take()
        };
        let mut running = match kept {
            Some(running) => running,
            None => Running::start(self.kind, &self.program, &self.directory, self.tls).await?,
        };
        let result = measure(&mut running, work, scale).await;
        // After a failure nobody knows what state the proxy is in: the next round gets a new one.
        if result.is_ok() && !work.wants_fresh_proxy() {
            self.running = Some(running);
        } else {
            running.end().await;
        }
        result
    }

    /// Reads the memory that is left after all rounds, and ends the proxy.
    async fn finish(&mut self, table: &mut Table) {
        let Some(running) = self.running.take() else {
            return;
        };
        if let Ok(memory) = running.pid().and_then(process::memory) {
            table.record_memory(self.kind, memory);
        }
        running.end().await;
    }
}
