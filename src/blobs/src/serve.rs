//! Serves one blob transfer between hosts: from the spool to the peer, or from the peer into the spool.
//!
//! Each transfer has its connection to itself, so that TLS over TCP provides the flow control and a slow peer delays only its
//! own transfer. The scheduler's grants decide who may read and write: a lease token covers the attempt's inputs and its
//! result, a task id covers the inputs that its owner uploads and the result that it fetches. An interrupted transfer resumes
//! on a new connection; after a completed one the connection is reused.
//!
//! This is the accepting side; `blob_client` in the gate is the dialling side. Does not: check hashes; the
//! reader of a blob does.

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
/// Disk space is preallocated at most this far ahead of the received bytes, whatever length was announced.
const RESERVED_BYTES: u64 = 8 << 20;
/// Idle timeout of a transfer. Shorter than the dialling side's, so that the received part is already kept
/// when the other side reconnects to resume it.
const STALLED_HERE: Duration = Duration::from_secs(10);
/// Longest wait for another connection to stop uploading the same blob.
const BROUGHT_WITHIN: Duration = Duration::from_millis(2_500);
/// How long an idle connection is kept for the next transfer; the dialling side closes it earlier.
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

/// Serves the accepting side of a granted transfer. Errors of the disk are reported to the peer.
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
            // Resumes an interrupted upload, or deletes it to make room for the new one.
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
                // Free the room first: sending the answer may take as long as the peer likes.
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

/// Reserves room for a blob, waiting until no other connection uploads it.
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

/// Answers a peer with a refusal.
///
/// # Errors
/// If the peer has closed the connection or does not read.
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

/// Starts the transfer: sends the whole length of a download, or the number of bytes of an upload already here.
async fn welcome(peer: &mut (impl AsyncWrite + Unpin), bytes: u64) -> io::Result<()> {
    in_time(async {
        // One TLS record, so that the other side wakes up only once.
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
        // Reported as invalid input, since another node would find no file either.
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
    // Reads the next chunk from disk while the network sends the previous one.
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

/// Size of the next chunk when `left` bytes remain.
fn chunk_bytes(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)
}

/// Reads the next chunk when `left` bytes remain.
fn read_chunk(file: File, left: u64) -> io::Result<(File, Vec<u8>)> {
    let most = chunk_bytes(left);
    let mut chunk = Vec::with_capacity(most);
    (&file).take(most as u64).read_to_end(&mut chunk)?;
    if chunk.len() < most { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok((file, chunk)) }
}

/// Writes the received bytes to disk. `Err` is a broken connection, after which the caller keeps the part for
/// resuming; `Ok(Err)` is a failed write, after which nothing can be resumed.
///
/// A slow disk delays this transfer and others on its thread; the gate has threads of its own for transfers.
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
        // TLS returns 16 KiB per read: gathering them costs less than one system call for each.
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
        // After a failed write the rest is still read, so that the peer receives the error.
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
            // A failed write leaves nothing to resume from.
            return if stored.is_ok() { Err(error) } else { Ok(stored) };
        }
    }
    Ok(stored)
}

/// Converts an error of the spool to the refusal that the peer receives.
fn refusal(error: &SpoolError) -> Refused {
    Refused::new(error.kind(), error.to_string())
}
