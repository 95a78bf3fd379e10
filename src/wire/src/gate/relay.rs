//! Bytes from a peer to ZeroMQ and back, judged on the way in.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::zmtp::{Breach, Guard, Handshake, Held};

/// What is read at once, and held by each direction of each connection.
const CHUNK_BYTES: usize = 64 * 1024;
/// A peer that acknowledges nothing for so long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// A connection without traffic is probed after so long.
const PROBED_AFTER: Duration = Duration::from_secs(10);
/// Bytes that are in flight when a connection ends are lost, if nothing came back for this long.
const QUIET: Duration = Duration::from_secs(1);

/// Why a relay ended before both sides closed it.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// The peer said what no peer of ours says.
    #[error("{0}")]
    Breach(#[from] Breach),
    /// Bytes did not get through.
    #[error("{0}")]
    Stalled(String),
    /// A socket broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Says that a transfer of any kind began, and then did not go on.
pub(super) fn stalled(what: &str, bytes: u64) -> String {
    format!(
        "{what} began, then stalled after {bytes} bytes: is the network cut, or the path's MTU smaller than this host's?"
    )
}

/// Relays until one side closes. What the peer behind `tls` sends is judged before `local` gets it. `on_stall` is told when
/// bytes do not get through.
pub(super) async fn relay<T: AsyncRead + AsyncWrite + AsRawFd>(
    tls: T,
    local: UnixStream,
    handshake: Handshake,
    held: Held,
    on_stall: impl Fn(String),
) -> Result<(), RelayError> {
    let socket = tls.as_raw_fd();
    let (sent, heard) = (AtomicU64::new(0), Mutex::new(Instant::now()));
    let (mut tls_read, mut tls_write) = tokio::io::split(tls);
    let (mut local_read, mut local_write) = local.into_split();
    let inward = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut handshake, mut guard) = (Some(handshake), Guard::new(held));
        loop {
            let n = tls_read.read(&mut chunk).await?;
            if n == 0 {
                return Ok(());
            }
            *heard.lock() = Instant::now();
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
                tls_write.write_all(&chunk[..n]).await?;
                tls_write.flush().await
            };
            // Its kernel may acknowledge what the peer itself never reads.
            tokio::time::timeout(UNACKNOWLEDGED, written).await.map_err(io::Error::from)??;
            sent.fetch_add(n as u64, Ordering::Relaxed);
        }
    };
    let watched = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(QUIET).await;
            let Queued { unacknowledged, in_flight } = queued(socket);
            if in_flight > 0 && unacknowledged == before && heard.lock().elapsed() >= QUIET {
                let arrived = sent.load(Ordering::Relaxed).saturating_sub(unacknowledged);
                on_stall(stalled("the connection", arrived));
            }
            before = unacknowledged;
        }
    };
    // ZeroMQ closes both directions at once, so the end of one is the end.
    let ended = tokio::select! {
        ended = inward => ended,
        ended = outward => ended,
        never = watched => never,
    };
    // Once the kernel has given up a connection it knows nothing of its bytes any more.
    let given_up =
        matches!(&ended, Err(RelayError::Io(error)) if error.raw_os_error() == Some(libc::ETIMEDOUT));
    let Queued { unacknowledged, in_flight } = queued(socket);
    match ended {
        Err(RelayError::Breach(breach)) => Err(breach.into()),
        _ if given_up || in_flight > 0 && heard.lock().elapsed() >= QUIET => {
            let arrived = sent.load(Ordering::Relaxed).saturating_sub(unacknowledged);
            Err(RelayError::Stalled(stalled("the connection", arrived)))
        }
        ended => ended,
    }
}

/// What a socket's kernel still holds, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    /// Not acknowledged by the peer's kernel.
    pub(super) unacknowledged: u64,
    /// Of these, sent. A peer that reads nothing has acknowledged what it was sent.
    pub(super) in_flight: u64,
}

/// What the kernel holds of what was written to a socket.
pub(super) fn queued(socket: RawFd) -> Queued {
    /// `SIOCOUTQNSD` of Linux: what has not been sent yet.
    const UNSENT: libc::Ioctl = 0x894b;
    let count = |request: libc::Ioctl| {
        let mut bytes: libc::c_int = 0;
        #[expect(unsafe_code, reason = "an ioctl")]
        // SAFETY: each of both requests writes one integer; a descriptor that is no socket is an error.
        let answer = unsafe { libc::ioctl(socket, request, &raw mut bytes) };
        if answer == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
    };
    let unacknowledged = count(libc::TIOCOUTQ);
    Queued { unacknowledged, in_flight: unacknowledged.saturating_sub(count(UNSENT)) }
}

/// Small messages go at once, and a peer that vanished without a word is noticed.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
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
