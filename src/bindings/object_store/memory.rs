//! Objects in the memory of the process, for trying out. All of them together are bounded, those that are not complete yet among them.
//!
//! What is bounded is memory: beside its bytes, an object costs its name, what is stored beside it, and its place ([`OBJECT`]). Otherwise
//! empty objects would cost nothing, and there could be any number of them.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use object_store::{
    Attributes, Error, GetOptions, GetResult, GetResultPayload, MultipartUpload, ObjectMeta,
    PutMode, PutPayload, PutResult, Result, UploadPart, path::Path,
};

use super::store::{Full, Writing, range};

/// What an object costs beside its bytes and texts: its place among the others, its tag, and what the allocator adds to each.
const OBJECT: usize = 1024;

/// Names that are handed out at once when objects are listed.
const NAMES: usize = 256;

/// One memory; each binding has its own.
#[derive(Debug)]
pub(super) struct Memory {
    objects: Mutex<BTreeMap<Path, Object>>,
    max_bytes: usize,
    used: Arc<AtomicUsize>,
    written: AtomicU64,
}

#[derive(Clone, Debug)]
struct Object {
    pieces: Arc<Pieces>,
    meta: ObjectMeta,
    attributes: Attributes,
}

/// The bytes of an object, and its room in a memory, which gets it back with the last who reads them.
struct Pieces {
    all: Vec<Bytes>,
    size: usize,
    room: Room,
}

/// A part of what a memory may use.
struct Room {
    used: Arc<AtomicUsize>,
    taken: usize,
}

#[derive(Debug)]
struct Upload {
    memory: Arc<Memory>,
    key: Path,
    writing: Writing,
    pieces: Pieces,
}

// === impl Memory ===

impl Memory {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            objects: Mutex::default(),
            max_bytes,
            used: Arc::default(),
            written: AtomicU64::new(1),
        }
    }

    pub(super) fn begin(
        self: &Arc<Self>,
        key: &Path,
        writing: &Writing,
    ) -> Result<Box<dyn MultipartUpload>> {
        let mut room = Room {
            used: Arc::clone(&self.used),
            taken: 0,
        };
        let attributes = writing.attributes.iter();
        let beside: usize = attributes.map(|(_, value)| value.len()).sum();
        // The name is there twice.
        room.take(OBJECT + 2 * key.as_ref().len() + beside, self.max_bytes)?;
        Ok(Box::new(Upload {
            memory: Arc::clone(self),
            key: key.clone(),
            writing: writing.clone(),
            pieces: Pieces {
                all: Vec::new(),
                size: 0,
                room,
            },
        }))
    }

    pub(super) fn get(&self, key: &Path, options: &GetOptions) -> Result<GetResult> {
        let object = self.objects().get(key).cloned();
        let Object {
            pieces,
            meta,
            attributes,
        } = object.ok_or_else(|| absent(key))?;
        options.check_preconditions(&meta)?;
        let range = range(options, meta.size)?;
        let (mut skipped, mut left) = (range.start, range.end - range.start);
        let mut index = 0;
        let cut = stream::iter(std::iter::from_fn(move || {
            while left > 0 {
                let mut piece = pieces.all.get(index)?.clone();
                index += 1;
                let front = skipped.min(piece.len() as u64);
                skipped -= front;
                piece = piece.slice(usize::try_from(front).ok()?..);
                piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= piece.len() as u64;
                if !piece.is_empty() {
                    return Some(Ok(piece));
                }
            }
            None
        }));
        Ok(GetResult {
            payload: GetResultPayload::Stream(cut.boxed()),
            meta,
            range,
            attributes,
            extensions: object_store::Extensions::default(),
        })
    }

    pub(super) fn delete(&self, key: &Path) -> Result<()> {
        let removed = self.objects().remove(key);
        removed.map(drop).ok_or_else(|| absent(key))
    }

    /// Handed out a few at a time: who reads slowly does not hold the names of all.
    pub(super) fn list(
        self: &Arc<Self>,
        folder: &Path,
        after: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (memory, folder) = (Arc::clone(self), folder.clone());
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let batches = stream::unfold(from, move |from| {
            let found: Vec<_> = (memory.objects())
                .range::<Path, _>((from, Bound::Unbounded))
                .filter(|(key, _)| key.prefix_matches(&folder))
                .take(NAMES)
                .map(|(_, object)| object.meta.clone())
                .collect();
            let last = found
                .last()
                .map(|meta| Bound::Excluded(meta.location.clone()));
            ready(last.map(|last| (stream::iter(found).map(Ok), last)))
        });
        batches.flatten().fuse().boxed()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<Path, Object>> {
        // Each change is one step, so what is there is whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn absent(key: &Path) -> Error {
    Error::NotFound {
        path: key.to_string(),
        source: "it is not in memory".into(),
    }
}

// === impl Upload ===

impl Upload {
    fn keep(&mut self, payload: PutPayload) -> Result<()> {
        let size = payload.content_length();
        self.pieces.room.take(size, self.memory.max_bytes)?;
        self.pieces.size += size;
        // An object stays, and must be no more than itself: what comes may lie in buffers that are not full.
        let exact = payload.iter().map(|piece| Bytes::copy_from_slice(piece));
        self.pieces.all.extend(exact);
        Ok(())
    }

    fn publish(&mut self) -> Result<PutResult> {
        let memory = &self.memory;
        let mut objects = memory.objects();
        let there = objects.get(&self.key);
        let path = self.key.to_string();
        match (&self.writing.mode, there) {
            (PutMode::Create, Some(_)) => {
                let source = "it is in memory".into();
                return Err(Error::AlreadyExists { path, source });
            }
            (PutMode::Update(version), there)
                if there.is_none_or(|object| object.meta.e_tag != version.e_tag) =>
            {
                let source = "another is in memory, or none".into();
                return Err(Error::Precondition { path, source });
            }
            _ => {}
        }
        let e_tag = format!("\"{}\"", memory.written.fetch_add(1, Relaxed));
        let pieces = Pieces {
            all: std::mem::take(&mut self.pieces.all),
            size: self.pieces.size,
            room: self.pieces.room.split(),
        };
        let meta = ObjectMeta {
            location: self.key.clone(),
            last_modified: SystemTime::now().into(),
            size: pieces.size as u64,
            e_tag: Some(e_tag.clone()),
            version: None,
        };
        let object = Object {
            pieces: Arc::new(pieces),
            meta,
            attributes: self.writing.attributes.clone(),
        };
        objects.insert(self.key.clone(), object);
        Ok(PutResult {
            e_tag: Some(e_tag),
            version: None,
            extensions: object_store::Extensions::default(),
        })
    }
}

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        Box::pin(ready(self.keep(payload)))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.publish()
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}

// === impl Room ===

impl Room {
    fn take(&mut self, wanted: usize, most: usize) -> Result<()> {
        let room = |used: usize| used.checked_add(wanted).filter(|sum| *sum <= most);
        if self.used.fetch_update(Relaxed, Relaxed, room).is_err() {
            return Err(Error::Generic {
                store: "memory",
                source: Box::new(Full("the memory for objects is full (max_bytes)")),
            });
        }
        self.taken += wanted;
        Ok(())
    }

    /// All of it, for another owner.
    fn split(&mut self) -> Self {
        Self {
            used: Arc::clone(&self.used),
            taken: std::mem::take(&mut self.taken),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.taken, Relaxed);
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces({} bytes)", self.size)
    }
}
