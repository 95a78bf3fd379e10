//! Relays bytes between a peer and ZeroMQ, checking those from the peer.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::zmtp_guard::{Breach, Guard, Handshake, UnfinishedBytes};

/// Size of the read buffer of each direction of a connection.
const CHUNK_BYTES: usize = 64 * 1024;
/// A peer that acknowledges no bytes for this long is considered gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// Idle time after which TCP probes a connection.
const PROBED_AFTER: Duration = Duration::from_secs(10);
/// Interval of the check for stalls. A connection has stalled if unacknowledged bytes made no progress and
/// nothing was received during one interval.
const QUIET: Duration = Duration::from_secs(1);

/// Why a relay ended before either side closed it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// The peer violated ZMTP or a limit.
    #[error("{0}")]
    Breach(#[from] Breach),
    /// Sent bytes did not arrive.
    #[error("{0}")]
    Stalled(String),
    /// A socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The text for `what`, a connection or transfer that started and then stalled.
pub(crate) fn stalled(what: &str, bytes: u64) -> String {
    format!(
        "{what} began, then stalled after {bytes} bytes: is the network cut, the other side frozen, or the path's MTU smaller \
         than this host's?"
    )
}

/// Relays until one side closes. Bytes from the peer behind `tls` are checked before they are written to
/// `local`. Calls `on_stall` while sent bytes do not arrive.
pub(crate) async fn relay<T: AsyncRead + AsyncWrite + AsRawFd>(
    tls: T,
    local: UnixStream,
    handshake: Handshake,
    unfinished_bytes: UnfinishedBytes,
    on_stall: impl Fn(String),
) -> Result<(), ProxyError> {
    let socket = tls.as_raw_fd();
    let (sent, last_received) = (AtomicU64::new(0), Mutex::new(Instant::now()));
    let (mut tls_read, mut tls_write) = tokio::io::split(tls);
    let (mut local_read, mut local_write) = local.into_split();
    let inward = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut handshake, mut guard) = (Some(handshake), Guard::new(unfinished_bytes));
        loop {
            let n = tls_read.read(&mut chunk).await?;
            if n == 0 {
                return Ok(());
            }
            *last_received.lock() = Instant::now();
            let Some(beginning) = &mut handshake else {
                guard.pass(&chunk[..n])?;
                local_write.write_all(&chunk[..n]).await?;
                continue;
            };
            let (passed, rest) = beginning.push(&chunk[..n])?;
            local_write.write_all(&passed).await?;
            if let Some(rest) = rest {
                guard.pass(&rest)?;
                local_write.write_all(&rest).await?;
                handshake = None;
            }
        }
    };
    let outward = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = local_read.read(&mut chunk).await?;
            if n == 0 {
                return Ok(());
            }
            let written = async {
                let mut rest = &chunk[..n];
                while !rest.is_empty() {
                    let taken = tls_write.write(rest).await?;
                    sent.fetch_add(taken as u64, Ordering::Relaxed);
                    rest = &rest[taken..];
                }
                tls_write.flush().await
            };
            // The peer's kernel may acknowledge bytes that the peer never reads.
            tokio::time::timeout(UNACKNOWLEDGED, written).await.map_err(io::Error::from)??;
        }
    };
    // Progress is measured by acknowledged bytes. TLS adds some to each record, so the counts are approximate.
    let is_stalled = AtomicBool::new(false);
    let watched = async {
        let mut before = i64::MIN;
        loop {
            tokio::time::sleep(QUIET).await;
            let (sent, waiting) = (sent.load(Ordering::Relaxed), unacknowledged(socket));
            let arrived = sent.cast_signed() - waiting.cast_signed();
            let stalls = waiting > 0 && arrived <= before && last_received.lock().elapsed() >= QUIET;
            is_stalled.store(stalls, Ordering::Relaxed);
            if stalls {
                on_stall(stalled("the connection", u64::try_from(arrived).unwrap_or(0)));
            }
            before = arrived;
        }
    };
    // ZeroMQ closes both directions at once, so the end of one direction ends the relay.
    let ended = tokio::select! {
        ended = inward => ended,
        ended = outward => ended,
        never = watched => never,
    };
    // After the kernel gave a connection up, it no longer reports unacknowledged bytes.
    let given_up =
        matches!(&ended, Err(ProxyError::Io(error)) if error.raw_os_error() == Some(libc::ETIMEDOUT));
    match ended {
        Err(ProxyError::Breach(breach)) => Err(breach.into()),
        _ if given_up || is_stalled.into_inner() => {
            let arrived = sent.into_inner().saturating_sub(unacknowledged(socket));
            Err(ProxyError::Stalled(stalled("the connection", arrived)))
        }
        ended => ended,
    }
}

/// Number of bytes written to a socket that the peer's kernel has not acknowledged.
pub(crate) fn unacknowledged(socket: RawFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    #[expect(unsafe_code, reason = "an ioctl")]
    // SAFETY: `TIOCOUTQ` writes one integer; a descriptor that is no socket is an error.
    let answer = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    if answer == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Sends small messages immediately, and detects a peer that disappeared silently.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBED_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    let millis = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}
