//! `thalweg serve`: the proxy in the foreground, from its first log line to the end that a signal asks for.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    pin::pin,
    process::ExitCode,
};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{REFUSED, fail, welcome::Welcome};
use crate::{
    app::{App, Drained},
    config::Config,
};

/// The variable that says how much is logged.
const LOG: &str = "THALWEG_LOG";

/// Serves until a signal asks for the end.
pub(super) fn serve(file: &Path, config: Config) -> ExitCode {
    let filter = match std::env::var(LOG).map_or(Ok(ours("info")), |words| filter(&words)) {
        Ok(filter) => filter,
        Err(fault) => {
            eprintln!(
                "thalweg: {LOG}: {fault}\n  = help: write a level (error, warn, info, debug, trace), or parts with their levels: `thalweg::upstream=debug,warn`"
            );
            return ExitCode::from(REFUSED);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Colours are for people; a file or a collector would keep the escape codes.
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}")),
    };
    let code = runtime.block_on(run(file, config));
    // Not dropped, which would wait for the workers, and with them for their streams.
    runtime.shutdown_background();
    code
}

async fn run(file: &Path, config: Config) -> ExitCode {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let heard = Signals::new().and_then(|signals| Ok((signals, signal(SignalKind::hangup())?)));
    let (mut signals, mut hangups) = match heard {
        Ok(heard) => heard,
        Err(error) => return fail(&format!("cannot listen for signals: {error}")),
    };
    let mut app = match App::start(config.clone()).await {
        Ok(app) => app,
        Err(error) => return fail(&error.to_string()),
    };
    for (name, address) in &app.listeners {
        tracing::info!(%address, "listener {name}");
    }
    if let Some(address) = app.admin {
        tracing::info!("admin on http://{address}: /metrics /config /livez /readyz");
    }
    let welcome = Welcome {
        config: &config,
        listeners: &app.listeners,
        admin: app.admin,
    };
    // Nobody has to read it.
    let _ = write!(io::stdout(), "{welcome}");
    tell(NotifyState::Ready);
    let asked_to_drain = app.asked_to_drain();
    let mut signalled = tokio::select! {
        () = signals.next() => true,
        () = asked_to_drain => false,
        () = app.follow(file, &mut hangups) => false,
    };
    tell(NotifyState::Stopping);
    tracing::info!("draining; a second signal ends it at once");
    let mut drained = pin!(app.drain());
    loop {
        tokio::select! {
            // The drain first, or it would not have begun when a signal that is there already is heard.
            biased;
            Drained { ended, dismissed, cut, took } = &mut drained => {
                tracing::info!(ended, dismissed, cut, seconds = %format_args!("{:.1}", took.as_secs_f32()), "drained");
                return ExitCode::SUCCESS;
            }
            () = signals.next() => {
                // Whoever has asked at the admin endpoint, as a hook before the stop does, is followed by the first signal.
                if std::mem::replace(&mut signalled, true) {
                    tracing::warn!("a second signal: all streams are cut");
                    return ExitCode::FAILURE;
                }
                tracing::info!("the first signal, and the drain goes on");
            }
        }
    }
}

/// What the variable asks for.
fn filter(words: &str) -> Result<EnvFilter, String> {
    let words = words.trim();
    if words.is_empty() {
        return Ok(ours("info"));
    }
    if words.parse::<LevelFilter>().is_ok() {
        return Ok(ours(words));
    }
    for part in words.split(',') {
        // A name alone would be all that it says, and is most likely a level that is misspelt.
        if !part.contains(['=', '[']) && part.trim().parse::<LevelFilter>().is_err() {
            return Err(format!("`{part}` is no level"));
        }
    }
    EnvFilter::try_new(words).map_err(|error| error.to_string())
}

/// A level for what is ours. What the libraries say of each frame would drown it.
fn ours(level: &str) -> EnvFilter {
    if level.eq_ignore_ascii_case("off") {
        return EnvFilter::new(level);
    }
    EnvFilter::new(format!("warn,thalweg={level},thalweg_filters={level}"))
}

/// Tells whoever started the process how far it is, if that is wanted (`NOTIFY_SOCKET`, as systemd has it).
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "NOTIFY_SOCKET takes no news");
    }
}

/// The signals that ask for the end. They are listened for from the start, so that none is missed between two waits.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_takes_levels_and_parts_with_levels() {
        for (words, shown) in [
            ("", "thalweg=info"),
            ("debug", "thalweg=debug"),
            ("WARN", "thalweg=warn"),
            ("off", "off"),
            ("thalweg::upstream=debug,warn", "thalweg::upstream=debug"),
            ("h2=trace", "h2=trace"),
        ] {
            let filter = filter(words).unwrap().to_string().to_lowercase();
            assert!(filter.contains(shown), "{words}: {filter}");
        }
        for words in [
            "garbage",
            "garbage=nope=x",
            "thalweg=loud",
            "debug,garbage",
            "info debug",
        ] {
            assert!(filter(words).is_err(), "{words}");
        }
    }
}
