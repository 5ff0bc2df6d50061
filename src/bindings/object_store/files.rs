//! Objects as files in a folder.
//!
//! **Why not plain paths.** A key comes from a stranger. Whatever it says, and whatever links lie in the folder, nothing outside of it may
//! be read or written; so every file is opened beneath the folder's own handle, which the kernel does not let a path climb out of.
//!
//! **How an object is written.** Into a temporary file in `.thalweg`, which becomes the object in one step when it is complete and
//! on the disk: renamed over what was there, or linked where nothing may be there. So no reader ever sees half of it. The last
//! owner of a temporary removes it. What a process leaves behind that was killed is removed by the next that starts, unless a
//! third works in the same folder: each holds a lock as long as it lives.

use std::{
    fmt, fs, io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::{Bytes, BytesMut};
use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata, MetadataExt, OpenOptions},
};
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    Attributes, Error, GetOptions, GetResult, GetResultPayload, MultipartUpload, ObjectMeta,
    PutMode, PutPayload, PutResult, Result, UploadPart, path::Path,
};
use tokio::task::spawn_blocking;

use super::store::{Full, Writing, range};

/// What is not yet an object, and no object's name.
const OWN: &str = ".thalweg";
const LOCK: &str = "lock";

/// The most that is read from a file at once.
const PIECE: u64 = 256 * 1024;

/// Names that are handed out at once when a folder is listed.
const NAMES: usize = 256;

/// A folder of objects.
pub(super) struct Files {
    root: Dir,
    temporaries: Dir,
    next: AtomicU64,
    /// Held from the look at an object to its replacement by another.
    replacing: Mutex<()>,
    /// Tells other processes that temporaries here may be in use.
    _lock: fs::File,
}

/// A file that is not an object yet; the last owner removes it.
struct Temporary {
    files: Arc<Files>,
    name: String,
    file: fs::File,
}

struct Upload {
    temporary: Arc<Temporary>,
    key: Path,
    mode: PutMode,
    written: u64,
}

/// Where a walk through a folder has come to.
struct Walk {
    files: Arc<Files>,
    /// What is left of each folder that was entered, in reverse order of the names.
    left: Vec<Vec<Entry>>,
    after: Option<Path>,
}

struct Entry {
    path: String,
    is_folder: bool,
}

// === impl Files ===

impl Files {
    /// Opens a folder, which is made if it is not there.
    pub(super) fn open(folder: &FilePath) -> io::Result<Self> {
        let told = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
        };
        fs::create_dir_all(folder).map_err(told)?;
        let root = Dir::open_ambient_dir(folder, ambient_authority()).map_err(told)?;
        root.create_dir_all(OWN).map_err(told)?;
        let temporaries = root.open_dir(OWN).map_err(told)?;
        let mut writable = OpenOptions::new();
        writable.create(true).truncate(false).write(true);
        let lock = temporaries
            .open_with(LOCK, &writable)
            .map_err(told)?
            .into_std();
        if lock.try_lock().is_ok() {
            for entry in temporaries.entries().map_err(told)?.flatten() {
                if entry.file_name() != LOCK {
                    temporaries.remove_file(entry.file_name()).map_err(told)?;
                }
            }
        }
        // Where files cannot be locked, nothing is swept.
        let _ = lock.lock_shared();
        Ok(Self {
            root,
            temporaries,
            next: AtomicU64::new(0),
            replacing: Mutex::default(),
            _lock: lock,
        })
    }

    pub(super) async fn begin(
        self: &Arc<Self>,
        key: &Path,
        writing: &Writing,
    ) -> Result<Box<dyn MultipartUpload>> {
        check_key(key)?;
        let files = Arc::clone(self);
        let temporary = blocking(key, move || {
            let number = files.next.fetch_add(1, Relaxed);
            let name = format!("{}-{number}", std::process::id());
            let mut new = OpenOptions::new();
            new.create_new(true).read(true).write(true);
            let file = files.temporaries.open_with(&name, &new)?.into_std();
            Ok(Temporary { files, name, file })
        });
        Ok(Box::new(Upload {
            temporary: Arc::new(temporary.await?),
            key: key.clone(),
            mode: writing.mode.clone(),
            written: 0,
        }))
    }

    pub(super) async fn get(
        self: &Arc<Self>,
        key: &Path,
        options: GetOptions,
    ) -> Result<GetResult> {
        check_key(key)?;
        let (files, path) = (Arc::clone(self), key.clone());
        let opened = blocking(key, move || {
            // A pipe or a device would hold up whoever opens it.
            let found = files.root.metadata(path.as_ref())?;
            if !found.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let file = files.root.open(path.as_ref())?;
            let meta = meta(&path, &file.metadata()?)?;
            Ok((file.into_std(), meta))
        });
        let (file, meta) = opened.await?;
        options.check_preconditions(&meta)?;
        let range = range(&options, meta.size)?;
        Ok(GetResult {
            payload: GetResultPayload::Stream(pieces(file, key.clone(), range.clone())),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: object_store::Extensions::default(),
        })
    }

    pub(super) async fn delete(self: &Arc<Self>, key: &Path) -> Result<()> {
        check_key(key)?;
        let (files, path) = (Arc::clone(self), key.clone());
        blocking(key, move || files.root.remove_file(path.as_ref())).await
    }

    pub(super) fn list(
        self: &Arc<Self>,
        folder: &Path,
        after: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let walk = Walk {
            files: Arc::clone(self),
            left: vec![vec![Entry {
                path: folder.to_string(),
                is_folder: true,
            }]],
            after,
        };
        let folder = folder.clone();
        let found = stream::try_unfold(walk, move |mut walk| {
            let folder = folder.clone();
            async move {
                let next = move || Ok((walk.next()?, walk));
                let (found, walk): (Vec<_>, _) = blocking(&folder, next).await?;
                let ended = found.is_empty();
                Ok::<_, Error>((!ended).then(|| (stream::iter(found).map(Ok), walk)))
            }
        });
        found.try_flatten().boxed()
    }
}

/// Runs what waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    key: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work)
        .await?
        .map_err(|error| failed(key, error))
}

fn failed(key: &Path, error: io::Error) -> Error {
    let path = key.to_string();
    match error.kind() {
        // A file that stands where a folder would have to be has no objects below it.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotFound {
            path,
            source: error.into(),
        },
        io::ErrorKind::AlreadyExists => Error::AlreadyExists {
            path,
            source: error.into(),
        },
        // That is also what a path hears that would lead out of the folder.
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::PermissionDenied {
                path,
                source: error.into(),
            }
        }
        io::ErrorKind::IsADirectory | io::ErrorKind::InvalidFilename => Error::InvalidPath {
            source: object_store::path::Error::InvalidPath { path: path.into() },
        },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Generic {
            store: "files",
            source: Box::new(Full("the disk is full")),
        },
        _ => Error::Generic {
            store: "files",
            source: error.into(),
        },
    }
}

/// Keeps clients away from what is no object.
fn check_key(key: &Path) -> Result<()> {
    if key
        .parts()
        .next()
        .is_some_and(|first| first.as_ref() == OWN)
    {
        return Err(failed(key, io::ErrorKind::InvalidFilename.into()));
    }
    Ok(())
}

fn meta(key: &Path, found: &Metadata) -> io::Result<ObjectMeta> {
    let modified = found.modified()?.into_std();
    // A file that is replaced is another file, and one that is written to has another time.
    let tag = format!(
        "\"{:x}-{:x}-{:x}.{:x}\"",
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec()
    );
    Ok(ObjectMeta {
        location: key.clone(),
        last_modified: modified.into(),
        size: found.len(),
        e_tag: Some(tag),
        version: None,
    })
}

/// A stretch of a file, read as it is asked for.
fn pieces(file: fs::File, key: Path, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    stream::try_unfold((Arc::new(file), range), move |(file, range)| {
        let key = key.clone();
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let (from, want) = (Arc::clone(&file), PIECE.min(range.end - range.start));
            // Made and let go of by one thread, as the allocator likes it.
            let mut piece = BytesMut::zeroed(want as usize);
            let piece = blocking(&key, move || {
                let read = from.read_at(&mut piece, range.start)?;
                piece.truncate(read);
                Ok(piece.freeze())
            })
            .await?;
            // Whoever counts the bytes finds out that a file has become shorter.
            let read = piece.len() as u64;
            Ok((read > 0).then_some((piece, (file, range.start + read..range.end))))
        }
    })
    .boxed()
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Files").field(&self.root).finish()
    }
}

// === impl Upload ===

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let mut at = self.written;
        self.written += payload.content_length() as u64;
        let (temporary, key) = (Arc::clone(&self.temporary), self.key.clone());
        Box::pin(async move {
            let written = blocking(&key, move || {
                for piece in &payload {
                    temporary.file.write_all_at(piece, at)?;
                    at += piece.len() as u64;
                }
                Ok(payload)
            });
            // Let go of by the thread that made it, as the allocator likes it.
            written.await.map(drop)
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (temporary, key, mode) = (
            Arc::clone(&self.temporary),
            self.key.clone(),
            self.mode.clone(),
        );
        let e_tag = spawn_blocking(move || temporary.publish(&key, &mode)).await??;
        Ok(PutResult {
            e_tag,
            version: None,
            extensions: object_store::Extensions::default(),
        })
    }

    /// The temporary goes with its last owner.
    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upload").field(&self.key).finish()
    }
}

// === impl Temporary ===

impl Temporary {
    /// Makes the object of it, and returns its tag.
    fn publish(&self, key: &Path, mode: &PutMode) -> Result<Option<String>> {
        let told = |error| match failed(key, error) {
            // That a part of the name is a file already; a folder that is missing is made.
            Error::NotFound { path, .. } => Error::InvalidPath {
                source: object_store::path::Error::InvalidPath { path: path.into() },
            },
            error => error,
        };
        self.file.sync_all().map_err(told)?;
        let root = &self.files.root;
        let target = PathBuf::from(key.as_ref());
        if let Some(folder) = target.parent().filter(|folder| *folder != "") {
            // It ends with "exists" if a file stands in the way.
            match root.create_dir_all(folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(told(io::ErrorKind::NotADirectory.into()));
                }
                made => made.map_err(told)?,
            }
        }
        let (here, name) = (&self.files.temporaries, &self.name);
        let replacing = self.files.replacing.lock();
        let replacing = replacing.unwrap_or_else(PoisonError::into_inner);
        match mode {
            PutMode::Overwrite => here.rename(name, root, &target).map_err(told)?,
            PutMode::Create => here.hard_link(name, root, &target).map_err(told)?,
            PutMode::Update(version) => {
                let there = root.metadata(&target);
                let there = there.and_then(|there| meta(key, &there)).ok();
                if there.is_none_or(|there| there.e_tag != version.e_tag) {
                    return Err(Error::Precondition {
                        path: key.to_string(),
                        source: "another file is there, or none".into(),
                    });
                }
                here.rename(name, root, &target).map_err(told)?;
            }
        }
        drop(replacing);
        for folder in target.ancestors().skip(1) {
            let folder = if folder == "" {
                FilePath::new(".")
            } else {
                folder
            };
            root.open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(told)?;
        }
        let found = root.metadata(&target).and_then(|there| meta(key, &there));
        // Somebody else may have replaced or removed it by now.
        Ok(found.ok().and_then(|found| found.e_tag))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What was renamed is not there any more.
        let _ = self.files.temporaries.remove_file(&self.name);
    }
}

// === impl Walk ===

impl Walk {
    /// The next objects, in the order of their names; none at the end.
    fn next(&mut self) -> io::Result<Vec<ObjectMeta>> {
        let mut found = Vec::new();
        while found.len() < NAMES {
            let Some(entries) = self.left.last_mut() else {
                break;
            };
            let Some(Entry { path, is_folder }) = entries.pop() else {
                self.left.pop();
                continue;
            };
            if is_folder {
                match self.entries(&path) {
                    Ok(entries) => self.left.push(entries),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let Ok(key) = Path::parse(&path) else {
                continue;
            };
            match self.files.root.symlink_metadata(&path) {
                Ok(there) => found.push(meta(&key, &there)?),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn entries(&self, folder: &str) -> io::Result<Vec<Entry>> {
        let at = if folder.is_empty() { "." } else { folder };
        let mut entries = Vec::new();
        for entry in self.files.root.read_dir(at)? {
            let entry = entry?;
            // What is not UTF-8 cannot be asked for either.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let kind = entry.file_type()?;
            if folder.is_empty() && name == OWN || !kind.is_dir() && !kind.is_file() {
                continue;
            }
            let path = match folder {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            let entry = Entry {
                path,
                is_folder: kind.is_dir(),
            };
            if self
                .after
                .as_ref()
                .is_none_or(|after| entry.may_follow(after))
            {
                entries.push(entry);
            }
        }
        // Objects below `a/` come behind `a.b`, as their whole names do.
        entries.sort_by(|a, b| b.sort_name().cmp(a.sort_name()));
        Ok(entries)
    }
}

/// It went away between two looks, or is no folder.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

// === impl Entry ===

impl Entry {
    fn sort_name(&self) -> impl Iterator<Item = u8> {
        let slash = self.is_folder.then_some(b'/');
        self.path.bytes().chain(slash)
    }

    /// Whether it comes behind an object, or may hold one that does.
    fn may_follow(&self, after: &Path) -> bool {
        let after = after.as_ref();
        if self.is_folder {
            let below = after.strip_prefix(&self.path);
            below.is_some_and(|below| below.starts_with('/')) || self.sort_name().gt(after.bytes())
        } else {
            &*self.path > after
        }
    }
}
