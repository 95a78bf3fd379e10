//! `node-events`: PUB on nodes, SUB on the scheduler. Loss is harmless: the control poll alone keeps a session.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::prelude::*;
use zeromq::{PubSocket, SubSocket, ZmqMessage};

use crate::endpoint::{SocketError, connect, unlink_stale};
use crate::frame::Frame;

/// Events waiting to be sent; more are dropped.
const QUEUED: usize = 256;
/// Pause after a receive error, so that a broken socket cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// A node's end. Dropping it closes the connection.
#[derive(Debug)]
pub struct EventPublisher {
    outgoing: mpsc::Sender<Frame>,
    writer: JoinHandle<()>,
}

impl EventPublisher {
    /// Connects to `address` within `patience`.
    ///
    /// # Errors
    /// [`SocketError::Connect`] or [`SocketError::Silent`].
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, SocketError> {
        let mut socket = PubSocket::new();
        connect(&mut socket, address, patience).await?;
        let (outgoing, mut outgoing_rx) = mpsc::channel::<Frame>(QUEUED);
        let writer = tokio::spawn(async move {
            while let Some(frame) = outgoing_rx.recv().await {
                let message = ZmqMessage::try_from(frame.into_parts()).expect("a message of ours has frames");
                if let Err(error) = socket.send(message).await {
                    tracing::trace!(%error, "event lost");
                }
            }
        });
        Ok(Self { outgoing, writer })
    }

    /// Publishes `frame`, or drops it when too many wait.
    pub fn publish(&self, frame: Frame) {
        // Events are lossy by design.
        let _ = self.outgoing.try_send(frame);
    }
}

impl Drop for EventPublisher {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// The scheduler's end. Dropping it closes the socket.
#[derive(Debug)]
pub struct EventSubscriber {
    incoming: mpsc::Receiver<Frame>,
    reader: JoinHandle<()>,
}

impl EventSubscriber {
    /// Binds `address`, after removing the socket file that a killed process may have left.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    pub async fn bind(address: &str) -> Result<Self, SocketError> {
        unlink_stale(address);
        let bind_error = |source| SocketError::Bind { address: address.to_owned(), source };
        let mut socket = SubSocket::new();
        socket.bind(address).await.map_err(bind_error)?;
        socket.subscribe("").await.map_err(bind_error)?;
        let (incoming_tx, incoming) = mpsc::channel(QUEUED);
        let reader = tokio::spawn(async move {
            loop {
                match socket.recv().await {
                    Ok(message) => match Frame::from_parts(message.into_vec()) {
                        Ok(frame) => {
                            if incoming_tx.send(frame).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => tracing::debug!(%error, "bad event dropped"),
                    },
                    Err(error) => {
                        tracing::trace!(%error, "receive failed");
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { incoming, reader })
    }

    /// The next event.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.incoming.recv().await
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
