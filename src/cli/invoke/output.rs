//! Where the answer goes: a file or standard output.
//!
//! A file is written beside its place under a name of its own, and takes its place when the answer is whole: a cut answer
//! never looks like one. What is there already and is no plain file, such as a device or a pipe, is written to directly.

use std::{
    fs,
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use bytes::Buf;
use tokio::{fs::File, io::AsyncWriteExt};

use crate::cli::exit::Failure;

/// The answer, as it is written.
#[derive(Debug)]
pub(super) struct Output {
    name: String,
    file: File,
    is_terminal: bool,
    unflushed: bool,
    temporary: Option<Temporary>,
}

/// A file that is not whole yet. It goes unless it is kept.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    target: PathBuf,
}

// === impl Output ===

impl Output {
    /// Opens a file, or else standard output.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let name = path.map_or_else(
            || "standard output".into(),
            |path| path.display().to_string(),
        );
        let opened = match path {
            Some(path) => create(path),
            None => (io::stdout().as_fd().try_clone_to_owned()).map(|owned| (owned.into(), None)),
        };
        let (file, temporary) = opened.map_err(|error| Failure::of_output(&name, &error))?;
        Ok(Self {
            name,
            is_terminal: file.is_terminal(),
            file: File::from_std(file),
            unflushed: false,
            temporary,
        })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes some of the bytes and says how many. Nothing is written if this is given up before it is done.
    pub(super) async fn write(&mut self, bytes: &mut impl Buf) -> Result<usize, Failure> {
        self.unflushed = true;
        let written = self.file.write_buf(bytes).await;
        written.map_err(|error| self.failure(&error))
    }

    /// Whether something was written of which it is not known that it has arrived.
    pub(super) fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Waits until what was written has arrived. This, and no write, tells that a reader has left.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.file.flush().await;
        flushed.map_err(|error| self.failure(&error))?;
        self.unflushed = false;
        Ok(())
    }

    /// The answer is whole.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        self.flush().await?;
        let kept = self.temporary.take().map_or(Ok(()), Temporary::keep);
        kept.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> Failure {
        Failure::of_output(&self.name, error)
    }
}

fn create(path: &Path) -> io::Result<(fs::File, Option<Temporary>)> {
    let there = fs::metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        return Ok((fs::OpenOptions::new().write(true).open(path)?, None));
    }
    // A link stays, and what it leads to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let Some(name) = target.file_name() else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    let mut own = std::ffi::OsString::from(".");
    own.push(name);
    own.push(format!(".{}.part", std::process::id()));
    let temporary = Temporary {
        path: target.with_file_name(own),
        target,
    };
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).open(&temporary.path)?;
    if let Some(there) = there {
        file.set_permissions(there.permissions())?;
    }
    Ok((file, Some(temporary)))
}

// === impl Temporary ===

impl Temporary {
    /// Puts it in its place. There is nothing left of it to go.
    fn keep(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is gone already if it was kept; and if it cannot be removed, there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}
