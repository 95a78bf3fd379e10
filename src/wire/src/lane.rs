//! A lane: the PUSH to PULL connection of one session on one queue.
//!
//! Does not: address anybody. Each end has exactly one peer, which is what makes PUSH safe to use here.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::prelude::*;
use zeromq::{PullSocket, PushSocket, SocketEvent, ZmqMessage};

use crate::endpoint::{SocketError, connect, socket_path, unlink_stale};
use crate::frame::Frame;

/// Assignments and hints on their way; a session's credit keeps the real number near one.
const QUEUED: usize = 64;

/// The scheduler's end. Dropping it closes the lane and removes its socket file.
#[derive(Debug)]
pub struct LaneSender {
    address: String,
    outgoing: mpsc::Sender<Frame>,
    tasks: [JoinHandle<()>; 2],
}

impl LaneSender {
    /// Binds `address`; `on_connected` runs once the node's PULL socket is there.
    ///
    /// Before that a PUSH would find no peer, so the caller sends nothing until then.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    pub async fn bind(
        address: &str,
        on_connected: impl FnOnce() + Send + 'static,
    ) -> Result<Self, SocketError> {
        unlink_stale(address);
        let mut socket = PushSocket::new();
        let mut monitor = socket.monitor();
        socket
            .bind(address)
            .await
            .map_err(|source| SocketError::Bind { address: address.to_owned(), source })?;
        let (outgoing, mut outgoing_rx) = mpsc::channel::<Frame>(QUEUED);
        let watcher = tokio::spawn(async move {
            while let Some(event) = monitor.next().await {
                if matches!(event, SocketEvent::Accepted(..)) {
                    on_connected();
                    return;
                }
            }
        });
        let writer = tokio::spawn(async move {
            while let Some(frame) = outgoing_rx.recv().await {
                let message = ZmqMessage::try_from(frame.into_parts()).expect("a message of ours has frames");
                if let Err(error) = socket.send(message).await {
                    // The accept timeout notices: an assignment that never arrived ends the session.
                    tracing::debug!(%error, "lane lost its node");
                }
            }
        });
        Ok(Self { address: address.to_owned(), outgoing, tasks: [watcher, writer] })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Queues a frame, or drops it when the lane is stuck: the accept timeout or the next poll repairs that.
    pub fn send(&self, frame: Frame) {
        if self.outgoing.try_send(frame).is_err() {
            tracing::debug!(address = %self.address, "lane is full or closed");
        }
    }
}

impl Drop for LaneSender {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(path) = socket_path(&self.address) {
            // The session is over; a file left behind would only confuse people.
            let _ = std::fs::remove_file(path);
        }
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
