//! Notices a connection whose peer takes no bytes.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use crate::transport::Transport;

/// Ready once a transport has had bytes to write for `limit` and the socket took none of them.
///
/// The timer is set when the transport is seen blocked, and left alone while bytes move: when it fires, it looks
/// whether any have. So a stall is noticed after one to two times the limit.
#[derive(Debug)]
pub(crate) struct StallWatch {
    limit: Duration,
    blocked: Option<(u64, Pin<Box<Sleep>>)>,
}

impl StallWatch {
    /// Zero never stalls.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            blocked: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, transport: &Transport) -> Poll<()> {
        let Some(written) = transport.write_progress().filter(|_| !self.limit.is_zero()) else {
            self.blocked = None;
            return Poll::Pending;
        };
        loop {
            let (written_before, timer) = self
                .blocked
                .get_or_insert_with(|| (written, Box::pin(sleep(self.limit))));
            match timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if *written_before == written => return Poll::Ready(()),
                Poll::Ready(()) => self.blocked = None,
            }
        }
    }
}
