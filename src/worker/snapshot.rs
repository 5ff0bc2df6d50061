//! What one configuration means to one worker: its routes, its bindings, and its connections to clusters.
//!
//! **Why.** A configuration may change while streams run, and few changes concern more than a few routes. What is the same must
//! stay the same object: its connections stay open, its counters go on, its breaker remembers.
//!
//! **How.** A snapshot is built from a configuration and from the snapshot before it, and takes over each part whose settings are
//! equal. A stream owns the parts that it uses and keeps them when another snapshot is in force; so a part that is gone from the
//! configuration ends with the last stream that uses it. Nothing here can fail: whoever hands a configuration over has
//! opened all that could not be opened.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use thalweg_filters::{
    Body, Error, Side,
    chain::{Chain, ChainFuture, Surroundings},
    deadline::{Deadline, DeadlineFuture},
    timeouts::Timeouts,
};
use thalweg_proto::status::Code;
use tokio::sync::watch;
use tower::{Service, service_fn};

use crate::{
    bindings::{Aborts, Api, Bindings, Call, Shared},
    config::{Config, Destination, Drain, Match, Route},
    drain::Phase,
    forward::Forward,
    health::Health,
    router::Router,
    telemetry::Telemetry,
    upstream::Cluster,
};

/// Routes, bindings and clusters of one configuration on one worker.
pub(super) struct Snapshot {
    config: Arc<Config>,
    clusters: HashMap<String, Rc<Cluster>>,
    /// One for each route, in the order of the configuration.
    chains: Vec<SharedChain>,
    routes: Router<Deadline<SharedChain>>,
    bindings: Rc<Bindings>,
    /// How streams are let go of when the proxy stops.
    pub(super) farewell: Rc<Drain>,
    /// Takes the calls of bindings, before the routes; `None` where there are no bindings.
    api: Option<RefCell<Deadline<Api>>>,
}

/// What all snapshots of a worker are built with.
pub(super) struct Builder {
    /// Which worker it is; no other has this number.
    pub(super) worker: usize,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) phases: watch::Receiver<Phase>,
    /// Uploads of bindings that were given up.
    pub(super) aborts: Rc<Aborts>,
}

/// A chain that the worker's routes lead to, and those of every chain that goes on to the routes below it.
#[derive(Clone)]
struct SharedChain(Rc<RefCell<Chain>>);

// === impl Snapshot ===

impl Snapshot {
    /// Sends a request to the binding that it calls, or on its route.
    pub(super) fn call(
        &self,
        mut request: Request<Body>,
    ) -> Result<DeadlineFuture<ChainFuture>, Error> {
        if let Some(api) = &self.api
            && let Some(call) = Call::of(&request)
        {
            request.extensions_mut().insert(call?);
            return Ok(api.borrow_mut().call(request));
        }
        send(&self.routes, request)
    }
}

/// Sends a request on the first of the routes that matches.
fn send<S>(routes: &Router<S>, request: Request<Body>) -> Result<S::Future, Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Error> + Clone,
{
    let (parts, body) = request.into_parts();
    let Some(route) = routes.find(&parts) else {
        // The client knows what it asked for; the rest of a long path would only come back to it.
        let message = format!("no route for {:.256}", parts.uri.path());
        return Err(
            Error::new(Code::Unimplemented, "no_route", Side::Client, message)
                .with_http_status(404),
        );
    };
    Ok(route.clone().call(Request::from_parts(parts, body)))
}

// === impl Builder ===

impl Builder {
    /// What a configuration means, with all of the snapshot before it that is still true.
    pub(super) fn build(
        &self,
        config: Arc<Config>,
        shared: Shared,
        before: Option<&Snapshot>,
    ) -> Snapshot {
        let clusters = self.clusters(&config, &shared, before);
        let chains = self.chains(&config, &clusters, before);
        let bindings = Rc::new(Bindings::new(
            &config,
            &self.telemetry,
            &clusters,
            shared,
            &self.aborts,
            self.worker,
            before.map(|before| &*before.bindings),
        ));
        let routes = config.routes.iter().zip(&chains);
        let routes = routes.map(|(route, chain)| (route.matches.clone(), chain.clone()));
        let mut routes: Vec<_> = routes.collect();
        if let Some(health) = self.health(&config) {
            routes.insert(Health::place(&config), health);
        }
        Snapshot {
            routes: routes
                .into_iter()
                .map(|(conditions, chain)| (conditions, Deadline::new(chain)))
                .collect(),
            api: Api::new(Rc::clone(&bindings), &config.bindings_front)
                .map(|api| RefCell::new(Deadline::new(api))),
            farewell: Rc::new(config.drain.clone()),
            config,
            clusters,
            chains,
            bindings,
        }
    }

    fn clusters(
        &self,
        config: &Config,
        shared: &Shared,
        before: Option<&Snapshot>,
    ) -> HashMap<String, Rc<Cluster>> {
        let clusters = config.clusters.iter().map(|settings| {
            let known = before.and_then(|before| before.clusters.get(&settings.name));
            let cluster = match known {
                Some(known) if known.settings() == settings => Rc::clone(known),
                _ => {
                    let directory = shared.directories.of(settings);
                    Rc::new(Cluster::new(directory, shared.upstreams.of(&settings.name)))
                }
            };
            (settings.name.clone(), cluster)
        });
        clusters.collect()
    }

    fn chains(
        &self,
        config: &Config,
        clusters: &HashMap<String, Rc<Cluster>>,
        before: Option<&Snapshot>,
    ) -> Vec<SharedChain> {
        let known: HashMap<&str, usize> = before.map_or_else(HashMap::new, |before| {
            let routes = before.config.routes.iter().enumerate();
            routes.map(|(index, route)| (&*route.name, index)).collect()
        });
        // From the last to the first, so that each finds those below it.
        let mut below: Vec<(Match, SharedChain)> = Vec::new();
        for (index, route) in config.routes.iter().enumerate().rev() {
            let same = before.and_then(|before| {
                let known = *known.get(&*route.name)?;
                let unchanged = match route.destination {
                    Destination::Clusters(_) => before.config.routes[known] == *route,
                    Destination::RoutesBelow => {
                        before.config.routes[known..] == config.routes[index..]
                    }
                };
                unchanged.then(|| before.chains[known].clone())
            });
            let chain = same.unwrap_or_else(|| self.chain(route, clusters, &below));
            below.push((route.matches.clone(), chain));
        }
        below.into_iter().rev().map(|(_, chain)| chain).collect()
    }

    fn chain(
        &self,
        route: &Route,
        clusters: &HashMap<String, Rc<Cluster>>,
        below: &[(Match, SharedChain)],
    ) -> SharedChain {
        // Routes to one cluster share its breaker; any other is the route's own.
        let target = match &route.destination {
            Destination::Clusters(targets) if targets.len() == 1 => {
                format!("cluster {}", targets[0].cluster.name)
            }
            _ => format!("route {}", route.name),
        };
        let surroundings = Surroundings {
            route: &route.name,
            target: &target,
            binding: None,
            worker: self.worker,
            metrics: &self.telemetry.streams,
            breakers: &self.telemetry.breakers,
        };
        let chain = match &route.destination {
            Destination::Clusters(targets) => {
                let targets = targets.iter().map(|target| {
                    let cluster = clusters.get(&target.cluster.name);
                    let cluster =
                        cluster.expect("the configuration resolved the names of clusters");
                    (Rc::clone(cluster), target.weight)
                });
                let forward = Rc::new(Forward::new(targets, route));
                let end = service_fn(move |request| Forward::call(Rc::clone(&forward), request));
                let end = Timeouts::new(end, route.timeouts.phases);
                Chain::build(&route.filters, surroundings, end)
            }
            Destination::RoutesBelow => {
                let routes: Router<SharedChain> = below.iter().rev().cloned().collect();
                let end = service_fn(move |request| {
                    let taken = send(&routes, request);
                    async { taken?.await }
                });
                Chain::build(&route.filters, surroundings, end)
            }
        };
        SharedChain::new(chain)
    }

    /// The way to the proxy's own health service.
    fn health(&self, config: &Config) -> Option<(Match, SharedChain)> {
        let settings = config.health_service.as_ref()?;
        let process = Arc::clone(&self.telemetry.process);
        let health = Rc::new(Health::new(settings, self.phases.clone(), process));
        let end = service_fn(move |request| Rc::clone(&health).call(request));
        Some((Health::matches(), SharedChain::new(Chain::new(end))))
    }

    /// One route for everything, that leads to a service of a test's own.
    #[cfg(test)]
    pub(super) fn leading_to<S>(&self, config: Arc<Config>, end: S) -> Snapshot
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Error> + 'static,
        S::Future: 'static,
    {
        use crate::{bindings::Components, upstream::directory::Directories};

        let chain = SharedChain::new(Chain::new(end));
        let shared = Shared {
            upstreams: Arc::default(),
            directories: Arc::new(Directories::new(Arc::default())),
            components: Arc::new(Components::new(&config, &self.telemetry)),
            stores: Arc::default(),
        };
        Snapshot {
            routes: std::iter::once((Match::default(), Deadline::new(chain))).collect(),
            ..self.build(config, shared, None)
        }
    }
}

// === impl SharedChain ===

impl SharedChain {
    fn new(chain: Chain) -> Self {
        Self(Rc::new(RefCell::new(chain)))
    }
}

impl Service<Request<Body>> for SharedChain {
    type Response = Response<Body>;
    type Error = Error;
    type Future = ChainFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.borrow_mut().poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ChainFuture {
        self.0.borrow_mut().call(request)
    }
}
