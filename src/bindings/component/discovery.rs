//! A folder whose sockets become bindings, and the components that the configuration names.
//!
//! Every socket in the folder is asked for `OutputBinding`; those that serve it become bindings with the name of their file, and
//! cease to be when the file is gone. The folder is looked into every so often, which works on every file system.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::Handle;
use crate::{
    config::{self, BindingTarget, Config},
    telemetry::Telemetry,
};

/// The components of the whole process.
#[derive(Debug)]
pub(crate) struct Components {
    /// By the name of the binding. One that was found once keeps its handle, so that what workers built for it serves again when
    /// it comes back.
    handles: Mutex<HashMap<String, Handle>>,
    config: watch::Sender<Arc<Config>>,
    found: RwLock<HashMap<String, Found>>,
    telemetry: Arc<Telemetry>,
}

#[derive(Debug)]
struct Found {
    socket: PathBuf,
    binding: Arc<config::Binding>,
    handle: Handle,
    supervisor: AbortHandle,
}

/// A component that the configuration names.
struct Supervised {
    settings: config::Component,
    handle: Handle,
    supervisor: AbortHandle,
}

// === impl Components ===

impl Components {
    /// The components that the configuration names, and a place for those that are found.
    pub(crate) fn new(config: &Arc<Config>, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            handles: Mutex::default(),
            config: watch::Sender::new(Arc::clone(config)),
            found: RwLock::default(),
            telemetry: Arc::clone(telemetry),
        }
    }

    /// Goes by another configuration. A component whose settings are the same notices nothing; any other begins anew, so that what
    /// is asked for its handle from now on hears of the new one.
    pub(crate) fn configure(&self, config: &Arc<Config>) {
        let before = self.config.borrow().clone();
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (named(&before), named(config));
        for name in before.keys().chain(now.keys()) {
            if before.get(name) != now.get(name) {
                handles.remove(*name);
            }
        }
        drop(handles);
        let filters = config.binding_filters();
        let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
        for (name, found) in found.iter_mut() {
            let binding = config::Binding::discovered(name, &found.socket, &filters);
            if *found.binding != binding {
                found.binding = Arc::new(binding);
            }
        }
        drop(found);
        self.config.send_replace(Arc::clone(config));
    }

    /// Looks after all components for as long as it is polled.
    pub(crate) async fn supervise(self: Arc<Self>) {
        let mut news = self.config.subscribe();
        let mut supervisors = JoinSet::new();
        let mut supervised = HashMap::new();
        loop {
            while supervisors.try_join_next().is_some() {}
            let config = Arc::clone(&news.borrow_and_update());
            self.update_named(&config, &mut supervised, &mut supervisors);
            let seen = match &config.component_sockets {
                None => Vec::new(),
                Some(sockets) => list(&sockets.folder).unwrap_or_else(|error| {
                    // A folder that is not there has nothing in it.
                    tracing::debug!(folder = %sockets.folder.display(), %error, "cannot look into the folder of components");
                    Vec::new()
                }),
            };
            self.update_found(&config, seen, &mut supervisors);
            let another = news.changed();
            let _ = match &config.component_sockets {
                None => another.await,
                Some(sockets) => timeout(sockets.interval, another).await.unwrap_or(Ok(())),
            };
        }
    }

    /// Whether bindings may appear that the configuration does not name.
    pub(crate) fn may_appear(&self) -> bool {
        self.config.borrow().component_sockets.is_some()
    }

    /// A binding that was found, once its component has been reached.
    pub(crate) fn found(&self, name: &str) -> Option<Arc<config::Binding>> {
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner);
        let found = found.get(name)?;
        found.handle.was_ready().then(|| Arc::clone(&found.binding))
    }

    /// All bindings that were found and whose components have been reached.
    pub(crate) fn all_found(&self) -> Vec<Arc<config::Binding>> {
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner);
        let reached = found.values().filter(|found| found.handle.was_ready());
        reached.map(|found| Arc::clone(&found.binding)).collect()
    }

    /// What is known of the component of a binding.
    pub(crate) fn handle(&self, name: &str) -> Handle {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(name) {
            return handle.clone();
        }
        let handle = Handle::new(name, &self.telemetry);
        handles.insert(name.to_owned(), handle.clone());
        handle
    }

    /// Begins to look after what the configuration names now, and ceases to where it does not or says otherwise.
    fn update_named(
        &self,
        config: &Config,
        supervised: &mut HashMap<String, Supervised>,
        supervisors: &mut JoinSet<()>,
    ) {
        let named = named(config);
        supervised.retain(|name, known| {
            let stays = named.get(&**name) == Some(&&known.settings);
            if !stays {
                known.supervisor.abort();
                known.handle.gone("its settings have changed");
            }
            stays
        });
        for (name, settings) in named {
            if supervised.contains_key(name) {
                continue;
            }
            let handle = self.handle(name);
            let supervisor = supervisors.spawn(handle.clone().supervise(settings.clone()));
            let settings = settings.clone();
            supervised.insert(
                name.to_owned(),
                Supervised {
                    settings,
                    handle,
                    supervisor,
                },
            );
        }
    }

    fn update_found(
        &self,
        config: &Config,
        seen: Vec<(String, PathBuf)>,
        supervisors: &mut JoinSet<()>,
    ) {
        let taken = |name: &str| config.bindings.iter().any(|binding| binding.name == name);
        let most = (config.component_sockets.as_ref()).map_or(0, |sockets| sockets.max);
        let filters = config.binding_filters();
        let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
        found.retain(|name, known| {
            let stays = !taken(name) && seen.iter().any(|(_, path)| *path == known.socket);
            if !stays {
                tracing::info!("binding {name}: its socket is gone");
                known.supervisor.abort();
                known.handle.gone("its socket is gone");
            }
            stays
        });
        for (name, socket) in seen {
            if taken(&name) || found.contains_key(&name) {
                continue;
            }
            if found.len() >= most {
                tracing::warn!(socket = %socket.display(), "passed over: component_sockets.max bindings were found already");
                break;
            }
            let binding = Arc::new(config::Binding::discovered(&name, &socket, &filters));
            let BindingTarget::Component(component) = &binding.target else {
                continue;
            };
            let handle = self.handle(&name);
            let supervisor = supervisors.spawn(handle.clone().supervise(component.clone()));
            found.insert(
                name,
                Found {
                    socket,
                    binding,
                    handle,
                    supervisor,
                },
            );
        }
    }
}

/// The components that the configuration names, by their bindings.
fn named(config: &Config) -> HashMap<&str, &config::Component> {
    let named = config
        .bindings
        .iter()
        .filter_map(|binding| match &binding.target {
            BindingTarget::Component(component) => Some((&*binding.name, component)),
            _ => None,
        });
    named.collect()
}

/// The sockets of a folder, by the names that their bindings get, in order.
fn list(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let Ok(entry) = entry else { continue };
        // Follows links, as daprd does.
        let is_socket =
            std::fs::metadata(entry.path()).is_ok_and(|file| file.file_type().is_socket());
        let path = entry.path();
        let name = path.file_stem().and_then(OsStr::to_str);
        let Some(name) = name.filter(|_| is_socket) else {
            continue;
        };
        // The component is told its name in a header.
        if !name.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            tracing::debug!(socket = ?path, "passed over: its name is not visible ASCII");
            continue;
        }
        sockets.push((name.to_owned(), path));
    }
    sockets.sort();
    Ok(sockets)
}
