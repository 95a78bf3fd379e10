//! ZMTP 3.0 with the NULL mechanism: the greeting, READY, frame headers, and the limits that every peer is held to.
//!
//! Does not: read or write sockets. `gate` follows what it relays with this; `connection` speaks it.

use bytes::{BufMut, Bytes, BytesMut};

use lamagrid_protocol::frame::{MAX_FRAMES, MAX_MESSAGE_BYTES};

/// Signature, version, mechanism, role, filler.
pub const GREETING_BYTES: usize = 64;
/// No authentication of ZMTP's own: the gate's TLS does that.
pub const MECHANISM: &[u8] = b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// The command of a handshake: a socket type and an identity of at most 255 bytes.
pub const MAX_READY_BYTES: usize = 1_024;
/// Of the identity that a peer gives itself.
const MAX_IDENTITY_BYTES: usize = 255;
/// A REQ socket puts an empty frame before its message.
pub const MAX_WIRE_FRAMES: usize = MAX_FRAMES + 1;
/// Of messages that are on their way, for one certificate.
pub const MAX_HELD_BYTES: u64 = 8 * MAX_MESSAGE_BYTES as u64;
/// A frame's flags and its length.
pub const MAX_HEADER_BYTES: usize = 9;

/// Flag: another frame of the message follows.
pub const MORE: u8 = 0b001;
/// Flag: the length has eight bytes.
pub const LONG: u8 = 0b010;
/// Flag: a command, not a message.
pub const COMMAND: u8 = 0b100;

/// How a peer broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// The first bytes are not a greeting of ZMTP 3.0 without a mechanism.
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

/// The header of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Another frame of the same message follows.
    pub more: bool,
    /// Bytes of the body.
    pub len: u64,
    /// Bytes of the header itself.
    pub header_len: usize,
}

/// The header that `bytes` begin with, once it is whole.
///
/// # Errors
/// [`Breach::Command`] or [`Breach::Flags`] at its first byte.
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

/// Appends the header of a frame.
pub fn put_header(out: &mut BytesMut, more: bool, len: usize) {
    let more = if more { MORE } else { 0 };
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

/// Holds the message at hand to the limits, frame by frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct MessageLimits {
    frames: usize,
    /// Of all frames so far, the one at hand included.
    pub bytes: u64,
    /// The frame at hand ends its message.
    pub is_last: bool,
}

impl MessageLimits {
    /// Takes the header of the next frame, before a byte of its body.
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

/// The greeting of this side.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[8], greeting[9], greeting[10]) = (0xff, 1, 0x7f, 3);
    greeting[12..32].copy_from_slice(MECHANISM);
    greeting
}

/// What a handshake of a peer said.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready<'a> {
    /// `Socket-Type`.
    pub socket_type: &'a [u8],
    /// Empty if the peer gave none.
    pub identity: &'a [u8],
}

/// The whole handshake that `heard` begins with, and its length, once it has arrived.
///
/// # Errors
/// [`Breach::Greeting`] or [`Breach::Ready`] at the first byte that shows it.
pub fn handshake<'a>(heard: &'a [u8], known: &[&[u8]]) -> Result<Option<(Ready<'a>, usize)>, Breach> {
    check_greeting(&heard[..heard.len().min(GREETING_BYTES)])?;
    let Some((_, command)) = heard.split_at_checked(GREETING_BYTES) else { return Ok(None) };
    let Some((body, rest)) = command_body(command)? else { return Ok(None) };
    Ok(Some((properties(body, known)?, heard.len() - rest.len())))
}

/// The body of a command, and what follows it.
pub type BodyAndRest<'a> = (&'a [u8], &'a [u8]);

/// What `bytes` begin with, once it is whole.
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
    // Found out by its length alone: nothing of it is waited for.
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_READY_BYTES).ok_or(Breach::Ready)?;
    Ok(rest.split_at_checked(len))
}

/// The mechanism and role of `greeting`, as far as it has come.
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

/// What a READY says of a peer whose socket is of one of the types `known`.
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

/// A READY of ours; short, as its parts are.
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
