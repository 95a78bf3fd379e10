//! Tests whether the scheduler admits a bundle's holder, and whether large packets pass in both directions.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::preamble::{self, PROBE};

use crate::bundle::Bundle;
use crate::certificate::PeerRole;
use crate::connect::{ConnectError, connect};
use crate::dial::dial;
use crate::preamble::read_line;
use crate::proxy;
use crate::reloading_tls::ReloadingTls;

/// Bytes sent in each direction: enough to fill many packets of the largest size.
const BYTES: usize = 64 * 1024;
/// Time limit for each direction.
const LIMIT: Duration = Duration::from_secs(5);

/// The result of a probe.
#[derive(Debug)]
pub struct Probed {
    /// The time of the scheduler's host, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// Whether 64 KiB passed in both directions, or the error. `None` if the scheduler's version does not support probes.
    pub path: Option<Result<(), PathError>>,
}

/// Why 64 KiB did not pass in both directions.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The connection for the test was not made.
    #[error("{}", .0.message)]
    Dial(Failure),
    /// The connection broke while the bytes were sent.
    #[error("the connection broke while {BYTES} bytes were sent: {0}")]
    BrokenThere(io::Error),
    /// The connection broke while the bytes came back.
    #[error("the connection broke while {BYTES} bytes came back: {0}")]
    BrokenBack(io::Error),
    /// No more bytes arrived, as if large packets were dropped.
    #[error(
        "{BYTES} bytes {way} began, then stalled after {bytes} bytes, and small packets get through: is the path's MTU smaller \
         than this host's? Try `ip link set dev INTERFACE mtu 1280` on both hosts"
    )]
    Stalled {
        /// "to the scheduler" or "from the scheduler".
        way: &'static str,
        /// Bytes that arrived.
        bytes: u64,
    },
}

/// Finds an address of `scheduler` (`host:port`) that accepts connections.
///
/// # Errors
/// [`ConnectError`].
pub async fn answering(scheduler: &str) -> Result<SocketAddr, ConnectError> {
    let connected = connect(scheduler, |_| ()).await?;
    connected.peer_addr().map_err(|error| ConnectError::Broken(error.to_string()))
}

/// Tests once whether the scheduler admits the bundle's holder, and whether large packets pass in both directions.
///
/// # Errors
/// The reason why it does not, with the remedy.
pub async fn probe(bundle: &Bundle) -> Result<Probed, Failure> {
    let invalid = |error: &dyn std::fmt::Display| Failure::new(FailureKind::InvalidInput, error.to_string());
    let tls_config = ReloadingTls::of(&bundle.credentials).map_err(|error| invalid(&error))?;
    let channel = if bundle.certificate.role == PeerRole::Node { "control" } else { "client" };
    let (_, wall_ms) =
        dial(&bundle.scheduler, &tls_config, channel, |_| ()).await.map_err(|error| error.failure)?;
    let path = match dial(&bundle.scheduler, &tls_config, PROBE, |_| ()).await {
        Ok((mut tls, _)) => {
            let socket = tls.as_raw_fd();
            Some(ask(&mut tls, || proxy::unacknowledged(socket)).await)
        }
        Err(error) if error.failure.kind == FailureKind::InvalidInput => None,
        Err(error) => Some(Err(PathError::Dial(error.failure))),
    };
    Ok(Probed { wall_ms, path })
}

/// Runs the dialling side of a probe.
async fn ask(
    tls: &mut (impl AsyncRead + AsyncWrite + Unpin),
    unacknowledged: impl Fn() -> u64,
) -> Result<(), PathError> {
    let there = async {
        tls.write_all(&[0; BYTES]).await?;
        tls.flush().await?;
        read_line(tls).await
    };
    let sent = tokio::time::timeout(LIMIT, there).await;
    match sent {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(PathError::BrokenThere(error)),
        Err(_) => {
            let bytes = (BYTES as u64).saturating_sub(unacknowledged());
            return Err(PathError::Stalled { way: "to the scheduler", bytes });
        }
    }
    let mut came = 0;
    let back = async {
        let mut chunk = vec![0; BYTES];
        while came < BYTES {
            match tls.read(&mut chunk).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                n => came += n,
            }
        }
        Ok(())
    };
    match tokio::time::timeout(LIMIT, back).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(PathError::BrokenBack(error)),
        Err(_) => Err(PathError::Stalled { way: "from the scheduler", bytes: came as u64 }),
    }
}

/// Runs the accepting side of a probe.
pub(crate) async fn serve(tls: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let echo = async {
        let mut chunk = vec![0; BYTES];
        tls.read_exact(&mut chunk).await?;
        tls.write_all(preamble::answer(Ok(wall_ms())).as_bytes()).await?;
        tls.write_all(&chunk).await?;
        tls.flush().await?;
        // Waits until the other side has read the answer and closes.
        tls.read(&mut chunk[..1]).await.map(drop)
    };
    tokio::time::timeout(2 * LIMIT, echo).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
