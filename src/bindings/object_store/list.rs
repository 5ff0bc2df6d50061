//! Names of objects as JSON, written as they are found: a list of any length costs no memory.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use http_body::Frame;
use object_store::{ObjectMeta, path::Path};
use serde::Serialize;
use serde_json::value::RawValue;
use thalweg_filters::{Body, Chunk, Error, StreamContext, body::Ledger};

use super::{super::bad_request, download::WINDOW, store, wanted::Wanted};

/// About what goes out at once.
const PIECE: usize = 16 * 1024;

/// Which objects are listed.
pub(super) struct Selection {
    prefix: String,
    marker: Option<String>,
    left: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    key: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<Cow<'a, str>>,
    last_modified: String,
}

struct Listing {
    objects: BoxStream<'static, object_store::Result<ObjectMeta>>,
    selection: Selection,
    label: Arc<str>,
    ledger: Arc<Ledger>,
    begun: bool,
    ended: bool,
}

// === impl Selection ===

impl Selection {
    /// As the metadata say, or the request, which holds the same keys as JSON. What the metadata say wins.
    pub(super) fn read(wanted: &Wanted<'_>, request: &[u8]) -> Result<Self, Error> {
        let request = match request.trim_ascii() {
            [] => BTreeMap::new(),
            json => texts(json)?,
        };
        let request = Wanted::new(&request);
        let get = |name| wanted.get(name).or_else(|| request.get(name));
        if get("delimiter").is_some() {
            return Err(bad_request(
                "delimiter: objects are listed with all that is below a prefix; there is no other way",
            ));
        }
        let left = match get("maxresults") {
            None => usize::MAX,
            Some(text) => text.parse().ok().filter(|most| *most > 0).ok_or_else(|| {
                bad_request(format!("maxResults {text:?} is no number above zero"))
            })?,
        };
        Ok(Self {
            prefix: get("prefix").unwrap_or_default().to_owned(),
            marker: get("marker").map(str::to_owned),
            left,
        })
    }

    /// The folder in which all of them are: a prefix may end within a name.
    pub(super) fn folder(&self) -> Result<Path, Error> {
        let folder = self
            .prefix
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        path("prefix", folder)
    }

    pub(super) fn after(&self) -> Result<Option<Path>, Error> {
        self.marker
            .as_deref()
            .map(|marker| path("marker", marker))
            .transpose()
    }

    /// Stores list by folders, and not all of them know how to begin behind an object.
    fn has(&self, key: &str) -> bool {
        let behind = self.marker.as_deref().is_none_or(|marker| key > marker);
        behind && key.starts_with(&self.prefix)
    }
}

/// The texts and numbers of a JSON object.
fn texts(json: &[u8]) -> Result<BTreeMap<String, String>, Error> {
    let object: BTreeMap<String, &RawValue> = serde_json::from_slice(json)
        .map_err(|error| bad_request(format!("what to list is said in a JSON object: {error}")))?;
    let text = |(name, value): (String, &RawValue)| match value.get().as_bytes() {
        [b'"', ..] => Some((name, serde_json::from_str(value.get()).ok()?)),
        [b'-' | b'0'..=b'9', ..] => Some((name, value.get().to_owned())),
        _ => None,
    };
    Ok(object.into_iter().filter_map(text).collect())
}

fn path(name: &str, text: &str) -> Result<Path, Error> {
    let bad = |_| bad_request(format!("{name} {text:?} is not how names of objects begin"));
    Path::parse(text).map_err(bad)
}

// === impl Listing ===

/// Waits for the first object, so that a store which cannot be asked is told by a status and not by a broken list.
pub(super) async fn begun(
    mut objects: BoxStream<'static, object_store::Result<ObjectMeta>>,
) -> object_store::Result<BoxStream<'static, object_store::Result<ObjectMeta>>> {
    let first = objects.try_next().await?;
    Ok(stream::iter(first.map(Ok)).chain(objects).boxed())
}

/// The list as a body, held by `stream`.
pub(super) fn body(
    objects: BoxStream<'static, object_store::Result<ObjectMeta>>,
    selection: Selection,
    label: Arc<str>,
    stream: Option<&StreamContext>,
) -> Body {
    Body::new(Listing {
        objects,
        selection,
        label,
        ledger: Ledger::window(WINDOW).of(stream),
        begun: false,
        ended: false,
    })
}

impl Listing {
    fn write(&mut self, object: &ObjectMeta, out: &mut String) {
        let line = Line {
            key: object.location.as_ref(),
            size: object.size,
            etag: object.e_tag.as_deref().map(quoted),
            last_modified: object.last_modified.to_rfc3339(),
        };
        let comma = if self.begun { ",\n" } else { "[" };
        self.begun = true;
        // Neither can fail: these are texts and numbers, and go into memory.
        let line = serde_json::to_string(&line).unwrap_or_default();
        let _ = write!(out, "{comma}{line}");
    }
}

/// A tag as a condition wants it. Azure leaves the quotes out where it lists.
fn quoted(tag: &str) -> Cow<'_, str> {
    if tag.ends_with('"') {
        tag.into()
    } else {
        format!("\"{tag}\"").into()
    }
}

impl http_body::Body for Listing {
    type Data = Chunk;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, Error>>> {
        let this = &mut *self;
        ready!(this.ledger.poll_open(cx));
        let mut out = String::new();
        while out.len() < PIECE && !this.ended {
            let next = match this.selection.left {
                0 => Poll::Ready(None),
                _ => this.objects.as_mut().poll_next(cx),
            };
            match next {
                Poll::Ready(Some(Ok(object))) => {
                    if this.selection.has(object.location.as_ref()) {
                        this.selection.left -= 1;
                        this.write(&object, &mut out);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    let error = store::failure(&this.label, &this.selection.prefix, error);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    out.push_str(if this.begun { "]\n" } else { "[]\n" });
                    this.ended = true;
                }
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if out.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(this.ledger.take(out.into())))))
    }
}
