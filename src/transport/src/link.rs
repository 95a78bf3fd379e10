//! Dials the `client` and `result` channels: one DEALER per connection, owned by its tasks.
//!
//! Does not: reconnect. The caller drops a broken link and connects a new one, with a new identity, because
//! it knows which message must be sent first.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::prelude::*;
use zeromq::util::PeerIdentity;
use zeromq::{DealerSocket, SocketEvent, SocketOptions, ZmqMessage};

use lamagrid_process::random_id;
use lamagrid_protocol::frame::Frame;

use crate::endpoint::{SocketError, connect};

/// Capacity for outgoing frames; the protocols above keep far fewer outstanding.
const OUTGOING: usize = 1_024;
/// Capacity for incoming frames.
const INCOMING: usize = 1_024;

/// One connection to a router. Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    address: String,
    outgoing: mpsc::Sender<Frame>,
    incoming: mpsc::Receiver<Result<Frame, SocketError>>,
    tasks: [JoinHandle<()>; 3],
}

impl Link {
    /// Connects to `address` within `patience`.
    ///
    /// # Errors
    /// [`SocketError::Connect`] or [`SocketError::Silent`].
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, SocketError> {
        let mut options = SocketOptions::default();
        let identity = PeerIdentity::try_from(random_id().to_vec()).expect("16 bytes are a valid identity");
        options.peer_identity(identity);
        let mut socket = DealerSocket::with_options(options);
        let mut monitor = socket.monitor();
        connect(&mut socket, address, patience).await?;
        let (mut send_half, mut recv_half) = socket.split();
        let (outgoing, mut outgoing_rx) = mpsc::channel::<Frame>(OUTGOING);
        let (incoming_tx, incoming) = mpsc::channel(INCOMING);

        let broken = |reason: String| SocketError::Broken { address: address.to_owned(), reason };
        let (write_broken, read_broken, closed) = (incoming_tx.clone(), incoming_tx.clone(), incoming_tx);
        let (write_error, read_error) = (broken("send failed".into()), broken("receive failed".into()));
        let close_error = broken("the other side closed it".into());
        let writer = tokio::spawn(async move {
            while let Some(frame) = outgoing_rx.recv().await {
                let message = ZmqMessage::try_from(frame.into_parts()).expect("a message of ours has frames");
                if let Err(error) = send_half.send(message).await {
                    tracing::debug!(%error, "link broke while sending");
                    let _ = write_broken.send(Err(write_error)).await;
                    return;
                }
            }
        });
        let reader = tokio::spawn(async move {
            loop {
                let frame = match recv_half.recv().await {
                    Ok(message) => Frame::from_parts(message.into_vec()).map_err(SocketError::from),
                    Err(error) => {
                        tracing::debug!(%error, "link broke while receiving");
                        let _ = read_broken.send(Err(read_error)).await;
                        return;
                    }
                };
                if read_broken.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let watcher = tokio::spawn(async move {
            while let Some(event) = monitor.next().await {
                if matches!(event, SocketEvent::Disconnected(_)) {
                    let _ = closed.send(Err(close_error)).await;
                    return;
                }
            }
        });
        Ok(Self { address: address.to_owned(), outgoing, incoming, tasks: [writer, reader, watcher] })
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`SocketError::Broken`] once the connection is broken; the frame is lost then.
    ///
    /// # Cancel safety
    /// If the future is dropped, the frame was either queued completely or not at all.
    pub async fn send(&self, frame: Frame) -> Result<(), SocketError> {
        self.outgoing.send(frame).await.map_err(|_| self.broken())
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// [`SocketError::Frame`] for one invalid message, after which the link still works; any other error ends
    /// the link.
    ///
    /// # Cancel safety
    /// Safe: no frame is lost when the future is dropped.
    pub async fn recv(&mut self) -> Result<Frame, SocketError> {
        match self.incoming.recv().await {
            Some(incoming) => incoming,
            None => Err(self.broken()),
        }
    }

    fn broken(&self) -> SocketError {
        SocketError::Broken { address: self.address.clone(), reason: "it was closed".into() }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
