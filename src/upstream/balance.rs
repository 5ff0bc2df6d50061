//! One worker's connections to the endpoints of a cluster, and who gets the next stream.
//!
//! It follows the [`Directory`]: an endpoint that stays keeps its pool and so its connections, a new one gets a pool, and one
//! that is gone takes no new streams; its connections close when their last streams have ended.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    future::Future,
    rc::{Rc, Weak},
    sync::Arc,
};

use http::HeaderMap;
use thalweg_filters::Error;
use tokio::task::spawn_local;

use super::{
    Shared,
    choose::Chooser,
    directory::Directory,
    endpoint::{Endpoint, State},
    roster::{Roster, hash},
};
use crate::config;

/// The endpoints of a cluster, each with its connections of type `P`.
pub(crate) struct Balance<P: Pool> {
    shared: Rc<Shared>,
    state: RefCell<Now<P>>,
}

struct Now<P> {
    chooser: Chooser,
    /// In the order of the chooser's roster.
    pools: Vec<Rc<P>>,
}

/// The connections to one endpoint.
pub(crate) trait Pool: 'static {
    /// None so far.
    fn new(shared: &Rc<Shared>, endpoint: &Arc<Endpoint>) -> Self;

    /// Whose they are.
    fn endpoint(&self) -> &Arc<Endpoint>;

    /// The endpoint is gone: connections close after their last streams, and whoever waits for one is refused.
    fn close(&self);

    /// Ends the streams that are open, between two messages.
    fn dismiss(&self, error: &Error);
}

// === impl Balance ===

impl<P: Pool> Balance<P> {
    /// Follows the directory from now on.
    pub(super) fn new(shared: Rc<Shared>, directory: &Directory) -> Rc<Self> {
        let mut rosters = directory.rosters();
        let roster = Arc::clone(&rosters.borrow_and_update());
        let chooser = Chooser::new(roster, &shared.settings.balance);
        let endpoints = chooser.roster().endpoints().iter();
        let pools = endpoints.map(|endpoint| Rc::new(P::new(&shared, endpoint)));
        let pools = pools.collect();
        let balance = Rc::new(Self {
            shared,
            state: RefCell::new(Now { chooser, pools }),
        });
        let weak: Weak<Self> = Rc::downgrade(&balance);
        // It ends with the directory, and sooner if a change finds nobody here.
        spawn_local(async move {
            while rosters.changed().await.is_ok() {
                let Some(balance) = weak.upgrade() else {
                    return;
                };
                let roster = Arc::clone(&rosters.borrow_and_update());
                balance.follow(roster);
            }
        });
        if balance.shared.settings.dismisses_unhealthy() {
            let mut unwell = directory.unwell();
            let weak: Weak<Self> = Rc::downgrade(&balance);
            spawn_local(async move {
                while unwell.changed().await.is_ok() {
                    let Some(balance) = weak.upgrade() else {
                        return;
                    };
                    balance.dismiss_unhealthy();
                }
            });
        }
        balance
    }

    /// What `ring_hash` chooses by.
    fn key(&self, headers: &HeaderMap) -> Option<u64> {
        let config::Balance::RingHash { header } = &self.shared.settings.balance else {
            return None;
        };
        headers.get(header).map(|value| hash(value.as_bytes()))
    }

    /// The best endpoint for a request. The headers are the request's; `avoided` is tried when there is no other left.
    pub(crate) fn best(
        &self,
        headers: &HeaderMap,
        avoided: Option<&Arc<Endpoint>>,
    ) -> Result<Rc<P>, Error> {
        self.shared.admit()?;
        let best = self.choose(self.key(headers), avoided, &[]);
        best.ok_or_else(|| self.shared.no_endpoints())
    }

    /// Tries `open` on `best`, and on the next best while it fails: nothing was sent yet, so nothing is lost. When none is available,
    /// one of the others is tried after all.
    pub(crate) async fn open<T, F>(
        &self,
        best: Rc<P>,
        headers: &HeaderMap,
        avoided: Option<&Arc<Endpoint>>,
        open: impl Fn(Rc<P>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let key = self.key(headers);
        let mut pool = best;
        let mut tried: Vec<Rc<P>> = Vec::new();
        loop {
            let error = match open(Rc::clone(&pool)).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            tried.push(pool);
            let Some(next) = self.choose(key, avoided, &tried) else {
                return Err(error);
            };
            pool = next;
        }
    }

    fn choose(
        &self,
        key: Option<u64>,
        avoided: Option<&Arc<Endpoint>>,
        tried: &[Rc<P>],
    ) -> Option<Rc<P>> {
        let mut state = self.state.borrow_mut();
        let Now { chooser, pools } = &mut *state;
        let is_tried = |index: usize| tried.iter().any(|pool| Rc::ptr_eq(pool, &pools[index]));
        let is_avoided = |index: usize| {
            avoided.is_some_and(|avoided| Arc::ptr_eq(avoided, pools[index].endpoint()))
        };
        let mut chosen = chooser.choose(key, |index| is_tried(index) || is_avoided(index));
        if chosen.is_none() && avoided.is_some() {
            chosen = chooser.choose(key, is_tried);
        }
        let chosen = chosen.or_else(|| {
            let any = chooser.any(key).filter(|_| tried.is_empty())?;
            self.shared.stats.none_available.increment();
            Some(any)
        })?;
        Some(Rc::clone(&pools[chosen]))
    }

    /// Ends the streams on endpoints that are not well, if there is another place for them.
    fn dismiss_unhealthy(&self) {
        let state = self.state.borrow();
        if state.chooser.roster().available() == 0 {
            return;
        }
        for pool in &state.pools {
            let endpoint = pool.endpoint();
            if endpoint.state() == State::Unhealthy {
                pool.dismiss(&self.shared.found_unhealthy(endpoint));
            }
        }
    }

    /// Takes up a change.
    fn follow(&self, roster: Arc<Roster>) {
        let mut state = self.state.borrow_mut();
        let known = state.pools.drain(..);
        let mut known: HashMap<*const Endpoint, Rc<P>> = known
            .map(|pool| (Arc::as_ptr(pool.endpoint()), pool))
            .collect();
        let endpoints = roster.endpoints().iter();
        let pools = endpoints.map(|endpoint| {
            let kept = known.remove(&Arc::as_ptr(endpoint));
            kept.unwrap_or_else(|| Rc::new(P::new(&self.shared, endpoint)))
        });
        state.pools = pools.collect();
        state.chooser = Chooser::new(roster, &self.shared.settings.balance);
        drop(state);
        for gone in known.into_values() {
            gone.close();
            if self.shared.settings.dismiss_removed {
                gone.dismiss(&self.shared.dismissal(gone.endpoint()));
            }
        }
    }
}

impl<P: Pool> Drop for Balance<P> {
    fn drop(&mut self) {
        for pool in &self.state.get_mut().pools {
            pool.close();
        }
    }
}

impl<P: Pool> fmt::Debug for Balance<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        state.chooser.roster().fmt(f)
    }
}
