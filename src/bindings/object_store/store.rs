//! The stores of all bindings, and what can be done in any of them.
//!
//! Folders and memories are shared by all workers. A store that is reached over the network is set up by each worker for itself, so that
//! its connections live and end with the worker that uses them.

use std::{collections::HashMap, fmt, io, ops::Range, sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use object_store::{
    Attributes, GetOptions, GetResult, MultipartUpload, ObjectMeta, ObjectStoreExt, PutMode,
    PutPayload, PutResult, Result, path::Path,
};
use thalweg_filters::{Error, Side};
use thalweg_proto::status::Code;

use super::{files::Files, memory::Memory, remote::Remote};
use crate::config::{BindingTarget, Config, ObjectStore, Place};

/// What the bindings of all workers share, by the name of the binding.
#[derive(Debug, Default)]
pub(crate) struct Stores(HashMap<String, Opened>);

/// A store that could be opened.
#[derive(Clone, Debug)]
struct Opened {
    place: Place,
    stall: Duration,
    shared: Shared,
}

#[derive(Clone)]
enum Shared {
    Files(Arc<Files>),
    Memory(Arc<Memory>),
    Remote,
}

/// One store.
pub(super) enum Store {
    Files(Arc<Files>),
    Memory(Arc<Memory>),
    Remote(Box<Remote>),
}

/// How an object is written.
#[derive(Clone, Debug)]
pub(super) struct Writing {
    pub(super) mode: PutMode,
    pub(super) attributes: Attributes,
}

/// There is no room for more, as the source of an error.
#[derive(Debug)]
pub(super) struct Full(pub(super) &'static str);

/// Why a name cannot be that of an object, as the source of an error.
#[derive(Debug)]
pub(super) struct BadName(pub(super) &'static str);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files(_) => "Files",
            Self::Memory(_) => "Memory",
            Self::Remote => "Remote",
        })
    }
}

// === impl Stores ===

impl Stores {
    /// Sets up every store once, so that what is wrong with one is told before it is used; with the name of its binding. Those that
    /// are open already stay so.
    pub(crate) fn open(
        config: &Config,
        before: &Self,
    ) -> std::result::Result<Self, (String, io::Error)> {
        let mut all = HashMap::new();
        for binding in &config.bindings {
            let BindingTarget::ObjectStore(settings) = &binding.target else {
                continue;
            };
            let (place, stall) = (&settings.place, binding.timeouts.stall);
            if let Some(known) = before.0.get(&binding.name)
                && (&known.place, known.stall) == (place, stall)
            {
                all.insert(binding.name.clone(), known.clone());
                continue;
            }
            let shared = match place {
                Place::Files(folder) => {
                    Files::open(folder).map(|files| Shared::Files(files.into()))
                }
                Place::Memory { max_bytes } => Ok(Shared::Memory(Memory::new(*max_bytes).into())),
                place => Remote::open(place, stall)
                    .map(|_| Shared::Remote)
                    .map_err(io::Error::other),
            };
            let shared = shared.map_err(|error| (binding.name.clone(), error))?;
            let place = place.clone();
            all.insert(
                binding.name.clone(),
                Opened {
                    place,
                    stall,
                    shared,
                },
            );
        }
        Ok(Self(all))
    }

    /// The store of a binding, for one worker.
    pub(super) fn get(&self, binding: &crate::config::Binding, settings: &ObjectStore) -> Store {
        match self.0.get(&binding.name).map(|opened| &opened.shared) {
            Some(Shared::Files(files)) => Store::Files(Arc::clone(files)),
            Some(Shared::Memory(memory)) => Store::Memory(Arc::clone(memory)),
            Some(Shared::Remote) | None => {
                let remote = Remote::open(&settings.place, binding.timeouts.stall);
                Store::Remote(Box::new(remote.expect("it could be set up before")))
            }
        }
    }
}

// === impl Store ===

impl Store {
    /// Writes a whole object at once.
    pub(super) async fn put(
        &self,
        key: &Path,
        payload: PutPayload,
        writing: &Writing,
    ) -> Result<PutResult> {
        match self {
            Self::Remote(remote) => remote.put(key, payload, writing).await,
            Self::Files(_) | Self::Memory(_) => {
                let mut upload = self.begin(key, writing).await?;
                upload.put_part(payload).await?;
                upload.complete().await
            }
        }
    }

    /// Begins to write an object part by part. It is not there before it is complete.
    pub(super) async fn begin(
        &self,
        key: &Path,
        writing: &Writing,
    ) -> Result<Box<dyn MultipartUpload>> {
        match self {
            Self::Files(files) => files.begin(key, writing).await,
            Self::Memory(memory) => memory.begin(key, writing),
            Self::Remote(remote) => remote.begin(key, writing).await,
        }
    }

    /// Whether there is an object of this name.
    pub(super) async fn has(&self, key: &Path) -> Result<bool> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.get(key, options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn get(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        match self {
            Self::Files(files) => files.get(key, options).await,
            Self::Memory(memory) => memory.get(key, &options),
            Self::Remote(remote) => remote.get(key, options).await,
        }
    }

    pub(super) async fn delete(&self, key: &Path) -> Result<()> {
        match self {
            Self::Files(files) => files.delete(key).await,
            Self::Memory(memory) => memory.delete(key),
            Self::Remote(remote) => remote.store().delete(key).await,
        }
    }

    /// The objects in a folder and below it, behind one of them if so asked, in the order of their names.
    pub(super) fn list(
        &self,
        folder: &Path,
        after: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        match self {
            Self::Files(files) => files.list(folder, after),
            Self::Memory(memory) => memory.list(folder, after),
            Self::Remote(remote) => match after {
                Some(after) => remote.store().list_with_offset(Some(folder), &after),
                None => remote.store().list(Some(folder)),
            },
        }
    }

    /// Parts of which an object may consist.
    pub(super) fn parts_max(&self) -> usize {
        match self {
            Self::Files(_) | Self::Memory(_) => usize::MAX,
            Self::Remote(remote) => remote.parts_max(),
        }
    }
}

// === errors ===

/// The bytes of an object that are asked for.
pub(super) fn range(options: &GetOptions, size: u64) -> Result<Range<u64>> {
    let Some(range) = &options.range else {
        return Ok(0..size);
    };
    range
        .as_range(size)
        .map_err(|error| object_store::Error::Generic {
            store: "range",
            source: Box::new(error),
        })
}

/// What a store's failure is to a client.
pub(super) fn failure(label: &str, key: &str, error: object_store::Error) -> Error {
    use object_store::Error as Failed;

    let told =
        |code, reason, side, what: &str| Error::new(code, reason, side, format!("{label}: {what}"));
    let refused = || {
        tracing::warn!(%error, "{label}: the store refuses what it is asked for");
        told(
            Code::PermissionDenied,
            "store_refused",
            Side::Upstream,
            &format!("the store does not let the proxy do this with {key}"),
        )
    };
    match &error {
        Failed::NotFound { .. } => told(
            Code::NotFound,
            "no_object",
            Side::Client,
            &format!("there is no object {key}"),
        ),
        Failed::AlreadyExists { .. } => told(
            Code::AlreadyExists,
            "object_exists",
            Side::Client,
            &format!("there is an object {key} already (ifNoneMatch)"),
        )
        .with_http_status(412),
        Failed::Precondition { .. } | Failed::NotModified { .. } => told(
            Code::FailedPrecondition,
            "object_differs",
            Side::Client,
            &format!("the object {key} is not the one that was meant (ifMatch, ifNoneMatch)"),
        )
        .with_http_status(412),
        Failed::Generic { source, .. } if source.is::<BadName>() => told(
            Code::InvalidArgument,
            "bad_request",
            Side::Client,
            &format!("{key} cannot be the name of an object here: {source}"),
        ),
        Failed::InvalidPath { .. } => told(
            Code::InvalidArgument,
            "bad_request",
            Side::Client,
            &format!("{key} cannot be the name of an object here"),
        ),
        Failed::PermissionDenied { .. } | Failed::Unauthenticated { .. } => refused(),
        Failed::Generic { source, .. } if is_refusal(source.as_ref()) => refused(),
        Failed::NotSupported { source } => told(
            Code::Unimplemented,
            "store_unable",
            Side::Upstream,
            "the store cannot do this",
        )
        .with_detail(source),
        Failed::NotImplemented { operation, .. } => told(
            Code::Unimplemented,
            "store_unable",
            Side::Upstream,
            &format!("the store knows no {operation}"),
        ),
        Failed::Generic { source, .. } if is_bad_range(source.as_ref()) => told(
            Code::OutOfRange,
            "bad_range",
            Side::Client,
            &format!("the range lies outside of the object {key}"),
        )
        .with_http_status(416),
        Failed::Generic { source, .. } if source.is::<Full>() => told(
            Code::ResourceExhausted,
            "store_full",
            Side::Upstream,
            &source.to_string(),
        )
        .with_http_status(507),
        _ => {
            tracing::warn!(%error, "{label}: the store failed");
            told(
                Code::Unavailable,
                "store_failed",
                Side::Upstream,
                &format!("the store failed or could not be reached while it was asked for {key}"),
            )
        }
    }
    .with_source(error)
}

fn is_bad_range(error: &(dyn std::error::Error + 'static)) -> bool {
    // Its type is not public; over the network it is a status.
    says(error, &["Wanted range", "status code: 416"])
}

/// Whether an error, or one that it comes of, has such words: statuses are shown in them alone.
fn says(error: &(dyn std::error::Error + 'static), words: &[&str]) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .any(|text| words.iter().any(|words| text.contains(words)))
}

/// Whether the store does not let the proxy in. Deletions of several objects, which one object is too, tell it so.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    says(error, &["status code: 401", "status code: 403"])
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Full {}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadName {}
