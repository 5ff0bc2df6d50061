//! What tells a file from what it was.
//!
//! A change is seen by what the file system says of a file, links followed, so the swap of a link to a folder is one too, as
//! Kubernetes does it with secrets and configurations. It works on every file system, and reads nothing.

use std::{os::unix::fs::MetadataExt, path::Path};

/// Where a file lies, how large it is, and when it was changed; `None` if it is not there.
pub(crate) type Stamp = Option<[i64; 7]>;

/// A look at files.
pub(crate) fn look<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Vec<Stamp> {
    let files = files.into_iter();
    files.map(|file| stamp(file.as_ref())).collect()
}

fn stamp(file: &Path) -> Stamp {
    let found = std::fs::metadata(file).ok()?;
    Some([
        found.dev().cast_signed(),
        found.ino().cast_signed(),
        found.size().cast_signed(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ])
}
