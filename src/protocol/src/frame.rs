//! Encodes and checks frames: `[8-byte prelude][MessagePack map, named fields][bytes]...`. All limits are
//! checked before anything is decoded.
//!
//! Does not: know which messages exist; see [`crate::message`].

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::pack;

/// The first two bytes of every prelude.
const MAGIC: [u8; 2] = *b"LG";
/// Major protocol version. Peers with another one are rejected.
pub const MAJOR: u8 = 1;
/// Minor protocol version. Peers may differ by one.
pub const MINOR: u8 = 6;
/// Length of the prelude in bytes.
const PRELUDE_BYTES: usize = 8;
/// Largest MessagePack map, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Largest blob inside a message, in bytes; larger ones are passed by reference.
pub const MAX_INLINE_BYTES: usize = 256 * 1024;
/// Largest message, in bytes. The limit is low because a connection's write buffer keeps the size of its largest message.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Limit on the frames of one message: prelude, header, and the inputs and result of one task.
pub const MAX_FRAMES: usize = 6;

/// Why bytes are not a valid message of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A mandatory frame is missing, too short or too long.
    #[error("malformed message: {what}")]
    Malformed {
        /// The violated rule.
        what: &'static str,
    },
    /// The peer uses an incompatible version.
    #[error(
        "the peer speaks protocol {major}.{minor}, this side {MAJOR}.{MINOR}: install the same lamagrid version on both"
    )]
    Version {
        /// The peer's major version.
        major: u8,
        /// The peer's minor version.
        minor: u8,
    },
    /// The kind is not a message of this channel.
    #[error("unknown message kind {kind:#06x} on this channel")]
    UnknownKind {
        /// The received kind.
        kind: u16,
    },
    /// The header cannot be decoded.
    #[error("message {kind:#06x} does not decode: {reason}")]
    Header {
        /// The message kind.
        kind: u16,
        /// The decoder's error, truncated.
        reason: String,
    },
    /// An outgoing message exceeds a limit of the protocol.
    #[error("message {kind:#06x} is too large: {len} bytes, at most {max}")]
    TooLarge {
        /// The message kind.
        kind: u16,
        /// The message's size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
}

/// One message in its encoded form: kind, encoded header and blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The message kind, which tells the header's type.
    pub kind: u16,
    /// The encoded header, a MessagePack map.
    pub header: Bytes,
    /// Inline blobs, in the order in which the header names them.
    pub blobs: Vec<Bytes>,
}

impl Frame {
    /// Encodes `header` and adds `blobs` without copying them.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] if a limit of the protocol is exceeded; [`FrameError::Header`] if `header`
    /// cannot be encoded.
    pub fn encode<T: Serialize>(kind: u16, header: &T, blobs: Vec<Bytes>) -> Result<Self, FrameError> {
        let header =
            pack(header).map_err(|error| FrameError::Header { kind, reason: cut(&error.to_string()) })?;
        if header.len() > MAX_HEADER_BYTES {
            return Err(FrameError::TooLarge { kind, len: header.len(), max: MAX_HEADER_BYTES });
        }
        let len = header.len() + blobs.iter().map(Bytes::len).sum::<usize>();
        if len + PRELUDE_BYTES > MAX_MESSAGE_BYTES || blobs.len() + 2 > MAX_FRAMES {
            return Err(FrameError::TooLarge { kind, len, max: MAX_MESSAGE_BYTES });
        }
        Ok(Self { kind, header: header.into(), blobs })
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`FrameError::Header`] if it is not a MessagePack map of a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        rmp_serde::from_slice(&self.header)
            .map_err(|error| FrameError::Header { kind: self.kind, reason: cut(&error.to_string()) })
    }

    /// The frame as the parts of a ZeroMQ message.
    #[must_use]
    pub fn into_parts(self) -> Vec<Bytes> {
        let mut prelude = BytesMut::with_capacity(PRELUDE_BYTES);
        prelude.put_slice(&MAGIC);
        prelude.put_u8(MAJOR);
        prelude.put_u8(MINOR);
        prelude.put_u16(self.kind);
        prelude.put_u16(0); // flags: none are defined in this version
        let mut parts = Vec::with_capacity(2 + self.blobs.len());
        parts.push(prelude.freeze());
        parts.push(self.header);
        parts.extend(self.blobs);
        parts
    }

    /// Checks `parts` against every limit and splits them into a frame.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] or [`FrameError::Version`].
    pub fn from_parts(mut parts: Vec<Bytes>) -> Result<Self, FrameError> {
        let malformed = |what| Err(FrameError::Malformed { what });
        if parts.len() < 2 || parts.len() > MAX_FRAMES {
            return malformed("wrong number of frames");
        }
        if parts.iter().map(Bytes::len).sum::<usize>() > MAX_MESSAGE_BYTES {
            return malformed("longer than 1 MiB");
        }
        let &[m0, m1, major, minor, k0, k1, _, _] = parts[0].as_ref() else {
            return malformed("the prelude is not 8 bytes");
        };
        if [m0, m1] != MAGIC {
            return malformed("the prelude does not begin with LG");
        }
        if major != MAJOR || minor.abs_diff(MINOR) > 1 {
            return Err(FrameError::Version { major, minor });
        }
        if parts[1].len() > MAX_HEADER_BYTES {
            return malformed("the header is longer than 64 KiB");
        }
        let blobs = parts.split_off(2);
        if blobs.iter().any(|b| b.len() > MAX_INLINE_BYTES) {
            return malformed("an inline blob is longer than 256 KiB");
        }
        // Copied, because a small part shares its allocation with the whole message; the copy lets blobs be freed early.
        let header = Bytes::copy_from_slice(&parts[1]);
        Ok(Self { kind: u16::from_be_bytes([k0, k1]), header, blobs })
    }
}

/// Truncates a text from another process to the length of a log line.
fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}
