//! `thalweg serve`: the proxy in the foreground, from its first log line to the end that a signal asks for.

use std::{io::IsTerminal, process::ExitCode};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{app::App, config::Config};

/// Serves until a signal asks for the end.
pub(super) fn serve(config: Config) -> ExitCode {
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
