//! How a scheduler is reached: by its sockets on this host, or by sockets of our own that lead to another's.

use std::path::Path;

use lamagrid_config::{ConfigError, own_socket_finder, running_scheduler, socket_finder};
use lamagrid_domain::Owner;
use lamagrid_gate::{BlobClient, Bundle, BundleError, DiallerError, PeerRole, SchedulerRoute, Trouble};
use lamagrid_transport::Endpoints;

use crate::error::ClientError;

/// A scheduler, and how to reach it.
#[derive(Debug)]
pub struct Endpoint {
    route: SchedulerRoute,
    owner: Owner,
}

/// Why a scheduler of another host cannot be reached from here.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// There is no bundle, or not one for a client.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its sockets cannot be made.
    #[error(transparent)]
    Sockets(#[from] DiallerError),
    /// Nor their directory.
    #[error(transparent)]
    Directory(#[from] ConfigError),
}

impl Endpoint {
    /// The scheduler of this host behind `endpoints`.
    #[must_use]
    pub fn near(endpoints: &Endpoints) -> Self {
        Self { route: SchedulerRoute::near(endpoints.clone()), owner: Owner::local() }
    }

    /// The scheduler of a data directory on this host, wherever its sockets are at the time.
    ///
    /// # Errors
    /// [`ConfigError`] if others may have made sockets in their directory.
    pub fn of_data_dir(data_dir: &Path) -> Result<Self, ConfigError> {
        Ok(Self::near(&Endpoints::found_by(socket_finder(data_dir)?)))
    }

    /// The scheduler of another host, by the bundle in a file. Until it is dropped.
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

    /// Where the scheduler of a bundle is, and who submits with that bundle. Makes nothing.
    ///
    /// # Errors
    /// [`EndpointError::Bundle`].
    pub fn named(bundle: &Path) -> Result<(String, Owner), EndpointError> {
        let bundle = Bundle::read(bundle, &[PeerRole::Client, PeerRole::Admin])?;
        let owner = bundle.certificate.name.parse().expect("a certificate's name is an owner's, too");
        Ok((bundle.scheduler, owner))
    }

    /// Who submits through it: everybody of this host and user, or the holder of the certificate.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where the scheduler is: the socket for clients, or `host:port`.
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

    /// The same for another of its sockets.
    pub(crate) fn address_of(&self, socket: String) -> String {
        if self.route.is_far() { self.route.address() } else { socket }
    }

    /// What to do while nobody answers.
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

    /// What keeps this side from a scheduler of another host, as the connection to its gate knows it.
    pub(crate) fn trouble(&self) -> Trouble {
        self.route.trouble()
    }

    /// Looks the name of a scheduler of another host up. A call with little patience does this first: the patience is for
    /// the scheduler, and name servers have their own.
    ///
    /// # Errors
    /// [`ClientError::NoScheduler`].
    pub async fn look_up(&self) -> Result<(), ClientError> {
        let began = std::time::Instant::now();
        self.route.look_up().await.map_err(|reason| ClientError::NoScheduler {
            address: self.route.address(),
            reason,
            waited: began.elapsed(),
            hint: self.hint(None),
        })
    }

    /// Why its gate does not let this side in.
    pub(crate) fn refusal(&self) -> Option<ClientError> {
        let failure = self.route.refused()?;
        Some(ClientError::NotAdmitted { address: self.route.address(), reason: failure.message })
    }
}
