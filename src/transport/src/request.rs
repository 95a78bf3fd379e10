//! Sends requests on the `control` and `admin` channels, from a REQ socket.
//!
//! Does not: retry. A failed request closes its socket; the next request opens a new one.

use std::time::Duration;

use zeromq::prelude::*;
use zeromq::{ReqSocket, ZmqError, ZmqMessage};

use lamagrid_protocol::frame::Frame;

use crate::endpoint::SocketError;

/// Sends requests to one address, one at a time.
pub struct Requester {
    address: String,
    socket: Option<ReqSocket>,
}

impl std::fmt::Debug for Requester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requester").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Requester {
    /// Creates a requester for `address`, without connecting.
    #[must_use]
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), socket: None }
    }

    /// Sends `frame` and waits at most `patience` for the answer.
    ///
    /// # Errors
    /// [`SocketError`]; the socket is closed then, and the next request reconnects.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket; the request may or may not have arrived.
    pub async fn request(&mut self, frame: Frame, patience: Duration) -> Result<Frame, SocketError> {
        // Moved out of `self` during the exchange, so that any early end also drops the socket.
        let kept = self.socket.take();
        let address = self.address.clone();
        let exchange = async {
            let mut socket = match kept {
                Some(socket) => socket,
                None => {
                    let mut socket = ReqSocket::new();
                    socket
                        .connect(&address)
                        .await
                        .map_err(|source| SocketError::Connect { address: address.clone(), source })?;
                    socket
                }
            };
            let broken =
                |error: ZmqError| SocketError::Broken { address: address.clone(), reason: error.to_string() };
            let message = ZmqMessage::try_from(frame.into_parts()).expect("a message of ours has frames");
            socket.send(message).await.map_err(broken)?;
            let answer = socket.recv().await.map_err(broken)?;
            Ok::<_, SocketError>((socket, Frame::from_parts(answer.into_vec())?))
        };
        let (socket, answer) = tokio::time::timeout(patience, exchange).await.map_err(|_| {
            SocketError::Silent { address: address.clone(), waited_ms: patience.as_millis() }
        })??;
        self.socket = Some(socket);
        Ok(answer)
    }
}
