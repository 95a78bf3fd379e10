//! The scheduler as its client asks it.

use std::time::Duration;

use lamagrid_client::{Client, ClientError};
use lamagrid_domain::{Owner, TaskId};
use lamagrid_protocol::message::TaskInfo;

use crate::reader::StateSource;

/// A client and the owner on whose behalf it asks.
#[derive(Debug, Clone)]
pub struct ClientSource {
    client: Client,
    owner: Owner,
}

impl ClientSource {
    /// A source for the tasks of `owner`, who is that of the client's options.
    #[must_use]
    pub fn new(client: Client, owner: Owner) -> Self {
        Self { client, owner }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl StateSource for ClientSource {
    type Error = ClientError;

    async fn ask(
        &self,
        owner: &Owner,
        id: TaskId,
        patience: Duration,
    ) -> Result<Option<TaskInfo>, ClientError> {
        if *owner != self.owner {
            return Ok(None);
        }
        match self.client.query(id, patience).await {
            Ok(task) => Ok(Some(task)),
            Err(ClientError::Unknown { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
