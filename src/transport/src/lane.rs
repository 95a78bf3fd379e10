//! A lane: the PUSH to PULL connection of one session on one queue.
//!
//! Does not: address anybody. Each end has exactly one peer, which is what makes PUSH safe to use here.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::PullSocket;
use zeromq::prelude::*;

use lamagrid_protocol::frame::Frame;

use crate::connection::{Kind, write};
use crate::endpoint::{SocketError, connect};
use crate::listener::{Accepted, ConnectionLimits, Listener, SocketFile};
use crate::outbox::Outbox;

/// What the scheduler's end of a lane says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneEvent {
    /// The node's socket is there.
    Connected,
    /// The node has read most of what waited; see [`LaneSender::watch`].
    Drained,
}

/// The scheduler's end. Dropping it closes the lane and removes its socket file.
#[derive(Debug)]
pub struct LaneSender {
    address: String,
    outbox: Outbox,
    accepting: JoinHandle<()>,
    _file: SocketFile,
}

impl LaneSender {
    /// Binds `address`; `tell` is called with what happens. The first node that connects has the lane.
    ///
    /// What is sent before that waits, so the caller sends nothing until then.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        address: &str,
        limits: &ConnectionLimits,
        tell: impl Fn(LaneEvent) + Send + Sync + 'static,
    ) -> Result<Self, SocketError> {
        let (listener, file) = Listener::bind(address, Kind::Push, limits)?;
        let outbox = limits.outbox();
        let waiting = outbox.clone();
        let accepting = tokio::spawn(async move {
            let (connected, mut first) = mpsc::channel::<Accepted>(1);
            let accepted = tokio::select! {
                () = listener.accept(move |accepted| {
                    let connected = connected.clone();
                    async move {
                        // Only the first one is taken.
                        let _ = connected.try_send(accepted);
                    }
                }) => return,
                Some(accepted) = first.recv() => accepted,
            };
            // The listener is closed from here on.
            tell(LaneEvent::Connected);
            serve(accepted, &waiting, &tell).await;
        });
        Ok(Self { address: address.to_owned(), outbox, accepting, _file: file })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Queues a frame. A node that does not read loses the lane: the accept timeout or the next poll repairs that.
    pub fn send(&self, frame: Frame) {
        if !self.outbox.push(frame) {
            tracing::debug!(address = %self.address, "lane is full or closed");
        }
    }

    /// Bytes that wait until the node reads them.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Has [`LaneEvent::Drained`] told once the node has read most of what waits. False if that is so already.
    #[must_use]
    pub fn watch(&self) -> bool {
        self.outbox.watch()
    }
}

async fn serve(accepted: Accepted, outbox: &Outbox, tell: &impl Fn(LaneEvent)) {
    let Accepted { mut stream, mut inbox, slot: _slot, .. } = accepted;
    let (mut read_half, mut write_half) = stream.split();
    let writing = write(outbox, &mut write_half, false, || async { tell(LaneEvent::Drained) });
    // A node says nothing on a lane, so that whatever can be read is its end.
    tokio::select! {
        ended = writing => tracing::debug!(?ended, "lane ended"),
        _ = inbox.next(&mut read_half) => tracing::debug!("lane lost its node"),
    }
    outbox.close();
}

impl Drop for LaneSender {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The node's end. Dropping it closes the connection.
pub struct LaneReceiver {
    address: String,
    socket: PullSocket,
}

impl std::fmt::Debug for LaneReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneReceiver").field("address", &self.address).finish_non_exhaustive()
    }
}

impl LaneReceiver {
    /// Connects to `address` within `patience`.
    ///
    /// # Errors
    /// [`SocketError::Connect`] or [`SocketError::Silent`].
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, SocketError> {
        // Made first, so that a connection is closed also when its handshake is given up.
        let mut lane = Self { address: address.to_owned(), socket: PullSocket::new() };
        connect(&mut lane.socket, address, patience).await?;
        Ok(lane)
    }

    /// The next frame. A lane whose other end died is silent for ever: the session's poll notices.
    ///
    /// # Errors
    /// [`SocketError::Broken`], or [`SocketError::Frame`] for one bad message.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Result<Frame, SocketError> {
        let message = self.socket.recv().await.map_err(|error| SocketError::Broken {
            address: self.address.clone(),
            reason: error.to_string(),
        })?;
        Ok(Frame::from_parts(message.into_vec())?)
    }
}

impl Drop for LaneReceiver {
    fn drop(&mut self) {
        // `PullSocket` has no `Drop`: without this its connection stays open and goes on taking messages.
        self.socket.backend().shutdown();
    }
}
