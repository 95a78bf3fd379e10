//! Addresses a scheduler: by its sockets on this host, or by local sockets that lead to another host.

use std::path::Path;

use lamagrid_config::{ConfigError, own_socket_finder, running_scheduler, socket_finder};
use lamagrid_domain::Owner;
use lamagrid_gate::{BlobClient, Bundle, BundleError, DiallerError, PeerRole, SchedulerRoute, Trouble};
use lamagrid_transport::Endpoints;

use crate::error::ClientError;

/// The address of a scheduler, with the connection to another host if needed.
#[derive(Debug)]
pub struct Endpoint {
    route: SchedulerRoute,
    owner: Owner,
}

/// Why a scheduler of another host cannot be used from here.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The bundle is missing, invalid or not for a client.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The local sockets cannot be created.
    #[error(transparent)]
    Sockets(#[from] DiallerError),
    /// The sockets' directory cannot be created.
    #[error(transparent)]
    Directory(#[from] ConfigError),
}

impl Endpoint {
    /// Addresses the scheduler of this host behind `endpoints`.
    #[must_use]
    pub fn near(endpoints: &Endpoints) -> Self {
        Self { route: SchedulerRoute::near(endpoints.clone()), owner: Owner::local() }
    }

    /// Addresses the scheduler of a data directory on this host; its sockets are looked up at each connection.
    ///
    /// # Errors
    /// [`ConfigError`] if other users could have created sockets in the sockets' directory.
    pub fn of_data_dir(data_dir: &Path) -> Result<Self, ConfigError> {
        Ok(Self::near(&Endpoints::found_by(socket_finder(data_dir)?)))
    }

    /// Addresses the scheduler of another host by a bundle file, through local sockets. They are removed when this is dropped.
    ///
    /// # Errors
    /// [`EndpointError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn far(bundle: &Path) -> Result<Self, EndpointError> {
        let (_, owner) = Self::named(bundle)?;
        let bundle = Bundle::read(bundle, &[PeerRole::Client, PeerRole::Admin])?;
        let route = SchedulerRoute::far(Endpoints::found_by(own_socket_finder()?), &bundle)?;
        Ok(Self { route, owner })
    }

    /// Reads a bundle's scheduler address and the owner under which it submits, without connecting.
    ///
    /// # Errors
    /// [`EndpointError::Bundle`].
    pub fn named(bundle: &Path) -> Result<(String, Owner), EndpointError> {
        let bundle = Bundle::read(bundle, &[PeerRole::Client, PeerRole::Admin])?;
        let owner = bundle.certificate.name.parse().expect("a certificate's name is an owner's, too");
        Ok((bundle.scheduler, owner))
    }

    /// The owner of tasks submitted through this endpoint: the local owner, or the certificate's name.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The scheduler's address, for messages: the socket for clients, or `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address_of(self.endpoints().client())
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        self.route.endpoints()
    }

    pub(crate) fn blobs(&self) -> Option<BlobClient> {
        self.route.blobs()
    }

    /// The scheduler's address, for messages: `socket`, or `host:port`.
    pub(crate) fn address_of(&self, socket: String) -> String {
        if self.route.is_far() { self.route.address() } else { socket }
    }

    /// The remedy to suggest while no scheduler answers.
    pub(crate) fn hint(&self, data_dir: Option<&Path>) -> String {
        let Some(dir) = data_dir.filter(|_| !self.route.is_far()) else {
            return format!("is the scheduler running? {}", self.route.hint());
        };
        let shown = dir.display();
        match running_scheduler(dir) {
            Some(pid) => format!(
                "a scheduler runs on {shown} (pid {pid}), but it does not answer: see its log (lamagrid doctor \
                 --data-dir {shown} says more), and if it stays so, end it and start it again"
            ),
            None => format!(
                "is the scheduler running? If it is on another data directory than {shown}, name that by --data-dir; \
                 else start it with: lamagrid scheduler --data-dir {shown}"
            ),
        }
    }

    /// The current fault of the connection to another host's gate.
    pub(crate) fn trouble(&self) -> Trouble {
        self.route.trouble()
    }

    /// Resolves the name of another host's scheduler. Called before a request with a short time limit,
    /// because name servers have their own time limits.
    ///
    /// # Errors
    /// [`ClientError::NoScheduler`].
    pub async fn look_up(&self) -> Result<(), ClientError> {
        let began = std::time::Instant::now();
        self.route.look_up().await.map_err(|error| ClientError::NoScheduler {
            address: self.route.address(),
            reason: error.to_string(),
            waited: began.elapsed(),
            hint: self.hint(None),
        })
    }

    /// The error if the gate of the other host rejects this side.
    pub(crate) fn refusal(&self) -> Option<ClientError> {
        let failure = self.route.refused()?;
        Some(ClientError::NotAdmitted { address: self.route.address(), reason: failure.message })
    }
}
