//! The way to the scheduler: its sockets, or a gate's that lead to it.

use lamagrid_domain::Failure;
use lamagrid_protocol::message::Welcome;
use lamagrid_transport::Endpoints;

use crate::blob_client::BlobClient;
use crate::bundle::Bundle;
use crate::connect::resolve;
use crate::dial::{Dialler, DiallerError};
use crate::trouble::Trouble;

/// How a scheduler is reached. What it made goes with it.
#[derive(Debug)]
pub struct SchedulerRoute {
    endpoints: Endpoints,
    /// None on the scheduler's own host.
    dialler: Option<Dialler>,
}

impl SchedulerRoute {
    /// Makes the sockets that lead to a bundle's scheduler, at `endpoints`, whose directory is private.
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

    /// The sockets of a scheduler on this host.
    #[must_use]
    pub fn near(endpoints: Endpoints) -> Self {
        Self { endpoints, dialler: None }
    }

    /// Whether it leads to another host.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.dialler.is_some()
    }

    /// The scheduler's sockets, or those that lead to it.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// What to look at while the scheduler does not answer.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match &self.dialler {
            None => "it must use the same data directory",
            Some(_) => "it must run with gate.listen, and the bundle must name an address that leads there",
        }
    }

    /// Where the scheduler is.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.dialler {
            None => self.endpoints.dir().display().to_string(),
            Some(dialler) => dialler.scheduler().to_owned(),
        }
    }

    /// What moves blobs, where that is not the file system.
    #[must_use]
    pub fn blobs(&self) -> Option<BlobClient> {
        self.dialler.as_ref().map(Dialler::blobs)
    }

    /// Why the scheduler's gate refused this side for good.
    #[must_use]
    pub fn refused(&self) -> Option<Failure> {
        self.dialler.as_ref().and_then(Dialler::refused)
    }

    /// Looks the name of another host up, for callers whose own patience does not count that.
    ///
    /// # Errors
    /// Why it has no address.
    pub async fn look_up(&self) -> Result<(), String> {
        match &self.dialler {
            None => Ok(()),
            Some(dialler) => resolve(dialler.scheduler(), |_| ()).await.map(drop),
        }
    }

    /// What keeps this side from the scheduler of another host, as its gate knows it.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        self.dialler.as_ref().map(Dialler::trouble).unwrap_or_default()
    }

    /// Makes the lanes of a session reachable; each under the address at which this host finds it. They are closed
    /// when what is returned is dropped.
    ///
    /// # Errors
    /// [`DiallerError`].
    pub fn lanes(&self, welcome: &mut Welcome) -> Result<Lanes<'_>, DiallerError> {
        let mut open = Lanes { dialler: self.dialler.as_ref(), names: Vec::new() };
        let Some(dialler) = &self.dialler else { return Ok(open) };
        for lane in &mut welcome.lanes {
            // What is no lane's address cannot be connected, and that is told then.
            let Some(name) = Endpoints::lane_name(&lane.address).map(str::to_owned) else { continue };
            dialler.listen(&name)?;
            lane.address = self.endpoints.lane_of(&name);
            open.names.push(name);
        }
        Ok(open)
    }
}

/// The lanes of one session.
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
