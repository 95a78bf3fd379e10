//! A probe: whether the scheduler lets a bundle's holder in, and whether large packets get through there and back.

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
use crate::connect::connect;
use crate::dial::dial;
use crate::preamble::read_line;
use crate::proxy;
use crate::reloading_tls::ReloadingTls;

/// Sent each way: many packets of any size that a path may swallow.
const BYTES: usize = 64 * 1024;
/// For each way.
const LIMIT: Duration = Duration::from_secs(5);

/// What a probe found.
#[derive(Debug)]
pub struct Probed {
    /// What the clock of the scheduler's host shows, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// Whether 64 KiB got through each way; why not. `None` if the scheduler's version has no probe.
    pub path: Option<Result<(), String>>,
}

/// Which address of `scheduler` (`host:port`) takes connections.
///
/// # Errors
/// Which step failed, and how.
pub async fn answering(scheduler: &str) -> Result<SocketAddr, String> {
    let connected = connect(scheduler, |_| ()).await?;
    connected.peer_addr().map_err(|error| error.to_string())
}

/// Tries once whether the scheduler lets the holder of a bundle in, and whether large packets reach it and come back.
///
/// # Errors
/// Why it does not let it in, with what to do.
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
        Err(error) => Some(Err(error.failure.message.to_string())),
    };
    Ok(Probed { wall_ms, path })
}

/// The dialling end.
async fn ask(
    tls: &mut (impl AsyncRead + AsyncWrite + Unpin),
    unacknowledged: impl Fn() -> u64,
) -> Result<(), String> {
    let there = async {
        tls.write_all(&[0; BYTES]).await?;
        tls.flush().await?;
        read_line(tls).await
    };
    let sent = tokio::time::timeout(LIMIT, there).await;
    match sent {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(format!("the connection broke while {BYTES} bytes were sent: {error}")),
        Err(_) => {
            let arrived = (BYTES as u64).saturating_sub(unacknowledged());
            return Err(swallowed("to the scheduler", arrived));
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
        Ok(Err(error)) => Err(format!("the connection broke while {BYTES} bytes came back: {error}")),
        Err(_) => Err(swallowed("from the scheduler", came as u64)),
    }
}

fn swallowed(way: &str, bytes: u64) -> String {
    format!(
        "{BYTES} bytes {way} began, then stalled after {bytes} bytes, and small packets get through: is the path's MTU smaller \
         than this host's? Try `ip link set dev INTERFACE mtu 1280` on both hosts"
    )
}

/// The accepting end.
pub(crate) async fn serve(tls: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let echo = async {
        let mut chunk = vec![0; BYTES];
        tls.read_exact(&mut chunk).await?;
        tls.write_all(preamble::answer(Ok(wall_ms())).as_bytes()).await?;
        tls.write_all(&chunk).await?;
        tls.flush().await?;
        // Until the other side has read it.
        tls.read(&mut chunk[..1]).await.map(drop)
    };
    tokio::time::timeout(2 * LIMIT, echo).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
