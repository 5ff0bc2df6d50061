//! The command line: what may be said, and who does it.
//!
//! `thalweg` alone is `thalweg serve --config config.yaml`. Exit codes: 0 for an end that was asked for, 64 for a
//! configuration that is refused, 1 for what could not be done.

use std::{
    fmt::Display,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueHint};
use http::Method;

use crate::config::{self, Config};

mod bindings;
mod certs;
mod check;
mod completions;
mod connect;
mod exit;
mod init;
mod invoke;
mod man;
mod operator;
mod routes;
mod serve;
mod status;
mod welcome;

use operator::Operator;

/// The exit code for a configuration that is refused: `EX_USAGE`.
const REFUSED: u8 = 64;
/// The configuration that is read when none is named.
const CONFIG: &str = "config.yaml";

/// The file that is standard input or output.
const STDIO: &str = "-";

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
    /// Write a configuration to start with.
    Init(init::Init),
    /// Say whether a configuration is good and what it does; or else all that is wrong with it.
    Check(check::Check),
    Routes(routes::Routes),
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Make a development CA, and certificates of it to try TLS with.
    Certs(certs::Certs),
    Invoke(invoke::Invoke),
    Bindings(bindings::Bindings),
    /// Make a running proxy read its configuration again.
    Reload(Operator),
    /// Let a running proxy end as after SIGTERM.
    Drain(Operator),
    /// Say whether a running proxy takes new streams; the exit code is 0 while it does. For health checks of containers.
    Health(Operator),
    Status(status::Status),
    /// Print a script that completes this command line.
    Completions(completions::Completions),
    /// Print the manual pages, for `man`.
    Man(man::Man),
    /// Print the version.
    Version,
}

#[derive(Args, Debug)]
struct Serve {
    /// The file to read. Default: config.yaml.
    #[arg(short, long, env = "THALWEG_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

/// Runs the command that was given.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(Serve { config }) => with_config(config, serve::serve),
        Command::Init(init) => init.run(),
        Command::Check(check) => check.run(),
        Command::Routes(routes) => routes.run(),
        Command::Schema => say(format_args!("{}\n", config::schema())),
        Command::Certs(certs) => certs.run(),
        Command::Invoke(invoke) => invoke.run(),
        Command::Bindings(bindings) => bindings.run(),
        Command::Reload(operator) => operator.order(Method::POST, "/reload"),
        Command::Drain(operator) => operator.order(Method::POST, "/drain"),
        Command::Health(operator) => operator.order(Method::GET, "/readyz"),
        Command::Status(status) => status.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
        Command::Version => say(format_args!("thalweg {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

/// Reads the file that was named, or the one of this folder, and goes on with it if it is good.
fn with_config(named: Option<PathBuf>, run: impl FnOnce(&Path, Config) -> ExitCode) -> ExitCode {
    let file = match named {
        Some(file) => file,
        None if Path::new(CONFIG).exists() => CONFIG.into(),
        None => return no_config(),
    };
    match config::load(&file) {
        Ok(config) => run(&file, config),
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(REFUSED)
        }
    }
}

fn no_config() -> ExitCode {
    eprintln!(
        "thalweg: there is no {CONFIG} in this folder, and no other file was named\n  \
         = help: `thalweg init` writes one to start with; `thalweg --config FILE` reads another"
    );
    ExitCode::from(REFUSED)
}

/// Prints for as long as somebody reads: one who has seen enough, as `head` has, ends it quietly.
fn say(text: impl Display) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&format!("cannot write to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Says what could not be done.
fn fail(why: &str) -> ExitCode {
    eprintln!("thalweg: {why}");
    ExitCode::FAILURE
}
