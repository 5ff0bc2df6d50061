//! Where the payload comes from: a file, standard input, or nowhere.

use std::{
    fs,
    io::{self, IsTerminal, Seek},
    os::fd::AsFd,
    path::Path,
};

use bytes::{Bytes, BytesMut};
use tokio::{fs::File, io::AsyncReadExt};

use crate::cli::exit::{Class, Failure};

/// The most payload of one message.
pub(super) const MESSAGE: usize = 64 * 1024;

/// The payload, as it is read.
#[derive(Debug)]
pub(super) struct Input {
    name: String,
    /// `None` is nowhere.
    file: Option<File>,
    /// All that it has, if that is known before it is read.
    size: Option<u64>,
    read: u64,
}

// === impl Input ===

impl Input {
    /// Opens what was asked for: a path, `-` for standard input, or that unless it is a terminal.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let stdin = io::stdin();
        match path {
            None if stdin.is_terminal() => Ok(Self {
                name: "nothing".into(),
                file: None,
                size: Some(0),
                read: 0,
            }),
            Some(path) if path.as_os_str() != "-" => {
                let name = path.display().to_string();
                let file = fs::File::open(path).map_err(|error| unreadable(&name, &error))?;
                Self::of(name, file)
            }
            _ => {
                let name = "standard input".to_owned();
                let owned = stdin.as_fd().try_clone_to_owned();
                let owned = owned.map_err(|error| unreadable(&name, &error))?;
                Self::of(name, owned.into())
            }
        }
    }

    fn of(name: String, mut file: fs::File) -> Result<Self, Failure> {
        let metadata = file.metadata().map_err(|error| unreadable(&name, &error))?;
        // A file that the kernel makes up has content and no length.
        let size = if metadata.is_file() && metadata.len() > 0 {
            let at = file
                .stream_position()
                .map_err(|error| unreadable(&name, &error))?;
            Some(metadata.len().saturating_sub(at))
        } else {
            None
        };
        Ok(Self {
            name,
            file: Some(File::from_std(file)),
            size,
            read: 0,
        })
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next piece, of at most [`MESSAGE`] bytes, as soon as there is any. Of a file, as much as it had when it was opened.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        let left = self.size.map_or(u64::MAX, |size| size - self.read);
        let mut piece = BytesMut::with_capacity(MESSAGE);
        let read = file.take(left).read_buf(&mut piece).await;
        let read = read.map_err(|error| unreadable(&self.name, &error))?;
        self.read += read as u64;
        if read > 0 {
            return Ok(Some(piece.freeze()));
        }
        if left > 0 && self.size.is_some() {
            let message = format!("{} has become shorter while it was read", self.name);
            return Err(Failure::new(Class::NoInput, message));
        }
        Ok(None)
    }
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(Class::NoInput, format!("{name} cannot be read: {error}"))
}
