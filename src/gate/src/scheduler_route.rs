//! Leads to the scheduler: by its own sockets, or by a dialling gate's sockets.

use lamagrid_domain::Failure;
use lamagrid_protocol::message::Welcome;
use lamagrid_transport::Endpoints;

use crate::blob_client::BlobClient;
use crate::bundle::Bundle;
use crate::connect::{ConnectError, resolve};
use crate::dial::{Dialler, DiallerError};
use crate::trouble::Trouble;

/// The route to a scheduler. Sockets that it created are removed on drop.
#[derive(Debug)]
pub struct SchedulerRoute {
    endpoints: Endpoints,
    /// The dialling gate; `None` on the scheduler's own host.
    dialler: Option<Dialler>,
}

impl SchedulerRoute {
    /// Creates sockets at `endpoints` that lead to a bundle's scheduler; their directory must be private.
    ///
    /// # Errors
    /// [`DiallerError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn far(endpoints: Endpoints, bundle: &Bundle) -> Result<Self, DiallerError> {
        let dialler = Dialler::join(bundle, endpoints.clone())?;
        Ok(Self { endpoints, dialler: Some(dialler) })
    }

    /// Uses the sockets of a scheduler on this host.
    #[must_use]
    pub fn near(endpoints: Endpoints) -> Self {
        Self { endpoints, dialler: None }
    }

    /// True if the scheduler is on another host.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.dialler.is_some()
    }

    /// The sockets to use: the scheduler's own, or those that lead to it.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The condition to check while the scheduler does not answer.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match &self.dialler {
            None => "it must use the same data directory",
            Some(_) => "it must run with gate.listen, and the bundle must name an address that leads there",
        }
    }

    /// The scheduler's address, for messages: the sockets' directory, or `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.dialler {
            None => self.endpoints.dir().display().to_string(),
            Some(dialler) => dialler.scheduler().to_owned(),
        }
    }

    /// The client for blobs; `None` if the spool is on this host.
    #[must_use]
    pub fn blobs(&self) -> Option<BlobClient> {
        self.dialler.as_ref().map(Dialler::blobs)
    }

    /// The permanent refusal of the scheduler's gate, if there was one.
    #[must_use]
    pub fn refused(&self) -> Option<Failure> {
        self.dialler.as_ref().and_then(Dialler::refused)
    }

    /// Resolves the name of another host; for callers whose own time limit should not include that.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn look_up(&self) -> Result<(), ConnectError> {
        match &self.dialler {
            None => Ok(()),
            Some(dialler) => resolve(dialler.scheduler(), |_| ()).await.map(drop),
        }
    }

    /// The current fault of the connection to another host's scheduler; empty on the scheduler's own host.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        self.dialler.as_ref().map(Dialler::trouble).unwrap_or_default()
    }

    /// Creates local sockets for a session's lanes, and replaces the addresses in `welcome` by theirs. The
    /// sockets are closed when the returned value is dropped.
    ///
    /// # Errors
    /// [`DiallerError`].
    pub fn lanes(&self, welcome: &mut Welcome) -> Result<Lanes<'_>, DiallerError> {
        let mut open = Lanes { dialler: self.dialler.as_ref(), names: Vec::new() };
        let Some(dialler) = &self.dialler else { return Ok(open) };
        for lane in &mut welcome.lanes {
            // An invalid lane address is left as it is; connecting to it reports the error.
            let Some(name) = Endpoints::lane_name(&lane.address).map(str::to_owned) else { continue };
            dialler.listen(&name)?;
            lane.address = self.endpoints.lane_of(&name);
            open.names.push(name);
        }
        Ok(open)
    }
}

/// The local sockets of one session's lanes.
#[derive(Debug)]
pub struct Lanes<'a> {
    dialler: Option<&'a Dialler>,
    names: Vec<String>,
}

impl Drop for Lanes<'_> {
    fn drop(&mut self) {
        if let Some(dialler) = self.dialler {
            self.names.iter().for_each(|name| dialler.close(name));
        }
    }
}
