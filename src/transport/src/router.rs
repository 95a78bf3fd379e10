//! The accepting end of `client`, `control` and `result`: one ROUTER, owned by two tasks.
//!
//! Does not: know messages. A frame that breaks the protocol is answered here with a [`ProtocolFault`] and
//! goes no further; the connection and everybody else's stay up.

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

/// Frames on their way in, of at most 1 MiB each; while it is full nothing is read, and the peers' sends wait. Each
/// connection has one message at most that waits for a place, so that none gets more than its turn.
const INCOMING: usize = 128;

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
    /// A peer has read most of what waited for it; see [`RouterSender::watch`].
    Drained {
        /// Which one.
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
#[derive(Debug, Clone, Default)]
pub struct RouterSender {
    outboxes: Arc<Mutex<HashMap<PeerId, Outbox>>>,
}

impl RouterSender {
    /// Queues a frame for `peer`, and never waits. A peer that is gone loses it: it asks again on its next connection.
    /// A peer that does not read is disconnected once some MiB wait for it.
    pub fn send(&self, peer: &PeerId, frame: Frame) {
        let Some(outbox) = self.outbox(peer) else { return };
        if !outbox.push(frame) {
            tracing::debug!(%peer, "does not read, or is gone");
        }
    }

    /// Bytes that wait until `peer` reads them.
    #[must_use]
    pub fn waiting_bytes(&self, peer: &PeerId) -> usize {
        self.outbox(peer).map_or(0, |outbox| outbox.bytes())
    }

    /// Has the router say [`Incoming::Drained`] once `peer` has read most of what waits for it. False if that is so
    /// already, or the peer is gone.
    pub fn watch(&self, peer: &PeerId) -> bool {
        self.outbox(peer).is_some_and(|outbox| outbox.watch())
    }

    /// Disconnects `peer`.
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
    /// Binds `address`, after removing the socket file that a killed process may have left.
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

    /// Its file, by which others find it.
    pub fn file(&mut self) -> &mut SocketFile {
        &mut self.file
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
        self.accepting.abort();
    }
}

/// What every connection of a router needs.
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
                self.hear(&peer, parts).await;
            }
            Ok(())
        };
        let drained = || async {
            // The router is gone where this fails, and with it everything that waits.
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

    /// Passes a message on, or answers it here where it is not one of the protocol.
    async fn hear(&self, peer: &PeerId, parts: Vec<Bytes>) {
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

/// A peer that can be sent to, for as long as this lives.
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

fn unwrap(mut parts: Vec<Bytes>, peers: Peers) -> Result<Frame, FrameError> {
    if peers == Peers::Req {
        if parts.first().is_none_or(|part| !part.is_empty()) {
            return Err(FrameError::Malformed { what: "a request without its empty frame" });
        }
        parts.remove(0);
    }
    Frame::from_parts(parts)
}
