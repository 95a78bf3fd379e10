//! Fetches blobs from a scheduler's host and uploads them to it, on separate connections; the `blobs` crate is the other side.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use lamagrid_domain::{FailureKind, LeaseToken, Role, TaskId};
use lamagrid_protocol::preamble::{self, Refused};
use lamagrid_protocol::transfer::{Blob, Direction, Transfer};

use crate::certificate::SCHEDULER_NAME;
use crate::connect::{ConnectError, connect};
use crate::dial_error::{ANSWER, DialError, HANDSHAKE, REPLY, broken, judge, with_own_clock, wrong_time};
use crate::proxy::{stalled, unacknowledged};
use crate::reloading_tls::ReloadingTls;
use crate::trouble::Trouble;

/// Idle timeout of a transfer; longer than the accepting side's.
const STALLED: Duration = Duration::from_secs(15);
/// How often a blocked transfer checks the time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes passed to TLS between two checks of the bytes that the kernel has accepted.
const WRITTEN_AT_ONCE: usize = 64 * 1024;
/// Idle time after which a transfer counts as stalled; a connection that closes after it is reported as stalled, not as closed.
const QUIET: Duration = Duration::from_secs(3);
/// Time limit for repeated tries while no scheduler answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Grants may arrive late after a scheduler restart; "not granted" is retried for this long.
const GRANTED_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long idle connections are kept for the next transfer, and how many.
const KEEP_IDLE: Duration = Duration::from_secs(10);
const MAX_IDLE_CONNECTIONS: usize = 4;

/// Why a blob could not be transferred.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobError {
    /// The scheduler refused the transfer.
    #[error("{text}")]
    Refused {
        /// The failure kind.
        kind: FailureKind,
        /// The scheduler's reason.
        text: String,
    },
    /// The connection broke repeatedly.
    #[error("cannot reach {scheduler} for a picture: {reason}")]
    Broken {
        /// The scheduler's address, `host:port`.
        scheduler: String,
        /// The error of the last try.
        reason: String,
    },
}

impl BlobError {
    /// The failure kind of a task that fails by this error.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Broken { .. } => FailureKind::Disconnected,
        }
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Why one try of a transfer was interrupted.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot connect to {scheduler}: {source}")]
    Socket { scheduler: String, source: io::Error },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("{}", .0.failure.message)]
    Dial(DialError),
    /// There is no memory for the blob.
    #[error(transparent)]
    Memory(io::Error),
    /// The transfer broke or stalled; the text says after how many bytes.
    #[error("{0}")]
    Cut(String),
    #[error("the scheduler has more of it than there is")]
    TooLong,
}

/// Fetches and uploads blobs on separate connections; blocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The scheduler's address, `host:port`.
    scheduler: String,
    tls_config: Arc<ReloadingTls>,
    trouble: Trouble,
    /// Idle connections for reuse, with the end of their last transfer.
    kept: Mutex<Vec<(Stream, Instant)>>,
}

impl BlobClient {
    pub(crate) fn new(scheduler: String, tls_config: Arc<ReloadingTls>, trouble: Trouble) -> Self {
        Self(Arc::new(Shared { scheduler, tls_config, trouble, kept: Mutex::default() }))
    }

    /// For a node: fetches an input of an attempt's task; it must have the announced length.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn get(&self, token: LeaseToken, role: Role, len: u64) -> Result<Vec<u8>, BlobError> {
        self.0.read_all(Blob::Input(token, role), len)
    }

    /// For a node: uploads the result of an attempt into the scheduler's spool.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn put(&self, token: LeaseToken, bytes: &[u8]) -> Result<(), BlobError> {
        self.0.write(Blob::Attempt(token), bytes)
    }

    /// For an owner: uploads an input of a task, after the scheduler granted it.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn bring(&self, task: TaskId, role: Role, bytes: &[u8]) -> Result<(), BlobError> {
        self.0.write(Blob::Upload(task, role), bytes)
    }

    /// For an owner: fetches the result of its task; it must have the announced length.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn fetch(&self, task: TaskId, len: u64) -> Result<Vec<u8>, BlobError> {
        self.0.read_all(Blob::Result(task), len)
    }

    /// Fetches the result into `out`, which must have its length. After an error the content of `out` is undefined.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn fetch_into(&self, task: TaskId, out: &mut [u8]) -> Result<(), BlobError> {
        let mut at = 0;
        self.0.read(Blob::Result(task), out.len() as u64, |stream, _| {
            if let Some(stream) = stream {
                while at < out.len() {
                    match stream.read(&mut out[at..])? {
                        0 => break,
                        n => at += n,
                    }
                }
            }
            Ok(at as u64)
        })
    }
}

/// The result of one try that was not interrupted: success or the scheduler's refusal.
type Reply<T> = Result<T, Refused>;

impl Shared {
    fn read_all(&self, blob: Blob, len: u64) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::new();
        self.read(blob, len, |stream, from| {
            // Bytes received before an interruption are kept.
            if let Some(stream) = stream {
                // The scheduler has just confirmed the length; a buffer that grows would copy the bytes repeatedly.
                let left = usize::try_from(len - from).unwrap_or(usize::MAX);
                bytes.try_reserve_exact(left).map_err(io::Error::other)?;
                stream.take(len - from).read_to_end(&mut bytes)?;
            }
            Ok(bytes.len() as u64)
        })?;
        Ok(bytes)
    }

    /// Reads a blob. `take` reads from the stream and returns the bytes so far; without a stream it only returns them.
    fn read(
        &self,
        blob: Blob,
        len: u64,
        mut take: impl FnMut(Option<&mut Moved<'_>>, u64) -> io::Result<u64>,
    ) -> Result<(), BlobError> {
        self.repeated(|_| {
            let from = take(None, 0).map_err(Interrupted::Memory)?;
            let mut stream = match self.ask(Transfer { blob, direction: Direction::From(from) })? {
                Ok(stream) => stream,
                Err(refused) => return Ok(Err(refused)),
            };
            let mut moved = self.moved(&mut stream, from);
            if number(&mut moved).map_err(|error| cut(&error, from, moved.at.elapsed()))? != len {
                let text = "the blob is not of the announced length".to_owned();
                return Ok(Err(Refused::new(FailureKind::Internal, text)));
            }
            let taken = take(Some(&mut moved), from);
            let quiet = moved.at.elapsed();
            let error = match taken {
                Ok(at) if at >= len => {
                    self.keep(stream);
                    return Ok(Ok(()));
                }
                Ok(_) => io::ErrorKind::UnexpectedEof.into(),
                Err(error) => error,
            };
            Err(cut(&error, take(None, 0).unwrap_or(from), quiet))
        })
    }

    fn write(&self, blob: Blob, bytes: &[u8]) -> Result<(), BlobError> {
        self.repeated(|again| {
            let direction = Direction::Write { len: bytes.len() as u64, again };
            let mut stream = match self.ask(Transfer { blob, direction })? {
                Ok(stream) => stream,
                Err(refused) => return Ok(Err(refused)),
            };
            let mut moved = self.moved(&mut stream, 0);
            let from = number(&mut moved).map_err(|error| cut(&error, 0, moved.at.elapsed()))?;
            moved.bytes = from;
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let rest = bytes.get(from..).ok_or(Interrupted::TooLong)?;
            let went = moved.write_all(rest).and_then(|()| verdict(&mut moved));
            let reply = went.map_err(|error| cut(&error, moved.arrived(), moved.at.elapsed()))?;
            if reply.is_ok() {
                self.keep(stream);
            }
            Ok(reply)
        })
    }

    /// Repeats a transfer after an interruption or a temporary refusal; any other refusal is final.
    fn repeated<T>(
        &self,
        mut attempt: impl FnMut(bool) -> Result<Reply<T>, Interrupted>,
    ) -> Result<T, BlobError> {
        let (began, mut pause, mut again) = (Instant::now(), FIRST_PAUSE, false);
        loop {
            let (error, patience) = match attempt(again) {
                Ok(Ok(done)) => {
                    self.trouble.ended(None);
                    return Ok(done);
                }
                Ok(Err(refused)) => {
                    let patience = match refused.kind {
                        FailureKind::Disconnected if refused.is_not_granted() => GRANTED_WITHIN,
                        FailureKind::Disconnected => PATIENCE,
                        _ => Duration::ZERO,
                    };
                    (BlobError::Refused { kind: refused.kind, text: with_own_clock(refused.text) }, patience)
                }
                Err(interrupted) => {
                    again = true;
                    let reason = interrupted.to_string();
                    (BlobError::Broken { scheduler: self.scheduler.clone(), reason }, PATIENCE)
                }
            };
            if began.elapsed() >= patience {
                return Err(error);
            }
            tracing::debug!(%error, "a transfer is tried again");
            self.trouble.ended(Some(error.to_string()));
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Opens a connection on which the transfer was granted.
    fn ask(&self, transfer: Transfer) -> Result<Reply<Stream>, Interrupted> {
        let request = preamble::request(&transfer.words());
        while let Some(stream) = self.kept() {
            // A kept connection may have been closed; then the next one is tried.
            if let Ok(reply) = asked(stream, &request) {
                return Ok(reply);
            }
        }
        asked(self.connect()?, &request)
    }

    fn connect(&self) -> Result<Stream, Interrupted> {
        let mut stream = connected(&self.scheduler)?;
        let name = ServerName::try_from(SCHEDULER_NAME).expect("a plain name");
        let mut tls = ClientConnection::new(self.tls_config.config(), name)?;
        while tls.is_handshaking() {
            let step = tls.complete_io(&mut stream);
            step.map_err(|error| {
                let what = format!("{HANDSHAKE} of {}", self.scheduler);
                Interrupted::Dial(judge(&error, &what))
            })?;
        }
        match wrong_time(tls.peer_certificates(), None) {
            Some(text) => Err(Interrupted::Dial(DialError::for_now(text))),
            None => Ok(StreamOwned::new(tls, stream)),
        }
    }

    fn moved<'a>(&'a self, stream: &'a mut Stream, bytes: u64) -> Moved<'a> {
        Moved { stream, trouble: &self.trouble, at: Instant::now(), bytes }
    }

    fn kept(&self) -> Option<Stream> {
        let mut kept = self.kept.lock();
        kept.retain(|(_, at)| at.elapsed() < KEEP_IDLE);
        kept.pop().map(|(stream, _)| stream)
    }

    fn keep(&self, stream: Stream) {
        let mut kept = self.kept.lock();
        if kept.len() < MAX_IDLE_CONNECTIONS {
            kept.push((stream, Instant::now()));
        }
    }
}

/// Connects by TCP on a separate thread, because the caller may run in a runtime that must not block.
fn connected(scheduler: &str) -> Result<TcpStream, Interrupted> {
    let connecting = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { Ok(connect(scheduler, |_| ()).await.map(tokio::net::TcpStream::into_std)) })
    };
    let connected: io::Result<_> = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("connect".into()).spawn_scoped(scope, connecting)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that connects panicked")))
    });
    let failed = |source| Interrupted::Socket { scheduler: scheduler.to_owned(), source };
    let tuned = |stream: TcpStream| {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(LOOK_EVERY))?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(stream)
    };
    connected.map_err(failed)??.and_then(tuned).map_err(failed)
}

fn asked(mut stream: Stream, request: &str) -> Result<Reply<Stream>, Interrupted> {
    let mut ask = || {
        stream.sock.set_read_timeout(Some(ANSWER))?;
        // A gate that refused the certificate does not read; its reason is already received.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.flush();
        let reply = verdict(&mut stream)?;
        stream.sock.set_read_timeout(Some(LOOK_EVERY))?;
        Ok(reply)
    };
    let reply: io::Result<_> = ask();
    let reply = reply.map_err(|error| Interrupted::Dial(judge(&error, REPLY)))?;
    Ok(reply.map(|()| stream))
}

/// A connection during a transfer; reports when no bytes move.
struct Moved<'a> {
    stream: &'a mut Stream,
    trouble: &'a Trouble,
    /// When bytes last moved.
    at: Instant,
    /// Bytes received, or passed to the kernel.
    bytes: u64,
}

impl Moved<'_> {
    /// Bytes that the other side has received.
    fn arrived(&self) -> u64 {
        self.bytes.saturating_sub(unacknowledged(self.stream.sock.as_raw_fd()))
    }

    /// Repeats `step` while it times out. TLS keeps unsent bytes, so nothing is lost or sent twice.
    fn patiently<T>(&mut self, mut step: impl FnMut(&mut Stream) -> io::Result<T>) -> io::Result<T> {
        loop {
            match step(self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.at.elapsed() < STALLED => {
                    if self.at.elapsed() >= QUIET {
                        self.trouble.ended(Some(stalled("the transfer", self.arrived())));
                    }
                }
                done => return done,
            }
        }
    }
}

impl Read for Moved<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.patiently(|stream| stream.read(out))?;
        if read > 0 {
            (self.at, self.bytes) = (Instant::now(), self.bytes + read as u64);
        }
        Ok(read)
    }
}

impl Write for Moved<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(WRITTEN_AT_ONCE)];
        let written = self.patiently(|stream| stream.write(part))?;
        self.flush()?;
        (self.at, self.bytes) = (Instant::now(), self.bytes + written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.patiently(Stream::flush)
    }
}

/// Describes the end of a transfer after `bytes` bytes and `quiet` idle time. After a stall the accepting
/// side closes the connection before this side's timeout, so that a late close is reported as a stall.
fn cut(error: &io::Error, bytes: u64, quiet: Duration) -> Interrupted {
    Interrupted::Cut(match error.kind() {
        io::ErrorKind::OutOfMemory => error.to_string(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => stalled("the transfer", bytes),
        _ if quiet >= QUIET => stalled("the transfer", bytes),
        _ => format!("{} ({bytes} bytes got through)", broken(error, "the transfer")),
    })
}

fn number(stream: &mut impl Read) -> io::Result<u64> {
    let mut number = [0; 8];
    stream.read_exact(&mut number)?;
    Ok(u64::from_be_bytes(number))
}

fn verdict(stream: &mut impl Read) -> io::Result<Reply<()>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < preamble::MAX_LINE_BYTES {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line);
    preamble::read_answer(&line)
        .map(|answer| answer.map(drop))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no gate of a LamaGrid scheduler"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_transfer_is_reported_with_its_bytes() {
        use io::ErrorKind::{ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        let at_once =
            [(WouldBlock, true), (TimedOut, true), (UnexpectedEof, false), (ConnectionReset, false)];
        for (kind, is_stall) in at_once {
            for (quiet, is_stall) in [(Duration::ZERO, is_stall), (QUIET, true)] {
                let text = cut(&kind.into(), 1_234, quiet).to_string();
                assert_eq!(
                    text.starts_with("the transfer began, then stalled after 1234 bytes: "),
                    is_stall,
                    "{text}"
                );
                assert_eq!(text.contains("the path's MTU smaller"), is_stall, "{text}");
            }
        }
    }
}
