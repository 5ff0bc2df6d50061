//! Objects as files in a folder.
//!
//! **Why not plain paths.** A key comes from a stranger. Whatever it says, and whatever links lie in the folder, nothing outside of it may
//! be read or written; so every file is opened beneath the folder's own handle, which the kernel does not let a path climb out of.
//!
//! **How an object is written.** Into a temporary file in `.thalweg`, which becomes the object in one step when it is complete and
//! on the disk: renamed over what was there, or linked where nothing may be there. So no reader ever sees half of it. The last
//! owner of a temporary removes it. What a process leaves behind that was killed is removed by the next that starts, unless a
//! third works in the same folder: each holds a lock as long as it lives.
//!
//! **Folders** are made for the objects below them, and go with the last of these: a name is taken by an object and by nothing else. So a
//! folder may vanish between its making and the object's coming; then it is made again.

use std::{
    fmt, fs, io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path as FilePath,
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
    future::ready,
    stream::{self, BoxStream},
};
use object_store::{
    Attributes, Error, GetOptions, GetResult, GetResultPayload, MultipartUpload, ObjectMeta,
    PutMode, PutPayload, PutResult, Result, UploadPart, path::Path,
};
use tokio::task::spawn_blocking;

use super::store::{BadName, Full, Writing, range};

/// What is not yet an object, and no object's name.
const OWN: &str = ".thalweg";
const LOCK: &str = "lock";

/// What is said of a folder that somebody has removed.
const GONE: &str = "the folder of the store, or `.thalweg` in it, was removed; the proxy finds it again when it is restarted";

/// The most that is read from a file at once.
const PIECE: u64 = 256 * 1024;

/// How often the folders of an object are made, if others remove them before it is there.
const TRIES: usize = 64;

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

/// Why a file did not become an object.
enum Unplaced {
    /// It must not, and this is what the client hears.
    Refused(Error),
    Failed(io::Error),
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
        let temporary = self.blocking(key, |files| {
            let number = files.next.fetch_add(1, Relaxed);
            let name = format!("{}-{number}", std::process::id());
            let mut new = OpenOptions::new();
            new.create_new(true).read(true).write(true);
            match files.temporaries.open_with(&name, &new) {
                Ok(file) => Ok(Temporary {
                    file: file.into_std(),
                    files,
                    name,
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(io::Error::other(GONE))
                }
                Err(error) => Err(error),
            }
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
        let path = key.clone();
        let opened = self.blocking(key, move |files| {
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
        let path = key.clone();
        let removed = self.blocking(key, move |files| {
            match files.root.remove_file(path.as_ref()) {
                Ok(()) => {
                    files.prune(path.as_ref());
                    Ok(())
                }
                // A folder is no object.
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                    Err(io::ErrorKind::NotFound.into())
                }
                Err(error) => Err(error),
            }
        });
        removed.await
    }

    pub(super) fn list(
        self: &Arc<Self>,
        folder: &Path,
        after: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = check_key(folder) {
            return stream::once(ready(Err(error))).boxed();
        }
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
                let files = Arc::clone(&walk.files);
                let next = move |_| Ok((walk.next()?, walk));
                let (found, walk): (Vec<_>, _) = files.blocking(&folder, next).await?;
                let ended = found.is_empty();
                Ok::<_, Error>((!ended).then(|| (stream::iter(found).map(Ok), walk)))
            }
        });
        found.try_flatten().boxed()
    }

    /// Does in the folder what waits for the disk, where it holds up nobody.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        key: &Path,
        work: impl FnOnce(Arc<Self>) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let files = Arc::clone(self);
        let work = move || {
            let done = work(Arc::clone(&files));
            // Nothing is found in a folder that is gone; that says nothing of the object.
            done.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound if files.is_gone() => io::Error::other(GONE),
                _ => error,
            })
        };
        blocking(key, work).await
    }

    /// Whether somebody has removed the folder. Its handle stays good, and leads to nothing.
    fn is_gone(&self) -> bool {
        self.root.dir_metadata().is_ok_and(|root| root.nlink() == 0)
    }

    /// Removes the folders that stand above an object and hold nothing any more.
    fn prune(&self, key: &str) {
        for folder in folders(FilePath::new(key)) {
            // It holds something, or is gone already.
            if self.root.remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

/// The folders that a file lies in, from the innermost on, without the root.
fn folders(target: &FilePath) -> impl Iterator<Item = &FilePath> {
    target.ancestors().skip(1).filter(|folder| *folder != "")
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
        io::ErrorKind::IsADirectory => bad_name("there are objects below it, so it is a folder"),
        io::ErrorKind::InvalidFilename => {
            bad_name("a part of it is longer than the file system allows")
        }
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

fn bad_name(why: &'static str) -> Error {
    Error::Generic {
        store: "files",
        source: Box::new(BadName(why)),
    }
}

/// Keeps clients away from what is no object.
fn check_key(key: &Path) -> Result<()> {
    match key.parts().next() {
        Some(first) if is_own(first.as_ref()) => Err(bad_name("`.thalweg` is the store's own")),
        _ => Ok(()),
    }
}

/// Whether a name in the root is the store's own folder; some file systems take no notice of the case.
fn is_own(name: &str) -> bool {
    name.eq_ignore_ascii_case(OWN)
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
        let told = |error| failed(key, error);
        self.file.sync_all().map_err(told)?;
        let root = &self.files.root;
        let target = FilePath::new(key.as_ref());
        let mut tries = 0;
        loop {
            tries += 1;
            let placed = self
                .make_folders(target)
                .and_then(|()| self.place(key, mode));
            match placed {
                Ok(()) => break,
                // Whoever has deleted the last object of a folder has removed the folder as well.
                Err(Unplaced::Failed(error)) if is_gone(&error) && tries < TRIES => {}
                Err(unplaced) => {
                    self.files.prune(key.as_ref());
                    return Err(match unplaced {
                        Unplaced::Refused(error) => error,
                        Unplaced::Failed(error) if is_gone(&error) => told(io::Error::other(GONE)),
                        Unplaced::Failed(error) => told(error),
                    });
                }
            }
        }
        for folder in folders(target).chain([FilePath::new(".")]) {
            match root.open(folder).and_then(|folder| folder.sync_all()) {
                // Somebody else has removed the object by now, and the folder with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                synced => synced.map_err(told)?,
            }
        }
        let found = root.metadata(target).and_then(|there| meta(key, &there));
        // Somebody else may have replaced or removed it by now.
        Ok(found.ok().and_then(|found| found.e_tag))
    }

    fn make_folders(&self, target: &FilePath) -> std::result::Result<(), Unplaced> {
        let Some(folder) = folders(target).next() else {
            return Ok(());
        };
        match self.files.root.create_dir_all(folder) {
            // It says either if an object stands in the way.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
                ) =>
            {
                Err(Unplaced::Refused(bad_name(
                    "a part of it is the name of an object already",
                )))
            }
            made => made.map_err(Unplaced::Failed),
        }
    }

    /// Puts it in its place, on the mode's condition.
    fn place(&self, key: &Path, mode: &PutMode) -> std::result::Result<(), Unplaced> {
        let (root, here, target) = (&self.files.root, &self.files.temporaries, key.as_ref());
        let replacing = self.files.replacing.lock();
        let _replacing = replacing.unwrap_or_else(PoisonError::into_inner);
        // An empty folder is in nobody's way.
        let is_folder = (root.symlink_metadata(target)).is_ok_and(|there| there.is_dir());
        if is_folder && root.remove_dir(target).is_err() {
            return Err(Unplaced::Failed(io::ErrorKind::IsADirectory.into()));
        }
        let placed = match mode {
            PutMode::Overwrite => here.rename(&self.name, root, target),
            PutMode::Create => here.hard_link(&self.name, root, target),
            PutMode::Update(version) => {
                let there = root.metadata(target);
                let there = there.and_then(|there| meta(key, &there)).ok();
                if there.is_none_or(|there| there.e_tag != version.e_tag) {
                    return Err(Unplaced::Refused(Error::Precondition {
                        path: key.to_string(),
                        source: "another file is there, or none".into(),
                    }));
                }
                here.rename(&self.name, root, target)
            }
        };
        placed.map_err(Unplaced::Failed)
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
                    Err(error) if is_gone(&error) && !self.files.is_gone() => {}
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
            if folder.is_empty() && is_own(&name) || !kind.is_dir() && !kind.is_file() {
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
        if entries.is_empty() && self.files.is_gone() {
            return Err(io::ErrorKind::NotFound.into());
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
