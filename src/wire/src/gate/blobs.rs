//! Blobs between hosts: a connection of their own each, once per hop, from the spool or into it.
//!
//! A stream of TLS needs no chunks, windows or acknowledgements of ours, and a slow peer slows nobody but itself. Who may read and
//! write what, the scheduler says by grants: a lease token is worth its task's inputs and its own result.
//!
//! Does not: check hashes; whoever reads a blob does.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use lamagrid_domain::{FailureKind, LeaseToken, Role, TaskId};

use super::credentials::SCHEDULER_NAME;
use super::line::{self, Refused};
use crate::spool::{BlobName, Spool, SpoolError};

const CHUNK_BYTES: usize = 256 * 1024;
/// Nothing came or went for so long: the peer is gone.
const STALLED: Duration = Duration::from_secs(15);
/// A transfer is begun anew so often, after a cut.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What the holder of a certificate may do with the blobs of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The certificate's name.
    pub certificate: String,
    /// Whose blobs.
    pub task: TaskId,
    /// Longest result that may be written, in bytes.
    pub max_bytes: u64,
}

/// A transfer that a line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    /// An input of the attempt's task.
    Get(LeaseToken, Role),
    /// The attempt's result, of so many bytes.
    Put(LeaseToken, u64),
}

impl Transfer {
    pub(super) fn token(self) -> LeaseToken {
        match self {
            Self::Get(token, _) | Self::Put(token, _) => token,
        }
    }

    /// The words behind the version in a line; `None` if they are none.
    pub(super) fn parse(words: &[&str]) -> Option<Self> {
        match words {
            ["get", token, role] => {
                let role =
                    [Role::Image, Role::Mask, Role::Example].into_iter().find(|r| r.as_str() == *role)?;
                Some(Self::Get(token.parse().ok()?, role))
            }
            ["put", token, len] => Some(Self::Put(token.parse().ok()?, len.parse().ok()?)),
            _ => None,
        }
    }

    fn words(self) -> String {
        match self {
            Self::Get(token, role) => format!("get {token} {role}"),
            Self::Put(token, len) => format!("put {token} {len}"),
        }
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALLED, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The accepting end of a transfer that was granted. A disk's trouble is told to the peer.
pub(super) async fn serve(
    peer: &mut (impl AsyncRead + AsyncWrite + Unpin),
    spool: &Spool,
    grant: &Grant,
    transfer: Transfer,
) -> io::Result<()> {
    match transfer {
        Transfer::Get(_, role) => send(peer, spool, grant.task, role).await,
        Transfer::Put(token, len) => receive(peer, spool, grant, token, len).await,
    }
}

async fn answer(peer: &mut (impl AsyncWrite + Unpin), verdict: Result<(), &Refused>) -> io::Result<()> {
    in_time(async {
        peer.write_all(line::answer(verdict).as_bytes()).await?;
        peer.flush().await
    })
    .await
}

async fn send(
    peer: &mut (impl AsyncWrite + Unpin),
    spool: &Spool,
    task: TaskId,
    role: Role,
) -> io::Result<()> {
    let (mut file, len) = match spool.reader(task, BlobName::Role(role)) {
        Ok((file, len)) => (tokio::fs::File::from_std(file), len),
        Err(error) => return answer(peer, Err(&refusal(&error))).await,
    };
    answer(peer, Ok(())).await?;
    in_time(peer.write_all(&len.to_be_bytes())).await?;
    let (mut chunk, mut left) = (vec![0; CHUNK_BYTES], len);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let n = file.read(&mut chunk[..most]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        in_time(peer.write_all(&chunk[..n])).await?;
        left -= n as u64;
    }
    in_time(peer.flush()).await
}

async fn receive(
    peer: &mut (impl AsyncRead + AsyncWrite + Unpin),
    spool: &Spool,
    grant: &Grant,
    token: LeaseToken,
    len: u64,
) -> io::Result<()> {
    if len > grant.max_bytes {
        let text = format!("a result of {len} bytes; {} are allowed", grant.max_bytes);
        return answer(peer, Err(&Refused::new(FailureKind::InvalidInput, text))).await;
    }
    // A disk that is slow holds up this transfer and what shares its thread: the gate has threads of its own.
    let mut writer = match spool.writer(grant.task, BlobName::Attempt(token)) {
        Ok(writer) => writer,
        Err(error) => return answer(peer, Err(&refusal(&error))).await,
    };
    answer(peer, Ok(())).await?;
    let (mut left, mut chunk, mut stored) = (len, vec![0; CHUNK_BYTES], Ok(()));
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        // TLS gives 16 KiB at a time, and a system call for each would cost more than to gather them.
        let mut come = 0;
        while come < most {
            let n = in_time(peer.read(&mut chunk[come..most])).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            come += n;
        }
        left -= come as u64;
        // What still comes after a write that failed is read, so that the peer hears why.
        if stored.is_ok() {
            stored = writer.write(&chunk[..come]);
        }
    }
    let verdict = stored.and_then(|()| writer.finish()).map_err(|error| refusal(&error));
    answer(peer, verdict.as_ref().copied()).await
}

/// What the peer is told of the spool's trouble.
fn refusal(error: &SpoolError) -> Refused {
    Refused::new(error.kind(), error.to_string())
}

/// Why a blob did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The scheduler said no.
    #[error("{text}")]
    Refused {
        /// Of the failure.
        kind: FailureKind,
        /// What it said.
        text: String,
    },
    /// The connection broke, again and again.
    #[error("cannot reach {scheduler} for a picture: {source}")]
    Broken {
        /// `host:port`
        scheduler: String,
        /// The last time.
        source: io::Error,
    },
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Fetches and brings blobs, one connection each; blocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    pub(super) scheduler: String,
    pub(super) config: Arc<ClientConfig>,
}

impl Blobs {
    /// An input of an attempt's task, of the announced length.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn get(&self, token: LeaseToken, role: Role, len: u64) -> Result<Vec<u8>, BlobError> {
        self.repeated(|| {
            let mut stream = match self.ask(Transfer::Get(token, role))? {
                Ok(stream) => stream,
                Err(refused) => return Ok(Err(refused)),
            };
            let mut announced = [0; 8];
            stream.read_exact(&mut announced)?;
            if u64::from_be_bytes(announced) != len {
                let text = format!("the {role} is not of the announced length");
                return Ok(Err(Refused::new(FailureKind::Internal, text)));
            }
            let mut bytes = Vec::new();
            (&mut stream).take(len).read_to_end(&mut bytes)?;
            if (bytes.len() as u64) < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Ok(bytes))
        })
    }

    /// Brings the result of an attempt; it is in the spool then.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn put(&self, token: LeaseToken, bytes: &[u8]) -> Result<(), BlobError> {
        self.repeated(|| {
            let mut stream = match self.ask(Transfer::Put(token, bytes.len() as u64))? {
                Ok(stream) => stream,
                Err(refused) => return Ok(Err(refused)),
            };
            stream.write_all(bytes)?;
            stream.flush()?;
            verdict(&mut stream)
        })
    }

    /// What the gate says is its last word; everything else may be a cut.
    fn repeated<T>(
        &self,
        mut attempt: impl FnMut() -> io::Result<Result<T, Refused>>,
    ) -> Result<T, BlobError> {
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            let source = match attempt() {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(Refused { kind, text })) => return Err(BlobError::Refused { kind, text }),
                Err(error) => error,
            };
            if tries == TRIES {
                return Err(BlobError::Broken { scheduler: self.scheduler.clone(), source });
            }
            tracing::debug!(error = %source, tries, "a transfer broke and begins anew");
            std::thread::sleep(pause);
            pause *= 2;
        }
        unreachable!("the loop ends by returning")
    }

    /// A connection whose transfer was granted.
    fn ask(&self, transfer: Transfer) -> io::Result<Result<Stream, Refused>> {
        let address = self
            .scheduler
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
        let stream = TcpStream::connect_timeout(&address, STALLED)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALLED))?;
        stream.set_write_timeout(Some(STALLED))?;
        let name = ServerName::try_from(SCHEDULER_NAME).expect("a plain name");
        let tls = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(tls, stream);
        stream.write_all(line::request(&transfer.words()).as_bytes())?;
        stream.flush()?;
        Ok(verdict(&mut stream)?.map(|()| stream))
    }
}

fn verdict(stream: &mut impl Read) -> io::Result<Result<(), Refused>> {
    let mut said = Vec::new();
    let mut byte = [0];
    while said.len() < line::MAX_LINE_BYTES {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        said.push(byte[0]);
    }
    let said = String::from_utf8_lossy(&said);
    line::read_answer(&said)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no gate of a LamaGrid scheduler"))
}
