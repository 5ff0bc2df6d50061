//! `thalweg init`: a configuration to start with.
//!
//! The starters are files of their own beside this one, so that they can be read and tested as what they are.

use std::{
    fs::Permissions,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum, ValueHint};

#[derive(Args, Debug)]
pub(super) struct Init {
    /// What the file is for.
    #[arg(value_enum, default_value_t = Starter::Local)]
    starter: Starter,
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = super::CONFIG, value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
}

/// A configuration to start with.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Starter {
    /// For this machine: bindings that need nothing else.
    Local,
    /// Beside an application and its daprd: components by their sockets, all else to daprd.
    Sidecar,
    /// In front of a service that strangers call: under TLS, with tight limits.
    Edge,
}

// === impl Init ===

impl Init {
    /// Writes the file, whole or not at all.
    pub(super) fn run(&self) -> ExitCode {
        if self.output == Path::new(super::STDIO) {
            return super::say(self.starter.text());
        }
        let file = self.output.display();
        match write(&self.output, self.starter.text(), self.force) {
            Ok(()) => {
                let certs = match self.starter {
                    Starter::Edge => "make a certificate to try it with: `thalweg certs`\n",
                    _ => "",
                };
                let start = if self.output == Path::new(super::CONFIG) {
                    "thalweg".to_owned()
                } else {
                    format!("thalweg --config {file}")
                };
                super::say(format_args!(
                    "{file}: written; each key in it is explained there\n{certs}start with `{start}`\n"
                ))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => super::fail(&format!(
                "{file} is there already and was left alone: write another with `--output FILE`, or replace it with `--force`"
            )),
            Err(error) => super::fail(&format!("cannot write {file}: {error}")),
        }
    }
}

// === impl Starter ===

impl Starter {
    fn text(self) -> &'static str {
        match self {
            Self::Local => include_str!("init/local.yaml"),
            Self::Sidecar => include_str!("init/sidecar.yaml"),
            Self::Edge => include_str!("init/edge.yaml"),
        }
    }
}

/// Writes beside the place and moves it there, so that nobody ever reads half a file.
fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".thalweg-init-")
        // As any file that a user makes; the process's mask takes away what it takes away.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    let moved = if force {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    moved.map(drop).map_err(|error| error.error)
}
