//! Blobs between hosts: on connections of their own, once per hop, from the spool or into it.
//!
//! A stream of TLS needs no chunks, windows or acknowledgements of ours, and a slow peer slows nobody but itself. Who may read and
//! write what, the scheduler says by grants: a lease token is worth its task's inputs and its own result, a task's id what its owner
//! brings and fetches. After a cut a transfer goes on where it was, on a new connection; one that went well carries the next, too.
//!
//! This is the accepting end, and what both say; `blob_client` is the dialling end. Does not: check hashes; whoever reads a blob
//! does.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use lamagrid_domain::{FailureKind, Role, TaskId};
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::preamble::{self, Refused};
use lamagrid_protocol::transfer::{Blob, Direction, Transfer};

use crate::grants::{Grant, Grants, Incoming, Partial, Ticket};
use crate::spool::{BlobName, Spool, SpoolError};

const CHUNK_BYTES: usize = 256 * 1024;
/// So much room is taken on the disk ahead of what comes, whatever was announced.
const RESERVED_BYTES: u64 = 8 << 20;
/// Nothing came or went for so long: the peer is gone. The accepting side is the first to see it, so that what came is kept when
/// the other one asks again.
const STALLED_HERE: Duration = Duration::from_secs(10);
/// A blob that another connection brings may take this long to be complete.
const BROUGHT_WITHIN: Duration = Duration::from_millis(2_500);
/// How long a connection is kept for the next transfer; the dialling side keeps it for less.
pub const KEPT_OPEN: Duration = Duration::from_secs(15);

fn name(blob: Blob) -> BlobName {
    match blob {
        Blob::Input(_, role) | Blob::Upload(_, role) => BlobName::Role(role),
        Blob::Attempt(token) => BlobName::Attempt(token),
        Blob::Result(_) => BlobName::Role(Role::Result),
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALLED_HERE, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The accepting end of a transfer that was granted. A disk's trouble is told to the peer.
pub async fn serve(
    peer: &mut (impl AsyncRead + AsyncWrite + Unpin),
    spool: &Spool,
    grants: &Grants,
    grant: &Grant,
    transfer: Transfer,
) -> io::Result<()> {
    let name = name(transfer.blob);
    match transfer.direction {
        Direction::From(from) => send(peer, spool, grant.task, name, from).await,
        Direction::Write { len, again } => {
            let incoming = match take_in(grants, Ticket::of(transfer.blob), name, len).await {
                Ok(incoming) => incoming,
                Err(refused) => return answer(peer, Err(&refused)).await,
            };
            // What came before goes on, or makes room for what comes now.
            let begun = grants.resume(grant.task, name).filter(|begun| again && begun.written <= len);
            let begin = || {
                spool.remove(grant.task, name)?;
                Ok(Partial { task: grant.task, name, writer: spool.writer(grant.task, name)?, written: 0 })
            };
            let mut partial = match begun.map_or_else(begin, Ok) {
                Ok(partial) => partial,
                Err(error) => return answer(peer, Err(&refusal(&error))).await,
            };
            let received = tokio::select! {
                received = receive(peer, &mut partial, len) => Some(received),
                () = incoming.stopped() => None,
            };
            let Some(received) = received else {
                // Its room is free before the peer hears of it, which may take as long as the peer likes.
                drop((partial, incoming));
                answer(peer, Err(&Refused::not_granted())).await?;
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "a blob is not wanted any more",
                ));
            };
            match received {
                Ok(stored) => {
                    let finished = match stored {
                        Ok(()) => incoming.finish(partial.writer),
                        Err(error) => Ok(Err(error)),
                    };
                    let verdict = finished.and_then(|stored| stored.map_err(|error| refusal(&error)));
                    answer(peer, verdict.as_ref().copied()).await
                }
                Err(error) => {
                    grants.keep(&incoming, partial);
                    Err(error)
                }
            }
        }
    }
}

/// Takes room for a blob once no other connection brings it any more.
async fn take_in(grants: &Grants, ticket: Ticket, name: BlobName, len: u64) -> Result<Incoming<'_>, Refused> {
    let end = tokio::time::Instant::now() + BROUGHT_WITHIN;
    loop {
        match grants.take_in(ticket, name, len)? {
            Some(incoming) => return Ok(incoming),
            None if tokio::time::Instant::now() < end => tokio::time::sleep(Duration::from_millis(10)).await,
            None => {
                let text = "this blob is being brought on another connection";
                return Err(Refused::new(FailureKind::Disconnected, text));
            }
        }
    }
}

/// Sends a refusal.
///
/// # Errors
/// The peer is gone, or reads nothing.
pub async fn refuse(peer: &mut (impl AsyncWrite + Unpin), refused: &Refused) -> io::Result<()> {
    answer(peer, Err(refused)).await
}

async fn answer(peer: &mut (impl AsyncWrite + Unpin), verdict: Result<(), &Refused>) -> io::Result<()> {
    in_time(async {
        peer.write_all(preamble::answer(verdict.map(|()| wall_ms())).as_bytes()).await?;
        peer.flush().await
    })
    .await
}

/// The transfer begins: with the whole length of what goes, or with how much is there of what comes.
async fn welcome(peer: &mut (impl AsyncWrite + Unpin), bytes: u64) -> io::Result<()> {
    in_time(async {
        // In one record: the other side wakes up once.
        peer.write_all(&[preamble::answer(Ok(wall_ms())).as_bytes(), &bytes.to_be_bytes()].concat()).await?;
        peer.flush().await
    })
    .await
}

async fn send(
    peer: &mut (impl AsyncWrite + Unpin),
    spool: &Spool,
    task: TaskId,
    name: BlobName,
    from: u64,
) -> io::Result<()> {
    let (mut file, len) = match spool.reader(task, name) {
        Ok(found) => found,
        // No fault of the node that asks: no other one would get it.
        Err(error) if error.is_missing() => {
            let text = format!(
                "it is gone from the scheduler's disk ({error}): submit the task again with a new id"
            );
            return answer(peer, Err(&Refused::new(FailureKind::InvalidInput, text))).await;
        }
        Err(error) => return answer(peer, Err(&refusal(&error))).await,
    };
    if from > len {
        let text = format!("the blob has {len} bytes, none from {from} on");
        return answer(peer, Err(&Refused::new(FailureKind::InvalidInput, text))).await;
    }
    if from > 0 {
        file.seek(io::SeekFrom::Start(from))?;
    }
    let mut left = len - from;
    // The disk is read while the network takes what was read before.
    let read = |file, left| (left > 0).then(|| tokio::task::spawn_blocking(move || read_chunk(file, left)));
    let mut ahead = read(file, left);
    welcome(peer, len).await?;
    while let Some(reading) = ahead {
        let (file, chunk) = reading.await.map_err(io::Error::other)??;
        left -= chunk.len() as u64;
        ahead = read(file, left);
        in_time(peer.write_all(&chunk)).await?;
    }
    in_time(peer.flush()).await
}

/// Bytes of the next chunk, of so many that are to come.
fn chunk_bytes(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)
}

/// Reads the next of so many bytes.
fn read_chunk(file: File, left: u64) -> io::Result<(File, Vec<u8>)> {
    let most = chunk_bytes(left);
    let mut chunk = Vec::with_capacity(most);
    (&file).take(most as u64).read_to_end(&mut chunk)?;
    if chunk.len() < most { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((file, chunk)) }
}

/// What comes goes to disk, and what a cut leaves of it is kept by the caller. A write that failed is no cut.
///
/// A disk that is slow holds up this transfer and what shares its thread: the gate has threads of its own.
async fn receive(
    peer: &mut (impl AsyncRead + AsyncWrite + Unpin),
    partial: &mut Partial,
    len: u64,
) -> io::Result<Result<(), SpoolError>> {
    welcome(peer, partial.written).await?;
    let (mut left, mut chunk, mut stored) = (len - partial.written, vec![0; CHUNK_BYTES], Ok(()));
    let mut reserved = partial.written;
    while left > 0 {
        let most = chunk_bytes(left);
        // TLS gives 16 KiB at a time, and a system call for each would cost more than to gather them.
        let (mut come, mut cut) = (0, None);
        while come < most {
            match in_time(peer.read(&mut chunk[come..most])).await {
                Ok(0) => cut = Some(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => come += n,
                Err(error) => cut = Some(error),
            }
            if cut.is_some() {
                break;
            }
        }
        left -= come as u64;
        // What still comes after a write that failed is read, so that the peer hears why.
        if stored.is_ok() {
            if reserved < partial.written + come as u64 {
                let ahead = (len - partial.written).min(RESERVED_BYTES);
                partial.writer.reserve(partial.written, ahead);
                reserved = partial.written + ahead;
            }
            stored = partial.writer.write(&chunk[..come]);
            partial.written += come as u64;
        }
        if let Some(error) = cut {
            // After a write that failed there is nothing to go on from.
            return if stored.is_ok() { Err(error) } else { Ok(stored) };
        }
    }
    Ok(stored)
}

/// What the peer is told of the spool's trouble.
fn refusal(error: &SpoolError) -> Refused {
    Refused::new(error.kind(), error.to_string())
}
