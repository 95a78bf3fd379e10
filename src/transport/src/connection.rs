//! Serves one accepted connection: its handshake, its incoming messages and its outgoing messages.
//!
//! Does not: interpret messages.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use lamagrid_protocol::frame::Frame;

use crate::outbox::Outbox;
use crate::zmtp::{self, Breach, FramePosition, MessageLimits};

/// Least free space of the read buffer before each read.
const READ_BYTES: usize = 16 * 1024;
/// Frames up to this size are copied out of the read buffer, so that they do not keep the whole buffer alive.
const COPIED_BYTES: usize = 16 * 1024;
/// Small messages are written together up to this size.
const BATCH_BYTES: usize = 64 * 1024;
/// Write timeout: a peer that takes no byte for this long is disconnected.
const STALLED_AFTER: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 15_000 });

/// Why a connection ended before its peer closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The peer violated the protocol.
    #[error(transparent)]
    Breach(#[from] Breach),
    /// The peer does not read.
    #[error("it does not read what is sent to it")]
    Unread,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The socket type of this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Router,
    Subscriber,
    Push,
}

impl Kind {
    /// The type's name in ZMTP.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Router => "ROUTER",
            Self::Subscriber => "SUB",
            Self::Push => "PUSH",
        }
    }

    /// The socket types of peers that may connect.
    const fn peers(self) -> &'static [&'static [u8]] {
        match self {
            Self::Router => &[b"DEALER", b"REQ"],
            Self::Subscriber => &[b"PUB"],
            Self::Push => &[b"PULL"],
        }
    }
}

/// Splits the bytes received from a peer into messages.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    message: MessageLimits,
    frames: Vec<Bytes>,
}

/// Performs the handshake. Returns the peer's own identity (empty if it sent none) and an inbox with the bytes after it.
///
/// # Errors
/// [`ConnectionError`]; the caller sets the time limit.
pub(crate) async fn handshake(
    stream: &mut UnixStream,
    kind: Kind,
) -> Result<(Bytes, Inbox), ConnectionError> {
    let mut own = BytesMut::from(&zmtp::greeting()[..]);
    own.extend_from_slice(&zmtp::ready(kind.name().as_bytes(), b""));
    if kind == Kind::Subscriber {
        zmtp::put_header(&mut own, FramePosition::Last, 1);
        own.extend_from_slice(&[1]); // subscribes to everything
    }
    stream.write_all(&own).await?;
    let mut received = BytesMut::with_capacity(512);
    loop {
        if let Some((ready, len)) = zmtp::handshake(&received, kind.peers())? {
            let identity = Bytes::copy_from_slice(ready.identity);
            received.advance(len);
            return Ok((identity, Inbox { buffer: received, ..Inbox::default() }));
        }
        received.reserve(512);
        if stream.read_buf(&mut received).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

impl Inbox {
    /// Waits for the next message; `None` once the peer has closed the connection.
    ///
    /// # Errors
    /// [`ConnectionError`].
    ///
    /// # Cancel safety
    /// Safe: bytes that were read stay in the inbox.
    pub(crate) async fn next(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Vec<Bytes>>, ConnectionError> {
        loop {
            let missing = match self.take_frames()? {
                Progress::Message(message) => return Ok(Some(message)),
                Progress::Missing(bytes) => bytes,
            };
            // An announced length is at most 1 MiB, and reserved memory costs nothing until it is written.
            self.buffer.reserve(missing.max(READ_BYTES));
            if from.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Moves complete frames out of the buffer, up to the end of one message.
    fn take_frames(&mut self) -> Result<Progress, Breach> {
        while let Some(header) = zmtp::header(&self.buffer)? {
            let len = usize::try_from(header.len).map_err(|_| Breach::Long(header.len))?;
            let whole = header.header_len.saturating_add(len);
            if self.buffer.len() < whole {
                // Checked now, so that a body that is too long is never read; checked again when the frame is complete.
                let mut message = self.message;
                message.frame(header)?;
                return Ok(Progress::Missing(whole - self.buffer.len()));
            }
            self.message.frame(header)?;
            self.buffer.advance(header.header_len);
            let body = if len <= COPIED_BYTES {
                let body = Bytes::copy_from_slice(&self.buffer[..len]);
                self.buffer.advance(len);
                body
            } else {
                self.buffer.split_to(len).freeze()
            };
            self.frames.push(body);
            if !header.more {
                return Ok(Progress::Message(std::mem::take(&mut self.frames)));
            }
        }
        Ok(Progress::Missing(0))
    }
}

enum Progress {
    Message(Vec<Bytes>),
    /// At least this many bytes are missing.
    Missing(usize),
}

/// Writes the messages of an outbox until an error. `envelope` puts an empty frame before each message, as
/// REQ sockets require. Calls `drained` when the outbox asks for it.
///
/// # Errors
/// [`ConnectionError::Unread`] if the outbox was closed or the peer does not read; [`ConnectionError::Io`].
pub(crate) async fn write<F: Future<Output = ()>>(
    outbox: &Outbox,
    to: &mut (impl AsyncWrite + Unpin),
    envelope: bool,
    drained: impl Fn() -> F,
) -> Result<Infallible, ConnectionError> {
    tokio::select! {
        ended = write_each(outbox, to, envelope, drained) => ended,
        // Ends a blocked write, too.
        () = outbox.closed() => Err(ConnectionError::Unread),
    }
}

async fn write_each<F: Future<Output = ()>>(
    outbox: &Outbox,
    to: &mut (impl AsyncWrite + Unpin),
    envelope: bool,
    drained: impl Fn() -> F,
) -> Result<Infallible, ConnectionError> {
    let mut out = BytesMut::new();
    loop {
        let (frame, mut cost) = outbox.next().await;
        let mut socket = Socket { to, outbox };
        encode(frame, envelope, &mut out, &mut socket).await?;
        while let Some((frame, more)) = outbox.next_small(BATCH_BYTES.saturating_sub(out.len())) {
            encode(frame, envelope, &mut out, &mut socket).await?;
            cost += more;
        }
        socket.write(&mut out).await?;
        if outbox.written(cost) {
            drained().await;
        }
    }
}

/// Appends a message to `out`. A large frame is written to the socket directly, after the content of `out`.
async fn encode(
    frame: Frame,
    envelope: bool,
    out: &mut BytesMut,
    socket: &mut Socket<'_, impl AsyncWrite + Unpin>,
) -> Result<(), ConnectionError> {
    if envelope {
        zmtp::put_header(out, FramePosition::Earlier, 0);
    }
    let parts = frame.into_parts();
    let last = parts.len() - 1;
    for (index, mut part) in parts.into_iter().enumerate() {
        let position = if index == last { FramePosition::Last } else { FramePosition::Earlier };
        zmtp::put_header(out, position, part.len());
        if part.len() <= COPIED_BYTES {
            out.extend_from_slice(&part);
        } else {
            socket.write(out).await?;
            socket.write(&mut part).await?;
        }
    }
    Ok(())
}

/// The writing half of a connection.
struct Socket<'a, T> {
    to: &'a mut T,
    outbox: &'a Outbox,
}

impl<T: AsyncWrite + Unpin> Socket<'_, T> {
    /// Writes all of `bytes`, leaving it empty.
    async fn write(&mut self, bytes: &mut impl Buf) -> Result<(), ConnectionError> {
        while bytes.has_remaining() {
            match tokio::time::timeout(STALLED_AFTER, self.to.write_buf(bytes)).await {
                Ok(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => _ = written?,
                Err(_) => return Err(ConnectionError::Unread),
            }
            self.outbox.progressed();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::OutboxBudget;
    use crate::zmtp::{MAX_WIRE_FRAMES, put_header};
    use lamagrid_protocol::frame::MAX_MESSAGE_BYTES;

    fn wire(frames: &[&[u8]]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (index, frame) in frames.iter().enumerate() {
            let is_last = index + 1 == frames.len();
            let position = if is_last { FramePosition::Last } else { FramePosition::Earlier };
            put_header(&mut out, position, frame.len());
            out.extend_from_slice(frame);
        }
        out.to_vec()
    }

    /// Reads messages from `bytes`, which arrive in pieces of `step` bytes.
    async fn read(bytes: &[u8], step: usize) -> Result<Vec<Vec<Bytes>>, ConnectionError> {
        let (mut here, mut there) = tokio::io::duplex(step);
        let bytes = bytes.to_vec();
        let writer = tokio::spawn(async move {
            // The reader may stop first.
            let _ = here.write_all(&bytes).await;
        });
        let (mut inbox, mut messages) = (Inbox::default(), Vec::new());
        let ended = loop {
            match inbox.next(&mut there).await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break Ok(messages),
                Err(error) => break Err(error),
            }
        };
        drop(there);
        writer.await.expect("it does not panic");
        ended
    }

    #[tokio::test]
    async fn messages_are_read_from_pieces_of_any_size() {
        let large = vec![7; MAX_MESSAGE_BYTES - 100];
        let messages: [&[&[u8]]; 3] =
            [&[b"", b"header", &[1; 300]], &[b"header", &large], &[&[2; COPIED_BYTES + 1]]];
        let bytes: Vec<u8> = messages.iter().flat_map(|frames| wire(frames)).collect();
        for step in [1 << 10, 1 << 16, 4 << 20] {
            let read = read(&bytes, step).await.expect("they are whole");
            assert!(read.iter().map(|m| m.iter().map(Bytes::as_ref).collect::<Vec<_>>()).eq(messages));
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_rejected_at_its_header() {
        let most = MAX_MESSAGE_BYTES as u64;
        let long = |len: u64| [&[0b010][..], &len.to_be_bytes()].concat();
        let halves = [vec![0b011], most.to_be_bytes().to_vec(), vec![0; MAX_MESSAGE_BYTES], vec![0, 1, 1]];
        for (bytes, breach) in [
            (long(1 << 62), Breach::Long(1 << 62)),
            (long(most + 1), Breach::Long(most + 1)),
            ([0b001, 0].repeat(MAX_WIRE_FRAMES + 1), Breach::Frames),
            (halves.concat(), Breach::Bytes),
            (vec![0b100, 5], Breach::Command),
            (vec![0x88], Breach::Flags(0x88)),
        ] {
            match read(&bytes, 1 << 16).await {
                Err(ConnectionError::Breach(found)) => assert_eq!(found, breach),
                other => panic!("{breach:?}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_disconnected() {
        let (mut here, _there) = tokio::io::duplex(16);
        let outbox = OutboxBudget::default().outbox();
        assert!(outbox.push(Frame {
            kind: 1,
            header: Bytes::from_static(b"h"),
            blobs: vec![Bytes::from(vec![7; 100])]
        }));
        let ended = write(&outbox, &mut here, false, || async {}).await;
        assert!(matches!(ended, Err(ConnectionError::Unread)), "{ended:?}");
    }
}
