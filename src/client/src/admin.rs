//! Sends one request on the `admin` channel, which is open to programs of this host and user and to holders
//! of admin certificates.
//!
//! Does not: keep a connection, or retry; the user repeats the command.

use std::path::Path;
use std::time::{Duration, Instant};

use lamagrid_protocol::message::{AdminReply, AdminRequest, Message};
use lamagrid_transport::SocketError;
use lamagrid_transport::request::Requester;

use crate::actor::is_absent;
use crate::endpoint::Endpoint;
use crate::error::ClientError;

/// Sends `request` to a scheduler and returns its reply; `data_dir` is the scheduler's, for the hint in an error.
///
/// # Errors
/// [`ClientError::Refused`], [`ClientError::Unknown`], [`ClientError::NoScheduler`]; [`ClientError::Failed`] if the two
/// sides speak different versions.
///
/// # Cancel safety
/// The request may or may not have been carried out.
pub async fn admin(
    endpoint: &Endpoint,
    data_dir: &Path,
    request: impl Into<AdminRequest>,
    patience: Duration,
) -> Result<AdminReply, ClientError> {
    let request = request.into();
    endpoint.look_up().await?;
    let frame =
        request.to_frame(Vec::new()).map_err(|error| lamagrid_transport::router::fault(&error).failure)?;
    let until = Instant::now() + patience;
    let absent = |reason: String| {
        endpoint.refusal().unwrap_or_else(|| ClientError::NoScheduler {
            address: endpoint.address_of(endpoint.endpoints().admin()),
            reason: endpoint.trouble().text().unwrap_or(reason),
            waited: patience,
            hint: endpoint.hint(Some(data_dir)),
        })
    };
    // A restarting scheduler is back before `patience` ends.
    while is_absent(&endpoint.endpoints().admin()) {
        if Instant::now() >= until {
            return Err(absent("no process listens there".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let mut requester = Requester::new(endpoint.endpoints().admin());
    let answer = requester.request(frame, left).await.map_err(|error| match error {
        SocketError::Frame(error) => ClientError::Failed(lamagrid_transport::router::fault(&error).failure),
        other => absent(other.to_string()),
    })?;
    match AdminReply::from_frame(&answer)
        .map_err(|error| lamagrid_transport::router::fault(&error).failure)?
    {
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
