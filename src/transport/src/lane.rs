//! Carries a lane: the PUSH to PULL connection of one session for one queue.
//!
//! Does not: choose a receiver. Each side has exactly one peer, so that PUSH cannot distribute messages to others.

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

/// An event on the scheduler's side of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneEvent {
    /// The node has connected.
    Connected,
    /// The node has read most of the waiting bytes; see [`LaneSender::watch`].
    Drained,
}

/// The scheduler's side. Dropping it closes the lane and removes its socket file.
#[derive(Debug)]
pub struct LaneSender {
    address: String,
    outbox: Outbox,
    accepting: JoinHandle<()>,
    _file: SocketFile,
}

impl LaneSender {
    /// Binds `address` and calls `on_event` with each event. The first node that connects gets the lane.
    ///
    /// Frames sent before that are queued, so the caller sends none before [`LaneEvent::Connected`].
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        address: &str,
        limits: &ConnectionLimits,
        on_event: impl Fn(LaneEvent) + Send + Sync + 'static,
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
                        // Only the first connection is used.
                        let _ = connected.try_send(accepted);
                    }
                }) => return,
                Some(accepted) = first.recv() => accepted,
            };
            // The listener is closed from here on.
            on_event(LaneEvent::Connected);
            serve(accepted, &waiting, &on_event).await;
        });
        Ok(Self { address: address.to_owned(), outbox, accepting, _file: file })
    }

    /// The lane's address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Queues a frame. A node that does not read loses its lane; the accept timeout or the next poll recovers its tasks.
    pub fn send(&self, frame: Frame) {
        if !self.outbox.push(frame) {
            tracing::debug!(address = %self.address, "lane is full or closed");
        }
    }

    /// Bytes queued or being written, not yet read by the node.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Requests [`LaneEvent::Drained`] once the node has read most of the waiting bytes. Returns false if it already has.
    #[must_use]
    pub fn watch(&self) -> bool {
        self.outbox.watch()
    }
}

async fn serve(accepted: Accepted, outbox: &Outbox, on_event: &impl Fn(LaneEvent)) {
    let Accepted { mut stream, mut inbox, slot: _slot, .. } = accepted;
    let (mut read_half, mut write_half) = stream.split();
    let writing = write(outbox, &mut write_half, false, || async { on_event(LaneEvent::Drained) });
    // A node sends nothing on a lane, so that anything readable is the end of the connection.
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

/// The node's side. Dropping it closes the connection.
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
        // Created first, so that its connection is closed even if the handshake times out.
        let mut lane = Self { address: address.to_owned(), socket: PullSocket::new() };
        connect(&mut lane.socket, address, patience).await?;
        Ok(lane)
    }

    /// Waits for the next frame. If the other side dies this waits forever; the session's poll detects that.
    ///
    /// # Errors
    /// [`SocketError::Broken`], or [`SocketError::Frame`] for one bad message.
    ///
    /// # Cancel safety
    /// Safe: no frame is lost when the future is dropped.
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
        // `PullSocket` has no `Drop`: without this its connection would stay open and keep taking messages.
        self.socket.backend().shutdown();
    }
}
