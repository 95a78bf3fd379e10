//! Implements ZMTP 3.0 with the NULL mechanism: the greeting, READY, frame headers, and the limits for peers.
//!
//! Does not: read or write sockets. The gate checks relayed bytes with this; `connection` speaks it.

use bytes::{BufMut, Bytes, BytesMut};

use lamagrid_protocol::frame::{MAX_FRAMES, MAX_MESSAGE_BYTES};

/// Length of a greeting: signature, version, mechanism, role and filler.
pub const GREETING_BYTES: usize = 64;
/// The mechanism without authentication, which the gate's TLS provides instead.
pub const MECHANISM: &[u8] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Limit on a READY command: a socket type and an identity of at most 255 bytes.
pub const MAX_READY_BYTES: usize = 1_024;
/// Limit on the identity that a peer announces.
const MAX_IDENTITY_BYTES: usize = 255;
/// Limit on the frames of a message; a REQ socket adds an empty frame.
pub const MAX_WIRE_FRAMES: usize = MAX_FRAMES + 1;
/// Limit on the bytes of incomplete messages, per certificate.
pub const MAX_HELD_BYTES: u64 = 8 * MAX_MESSAGE_BYTES as u64;
/// Longest frame header: the flags and eight bytes of length.
pub const MAX_HEADER_BYTES: usize = 9;

/// Flag: another frame of the same message follows.
pub const MORE: u8 = 0b001;
/// Flag: the length has eight bytes.
pub const LONG: u8 = 0b010;
/// Flag: the frame is a command, not part of a message.
pub const COMMAND: u8 = 0b100;

/// How a peer violated the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// The first bytes are not a ZMTP 3.0 greeting with the NULL mechanism.
    #[error("it does not begin as ZMTP 3.0 with the mechanism NULL does")]
    Greeting,
    /// The READY command is malformed.
    #[error("its READY command is malformed")]
    Ready,
    /// A frame is announced as longer than any message may be.
    #[error("it announced a frame of {0} bytes, at most {MAX_MESSAGE_BYTES} are allowed")]
    Long(u64),
    /// A message has too many bytes.
    #[error("it sent a message of more than {MAX_MESSAGE_BYTES} bytes")]
    Bytes,
    /// The peer's incomplete messages have too many bytes, summed over its connections.
    #[error("it left messages of more than {MAX_HELD_BYTES} bytes in all unfinished")]
    Unfinished,
    /// A message has too many frames.
    #[error("it sent a message of more than {MAX_WIRE_FRAMES} frames")]
    Frames,
    /// A command arrived after the handshake.
    #[error("it sent a command after the handshake")]
    Command,
    /// A frame's flags have undefined bits.
    #[error("it sent a frame with the flags {0:#010b}")]
    Flags(u8),
}

/// The header of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// True if another frame of the same message follows.
    pub more: bool,
    /// Length of the body in bytes.
    pub len: u64,
    /// Length of the header in bytes.
    pub header_len: usize,
}

/// Parses the header at the start of `bytes`; `None` if it is incomplete.
///
/// # Errors
/// [`Breach::Command`] or [`Breach::Flags`], from the first byte.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, Breach> {
    let Some((&flags, rest)) = bytes.split_first() else { return Ok(None) };
    if flags & !(MORE | LONG) != 0 {
        return Err(if flags & COMMAND != 0 { Breach::Command } else { Breach::Flags(flags) });
    }
    let more = flags & MORE != 0;
    let header = if flags & LONG == 0 {
        rest.first().map(|len| Header { more, len: u64::from(*len), header_len: 2 })
    } else {
        rest.first_chunk::<8>().map(|len| Header {
            more,
            len: u64::from_be_bytes(*len),
            header_len: MAX_HEADER_BYTES,
        })
    };
    Ok(header)
}

/// The position of a frame in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramePosition {
    /// More frames follow.
    Earlier,
    /// The message ends with it.
    Last,
}

/// Appends the header of a frame.
pub fn put_header(out: &mut BytesMut, position: FramePosition, len: usize) {
    let more = match position {
        FramePosition::Earlier => MORE,
        FramePosition::Last => 0,
    };
    match u8::try_from(len) {
        Ok(len) => {
            out.put_u8(more);
            out.put_u8(len);
        }
        Err(_) => {
            out.put_u8(more | LONG);
            out.put_u64(len as u64);
        }
    }
}

/// Checks a message against the limits, frame by frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct MessageLimits {
    frames: usize,
    /// Bytes of all frames so far, including the current one.
    pub bytes: u64,
    /// True if the current frame is the last of its message.
    pub is_last: bool,
}

impl MessageLimits {
    /// Counts the header of the next frame, before its body.
    ///
    /// # Errors
    /// [`Breach`] if the frame or its message is too large.
    pub fn frame(&mut self, header: Header) -> Result<(), Breach> {
        let most = MAX_MESSAGE_BYTES as u64;
        if header.len > most {
            return Err(Breach::Long(header.len));
        }
        if self.is_last {
            (self.frames, self.bytes) = (0, 0);
        }
        self.is_last = !header.more;
        self.frames += 1;
        self.bytes += header.len;
        if self.frames > MAX_WIRE_FRAMES {
            return Err(Breach::Frames);
        }
        if self.bytes > most {
            return Err(Breach::Bytes);
        }
        Ok(())
    }
}

/// The greeting that this side sends.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[8], greeting[9], greeting[10]) = (0xff, 1, 0x7f, 3);
    greeting[12..32].copy_from_slice(MECHANISM);
    greeting
}

/// The content of a peer's READY command.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready<'a> {
    /// The property `Socket-Type`.
    pub socket_type: &'a [u8],
    /// The property `Identity`; empty if the peer sent none.
    pub identity: &'a [u8],
}

/// Parses the handshake at the start of `received`; returns it with its length, or `None` if it is incomplete.
///
/// # Errors
/// [`Breach::Greeting`] or [`Breach::Ready`], from the first invalid byte.
pub fn handshake<'a>(received: &'a [u8], known: &[&[u8]]) -> Result<Option<(Ready<'a>, usize)>, Breach> {
    check_greeting(&received[..received.len().min(GREETING_BYTES)])?;
    let Some((_, command)) = received.split_at_checked(GREETING_BYTES) else { return Ok(None) };
    let Some((body, rest)) = command_body(command)? else { return Ok(None) };
    Ok(Some((properties(body, known)?, received.len() - rest.len())))
}

/// The body of a command, and the bytes that follow it.
pub type BodyAndRest<'a> = (&'a [u8], &'a [u8]);

/// Parses the command at the start of `bytes`; `None` if it is incomplete.
pub fn command_body(bytes: &[u8]) -> Result<Option<BodyAndRest<'_>>, Breach> {
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
    // Rejected by its length alone, without waiting for its body.
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_READY_BYTES).ok_or(Breach::Ready)?;
    Ok(rest.split_at_checked(len))
}

/// Checks the received part of a greeting: signature, major version and mechanism.
pub fn check_greeting(greeting: &[u8]) -> Result<(), Breach> {
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

/// Parses the body of a READY command from a peer whose socket type must be one of `known`.
pub fn properties<'a>(body: &'a [u8], known: &[&[u8]]) -> Result<Ready<'a>, Breach> {
    let mut rest = body.strip_prefix(b"\x05READY").ok_or(Breach::Ready)?;
    let (mut found, mut identity) = (None, &[][..]);
    while let Some((len, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(*len)).ok_or(Breach::Ready)?;
        let (len, after) = after.split_first_chunk::<4>().ok_or(Breach::Ready)?;
        let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| Breach::Ready)?;
        let (value, after) = after.split_at_checked(len).ok_or(Breach::Ready)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        } else if name.eq_ignore_ascii_case(b"Identity") {
            identity = value;
        }
        rest = after;
    }
    let socket_type = found.filter(|found| known.contains(found)).ok_or(Breach::Ready)?;
    if identity.len() > MAX_IDENTITY_BYTES {
        return Err(Breach::Ready);
    }
    Ok(Ready { socket_type, identity })
}

/// Builds a READY command; its parts are short, so that their lengths fit.
pub fn ready(socket_type: &[u8], identity: &[u8]) -> Bytes {
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
