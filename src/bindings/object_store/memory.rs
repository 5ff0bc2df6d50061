//! Objects in the memory of the process, for trying out. All of them together are bounded, those that are not complete yet among them.

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

/// Bytes in a memory, which gets their room back with the last who reads them.
struct Pieces {
    used: Arc<AtomicUsize>,
    all: Vec<Bytes>,
    size: usize,
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
    ) -> Box<dyn MultipartUpload> {
        Box::new(Upload {
            memory: Arc::clone(self),
            key: key.clone(),
            writing: writing.clone(),
            pieces: Pieces {
                used: Arc::clone(&self.used),
                all: Vec::new(),
                size: 0,
            },
        })
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

    pub(super) fn list(
        &self,
        folder: &Path,
        after: Option<&Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.objects();
        let found: Vec<_> = objects
            .range::<Path, _>((from, Bound::Unbounded))
            .filter(|(key, _)| key.prefix_matches(folder))
            .map(|(_, object)| Ok(object.meta.clone()))
            .collect();
        stream::iter(found).boxed()
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
        let memory = &self.memory;
        let size = payload.content_length();
        let room = |used: usize| {
            used.checked_add(size)
                .filter(|sum| *sum <= memory.max_bytes)
        };
        if memory.used.fetch_update(Relaxed, Relaxed, room).is_err() {
            return Err(Error::Generic {
                store: "memory",
                source: Box::new(Full("the memory for objects is full (max_bytes)")),
            });
        }
        self.pieces.size += size;
        self.pieces.all.extend(payload);
        Ok(())
    }

    fn publish(&mut self) -> Result<PutResult> {
        let memory = &self.memory;
        let pieces = Pieces {
            used: Arc::clone(&memory.used),
            all: std::mem::take(&mut self.pieces.all),
            size: std::mem::take(&mut self.pieces.size),
        };
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

// === impl Pieces ===

impl Drop for Pieces {
    fn drop(&mut self) {
        self.used.fetch_sub(self.size, Relaxed);
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pieces({} bytes)", self.size)
    }
}
