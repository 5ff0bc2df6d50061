//! The command line.
//!
//! `thalweg` alone is `thalweg serve --config config.yaml`. Exit codes: 0 for an end that was asked for, 64 for a
//! configuration that is refused, 1 for a proxy that could not start.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    app::App,
    config::{self, Config},
};

mod certs;

/// The exit code for a configuration that is refused: `EX_USAGE`.
const REFUSED: u8 = 64;

/// A proxy for streams: gRPC and HTTP, forwarded in constant memory with flow control from end to end.
#[derive(Debug, Parser)]
#[command(name = "thalweg", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    Serve(Serve),
    /// Say whether a configuration is good, and if not, all that is wrong with it.
    Check {
        /// The file to read.
        #[arg(default_value = "config.yaml")]
        file: PathBuf,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Make a development CA, and certificates of it to try TLS with.
    Certs(certs::Certs),
    /// Print the version.
    Version,
}

#[derive(Args, Debug)]
struct Serve {
    /// The file to read.
    #[arg(short, long, env = "THALWEG_CONFIG", default_value = "config.yaml")]
    config: PathBuf,
}

/// Runs the command that was given.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(Serve { config: file }) => match config::load(&file) {
            Ok(config) => serve(config),
            Err(faults) => refuse(&faults),
        },
        Command::Check { file } => match config::load(&file) {
            Ok(config) => {
                for warning in &config.warnings {
                    eprintln!("warning: {warning}\n");
                }
                println!(
                    "{}: good ({} listeners, {} routes, {} clusters)",
                    file.display(),
                    config.listeners.len(),
                    config.routes.len(),
                    config.clusters.len()
                );
                ExitCode::SUCCESS
            }
            Err(faults) => refuse(&faults),
        },
        Command::Schema => {
            println!("{}", config::schema());
            ExitCode::SUCCESS
        }
        Command::Certs(wanted) => certs::run(&wanted),
        Command::Version => {
            println!("thalweg {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn refuse(faults: &config::Faults) -> ExitCode {
    eprintln!("{faults}");
    ExitCode::from(REFUSED)
}

fn serve(config: Config) -> ExitCode {
    let filter = EnvFilter::try_from_env("THALWEG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours are for people; a file or a collector would keep the escape codes.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("thalweg: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(config));
    // Not dropped, which would wait for the workers, and with them for their streams.
    runtime.shutdown_background();
    code
}

async fn run(config: Config) -> ExitCode {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("thalweg: cannot listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let app = match App::start(config).await {
        Ok(app) => app,
        Err(error) => {
            eprintln!("thalweg: {error}");
            return ExitCode::FAILURE;
        }
    };
    for (name, address) in &app.listeners {
        tracing::info!(%address, "listener {name}");
    }
    if let Some(address) = app.admin {
        tracing::info!("admin on http://{address}: /metrics /config /livez /readyz");
    }
    signals.next().await;
    tracing::info!("draining; a second signal ends it at once");
    tokio::select! {
        () = app.drain() => ExitCode::SUCCESS,
        () = signals.next() => ExitCode::FAILURE,
    }
}

/// The signals that ask for the end. They are listened for from the start, so that none is missed between two waits.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
