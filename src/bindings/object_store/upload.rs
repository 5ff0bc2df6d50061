//! A stream that becomes an object.
//!
//! **Why.** Stores take large objects in parts, and want each part whole. So a part is what an upload costs in memory, beside one
//! window of the client's.
//!
//! **How.** Bytes that go into a part have been taken, and their credit returns; they are copied, so that a part is no more than itself. When the part is full it is sent, and what comes
//! meanwhile waits with its credit, so the client sends one window more and then waits for the store. An object that fits into one part is
//! written at once. Nothing is there before all is there: an upload that is given up, for whatever reason, is aborted.

use std::{
    cell::RefCell,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aws_lc_rs::digest;
use http_body::Body as _;
use object_store::{MultipartUpload, PutMode, PutPayload, PutResult, path::Path};
use thalweg_filters::{Chunk, Error, Side, pieces::Pieces, stream::Booking};
use thalweg_proto::status::Code;
use tokio::{sync::oneshot, task::JoinSet, time::timeout};

use super::{
    super::{buffered, translate::Translate},
    ObjectStore,
    store::Writing,
    wanted::{Checksum, hex},
};
use crate::{stage::Stage, telemetry::BindingStats};

/// Longest that a store may take to forget an upload.
const ABORT_MAX: Duration = Duration::from_secs(10);

/// What has been stored.
pub(super) struct Stored {
    pub(super) result: PutResult,
    pub(super) size: u64,
    pub(super) sha256: Option<String>,
}

/// The payload of a client, of which some may wait here.
pub(super) struct Source {
    payload: Translate,
    waiting: Stage,
    ended: bool,
}

/// An upload that is aborted unless it becomes complete.
struct Upload {
    inner: Option<Box<dyn MultipartUpload>>,
    aborts: Rc<Aborts>,
    stats: Arc<BindingStats>,
}

/// What must come to its end even if the client has left: uploads that begin, and those that stores are told to forget. The worker waits
/// for them at its own end.
#[derive(Default)]
pub(crate) struct Aborts(RefCell<JoinSet<()>>);

impl ObjectStore {
    pub(super) async fn upload(
        &self,
        key: &Path,
        writing: &Writing,
        checksum: Checksum,
        mut source: Source,
        mut booked: Booking,
    ) -> Result<Stored, Error> {
        let failed = |error| self.failed(key, error);
        let (mut part, mut upload) = (Pieces::default(), None);
        let (mut size, mut parts, mut room) = (0, 0, 0);
        let mut sum =
            (checksum != Checksum::Unwanted).then(|| digest::Context::new(&digest::SHA256));
        while let Some(chunk) = source.next(self.part_size - part.len()).await? {
            size += chunk.len() as u64;
            if let Some(sum) = &mut sum {
                sum.update(chunk.as_slice());
            }
            // The part before has made room for as much as it had.
            let len = part.len() + chunk.len();
            if len > room {
                buffered::grow(&mut booked, len - room, &self.label)?;
                room = len;
            }
            // The credit returns here.
            part.push(chunk.as_slice());
            if part.len() < self.part_size {
                continue;
            }
            let upload = match &mut upload {
                Some(upload) => upload,
                none => none.insert(source.during(self.begin(key, writing)).await??),
            };
            parts += 1;
            if parts > self.store.parts_max() {
                return Err(self.too_many_parts());
            }
            let sent = upload.get().put_part(payload(&mut part));
            source.during(sent).await?.map_err(failed)?;
        }
        let sum = sum.map(digest::Context::finish);
        if let (Checksum::Expected(expected), Some(sum)) = (checksum, &sum)
            && sum.as_ref() != expected
        {
            return Err(differs(sum.as_ref()));
        }
        let result = match upload {
            None => self
                .store
                .put(key, payload(&mut part), writing)
                .await
                .map_err(failed)?,
            Some(mut upload) => {
                if !part.is_empty() {
                    upload
                        .get()
                        .put_part(payload(&mut part))
                        .await
                        .map_err(failed)?;
                }
                let completed = upload.complete().await;
                completed.map_err(|error| failed(taken(error, &writing.mode)))?
            }
        };
        Ok(Stored {
            result,
            size,
            sha256: sum.map(|sum| hex(sum.as_ref())),
        })
    }

    async fn begin(&self, key: &Path, writing: &Writing) -> Result<Upload, Error> {
        let failed = |error| self.failed(key, error);
        // Who may only create hears it before he has sent all of a large object, and not after.
        if matches!(writing.mode, PutMode::Create) && self.store.has(key).await.map_err(failed)? {
            return Err(failed(object_store::Error::AlreadyExists {
                path: key.to_string(),
                source: "found before the first part".into(),
            }));
        }
        // By itself, so that the store's answer is heard even if the client leaves before it: the upload has begun then, and must be
        // aborted. Who is not there to take it drops it.
        let (begun, taken) = oneshot::channel();
        let (store, key) = (Rc::clone(&self.store), key.clone());
        let (writing, stats) = (writing.clone(), Arc::clone(&self.stats));
        let aborts = Rc::clone(&self.aborts);
        self.aborts.spawn(async move {
            let upload = store.begin(&key, &writing).await.map(|inner| Upload {
                inner: Some(inner),
                aborts,
                stats,
            });
            let _ = begun.send(upload);
        });
        match taken.await {
            Ok(upload) => upload.map_err(failed),
            Err(_) => Err(failed(object_store::Error::Generic {
                store: "upload",
                source: "it was given up before it began".into(),
            })),
        }
    }

    fn too_many_parts(&self) -> Error {
        let (most, size) = (self.store.parts_max(), self.part_size);
        Error::new(
            Code::ResourceExhausted,
            "object_too_large",
            Side::Client,
            format!(
                "{}: the object has more than {most} parts of {size} bytes (part_size)",
                self.label
            ),
        )
        .with_http_status(413)
    }
}

/// What goes to the store at once.
fn payload(part: &mut Pieces) -> PutPayload {
    part.take().into_iter().collect()
}

/// Stores that keep a condition at the end of an upload say no more than that it does not hold.
fn taken(error: object_store::Error, mode: &PutMode) -> object_store::Error {
    match (error, mode) {
        (object_store::Error::Precondition { path, source }, PutMode::Create) => {
            object_store::Error::AlreadyExists { path, source }
        }
        (error, _) => error,
    }
}

fn differs(sum: &[u8]) -> Error {
    Error::new(
        Code::InvalidArgument,
        "checksum_differs",
        Side::Client,
        format!(
            "what came has the SHA-256 {}, and not that of metadata sha256; nothing was stored",
            hex(sum)
        ),
    )
}

// === impl Source ===

impl Source {
    pub(super) fn new(payload: Translate) -> Self {
        Self {
            payload,
            waiting: Stage::default(),
            ended: false,
        }
    }

    /// Up to `most` bytes; `None` at the end.
    async fn next(&mut self, most: usize) -> Result<Option<Chunk>, Error> {
        if self.waiting.is_empty() && !self.ended {
            std::future::poll_fn(|cx| self.poll_read(cx)).await?;
        }
        Ok((!self.waiting.is_empty()).then(|| self.waiting.pop(most)))
    }

    /// Waits for something else, and meanwhile reads what comes: an HTTP/2 stream that nobody reads is one whose small frames pile
    /// up. The client's window bounds it. Ends early if the client is gone.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Error> {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            while !self.ended {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            self.waiting.wait();
            Poll::Pending
        })
        .await
    }

    /// Reads a chunk, or learns of the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            match std::task::ready!(Pin::new(&mut self.payload).poll_frame(cx)).transpose()? {
                None => self.ended = true,
                Some(frame) => match frame.into_data() {
                    Ok(chunk) if chunk.is_empty() => continue,
                    Ok(chunk) => self.waiting.push(chunk),
                    // A request's trailers mean nothing to a binding.
                    Err(_) => continue,
                },
            }
            return Poll::Ready(Ok(()));
        }
    }
}

// === impl Upload ===

impl Upload {
    fn get(&mut self) -> &mut Box<dyn MultipartUpload> {
        self.inner
            .as_mut()
            .expect("it is there until it is complete")
    }

    async fn complete(mut self) -> object_store::Result<PutResult> {
        let completed = self.get().complete().await;
        if completed.is_ok() {
            self.inner = None;
        }
        completed
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut inner) = self.inner.take() {
            self.stats.aborted_uploads.increment();
            let stats = Arc::clone(&self.stats);
            self.aborts.spawn(async move {
                match timeout(ABORT_MAX, inner.abort()).await {
                    // It may have become complete after all.
                    Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => {}
                    Ok(Err(error)) => {
                        stats.failed_aborts.increment();
                        tracing::warn!(%error, "an upload was given up, and the store did not forget it");
                    }
                    Err(_) => {
                        stats.failed_aborts.increment();
                        tracing::warn!(limit = ?ABORT_MAX, "an upload was given up, and the store took too long to forget it");
                    }
                }
            });
        }
    }
}

// === impl Aborts ===

impl Aborts {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut running = self.0.borrow_mut();
        while running.try_join_next().is_some() {}
        running.spawn_local(task);
    }

    /// Waits for what is under way, and for what comes of it.
    pub(crate) async fn finish(&self) {
        let all = async {
            loop {
                let mut running = std::mem::take(&mut *self.0.borrow_mut());
                if running.is_empty() {
                    return;
                }
                while running.join_next().await.is_some() {}
            }
        };
        if timeout(ABORT_MAX, all).await.is_err() {
            tracing::warn!(limit = ?ABORT_MAX, "a store took too long to forget an upload, and the process ends");
        }
    }
}
