//! The bindings that the proxy serves now, as operators are told of them.

use std::sync::Arc;

use serde::Serialize;

use super::{Components, component::control::Handle, http, object_store};
use crate::config::{Binding, BindingTarget};

/// One binding. It tells nothing of how its target is reached, which may be secret.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    name: String,
    kind: &'static str,
    /// What it can do; `None` if it takes any operation, or does not tell.
    operations: Option<Vec<String>>,
    /// Whether it can be used, for those targets of which that is known before a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ready,
    Unavailable,
}

/// The bindings of the configuration and those that were found by their sockets, by their names.
pub(crate) fn list(configured: &[Arc<Binding>], components: &Components) -> Vec<Listed> {
    let mut listed: Vec<Listed> = (configured.iter().cloned())
        .chain(components.all_found())
        .map(|binding| Listed::new(&binding, components))
        .collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    listed
}

// === impl Listed ===

impl Listed {
    fn new(binding: &Binding, components: &Components) -> Self {
        let (kind, operations, state) = match &binding.target {
            BindingTarget::ObjectStore(_) => {
                ("object_store", Some(owned(&object_store::OPERATIONS)), None)
            }
            BindingTarget::Echo => ("echo", None, None),
            BindingTarget::Component(_) => {
                let (operations, state) = component(&components.handle(&binding.name));
                ("component", operations, Some(state))
            }
            BindingTarget::Dapr { .. } => ("dapr", None, None),
            BindingTarget::Http(target) => {
                // With a method of its own, it takes every operation for that.
                let operations = target.method.is_none().then(|| owned(&http::OPERATIONS));
                ("http", operations, None)
            }
        };
        Self {
            name: binding.name.clone(),
            kind,
            operations,
            state,
        }
    }
}

fn component(handle: &Handle) -> (Option<Vec<String>>, State) {
    match handle.ready() {
        Ok(ready) => (ready.operations.clone(), State::Ready),
        Err(_) => (None, State::Unavailable),
    }
}

fn owned(operations: &[&str]) -> Vec<String> {
    operations.iter().map(|&name| name.to_owned()).collect()
}
