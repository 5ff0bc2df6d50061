//! The command line.
//!
//! `thalweg` alone is `thalweg serve --config config.yaml`. Exit codes: 0 for an end that was asked for, 64 for a
//! configuration that is refused, 1 for a proxy that could not start.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::config;

mod check;
mod serve;

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
            Ok(config) => serve::serve(config),
            Err(faults) => refuse(&faults),
        },
        Command::Check { file } => match config::load(&file) {
            Ok(config) => check::check(&file, &config),
            Err(faults) => refuse(&faults),
        },
        Command::Schema => {
            println!("{}", config::schema());
            ExitCode::SUCCESS
        }
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
