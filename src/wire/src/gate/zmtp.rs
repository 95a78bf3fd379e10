//! What a peer on the network may say in ZMTP 3.0, judged before ZeroMQ sees a byte of it.
//!
//! ZeroMQ allocates what a length claims, and holds what has come of a message that never ends. So the gate
//! follows the frame headers: nothing longer than a message of ours passes, nor more frames, nor a command after
//! the handshake. The identity that a peer gives itself in the handshake is replaced by the gate's.
//!
//! Does not: read or write sockets, or hold more of what came than the handshake.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{MAX_FRAMES, MAX_MESSAGE_BYTES};

/// Signature, version, mechanism, role, filler.
const GREETING_BYTES: usize = 64;
const MECHANISM: &[u8] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// The command of a handshake: a socket type and an identity of at most 255 bytes.
const MAX_READY_BYTES: usize = 1_024;
/// A REQ socket puts an empty frame before its message.
const MAX_WIRE_FRAMES: usize = MAX_FRAMES + 1;
/// Of messages that are on their way, for one certificate.
const MAX_HELD_BYTES: u64 = 8 * MAX_MESSAGE_BYTES as u64;

const MORE: u8 = 0b001;
const LONG: u8 = 0b010;
const COMMAND: u8 = 0b100;

/// What a peer did that no peer of ours does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    /// Its first bytes are no greeting of ZMTP 3.0 without a mechanism.
    #[error("it does not begin as ZMTP 3.0 with the mechanism NULL does")]
    Greeting,
    /// The handshake's command is not understood.
    #[error("its READY command is malformed")]
    Ready,
    /// A frame claims to be longer than any message.
    #[error("it announced a frame of {0} bytes, at most {MAX_MESSAGE_BYTES} are allowed")]
    Long(u64),
    /// A message has too many bytes.
    #[error("it sent a message of more than {MAX_MESSAGE_BYTES} bytes")]
    Bytes,
    /// Messages that it began and has not ended have too many bytes, all its connections together.
    #[error("it left more than {MAX_HELD_BYTES} bytes of messages lying that it did not end")]
    Held,
    /// A message has too many frames.
    #[error("it sent a message of more than {MAX_WIRE_FRAMES} frames")]
    Frames,
    /// A command where none is known.
    #[error("it sent a command after the handshake")]
    Command,
    /// Bits of a frame's flags that mean nothing.
    #[error("it sent a frame with the flags {0:#010b}")]
    Flags(u8),
}

/// The handshake of one peer, from its first byte to the end of its READY.
#[derive(Debug)]
pub(super) struct Handshake {
    heard: BytesMut,
    /// The socket types that the peer may have.
    known: &'static [&'static [u8]],
    identity: Bytes,
}

/// What nodes and clients dial with.
pub(super) const DIALLING: &[&[u8]] = &[b"DEALER", b"REQ", b"PUB", b"PULL"];
/// What a scheduler accepts with.
pub(super) const ACCEPTING: &[&[u8]] = &[b"ROUTER", b"SUB", b"PUSH"];

impl Handshake {
    /// The peer, whose socket is of one of the types `known`, will be known as `identity`, of at most 255 bytes.
    pub(super) fn new(known: &'static [&'static [u8]], identity: Bytes) -> Self {
        Self { heard: BytesMut::new(), known, identity }
    }

    /// Takes what came, and gives what ZeroMQ shall get of it: the greeting as it is, since the other side waits
    /// for that, and a READY of the gate's. Once the handshake is whole, also what followed it.
    ///
    /// # Errors
    /// [`Breach`] at the first byte that shows it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(Bytes, Option<Bytes>), Breach> {
        let room = GREETING_BYTES + 9 + MAX_READY_BYTES - self.heard.len();
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
        passed.extend_from_slice(&ready(socket_type(body, self.known)?, &self.identity));
        let mut rest = BytesMut::from(rest);
        rest.extend_from_slice(later);
        Ok((passed.freeze(), Some(rest.freeze())))
    }
}

/// The body of a command, and what follows it.
type BodyAndRest<'a> = (&'a [u8], &'a [u8]);

/// What `bytes` begin with, once it is whole.
fn command_body(bytes: &[u8]) -> Result<Option<BodyAndRest<'_>>, Breach> {
    let Some((flags, rest)) = bytes.split_first() else { return Ok(None) };
    if *flags & !LONG != COMMAND {
        return Err(Breach::Ready);
    }
    let (len, rest) = if *flags & LONG == 0 {
        let Some((len, rest)) = rest.split_first() else { return Ok(None) };
        (u64::from(*len), rest)
    } else {
        let Some((len, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        (u64::from_be_bytes(*len), rest)
    };
    // Found out by its length alone: nothing of it is waited for.
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_READY_BYTES).ok_or(Breach::Ready)?;
    Ok(rest.split_at_checked(len))
}

/// The mechanism and role of `greeting`, as far as it has come.
fn check_greeting(greeting: &[u8]) -> Result<(), Breach> {
    let is = |range: std::ops::Range<usize>, wanted: &[u8]| {
        let found = &greeting[range.start.min(greeting.len())..range.end.min(greeting.len())];
        wanted.starts_with(found)
    };
    let right = is(0..1, &[0xff])
        && is(9..10, &[0x7f])
        && greeting.get(10).is_none_or(|major| *major == 3)
        && is(12..32, MECHANISM);
    if right { Ok(()) } else { Err(Breach::Greeting) }
}

/// The socket type that a READY names.
fn socket_type<'a>(body: &'a [u8], known: &[&[u8]]) -> Result<&'a [u8], Breach> {
    let mut rest = body.strip_prefix(b"\x05READY").ok_or(Breach::Ready)?;
    let mut found = None;
    while let Some((len, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(*len)).ok_or(Breach::Ready)?;
        let (len, after) = after.split_first_chunk::<4>().ok_or(Breach::Ready)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| Breach::Ready)?;
        let (value, after) = after.split_at_checked(len).ok_or(Breach::Ready)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        }
        rest = after;
    }
    found.filter(|found| known.contains(found)).ok_or(Breach::Ready)
}

/// A READY of ours; short, as its parts are.
fn ready(socket_type: &[u8], identity: &[u8]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY");
    for (name, value) in [(&b"Socket-Type"[..], socket_type), (&b"Identity"[..], identity)] {
        body.put_u8(name.len() as u8); // 11 or 8
        body.put_slice(name);
        body.put_u32(value.len() as u32); // at most 255
        body.put_slice(value);
    }
    let mut frame = BytesMut::with_capacity(9 + body.len());
    frame.put_u8(COMMAND | LONG);
    frame.put_u64(body.len() as u64);
    frame.put_slice(&body);
    frame.freeze()
}

/// What the connections of one certificate have begun to send and not ended, in bytes: ZeroMQ keeps it.
pub(super) type Held = Arc<AtomicU64>;

/// Follows the frames of one connection after its handshake.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Of a frame's header, what has come.
    header: [u8; 9],
    header_len: usize,
    /// Bytes of a frame's body that are to come.
    body: u64,
    /// Of the message that comes, the frame at hand included.
    frames: usize,
    bytes: u64,
    /// The frame at hand ends its message.
    is_last: bool,
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
    pub(super) fn new(held: Held) -> Self {
        Self { held, ..Self::default() }
    }

    /// Takes what came; it may go on to ZeroMQ if this is well.
    ///
    /// # Errors
    /// [`Breach`]; nothing of `bytes` may go on.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        self.follow(bytes)?;
        let own = if self.is_last && self.body == 0 { 0 } else { self.bytes - self.body };
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
            let flags = self.header[0];
            if flags & !(MORE | LONG) != 0 {
                return Err(if flags & COMMAND != 0 { Breach::Command } else { Breach::Flags(flags) });
            }
            let len = match (flags & LONG, self.header_len) {
                (0, 2) => u64::from(self.header[1]),
                (LONG, 9) => {
                    let mut len = [0; 8];
                    len.copy_from_slice(&self.header[1..]);
                    u64::from_be_bytes(len)
                }
                _ => continue,
            };
            self.header_len = 0;
            self.frame(flags & MORE != 0, len)?;
        }
    }

    fn frame(&mut self, more: bool, len: u64) -> Result<(), Breach> {
        let most = MAX_MESSAGE_BYTES as u64;
        if len > most {
            return Err(Breach::Long(len));
        }
        if self.is_last {
            (self.frames, self.bytes) = (0, 0);
        }
        self.is_last = !more;
        self.frames += 1;
        self.bytes += len;
        self.body = len;
        if self.frames > MAX_WIRE_FRAMES {
            return Err(Breach::Frames);
        }
        if self.bytes > most {
            return Err(Breach::Bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "zmtp_tests.rs"]
mod tests;
