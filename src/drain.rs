//! How far the end of the proxy has come.
//!
//! It goes in steps, so that nobody is sent to a proxy that is about to close, and nobody who is on his way finds it closed.

use tokio::sync::watch;

/// A step on the way to the end; each follows the one above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It takes all that comes.
    #[default]
    Serving,
    /// It still takes all that comes, and says that no more should.
    Leaving,
    /// Listeners close, and connections take no new streams.
    Draining,
}

/// Goes on to `phase`; never back.
pub(crate) fn advance(phases: &watch::Sender<Phase>, phase: Phase) {
    phases.send_if_modified(|now| {
        let later = phase > *now;
        *now = phase.max(*now);
        later
    });
}

/// Ready when `phase` has come, or the proxy is gone.
pub(crate) async fn reached(mut phases: watch::Receiver<Phase>, phase: Phase) {
    let _ = phases.wait_for(|now| *now >= phase).await;
}
