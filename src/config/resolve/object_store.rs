//! Where the objects of a binding are, and who asks for them.

use std::path::PathBuf;

use http::Uri;
use thalweg_filters::units::Size;

use super::Resolve;
use crate::config::{Bucket, ObjectStore, Place, Secret, raw, show};

/// The keys that have a meaning for some places only, and for which.
const KEYS: [(&str, &[&str]); 8] = [
    ("endpoint", &["s3", "az", "gs"]),
    ("region", &["s3"]),
    ("access_key_id", &["s3"]),
    ("secret_access_key_file", &["s3"]),
    ("session_token_file", &["s3"]),
    ("account", &["az"]),
    ("account_key_file", &["az"]),
    ("service_account_file", &["gs"]),
];

const SCHEMES: &str = "write `file://FOLDER`, `memory://`, `s3://BUCKET`, `az://CONTAINER`, `gs://BUCKET` or `http://HOST/PATH`";

impl Resolve<'_> {
    pub(super) fn object_store(
        &mut self,
        raw: raw::ObjectStore,
        path: &str,
    ) -> Option<ObjectStore> {
        let (scheme, rest) = raw.url.split_once("://").unwrap_or_default();
        self.keys_of_other_places(&raw, scheme, path);
        let part_size = raw.part_size.map(Size::usize);
        let url_path = format!("{path}.url");
        let place = match scheme {
            "file" if rest.is_empty() => {
                let hint = "write `file://./data`, or an absolute path with three slashes";
                self.faults.add(&url_path, "names no folder", hint);
                return None;
            }
            "file" => Place::Files(PathBuf::from(rest)),
            "memory" if rest.trim_matches('/').is_empty() => Place::Memory {
                max_bytes: raw.max_bytes.map_or(Place::MAX_BYTES, Size::usize),
            },
            "memory" => {
                let hint = "write `memory://`: each binding has a memory of its own";
                self.faults.add(&url_path, "memory has no places", hint);
                return None;
            }
            "http" | "https" => self.web_server(&raw.url, &url_path)?,
            "s3" => Place::S3 {
                bucket: self.bucket(rest, raw.endpoint, path)?,
                region: raw.region,
                secret_access_key: self
                    .both(
                        raw.access_key_id.is_some(),
                        raw.secret_access_key_file,
                        path,
                    )
                    .and_then(|file| self.secret(Some(file), path, "secret_access_key_file")),
                access_key_id: raw.access_key_id,
                session_token: self.secret(raw.session_token_file, path, "session_token_file"),
            },
            "az" => Place::Azure {
                bucket: self.bucket(rest, raw.endpoint, path)?,
                account: raw.account,
                account_key: self.secret(raw.account_key_file, path, "account_key_file"),
            },
            "gs" => Place::Google {
                bucket: self.bucket(rest, raw.endpoint, path)?,
                service_account: self.secret(
                    raw.service_account_file,
                    path,
                    "service_account_file",
                ),
            },
            _ => {
                let message = format!("`{}` is not the URL of a store", raw.url);
                self.faults.add(&url_path, message, SCHEMES);
                return None;
            }
        };
        let least = place.least_part();
        let part_size = part_size.unwrap_or_else(|| place.part_size());
        if part_size < least {
            let message = format!("{scheme}:// takes no parts that are so small");
            let hint = format!("write `{}` or more", show::size(least));
            self.faults.add(&format!("{path}.part_size"), message, hint);
        }
        Some(ObjectStore { place, part_size })
    }

    fn keys_of_other_places(&mut self, raw: &raw::ObjectStore, scheme: &str, path: &str) {
        let written = [
            raw.endpoint.is_some(),
            raw.region.is_some(),
            raw.access_key_id.is_some(),
            raw.secret_access_key_file.is_some(),
            raw.session_token_file.is_some(),
            raw.account.is_some(),
            raw.account_key_file.is_some(),
            raw.service_account_file.is_some(),
        ];
        let keys = KEYS.iter().zip(written);
        let max_bytes = (&("max_bytes", &["memory"][..]), raw.max_bytes.is_some());
        for ((key, schemes), written) in keys.chain([max_bytes]) {
            if written && !schemes.contains(&scheme) {
                let message = format!("means nothing to {scheme}://");
                let hint = format!("leave it out: it is for {}://", schemes.join("://, "));
                self.faults
                    .add_key(&format!("{path}.{key}"), &message, &hint);
            }
        }
    }

    /// `BUCKET` or `BUCKET/PREFIX`.
    fn bucket(&mut self, text: &str, endpoint: Option<String>, path: &str) -> Option<Bucket> {
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        let prefix = prefix.trim_matches('/');
        if name.is_empty() {
            let hint = "write its name behind the two slashes, such as `s3://my-bucket`";
            self.faults
                .add(&format!("{path}.url"), "names no bucket", hint);
            return None;
        }
        if let Err(error) = object_store::path::Path::parse(prefix) {
            let hint = "write names with single slashes between them";
            let message = format!("`{prefix}` cannot stand before keys: {error}");
            self.faults.add(&format!("{path}.url"), message, hint);
        }
        if let Some(endpoint) = &endpoint {
            self.web_server(endpoint, &format!("{path}.endpoint"));
        }
        Some(Bucket {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: endpoint.map(|url| url.trim_end_matches('/').to_owned()),
        })
    }

    fn web_server(&mut self, url: &str, path: &str) -> Option<Place> {
        let uri: Option<Uri> = url.parse().ok();
        let well = uri.is_some_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.query().is_none()
                && (uri.authority()).is_some_and(|authority| !authority.as_str().contains('@'))
        });
        if !well || url.contains('#') {
            let message = format!("`{url}` is not the URL of a service");
            let hint =
                "write one such as `http://127.0.0.1:9000`, without user, query and fragment";
            self.faults.add(path, message, hint);
            return None;
        }
        Some(Place::Http {
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// The file of the secret, which goes with the name of its owner.
    fn both(&mut self, named: bool, secret: Option<String>, path: &str) -> Option<String> {
        let (id, file) = ("access_key_id", "secret_access_key_file");
        let (lonely, other) = match (named, &secret) {
            (true, None) => (id, file),
            (false, Some(_)) => (file, id),
            _ => return secret,
        };
        let message = format!("stands alone, and goes with `{other}`");
        let hint = "write both, or neither: then the environment says who asks";
        self.faults
            .add_key(&format!("{path}.{lonely}"), &message, hint);
        secret
    }

    fn secret(&mut self, file: Option<String>, path: &str, key: &str) -> Option<Secret> {
        let file = PathBuf::from(file?);
        let read = std::fs::read_to_string(&file);
        let (message, hint) = match read.as_deref().map(str::trim) {
            Ok("") => ("is empty".to_owned(), "put the secret into it"),
            Ok(text) => {
                let text = text.to_owned();
                return Some(Secret { file, text });
            }
            Err(error) => (
                error.to_string(),
                "name a file that this user can read, relative to where the process starts",
            ),
        };
        let message = format!("{}: {message}", file.display());
        self.faults.add(&format!("{path}.{key}"), message, hint);
        None
    }
}
