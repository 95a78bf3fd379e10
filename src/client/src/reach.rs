//! How a scheduler is reached: by its sockets on this host, or by sockets of our own that lead to another's.

use std::path::Path;

use tempfile::TempDir;

use lamagrid_domain::Owner;
use lamagrid_wire::Endpoints;
use lamagrid_wire::gate::{Blobs, Bundle, BundleError, DiallerError, PeerRole, Way};

use crate::error::ClientError;

/// A scheduler, and how to reach it.
#[derive(Debug)]
pub struct Reach {
    way: Way,
    owner: Owner,
    /// Goes after the sockets in it.
    _dir: Option<TempDir>,
}

/// Why a scheduler of another host cannot be reached from here.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// There is no bundle, or not one for a client.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its sockets cannot be made.
    #[error(transparent)]
    Sockets(#[from] DiallerError),
    /// Nor their directory.
    #[error("cannot make a directory for sockets: {0}")]
    Directory(#[from] std::io::Error),
}

impl Reach {
    /// The scheduler of this host behind `endpoints`.
    #[must_use]
    pub fn near(endpoints: &Endpoints) -> Self {
        Self { way: Way::near(endpoints.clone()), owner: Owner::local(), _dir: None }
    }

    /// The scheduler of another host, by the bundle in a file; `within` is a private directory. Until it is dropped.
    ///
    /// # Errors
    /// [`ReachError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn far(bundle: &Path, within: &Path) -> Result<Self, ReachError> {
        let bundle = Bundle::read(bundle, &[PeerRole::Client, PeerRole::Admin])?;
        let owner = bundle.certificate.name.parse().expect("a certificate's name is an owner's, too");
        let dir = TempDir::new_in(within)?;
        let way = Way::far(Endpoints::new(dir.path()), &bundle)?;
        Ok(Self { way, owner, _dir: Some(dir) })
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
        self.way.endpoints()
    }

    pub(crate) fn blobs(&self) -> Option<Blobs> {
        self.way.blobs()
    }

    /// The same for another of its sockets.
    pub(crate) fn address_of(&self, socket: String) -> String {
        if self.way.is_far() { self.way.address() } else { socket }
    }

    /// What to do while nobody answers.
    pub(crate) fn hint(&self, data_dir: Option<&Path>) -> String {
        match data_dir {
            _ if self.way.is_far() => format!("is the scheduler running? {}", self.way.hint()),
            Some(dir) => {
                let dir = dir.display();
                format!("is the scheduler running? start it with: lamagrid scheduler --data-dir {dir}")
            }
            None => "is the scheduler running? start it with: lamagrid scheduler".to_owned(),
        }
    }

    /// Why its gate does not let this side in.
    pub(crate) fn refusal(&self) -> Option<ClientError> {
        let failure = self.way.refused()?;
        Some(ClientError::NotAdmitted { address: self.way.address(), reason: failure.message })
    }
}
