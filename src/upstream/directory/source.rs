//! Where endpoints are read from, again and again: a name, or a file.
//!
//! Both are looked at every `refresh`, a tenth more or less at random, so that many proxies do not look at the same time. What
//! cannot be read leaves the endpoints as they are, and so does a name without addresses: those who answer for names fail more
//! often than all endpoints of a service go away at once.
//!
//! A file is read whole at every look, and compared: that costs little for what fits into a few megabytes, sees every change,
//! by whatever means it was made, and needs no help from the file system. A text that has changed may be half of what is being
//! written, so it is taken up when it is the same a second time.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Weak,
    time::Duration,
};

use tokio::{
    fs::File,
    io::AsyncReadExt,
    net::lookup_host,
    time::{sleep, timeout},
};

use super::Directory;
use crate::config::{self, Address, Endpoint, Endpoints};

/// Longest that a name may take to be looked up. The system's resolver may ask several servers in turn.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Most bytes of a file: a hundred thousand endpoints.
const MAX_FILE: usize = 4 << 20;

/// Where endpoints are read from.
#[derive(Debug)]
pub(super) struct Source {
    kind: Kind,
    refresh: Duration,
}

#[derive(Debug)]
enum Kind {
    Dns(String, u16),
    File(Watched),
}

/// A file, and what it said.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// At the last look.
    seen: String,
    /// When it was last judged, and what came of it.
    judged: Option<(String, Look)>,
}

/// What a look has found: all endpoints that there are, or why they cannot be told.
type Look = Result<Vec<Endpoint>, String>;

// === impl Source ===

impl Source {
    /// Where a cluster's endpoints are read from, if it is not the configuration.
    pub(super) fn of(endpoints: &Endpoints) -> Option<Self> {
        let (kind, refresh) = match endpoints {
            Endpoints::Listed(_) => return None,
            Endpoints::Dns {
                host,
                port,
                refresh,
            } => (Kind::Dns(host.clone(), *port), refresh),
            Endpoints::File { path, refresh } => {
                let file = Watched {
                    path: path.clone(),
                    seen: String::new(),
                    judged: None,
                };
                (Kind::File(file), refresh)
            }
        };
        Some(Self {
            kind,
            refresh: *refresh,
        })
    }

    /// Looks now and every `refresh`, for as long as somebody holds the directory.
    pub(super) async fn follow(mut self, directory: Weak<Directory>) {
        loop {
            let looked = match &mut self.kind {
                Kind::Dns(host, port) => look_up(host, *port).await,
                Kind::File(file) => file.look().await,
            };
            let Some(directory) = directory.upgrade() else {
                return;
            };
            directory.take_up(looked);
            drop(directory);
            sleep(self.refresh.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
    }
}

async fn look_up(host: &str, port: u16) -> Look {
    let failed = |why: &str| format!("cannot look up {host}: {why}");
    let found = timeout(LOOK_UP, lookup_host((host, port))).await;
    let found = found
        .map_err(|_| failed(&format!("no answer within {LOOK_UP:?}")))?
        .map_err(|error| failed(&error.to_string()))?;
    let mut addresses: Vec<_> = found.collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(failed("it has no addresses"));
    }
    let endpoints = addresses.into_iter().map(|address| Endpoint {
        address: Address::Tcp(address),
        weight: 1,
    });
    Ok(endpoints.collect())
}

// === impl Watched ===

impl Watched {
    async fn look(&mut self) -> Look {
        let text = read(&self.path).await?;
        let is_settled = self.seen == text;
        self.seen = text;
        let file = self.path.display().to_string();
        let (judged, found) = self.judged.get_or_insert_with(|| judge(&self.seen, &file));
        if is_settled && *judged != self.seen {
            (*judged, *found) = judge(&self.seen, &file);
        }
        found.clone()
    }
}

fn judge(text: &str, file: &str) -> (String, Look) {
    let found = config::endpoints(text, file);
    (text.to_owned(), found.map_err(|faults| faults.to_string()))
}

async fn read(path: &Path) -> Result<String, String> {
    let failed = |why: &dyn fmt::Display| format!("cannot read {}: {why}", path.display());
    let file = File::open(path).await.map_err(|error| failed(&error))?;
    let mut text = String::new();
    let most = MAX_FILE as u64 + 1;
    let read = file.take(most).read_to_string(&mut text).await;
    read.map_err(|error| failed(&error))?;
    if text.len() > MAX_FILE {
        return Err(failed(&"it has more than 4 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::upstream::directory::Directory;

    fn directory() -> Arc<Directory> {
        let yaml = "listeners: [{name: it, address: \"127.0.0.1:0\"}]\n\
            clusters: {it: {endpoints: {dns: \"it:1\"}, slow_start: 10s}}\n";
        let config = config::parse(yaml, "test.yaml", &|_| None).unwrap();
        Arc::new(Directory::new(
            Arc::clone(&config.clusters[0]),
            Arc::default(),
            tokio::runtime::Handle::current(),
        ))
    }

    fn list(ports: impl IntoIterator<Item = u16>) -> Vec<Endpoint> {
        let endpoints = ports.into_iter().map(|port| Endpoint {
            address: format!("10.0.0.1:{port}").parse().unwrap(),
            weight: 1,
        });
        endpoints.collect()
    }

    fn addresses(directory: &Directory) -> String {
        let roster = directory.roster();
        let addresses = roster.endpoints().iter().map(|it| it.address().to_string());
        addresses.collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn failure_leaves_the_endpoints_as_they_are_and_is_counted() {
        let directory = directory();
        let failures = || directory.stats.endpoint_failures.get();

        directory.take_up(Err("no answer".into()));
        assert_eq!(directory.first_look().await, Err("no answer".to_owned()));
        assert_eq!((addresses(&directory).as_str(), failures()), ("", 1));
        directory.take_up(Ok(list([1, 2])));
        directory.take_up(Err("none".into()));
        assert_eq!(addresses(&directory), "10.0.0.1:1 10.0.0.1:2");
        assert_eq!(failures(), 2);
        assert_eq!(directory.to_json()["fault"], "none");

        directory.take_up(Ok(list([2])));
        assert_eq!(
            (addresses(&directory).as_str(), failures()),
            ("10.0.0.1:2", 2)
        );
        assert_eq!(directory.to_json().get("fault"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn endpoint_that_stays_is_the_same_and_one_that_comes_begins_slowly() {
        let directory = directory();
        directory.take_up(Ok(list([1, 2])));
        let before = directory.roster();
        let mut rosters = directory.rosters();
        rosters.mark_unchanged();

        directory.take_up(Ok(list([2, 1])));
        assert!(!rosters.has_changed().unwrap(), "the order is no change");
        directory.take_up(Ok(list([2, 3])));

        assert!(rosters.has_changed().unwrap());
        let after = directory.roster();
        assert!(Arc::ptr_eq(&before.endpoints()[1], &after.endpoints()[0]));
        let shares: Vec<bool> = (after.endpoints().iter())
            .map(|endpoint| endpoint.share() < 1.0)
            .collect();
        assert_eq!(shares, [false, true]);
    }

    #[tokio::test]
    async fn file_is_taken_up_when_it_looks_the_same_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints.yaml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let mut file = Watched {
            path: path.clone(),
            seen: String::new(),
            judged: None,
        };
        assert!(file.look().await.is_err(), "there is none");

        write("[10.0.0.1:1]");
        assert_eq!(
            file.look().await,
            Ok(list([1])),
            "the first is taken as it is"
        );
        write("[10.0.0.1:1, {address: 10.0.0.1:2}]");
        assert_eq!(
            file.look().await,
            Ok(list([1])),
            "it may be half of what is coming"
        );
        assert_eq!(file.look().await, Ok(list([1, 2])));
        write("[10.0.0.1:1,");
        assert_eq!(file.look().await, Ok(list([1, 2])));
        assert!(file.look().await.is_err(), "now it is meant so");
        write(r#"["10.0.0.1:3"]"#);
        assert!(file.look().await.is_err());
        assert_eq!(file.look().await, Ok(list([3])));
    }

    #[tokio::test]
    async fn faulty_file_is_told_with_its_place() {
        let told = |text: &str| judge(text, "endpoints.yaml").1.unwrap_err();

        assert!(told("[]").contains("must not be empty"), "{}", told("[]"));
        let name = told("[greeter:50051]");
        assert!(
            name.contains("endpoints.yaml:1:2") && name.contains("is a name"),
            "{name}"
        );
        let twice = told("[10.0.0.1:1, {address: 10.0.0.1:1, weight: 2}]");
        assert!(twice.contains("already"), "{twice}");
        let weight = told("[{address: 10.0.0.1:1, weight: 0}]");
        assert!(weight.contains("little"), "{weight}");
    }

    #[tokio::test]
    async fn names_are_looked_up() {
        let found = look_up("localhost", 80).await.unwrap();
        assert!(
            found
                .iter()
                .any(|it| it.address.to_string() == "127.0.0.1:80"),
            "{found:?}"
        );
        let none = look_up("no-such-name.invalid", 80).await.unwrap_err();
        assert!(none.contains("no-such-name.invalid"), "{none}");
    }
}
