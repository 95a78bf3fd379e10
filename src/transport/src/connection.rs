//! One accepted connection: its handshake, the messages that it sends, and those that are sent to it.
//!
//! Does not: know what the messages mean.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use lamagrid_protocol::frame::Frame;

use crate::outbox::Outbox;
use crate::zmtp::{self, Breach, MessageLimits};

/// What is read at once where no large frame is under way.
const READ_BYTES: usize = 16 * 1024;
/// Frames up to this size are copied out of the read buffer, so that they do not keep all of it alive.
const COPIED_BYTES: usize = 16 * 1024;
/// Small messages are written together up to this size.
const BATCH_BYTES: usize = 64 * 1024;
/// A peer that takes not a single byte of what waits for it is disconnected after this long.
const STALLED_AFTER: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 15_000 });

/// Why a connection ended before its peer closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The peer broke the protocol.
    #[error(transparent)]
    Breach(#[from] Breach),
    /// The peer does not read.
    #[error("it does not read what is sent to it")]
    Unread,
    /// The socket broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What this side of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Router,
    Subscriber,
    Push,
}

impl Kind {
    /// As ZMTP calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Router => "ROUTER",
            Self::Subscriber => "SUB",
            Self::Push => "PUSH",
        }
    }

    /// The socket types that may connect.
    const fn peers(self) -> &'static [&'static [u8]] {
        match self {
            Self::Router => &[b"DEALER", b"REQ"],
            Self::Subscriber => &[b"PUB"],
            Self::Push => &[b"PULL"],
        }
    }
}

/// Takes messages of a peer out of what was read.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    message: MessageLimits,
    frames: Vec<Bytes>,
}

/// Shakes hands. Gives the identity that the peer gave itself, empty for none, and what it sent beyond.
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
        zmtp::put_header(&mut own, false, 1);
        own.extend_from_slice(&[1]); // subscribes to everything
    }
    stream.write_all(&own).await?;
    let mut heard = BytesMut::with_capacity(512);
    loop {
        if let Some((ready, len)) = zmtp::handshake(&heard, kind.peers())? {
            let identity = Bytes::copy_from_slice(ready.identity);
            heard.advance(len);
            return Ok((identity, Inbox { buffer: heard, ..Inbox::default() }));
        }
        heard.reserve(512);
        if stream.read_buf(&mut heard).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

impl Inbox {
    /// The next message; none once the peer has closed the connection.
    ///
    /// # Errors
    /// [`ConnectionError`].
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the inbox.
    pub(crate) async fn next(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Vec<Bytes>>, ConnectionError> {
        loop {
            let missing = match self.take_frames()? {
                Progress::Message(message) => return Ok(Some(message)),
                Progress::Missing(bytes) => bytes,
            };
            // A length claims 1 MiB at most, and memory that is not written to costs nothing.
            self.buffer.reserve(missing.max(READ_BYTES));
            if from.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Moves whole frames out of the buffer, up to the end of one message.
    fn take_frames(&mut self) -> Result<Progress, Breach> {
        while let Some(header) = zmtp::header(&self.buffer)? {
            let len = usize::try_from(header.len).map_err(|_| Breach::Long(header.len))?;
            let whole = header.header_len.saturating_add(len);
            if self.buffer.len() < whole {
                // Judged now, so that no byte of a body that is too long is waited for, and again when it is whole.
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
    /// At least this many bytes are still to come.
    Missing(usize),
}

/// Writes what an outbox holds, for ever; `envelope` puts an empty frame before each message, as REQ sockets
/// expect it. Calls `drained` when the outbox says so.
///
/// # Errors
/// [`ConnectionError::Unread`] if the outbox is closed or the peer takes nothing, [`ConnectionError::Io`].
pub(crate) async fn write<F: Future<Output = ()>>(
    outbox: &Outbox,
    to: &mut (impl AsyncWrite + Unpin),
    envelope: bool,
    drained: impl Fn() -> F,
) -> Result<Infallible, ConnectionError> {
    tokio::select! {
        ended = write_each(outbox, to, envelope, drained) => ended,
        // Also while a write is under way that the peer does not take.
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

/// Appends a message to `out`; a large frame goes to the socket as it is, behind what `out` held.
async fn encode(
    frame: Frame,
    envelope: bool,
    out: &mut BytesMut,
    socket: &mut Socket<'_, impl AsyncWrite + Unpin>,
) -> Result<(), ConnectionError> {
    if envelope {
        zmtp::put_header(out, true, 0);
    }
    let parts = frame.into_parts();
    let last = parts.len() - 1;
    for (index, mut part) in parts.into_iter().enumerate() {
        zmtp::put_header(out, index != last, part.len());
        if part.len() <= COPIED_BYTES {
            out.extend_from_slice(&part);
        } else {
            socket.write(out).await?;
            socket.write(&mut part).await?;
        }
    }
    Ok(())
}

/// The writing end of a connection.
struct Socket<'a, T> {
    to: &'a mut T,
    outbox: &'a Outbox,
}

impl<T: AsyncWrite + Unpin> Socket<'_, T> {
    /// Writes all of `bytes`, which are empty afterwards.
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
            put_header(&mut out, index + 1 != frames.len(), frame.len());
            out.extend_from_slice(frame);
        }
        out.to_vec()
    }

    /// Reads what comes in pieces of `step` bytes.
    async fn read(bytes: &[u8], step: usize) -> Result<Vec<Vec<Bytes>>, ConnectionError> {
        let (mut here, mut there) = tokio::io::duplex(step);
        let bytes = bytes.to_vec();
        let writer = tokio::spawn(async move {
            // The reader may give up first.
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
    async fn messages_come_out_however_they_are_cut() {
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
    async fn a_message_that_is_too_large_ends_the_connection_at_its_header() {
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
    async fn a_peer_that_takes_nothing_is_given_up() {
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
