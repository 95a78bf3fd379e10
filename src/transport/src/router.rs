//! Accepts the connections of the `client`, `admin`, `control` and `result` channels on a ROUTER socket.
//!
//! Does not: interpret messages. A frame that violates the protocol is answered here with a [`ProtocolFault`]
//! and not forwarded; its connection and all others stay open.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_process::random_id;
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::{Frame, FrameError};
use lamagrid_protocol::message::{ControlReply, Message, ProtocolFault};

use crate::connection::{ConnectionError, Kind, write};
use crate::endpoint::SocketError;
use crate::listener::{Accepted, ConnectionLimits, Listener, Slot, SocketFile};
use crate::outbox::Outbox;

/// Capacity for incoming frames of at most 1 MiB each. While it is full, reading stops and the peers' sends
/// block. At most one message of each connection waits for a place, so that all peers get an equal share.
const INCOMING: usize = 128;

/// An event of a router.
#[derive(Debug)]
pub enum Incoming {
    /// A well-formed frame arrived.
    Frame {
        /// The sender.
        peer: PeerId,
        /// The frame.
        frame: Frame,
    },
    /// A connection closed.
    Gone {
        /// The peer of that connection.
        peer: PeerId,
    },
    /// A peer has read most of the waiting bytes; see [`RouterSender::watch`].
    Drained {
        /// The peer.
        peer: PeerId,
    },
}

/// The framing that the peers' socket type uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// DEALER: messages without an envelope.
    Dealer,
    /// REQ: an empty frame before each message.
    Req,
}

/// Sends to the peers of one router. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RouterSender {
    outboxes: Arc<Mutex<HashMap<PeerId, Outbox>>>,
}

impl RouterSender {
    /// Queues a frame for `peer` without blocking. The frame is lost if the peer has disconnected, which asks
    /// again on its next connection. A peer that does not read is disconnected when several MiB wait for it.
    pub fn send(&self, peer: &PeerId, frame: Frame) {
        let Some(outbox) = self.outbox(peer) else { return };
        if !outbox.push(frame) {
            tracing::debug!(%peer, "does not read, or is gone");
        }
    }

    /// Bytes queued or being written, not yet read by `peer`; 0 if it has disconnected.
    #[must_use]
    pub fn waiting_bytes(&self, peer: &PeerId) -> usize {
        self.outbox(peer).map_or(0, |outbox| outbox.bytes())
    }

    /// Requests [`Incoming::Drained`] once `peer` has read most of the waiting bytes. Returns false if it
    /// already has, or has disconnected.
    pub fn watch(&self, peer: &PeerId) -> bool {
        self.outbox(peer).is_some_and(|outbox| outbox.watch())
    }

    /// Closes the connection of `peer`.
    pub fn disconnect(&self, peer: &PeerId) {
        if let Some(outbox) = self.outbox(peer) {
            outbox.close();
        }
    }

    fn outbox(&self, peer: &PeerId) -> Option<Outbox> {
        self.outboxes.lock().get(peer).cloned()
    }
}

/// A bound ROUTER socket. Dropping it closes the socket and its connections.
#[derive(Debug)]
pub struct Router {
    incoming: mpsc::Receiver<Incoming>,
    sender: RouterSender,
    accepting: JoinHandle<()>,
    file: SocketFile,
}

impl Router {
    /// Binds `address`, after removing a socket file that a killed process may have left.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(address: &str, peers: Peers, limits: &ConnectionLimits) -> Result<Self, SocketError> {
        let (listener, file) = Listener::bind(address, Kind::Router, limits)?;
        let (incoming_tx, incoming) = mpsc::channel(INCOMING);
        let sender = RouterSender::default();
        let limits = limits.clone();
        let room = RoomForPeers { incoming: incoming_tx, sender: sender.clone(), peers, limits };
        let accepting = tokio::spawn(listener.accept(move |accepted| room.clone().serve(accepted)));
        Ok(Self { incoming, sender, accepting, file })
    }

    /// The socket's file.
    pub fn file(&mut self) -> &mut SocketFile {
        &mut self.file
    }

    /// The sending half.
    #[must_use]
    pub fn sender(&self) -> RouterSender {
        self.sender.clone()
    }

    /// Waits for the next event.
    ///
    /// # Cancel safety
    /// Safe: no event is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Takes the next event if one has already arrived.
    pub fn try_recv(&mut self) -> Option<Incoming> {
        self.incoming.try_recv().ok()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The state that each connection of a router needs.
#[derive(Clone)]
struct RoomForPeers {
    incoming: mpsc::Sender<Incoming>,
    sender: RouterSender,
    peers: Peers,
    limits: ConnectionLimits,
}

impl RoomForPeers {
    async fn serve(self, accepted: Accepted) {
        let Accepted { mut stream, mut inbox, identity, slot } = accepted;
        let peer = PeerId::from_bytes(identity.unwrap_or_else(|| Bytes::copy_from_slice(&random_id())));
        let outbox = self.limits.outbox();
        let entry = OpenPeer { sender: self.sender.clone(), peer: peer.clone(), _slot: slot };
        self.sender.outboxes.lock().insert(peer.clone(), outbox.clone());
        let (mut read_half, mut write_half) = stream.split();
        let envelope = self.peers == Peers::Req;
        let reading = async {
            while let Some(parts) = inbox.next(&mut read_half).await? {
                self.receive(&peer, parts).await;
            }
            Ok(())
        };
        let drained = || async {
            // Fails only if the router was dropped, and then there is no sender to inform.
            let _ = self.incoming.send(Incoming::Drained { peer: peer.clone() }).await;
        };
        let writing = write(&outbox, &mut write_half, envelope, drained);
        let ended: Result<(), ConnectionError> = tokio::select! {
            ended = reading => ended,
            Err(error) = writing => Err(error),
        };
        match ended {
            Ok(()) | Err(ConnectionError::Io(_)) => {}
            Err(error) => tracing::warn!(%peer, %error, "disconnected a peer"),
        }
        drop(stream);
        drop(entry);
        let _ = self.incoming.send(Incoming::Gone { peer }).await;
    }

    /// Forwards a message, or answers it with a fault if it violates the protocol.
    async fn receive(&self, peer: &PeerId, parts: Vec<Bytes>) {
        match unwrap(parts, self.peers) {
            Ok(frame) => {
                let _ = self.incoming.send(Incoming::Frame { peer: peer.clone(), frame }).await;
            }
            Err(error) => {
                let answer = ControlReply::from(fault(&error)).to_frame(Vec::new());
                self.sender.send(peer, answer.expect("a failure's message is bounded"));
            }
        }
    }
}

/// A connected peer; removes its outbox when dropped.
struct OpenPeer {
    sender: RouterSender,
    peer: PeerId,
    _slot: Slot,
}

impl Drop for OpenPeer {
    fn drop(&mut self) {
        self.sender.outboxes.lock().remove(&self.peer);
    }
}

/// The reply to a message that could not be decoded; part of every channel's replies.
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

fn unwrap(mut parts: Vec<Bytes>, peers: Peers) -> Result<Frame, FrameError> {
    if peers == Peers::Req {
        if parts.first().is_none_or(|part| !part.is_empty()) {
            return Err(FrameError::Malformed { what: "a request without its empty frame" });
        }
        parts.remove(0);
    }
    Frame::from_parts(parts)
}
