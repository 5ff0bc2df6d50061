//! Stores that are reached over the network.
//!
//! **How.** The `object_store` crate speaks with each of them. It is told to try a request again no more than [`RETRIES`] times, and
//! has no limit on how long a body may take, since a client may read slowly; a store that says nothing for the binding's
//! `timeouts.stall` has failed.
//!
//! Stores keep a condition, such as "only if there is none", when an object becomes visible. For one that is written in parts that is
//! the last request of many, and the crate has no way to put a condition on it. So such an upload has a client of its own, which
//! [adds](Conditional) the condition to that request.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderName, HeaderValue, Method, header};
use async_trait::async_trait;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetResult, MultipartUpload, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    azure::{
        AzureAuthorizer, AzureConfigKey, AzureCredential, AzureCredentialProvider, MicrosoftAzure,
        MicrosoftAzureBuilder,
    },
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpService, ReqwestConnector,
    },
    gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder},
    http::HttpBuilder,
    path::Path,
    prefix::PrefixStore,
};

use super::store::Writing;
use crate::config::{Bucket, Place};

const RETRIES: usize = 3;
const RETRY_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A store, as one worker reaches it.
pub(super) struct Remote {
    client: Client,
    /// What stands before the keys.
    prefix: Path,
    place: Place,
    stall: Duration,
}

#[derive(Clone)]
enum Client {
    S3(Arc<AmazonS3>),
    Azure(Arc<MicrosoftAzure>),
    Google(Arc<GoogleCloudStorage>),
    Http(Arc<dyn ObjectStore>),
}

// === impl Remote ===

impl Remote {
    pub(super) fn open(place: &Place, stall: Duration) -> Result<Self> {
        let options = options(stall);
        let (client, prefix) = match place {
            Place::S3 { bucket, .. } => (
                Client::S3(Arc::new(
                    s3(place, bucket).with_client_options(options).build()?,
                )),
                &*bucket.prefix,
            ),
            Place::Azure { bucket, .. } => (
                Client::Azure(Arc::new(
                    azure(place, bucket).with_client_options(options).build()?,
                )),
                &*bucket.prefix,
            ),
            Place::Google { bucket, .. } => (
                Client::Google(Arc::new(
                    google(place, bucket).with_client_options(options).build()?,
                )),
                &*bucket.prefix,
            ),
            Place::Http { url } => {
                let builder = HttpBuilder::new().with_url(url).with_retry(retries());
                let client = builder.with_client_options(options).build()?;
                (Client::Http(Arc::new(client)), "")
            }
            Place::Files(_) | Place::Memory { .. } => unreachable!("nothing remote"),
        };
        Ok(Self {
            client,
            prefix: Path::parse(prefix)?,
            place: place.clone(),
            stall,
        })
    }

    /// What it is asked through, with its prefix before all keys.
    pub(super) fn store(&self) -> Arc<dyn ObjectStore> {
        self.below_prefix(match self.client.clone() {
            Client::S3(client) => client,
            Client::Azure(client) => client,
            Client::Google(client) => client,
            Client::Http(client) => client,
        })
    }

    pub(super) async fn put(
        &self,
        key: &Path,
        payload: PutPayload,
        writing: &Writing,
    ) -> Result<PutResult> {
        let options = PutOptions {
            mode: writing.mode.clone(),
            attributes: writing.attributes.clone(),
            ..PutOptions::default()
        };
        self.store().put_opts(key, payload, options).await
    }

    pub(super) async fn begin(
        &self,
        key: &Path,
        writing: &Writing,
    ) -> Result<Box<dyn MultipartUpload>> {
        let options = PutMultipartOptions {
            attributes: writing.attributes.clone(),
            ..PutMultipartOptions::default()
        };
        let store = match writing.mode {
            PutMode::Overwrite => self.store(),
            _ => self.below_prefix(self.conditional(&writing.mode)?),
        };
        let begun = store.put_multipart_opts(key, options).await;
        begun.map_err(|error| match (&self.client, error) {
            (Client::Http(_), object_store::Error::NotImplemented { .. }) => {
                object_store::Error::NotSupported {
                    source: "this store takes an object in one piece only; raise part_size to take larger ones".into(),
                }
            }
            (_, error) => error,
        })
    }

    pub(super) async fn get(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.store().get_opts(key, options).await
    }

    pub(super) fn parts_max(&self) -> usize {
        match self.client {
            Client::Azure(_) => 50_000,
            _ => 10_000,
        }
    }

    fn below_prefix(&self, store: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        match self.prefix.as_ref() {
            "" => store,
            _ => Arc::new(PrefixStore::new(store, self.prefix.clone())),
        }
    }

    /// The store for one upload, whose last request carries the condition.
    fn conditional(&self, mode: &PutMode) -> Result<Arc<dyn ObjectStore>> {
        let options = options(self.stall);
        let condition = |signing| Condition::of(mode, signing);
        Ok(match (&self.client, &self.place) {
            (Client::S3(client), Place::S3 { bucket, .. }) => {
                let builder = s3(&self.place, bucket)
                    .with_client_options(options)
                    .with_credentials(Arc::clone(client.credentials()))
                    .with_http_connector(condition(Signing::Unsigned)?);
                Arc::new(builder.build()?)
            }
            (Client::Azure(client), Place::Azure { bucket, .. }) => {
                let builder = azure(&self.place, bucket).with_client_options(options);
                let signing = Signing::Azure {
                    account: builder
                        .get_config_value(&AzureConfigKey::AccountName)
                        .unwrap_or_default(),
                    credentials: Arc::clone(client.credentials()),
                };
                let builder = builder
                    .with_credentials(Arc::clone(client.credentials()))
                    .with_http_connector(condition(signing)?);
                Arc::new(builder.build()?)
            }
            (Client::Google(client), Place::Google { bucket, .. }) => {
                let builder = google(&self.place, bucket)
                    .with_client_options(options)
                    .with_credentials(Arc::clone(client.credentials()))
                    .with_http_connector(condition(Signing::Google)?);
                Arc::new(builder.build()?)
            }
            _ => self.store(),
        })
    }
}

fn options(stall: Duration) -> ClientOptions {
    // Endpoints of the makers are encrypted anyway; whoever writes another says how it is reached.
    let options = ClientOptions::new()
        .with_allow_http(true)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_MAX);
    if stall.is_zero() {
        options.with_read_timeout_disabled()
    } else {
        options.with_read_timeout(stall)
    }
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: RETRY_MAX,
    }
}

fn s3(place: &Place, bucket: &Bucket) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&bucket.name)
        .with_retry(retries());
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let Place::S3 {
        region,
        access_key_id,
        secret_access_key,
        session_token,
        ..
    } = place
    else {
        return builder;
    };
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    if let Some(id) = access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = secret_access_key {
        builder = builder.with_secret_access_key(&secret.text);
    }
    match session_token {
        Some(token) => builder.with_token(&token.text),
        None => builder,
    }
}

fn azure(place: &Place, bucket: &Bucket) -> MicrosoftAzureBuilder {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(&bucket.name)
        .with_retry(retries());
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let Place::Azure {
        account,
        account_key,
        ..
    } = place
    else {
        return builder;
    };
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    match account_key {
        Some(key) => builder.with_access_key(&key.text),
        None => builder,
    }
}

fn google(place: &Place, bucket: &Bucket) -> GoogleCloudStorageBuilder {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&bucket.name)
        .with_retry(retries());
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    match place {
        Place::Google {
            service_account: Some(account),
            ..
        } => builder.with_service_account_key(&account.text),
        _ => builder,
    }
}

// === conditions ===

/// Connects clients that put a condition on the request with which an upload becomes an object.
#[derive(Clone, Debug)]
struct Condition {
    name: HeaderName,
    value: HeaderValue,
    signing: Arc<Signing>,
}

/// What a header that is added means to the signature of a request.
#[derive(Debug)]
enum Signing {
    /// Nothing: it is not among the headers that are signed.
    Unsigned,
    /// Nothing: requests bear a token.
    Google,
    /// With an account's key, the request must be signed anew.
    Azure {
        account: String,
        credentials: AzureCredentialProvider,
    },
}

#[derive(Debug)]
struct Conditional {
    client: HttpClient,
    condition: Condition,
}

impl Condition {
    fn of(mode: &PutMode, signing: Signing) -> Result<Self> {
        const GENERATION: HeaderName = HeaderName::from_static("x-goog-if-generation-match");
        let google = matches!(signing, Signing::Google);
        let (name, value) = match mode {
            PutMode::Update(version) => {
                let (name, tag) = match google {
                    true => (GENERATION, &version.version),
                    false => (header::IF_MATCH, &version.e_tag),
                };
                (name, tag.as_deref().unwrap_or_default())
            }
            _ if google => (GENERATION, "0"),
            _ => (header::IF_NONE_MATCH, "*"),
        };
        let bad = |_| object_store::Error::Precondition {
            path: String::new(),
            source: "no object has such a tag".into(),
        };
        Ok(Self {
            name,
            value: HeaderValue::from_str(value).map_err(bad)?,
            signing: Arc::new(signing),
        })
    }
}

impl HttpConnector for Condition {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        Ok(HttpClient::new(Conditional {
            client: ReqwestConnector::default().connect(options)?,
            condition: self.clone(),
        }))
    }
}

#[async_trait]
impl HttpService for Conditional {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        if publishes(&request) {
            let Condition {
                name,
                value,
                signing,
            } = &self.condition;
            request.headers_mut().insert(name, value.clone());
            if let Signing::Azure {
                account,
                credentials,
            } = &**signing
            {
                let failed = |error| HttpError::new(HttpErrorKind::Unknown, error);
                let credential = credentials.get_credential().await.map_err(failed)?;
                if matches!(*credential, AzureCredential::AccessKey(_)) {
                    request.headers_mut().remove(header::AUTHORIZATION);
                    let authorizer = AzureAuthorizer::new(&credential, account);
                    authorizer.try_authorize(&mut request).map_err(failed)?;
                }
            }
        }
        self.client.execute(request).await
    }
}

/// Whether a request makes an object of the parts that were sent: S3 and Google complete an upload, Azure names its blocks.
fn publishes(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let mut all = form_urlencoded::parse(query.as_bytes());
    match *request.method() {
        Method::POST => all.any(|(key, _)| key == "uploadId"),
        Method::PUT => all.any(|(key, value)| key == "comp" && value == "blocklist"),
        _ => false,
    }
}
