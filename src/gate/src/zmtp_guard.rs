//! Checks what a peer on the network sends in ZMTP 3.0, before ZeroMQ reads it.
//!
//! ZeroMQ allocates any announced length, and keeps the frames of a message that never ends. The guard
//! therefore follows the frame headers: it rejects frames and messages above the limits, too many frames, and
//! commands after the handshake. It replaces the identity in the peer's handshake by the gate's.
//!
//! Does not: read or write sockets, or buffer anything but the handshake.

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
    received: BytesMut,
    /// The socket types that the peer may have.
    known: &'static [&'static [u8]],
    identity: Bytes,
}

/// The socket types of nodes and clients.
pub(crate) const DIALLING: &[&[u8]] = &[b"DEALER", b"REQ", b"PUB", b"PULL"];
/// The socket types of a scheduler.
pub(crate) const ACCEPTING: &[&[u8]] = &[b"ROUTER", b"SUB", b"PUSH"];

impl Handshake {
    /// Starts the handshake of a peer whose socket type must be in `known`; its identity becomes `identity`, at most 255 bytes.
    pub(crate) fn new(known: &'static [&'static [u8]], identity: Bytes) -> Self {
        Self { received: BytesMut::new(), known, identity }
    }

    /// Takes received bytes; returns the bytes for ZeroMQ: the greeting unchanged as soon as it is complete,
    /// since the other side waits for it, then a READY with the gate's identity. After a complete handshake
    /// also returns the bytes that followed it.
    ///
    /// # Errors
    /// [`Breach`] at the first invalid byte.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(Bytes, Option<Bytes>), Breach> {
        let room = GREETING_BYTES + MAX_HEADER_BYTES + MAX_READY_BYTES - self.received.len();
        let (now, later) = bytes.split_at(bytes.len().min(room));
        let before = self.received.len();
        self.received.extend_from_slice(now);
        check_greeting(&self.received[..self.received.len().min(GREETING_BYTES)])?;
        let Some((greeting, command)) = self.received.split_at_checked(GREETING_BYTES) else {
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

/// Bytes of incomplete messages, which ZeroMQ keeps, summed over the connections of one certificate.
pub(crate) type UnfinishedBytes = Arc<AtomicU64>;

/// Checks the frames of one connection after its handshake.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// The received part of a frame's header.
    header: [u8; MAX_HEADER_BYTES],
    header_len: usize,
    /// Missing bytes of the current frame's body.
    body: u64,
    /// The limits of the current message.
    message: MessageLimits,
    /// Bytes of incomplete messages: of all connections of this certificate, and of this one in `own`.
    unfinished_bytes: UnfinishedBytes,
    own: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.unfinished_bytes.fetch_sub(self.own, Ordering::Relaxed);
    }
}

impl Guard {
    /// Creates the guard of one of the connections that share `unfinished_bytes`.
    pub(crate) fn new(unfinished_bytes: UnfinishedBytes) -> Self {
        Self { unfinished_bytes, ..Self::default() }
    }

    /// Checks received bytes, which may be passed to ZeroMQ if this succeeds.
    ///
    /// # Errors
    /// [`Breach`]; `bytes` must not be passed on then.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        self.follow(bytes)?;
        let own = if self.message.is_last && self.body == 0 { 0 } else { self.message.bytes - self.body };
        self.unfinished_bytes.fetch_add(own, Ordering::Relaxed);
        let before = self.unfinished_bytes.fetch_sub(self.own, Ordering::Relaxed);
        let all = before - self.own;
        let is_more = own > self.own;
        self.own = own;
        // A peer that completes a message is not rejected for the bytes that others hold.
        if is_more && all > MAX_HELD_BYTES { Err(Breach::Unfinished) } else { Ok(()) }
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
