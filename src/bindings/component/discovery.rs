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

use thalweg_filters::chain::Filter;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::Handle;
use crate::{
    config::{self, BindingTarget, ComponentSockets},
    telemetry::Process,
};

/// The components of the whole process.
#[derive(Debug)]
pub(crate) struct Components {
    /// By the name of the binding. One that was found once keeps its handle, so that what workers built for it serves again when
    /// it comes back.
    handles: Mutex<HashMap<String, Handle>>,
    sockets: Option<ComponentSockets>,
    filters: Vec<Filter>,
    found: RwLock<HashMap<String, Found>>,
    process: Arc<Process>,
}

#[derive(Debug)]
struct Found {
    socket: PathBuf,
    binding: Arc<config::Binding>,
    handle: Handle,
    supervisor: AbortHandle,
}

// === impl Components ===

impl Components {
    /// The components that the configuration names, and a place for those that are found.
    pub(crate) fn new(config: &config::Config, process: &Arc<Process>) -> Self {
        Self {
            handles: Mutex::default(),
            sockets: config.component_sockets.clone(),
            filters: config.binding_filters(),
            found: RwLock::default(),
            process: Arc::clone(process),
        }
    }

    /// Looks after all components for as long as it is polled.
    pub(crate) async fn supervise(self: Arc<Self>, bindings: Vec<Arc<config::Binding>>) {
        let mut supervisors = JoinSet::new();
        for binding in &bindings {
            if let BindingTarget::Component(component) = &binding.target {
                let handle = self.handle(&binding.name);
                supervisors.spawn(handle.supervise(component.clone()));
            }
        }
        let Some(sockets) = &self.sockets else {
            while supervisors.join_next().await.is_some() {}
            return;
        };
        let taken: Vec<&str> = bindings.iter().map(|binding| &*binding.name).collect();
        loop {
            while supervisors.try_join_next().is_some() {}
            match list(&sockets.folder) {
                Ok(seen) => self.update(seen, sockets.max, &taken, &mut supervisors),
                // A folder that is not there has nothing in it.
                Err(error) => {
                    tracing::debug!(folder = %sockets.folder.display(), %error, "cannot look into the folder of components");
                    self.update(Vec::new(), sockets.max, &taken, &mut supervisors);
                }
            }
            sleep(sockets.interval).await;
        }
    }

    /// Whether bindings may appear that the configuration does not name.
    pub(crate) fn may_appear(&self) -> bool {
        self.sockets.is_some()
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
        let handle = Handle::new(format!("binding {name}"), self.process.binding(name));
        handles.insert(name.to_owned(), handle.clone());
        handle
    }

    fn update(
        &self,
        seen: Vec<(String, PathBuf)>,
        most: usize,
        taken: &[&str],
        supervisors: &mut JoinSet<()>,
    ) {
        let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
        found.retain(|name, known| {
            let stays = seen.iter().any(|(_, path)| *path == known.socket);
            if !stays {
                tracing::info!("binding {name}: its socket is gone");
                known.handle.gone();
                known.supervisor.abort();
            }
            stays
        });
        for (name, socket) in seen {
            if taken.contains(&&*name) || found.contains_key(&name) {
                continue;
            }
            if found.len() >= most {
                tracing::warn!(socket = %socket.display(), "passed over: component_sockets.max bindings were found already");
                break;
            }
            let binding = Arc::new(config::Binding::discovered(&name, &socket, &self.filters));
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
