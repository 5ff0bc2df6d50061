//! The target `object_store`: objects in a store, or files in a folder.
//!
//! | operation | the stream | the answer |
//! |---|---|---|
//! | `create` | becomes an object, part by part | `{"key": ..., "etag": ..., "size": ...}` |
//! | `get` | nothing | the object, or a range of it |
//! | `head` | nothing | nothing; what is known of the object is in the metadata |
//! | `delete` | nothing | nothing |
//! | `list` | nothing, or JSON with the same keys as the metadata | a JSON array, an object a line |
//!
//! The names and the metadata are those of Dapr's own storage bindings, whatever the store; [`wanted`] reads them.
//!
//! **How.** All stores are reached through [`store::Store`]: folders and memory are [`files`] and [`memory`], the rest is the
//! `object_store` crate, which [`remote`] sets up. [`upload`] turns a stream into parts, [`download`] an object into a stream, and
//! [`list`] names into JSON. A `create` is answered when the store has accepted the whole object, so its failure is a status and
//! not a broken stream.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use ::http::{HeaderValue, Request, Response, header};
use bytes::Bytes;
use object_store::{GetOptions, GetResult, path::Path};
use serde::Serialize;
use thalweg_filters::{Body, Error, Side, StreamContext, stream::Booking};
use thalweg_proto::{
    bindings::{Form, InitialResponse, framed_initial},
    status::Code,
};

use super::{
    Invocation, bad_request,
    buffered::{answered, booking},
    response,
    translate::{Plan, Sender, Translate},
};
use crate::{config, telemetry::BindingStats};

mod download;
mod files;
mod list;
mod memory;
mod remote;
mod store;
mod upload;
mod wanted;

pub(crate) use store::Stores;
use store::{Store, Writing};
pub(crate) use upload::Aborts;
use upload::Source;
use wanted::{Checksum, Wanted};

/// The operations, in the order in which people learn of them.
pub(crate) const OPERATIONS: [&str; 5] = ["create", "get", "head", "delete", "list"];

/// The most of a request that says what to list.
const LIST_REQUEST_MAX: usize = 64 * 1024;

/// A store, as one worker reaches it.
pub(super) struct ObjectStore {
    label: Arc<str>,
    store: Rc<Store>,
    part_size: usize,
    aborts: Rc<Aborts>,
    stats: Arc<BindingStats>,
}

/// What a `create` answers.
#[derive(Serialize)]
struct Created {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

// === impl ObjectStore ===

impl ObjectStore {
    pub(super) fn new(
        binding: &config::Binding,
        settings: &config::ObjectStore,
        stores: &Stores,
        aborts: Rc<Aborts>,
        stats: Arc<BindingStats>,
    ) -> Self {
        Self {
            label: format!("binding {}", binding.name).into(),
            store: Rc::new(stores.get(binding, settings)),
            part_size: settings.part_size,
            aborts,
            stats,
        }
    }

    pub(super) async fn open(
        &self,
        invocation: &Invocation,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let wanted = Wanted::new(&invocation.metadata);
        wanted.refuse_ttl()?;
        let plan = Plan {
            from: Form::Runtime,
            to: Form::Raw,
            sender: Sender::Client,
        };
        let (parts, body) = request.into_parts();
        let payload = Translate::new(body, plan, 0, None).without_initial();
        match &*invocation.operation {
            "create" => self.create(&wanted, payload, booking(&parts)).await,
            "get" => self.get(&wanted, parts.extensions.get()).await,
            "head" => self.head(&wanted).await,
            "delete" => self.delete(&wanted).await,
            "list" => self.list(&wanted, payload, parts.extensions.get()).await,
            other => Err(Error::new(
                Code::FailedPrecondition,
                "unsupported_operation",
                Side::Client,
                format!(
                    "{} does not support operation {other}. supported operations: {}",
                    self.label,
                    OPERATIONS.join(" ")
                ),
            )),
        }
    }

    async fn create(
        &self,
        wanted: &Wanted<'_>,
        payload: Translate,
        booked: Booking,
    ) -> Result<Response<Body>, Error> {
        let key = match wanted.key()? {
            Some(key) => key,
            None => wanted::random_key(),
        };
        let writing = Writing {
            mode: wanted.mode()?,
            attributes: wanted.attributes(),
        };
        let checksum = wanted.checksum()?;
        let stored = self
            .upload(&key, &writing, checksum, Source::new(payload), booked)
            .await?;
        let created = Created {
            key: key.to_string(),
            etag: stored.result.e_tag,
            version: stored.result.version,
            size: stored.size,
            sha256: stored.sha256,
        };
        let metadata = [
            ("key", Some(created.key.clone())),
            ("etag", created.etag.clone()),
            ("version", created.version.clone()),
            ("size", Some(created.size.to_string())),
            ("sha256", created.sha256.clone()),
        ];
        let initial = InitialResponse {
            metadata: present(metadata),
            content_type: "application/json".into(),
        };
        let json = serde_json::to_vec(&created).unwrap_or_default();
        Ok(answered(&initial, json.into()))
    }

    async fn get(
        &self,
        wanted: &Wanted<'_>,
        stream: Option<&StreamContext>,
    ) -> Result<Response<Body>, Error> {
        let key = required(wanted)?;
        let hashed = match wanted.checksum()? {
            Checksum::Unwanted => false,
            Checksum::Computed => true,
            Checksum::Expected(_) => {
                let message =
                    "metadata sha256 of a get is true: the sum is known when all was read";
                return Err(bad_request(message));
            }
        };
        let options = GetOptions {
            range: wanted.range()?,
            ..conditions(wanted)
        };
        let ranged = options.range.is_some();
        let found = self.store.get(&key, options).await;
        let found = found.map_err(|error| self.failed(&key, error))?;
        let mut initial = known(&key, &found);
        if ranged {
            let (range, size) = (&found.range, found.meta.size);
            let range = format!("bytes {}-{}/{size}", range.start, range.end.max(1) - 1);
            initial.metadata.insert("contentRange".into(), range);
        }
        let body = download::body(found, &key, Arc::clone(&self.label), hashed, stream);
        let plan = Plan {
            from: Form::Raw,
            to: Form::Runtime,
            sender: Sender::Upstream(Arc::clone(&self.label)),
        };
        let mut answer = response(
            Translate::new(body, plan, 0, Some(framed_initial(&initial)))
                .without_initial()
                .into_body(),
        );
        if hashed {
            let sum = HeaderValue::from_static(download::SHA256);
            answer.headers_mut().insert(header::TRAILER, sum);
        }
        Ok(answer)
    }

    async fn head(&self, wanted: &Wanted<'_>) -> Result<Response<Body>, Error> {
        let key = required(wanted)?;
        let options = GetOptions {
            head: true,
            ..conditions(wanted)
        };
        let found = self.store.get(&key, options).await;
        let found = found.map_err(|error| self.failed(&key, error))?;
        Ok(answered(&known(&key, &found), Bytes::new()))
    }

    async fn delete(&self, wanted: &Wanted<'_>) -> Result<Response<Body>, Error> {
        let key = required(wanted)?;
        match self.store.delete(&key).await {
            // That it is gone is what was asked for; some stores cannot even tell the difference.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(self.failed(&key, error)),
        }
        let initial = InitialResponse {
            metadata: present([("key", Some(key.to_string()))]),
            content_type: String::new(),
        };
        Ok(answered(&initial, Bytes::new()))
    }

    async fn list(
        &self,
        wanted: &Wanted<'_>,
        mut payload: Translate,
        stream: Option<&StreamContext>,
    ) -> Result<Response<Body>, Error> {
        let mut request = Vec::new();
        while let Some(chunk) = payload.next().await? {
            request.extend_from_slice(chunk.as_slice());
            if request.len() > LIST_REQUEST_MAX {
                let message = format!("what to list is said in at most {LIST_REQUEST_MAX} bytes");
                return Err(bad_request(message));
            }
        }
        let selection = list::Selection::read(wanted, &request)?;
        let folder = selection.folder()?;
        let objects = self.store.list(&folder, selection.after()?);
        let objects = list::begun(objects).await;
        let objects = objects.map_err(|error| self.failed(&folder, error))?;
        let body = list::body(objects, selection, Arc::clone(&self.label), stream);
        let plan = Plan {
            from: Form::Raw,
            to: Form::Runtime,
            sender: Sender::Upstream(Arc::clone(&self.label)),
        };
        let initial = framed_initial(&InitialResponse {
            metadata: BTreeMap::new(),
            content_type: "application/json".into(),
        });
        Ok(response(
            Translate::new(body, plan, 0, Some(initial))
                .without_initial()
                .into_body(),
        ))
    }

    fn failed(&self, key: &Path, error: object_store::Error) -> Error {
        store::failure(&self.label, key.as_ref(), error)
    }
}

fn required(wanted: &Wanted<'_>) -> Result<Path, Error> {
    let missing = || bad_request("metadata key is required: the name of the object");
    wanted.key()?.ok_or_else(missing)
}

fn conditions(wanted: &Wanted<'_>) -> GetOptions {
    GetOptions {
        if_match: wanted.if_match().map(str::to_owned),
        if_none_match: wanted.if_none_match().map(str::to_owned),
        ..GetOptions::default()
    }
}

/// What is known of an object before its first byte.
fn known(key: &Path, found: &GetResult) -> InitialResponse {
    let meta = &found.meta;
    let mut metadata = present([
        ("key", Some(key.to_string())),
        ("etag", meta.e_tag.clone()),
        ("version", meta.version.clone()),
        ("size", Some(meta.size.to_string())),
        ("lastModified", Some(meta.last_modified.to_rfc3339())),
    ]);
    let attributes = wanted::named_attributes(&found.attributes);
    metadata.extend(attributes.map(|(name, value)| (name.to_owned(), value.to_owned())));
    InitialResponse {
        content_type: metadata.get("contentType").cloned().unwrap_or_default(),
        metadata,
    }
}

fn present<const N: usize>(all: [(&str, Option<String>); N]) -> BTreeMap<String, String> {
    let present = |(name, value): (&str, Option<String>)| Some((name.to_owned(), value?));
    all.into_iter().filter_map(present).collect()
}
