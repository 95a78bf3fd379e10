//! Bytes from a peer to ZeroMQ and back, judged on the way in.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::zmtp::{Breach, Guard, Handshake, Held};

/// What is read at once, and held by each direction of each connection.
const CHUNK_BYTES: usize = 64 * 1024;
/// A peer that acknowledges nothing for so long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// A connection without traffic is probed after so long.
const PROBED_AFTER: Duration = Duration::from_secs(10);

/// Why a relay ended before both sides closed it.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// The peer said what no peer of ours says.
    #[error("{0}")]
    Breach(#[from] Breach),
    /// A socket broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Relays until one side closes. What the peer behind `tls` sends is judged before `local` gets it.
pub(super) async fn relay<T: AsyncRead + AsyncWrite>(
    tls: T,
    local: UnixStream,
    handshake: Handshake,
    held: Held,
) -> Result<(), RelayError> {
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
            let sent = async {
                tls_write.write_all(&chunk[..n]).await?;
                tls_write.flush().await
            };
            // Its kernel may acknowledge what the peer itself never reads.
            tokio::time::timeout(UNACKNOWLEDGED, sent).await.map_err(io::Error::from)??;
        }
    };
    // ZeroMQ closes both directions at once, so the end of one is the end.
    tokio::select! {
        ended = inward => ended,
        ended = outward => ended,
    }
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
