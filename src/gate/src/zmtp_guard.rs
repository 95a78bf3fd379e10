//! What a peer on the network may say in ZMTP 3.0, judged before ZeroMQ sees a byte of it.
//!
//! ZeroMQ allocates what a length claims, and holds what has come of a message that never ends. So the gate
//! follows the frame headers: nothing longer than a message of ours passes, nor more frames, nor a command after
//! the handshake. The identity that a peer gives itself in the handshake is replaced by the gate's.
//!
//! Does not: read or write sockets, or hold more of what came than the handshake.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

pub(crate) use lamagrid_transport::zmtp::Breach;
use lamagrid_transport::zmtp::{
    GREETING_BYTES, MAX_HEADER_BYTES, MAX_HELD_BYTES, MAX_READY_BYTES, MessageLimits, check_greeting,
    command_body, header, properties, ready,
};

/// The handshake of one peer, from its first byte to the end of its READY.
#[derive(Debug)]
pub(crate) struct Handshake {
    heard: BytesMut,
    /// The socket types that the peer may have.
    known: &'static [&'static [u8]],
    identity: Bytes,
}

/// What nodes and clients dial with.
pub(crate) const DIALLING: &[&[u8]] = &[b"DEALER", b"REQ", b"PUB", b"PULL"];
/// What a scheduler accepts with.
pub(crate) const ACCEPTING: &[&[u8]] = &[b"ROUTER", b"SUB", b"PUSH"];

impl Handshake {
    /// The peer, whose socket is of one of the types `known`, will be known as `identity`, of at most 255 bytes.
    pub(crate) fn new(known: &'static [&'static [u8]], identity: Bytes) -> Self {
        Self { heard: BytesMut::new(), known, identity }
    }

    /// Takes what came, and gives what ZeroMQ shall get of it: the greeting as it is, since the other side waits
    /// for that, and a READY of the gate's. Once the handshake is whole, also what followed it.
    ///
    /// # Errors
    /// [`Breach`] at the first byte that shows it.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(Bytes, Option<Bytes>), Breach> {
        let room = GREETING_BYTES + MAX_HEADER_BYTES + MAX_READY_BYTES - self.heard.len();
        let (now, later) = bytes.split_at(bytes.len().min(room));
        let before = self.heard.len();
        self.heard.extend_from_slice(now);
        check_greeting(&self.heard[..self.heard.len().min(GREETING_BYTES)])?;
        let Some((greeting, command)) = self.heard.split_at_checked(GREETING_BYTES) else {
            return Ok((Bytes::new(), None));
        };
        let mut passed = BytesMut::new();
        if before < GREETING_BYTES {
            passed.extend_from_slice(greeting);
        }
        let Some((body, rest)) = command_body(command)? else { return Ok((passed.freeze(), None)) };
        passed.extend_from_slice(&ready(properties(body, self.known)?.socket_type, &self.identity));
        let mut rest = BytesMut::from(rest);
        rest.extend_from_slice(later);
        Ok((passed.freeze(), Some(rest.freeze())))
    }
}

/// What the connections of one certificate have begun to send and not ended, in bytes: ZeroMQ keeps it.
pub(crate) type Held = Arc<AtomicU64>;

/// Follows the frames of one connection after its handshake.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Of a frame's header, what has come.
    header: [u8; MAX_HEADER_BYTES],
    header_len: usize,
    /// Bytes of a frame's body that are to come.
    body: u64,
    /// Of the message that comes.
    message: MessageLimits,
    /// Of all connections of this peer, and of this one.
    held: Held,
    own: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.held.fetch_sub(self.own, Ordering::Relaxed);
    }
}

impl Guard {
    /// One of the connections that share `held`.
    pub(crate) fn new(held: Held) -> Self {
        Self { held, ..Self::default() }
    }

    /// Takes what came; it may go on to ZeroMQ if this is well.
    ///
    /// # Errors
    /// [`Breach`]; nothing of `bytes` may go on.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        self.follow(bytes)?;
        let own = if self.message.is_last && self.body == 0 { 0 } else { self.message.bytes - self.body };
        self.held.fetch_add(own, Ordering::Relaxed);
        let before = self.held.fetch_sub(self.own, Ordering::Relaxed);
        let all = before - self.own;
        let is_more = own > self.own;
        self.own = own;
        // Whoever ends what it began is not to blame.
        if is_more && all > MAX_HELD_BYTES { Err(Breach::Held) } else { Ok(()) }
    }

    fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Breach> {
        loop {
            if self.body > 0 {
                let now = self.body.min(bytes.len() as u64);
                bytes = &bytes[now as usize..]; // at most its length
                self.body -= now;
            }
            let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
            self.header[self.header_len] = *first;
            self.header_len += 1;
            bytes = rest;
            if let Some(header) = header(&self.header[..self.header_len])? {
                self.header_len = 0;
                self.message.frame(header)?;
                self.body = header.len;
            }
        }
    }
}

#[cfg(test)]
#[path = "zmtp_guard_tests.rs"]
mod tests;
