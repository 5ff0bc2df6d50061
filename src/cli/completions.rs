//! `thalweg completions`: what shells know of the command line, from its own definition.

use std::process::ExitCode;

use clap::{Args, CommandFactory, ValueEnum};

use super::Cli;

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell that reads it.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    /// For `. <(thalweg completions bash)`, or a file that bash-completion finds.
    Bash,
    /// For a file `_thalweg` in a folder of `fpath`.
    Zsh,
    /// For a file `thalweg.fish` in fish's folder of completions.
    Fish,
}

impl Completions {
    /// Prints the script.
    pub(super) fn run(&self) -> ExitCode {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "thalweg", &mut script);
        super::say(String::from_utf8_lossy(&script))
    }
}
