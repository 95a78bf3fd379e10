//! One question on the `admin` channel, which programs of this host and user reach, and certificates of the role admin.
//!
//! Does not: keep a connection, or ask again; a person asks again.

use std::path::Path;
use std::time::{Duration, Instant};

use lamagrid_wire::SocketError;
use lamagrid_wire::message::{AdminReply, AdminRequest, Message};
use lamagrid_wire::request::Requester;

use crate::actor::is_absent;
use crate::error::ClientError;
use crate::reach::Reach;

/// Asks a scheduler; `data_dir` is that of one of this host.
///
/// # Errors
/// [`ClientError::Refused`], [`ClientError::Unknown`], [`ClientError::NoScheduler`]; [`ClientError::Failed`] if the two
/// sides speak different versions.
///
/// # Cancel safety
/// The request may or may not have been carried out.
pub async fn admin(
    reach: &Reach,
    data_dir: &Path,
    request: impl Into<AdminRequest>,
    patience: Duration,
) -> Result<AdminReply, ClientError> {
    let request = request.into();
    reach.look_up().await?;
    let frame = request.to_frame(Vec::new()).map_err(|error| lamagrid_wire::router::fault(&error).failure)?;
    let until = Instant::now() + patience;
    let absent = |reason: String| {
        reach.refusal().unwrap_or_else(|| ClientError::NoScheduler {
            address: reach.address_of(reach.endpoints().admin()),
            reason: reach.trouble().text().unwrap_or(reason),
            waited: patience,
            hint: reach.hint(Some(data_dir)),
        })
    };
    // A scheduler that restarts is back before a person's patience ends.
    while is_absent(&reach.endpoints().admin()) {
        if Instant::now() >= until {
            return Err(absent("nobody listens there".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let mut requester = Requester::new(reach.endpoints().admin());
    let answer = requester.request(frame, left).await.map_err(|error| match error {
        SocketError::Frame(error) => ClientError::Failed(lamagrid_wire::router::fault(&error).failure),
        other => absent(other.to_string()),
    })?;
    match AdminReply::from_frame(&answer).map_err(|error| lamagrid_wire::router::fault(&error).failure)? {
        AdminReply::ProtocolFault(fault) => Err(fault.failure.into()),
        AdminReply::Refused(refused) => Err(ClientError::Refused {
            failure: refused.failure.bounded(),
            queue_len: refused.queue_len,
            wait: refused.wait_ms.map(Duration::from_millis),
        }),
        AdminReply::Unknown(unknown) => {
            Err(ClientError::Unknown { id: unknown.id, expired: unknown.expired })
        }
        reply => Ok(reply),
    }
}
