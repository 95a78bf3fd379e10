//! The accepting end of `client`, `control` and `result`: one ROUTER, owned by two tasks.
//!
//! Does not: know messages. A frame that breaks the protocol is answered here with a [`ProtocolFault`] and
//! goes no further; the connection and everybody else's stay up.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::prelude::*;
use zeromq::{RouterSocket, SocketEvent, ZmqMessage};

use lamagrid_domain::{Failure, FailureKind};

use crate::endpoint::{SocketError, unlink_stale};
use crate::frame::{Frame, FrameError};
use crate::message::{ControlReply, Message, ProtocolFault};

/// Frames on their way out; a full channel makes the caller wait, which bounds memory.
const OUTGOING: usize = 4_096;
/// Frames on their way in, of at most 1 MiB each; while it is full nothing is read, and the peers' sends wait.
const INCOMING: usize = 128;
/// Pause after a receive error that is not one peer's, so that a broken socket cannot spin.
const ERROR_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Of the identities that sockets of this host give themselves.
const OWN_BYTES: usize = 16;

/// The identity of one connection; fresh for every connection, so it never names two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Bytes);

impl PeerId {
    /// The identity that a gate gives.
    pub(crate) const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether a gate gave it: a certificate's name and 33 characters. ZeroMQ's own and ours have 16 bytes.
    pub(crate) fn is_of_gate(&self) -> bool {
        self.0.len() > OWN_BYTES
    }

    /// A peer of tests and simulations.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl std::fmt::Display for PeerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().take(8).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What a router hears.
#[derive(Debug)]
pub enum Incoming {
    /// A well-formed frame.
    Frame {
        /// Whose.
        peer: PeerId,
        /// What.
        frame: Frame,
    },
    /// A connection closed.
    Gone {
        /// Whose.
        peer: PeerId,
    },
}

/// How the peers' sockets wrap their messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// DEALER: nothing around them.
    Dealer,
    /// REQ: an empty frame before them.
    Req,
}

/// Sends to the peers of one router. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RouterSender {
    outgoing: mpsc::Sender<(PeerId, Frame)>,
}

impl RouterSender {
    /// Queues a frame for `peer`. A peer that is gone loses it: it asks again on its next connection.
    ///
    /// # Cancel safety
    /// Dropping this future either queued the frame or did not; the socket itself is never touched here.
    pub async fn send(&self, peer: PeerId, frame: Frame) {
        // The receiver lives as long as the router; after that nobody is left to hear it.
        let _ = self.outgoing.send((peer, frame)).await;
    }
}

/// A bound ROUTER socket. Dropping it closes the socket.
#[derive(Debug)]
pub struct Router {
    incoming: mpsc::Receiver<Incoming>,
    sender: RouterSender,
    tasks: [JoinHandle<()>; 3],
}

impl Router {
    /// Binds `address`, after removing the socket file that a killed process may have left.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    pub async fn bind(address: &str, peers: Peers) -> Result<Self, SocketError> {
        unlink_stale(address);
        let mut socket = RouterSocket::new();
        let mut monitor = socket.monitor();
        socket
            .bind(address)
            .await
            .map_err(|source| SocketError::Bind { address: address.to_owned(), source })?;
        let (mut send_half, mut recv_half) = socket.split();
        let (outgoing, mut outgoing_rx) = mpsc::channel::<(PeerId, Frame)>(OUTGOING);
        let (incoming_tx, incoming) = mpsc::channel(INCOMING);
        let sender = RouterSender { outgoing };

        let writer = tokio::spawn(async move {
            while let Some((peer, frame)) = outgoing_rx.recv().await {
                let mut parts = vec![peer.0.clone()];
                if peers == Peers::Req {
                    parts.push(Bytes::new());
                }
                parts.extend(frame.into_parts());
                let message = ZmqMessage::try_from(parts).expect("a message of ours has frames");
                if let Err(error) = send_half.send(message).await {
                    tracing::trace!(%peer, %error, "peer is gone");
                }
            }
        });
        let answers = sender.clone();
        let gone = incoming_tx.clone();
        let reader = tokio::spawn(async move {
            loop {
                let message = match recv_half.recv().await {
                    Ok(message) => message,
                    Err(error) => {
                        // One bad peer must never end the loop of all; a broken socket must not spin.
                        tracing::debug!(%error, "receive failed");
                        tokio::time::sleep(ERROR_PAUSE).await;
                        continue;
                    }
                };
                let Some((peer, frame)) = unwrap(message, peers) else { continue };
                match frame {
                    Ok(frame) => {
                        if incoming_tx.send(Incoming::Frame { peer, frame }).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let answer = ControlReply::from(fault(&error)).to_frame(Vec::new());
                        answers.send(peer, answer.expect("a failure's message is bounded")).await;
                    }
                }
            }
        });
        let watcher = tokio::spawn(async move {
            while let Some(event) = monitor.next().await {
                if let SocketEvent::Disconnected(id) = event {
                    let id: Bytes = id.into();
                    if gone.send(Incoming::Gone { peer: PeerId(id) }).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { incoming, sender, tasks: [writer, reader, watcher] })
    }

    /// The sending end.
    #[must_use]
    pub fn sender(&self) -> RouterSender {
        self.sender.clone()
    }

    /// The next thing heard.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// The next thing that was heard already, without waiting.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        self.incoming.try_recv().ok()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The message that answers what could not be understood; every channel's replies know it.
#[must_use]
pub fn fault(error: &FrameError) -> ProtocolFault {
    let kind = match error {
        FrameError::Version { .. } | FrameError::UnknownKind { .. } => FailureKind::Incompatible,
        FrameError::Malformed { .. } | FrameError::Header { .. } | FrameError::TooLarge { .. } => {
            FailureKind::InvalidInput
        }
    };
    ProtocolFault { failure: Failure::new(kind, error.to_string()) }
}

fn unwrap(message: ZmqMessage, peers: Peers) -> Option<(PeerId, Result<Frame, FrameError>)> {
    let mut parts = message.into_vec();
    if parts.is_empty() {
        return None;
    }
    let peer = PeerId(Bytes::copy_from_slice(&parts.remove(0)));
    if peers == Peers::Req {
        if parts.first().is_none_or(|p| !p.is_empty()) {
            return Some((peer, Err(FrameError::Malformed { what: "a request without its empty frame" })));
        }
        parts.remove(0);
    }
    Some((peer, Frame::from_parts(parts)))
}
