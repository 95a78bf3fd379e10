//! Binds the private sockets that clients, nodes and administrators connect to.

use std::sync::Arc;

use lamagrid_config::SocketDir;
use lamagrid_transport::router::{Peers, Router};
use lamagrid_transport::{ConnectionLimits, Endpoints, EventSubscriber};

use super::{DataDir, SchedulerError};

/// All sockets of a scheduler, bound.
#[derive(Debug)]
pub struct Listeners {
    pub(super) sockets: Sockets,
    pub(super) socket_dir: Arc<SocketDir>,
    pub(super) limits: ConnectionLimits,
}

/// The sockets, without their directory.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) clients: Router,
    pub(super) admin: Router,
    pub(super) control: Router,
    pub(super) results: Router,
    pub(super) events: EventSubscriber,
}

impl Listeners {
    /// Creates the directory of the sockets and binds them. Must follow [`DataDir::open`]: opening may take
    /// long, and another scheduler's start may remove a directory on whose sockets no process listens.
    ///
    /// # Errors
    /// [`SchedulerError`] if the directory or a socket cannot be created.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(data_dir: &DataDir) -> Result<Self, SchedulerError> {
        let socket_dir = Arc::new(SocketDir::of_scheduler(data_dir.path())?);
        let endpoints = endpoints(&socket_dir);
        let limits = ConnectionLimits::default();
        let control = Router::bind(&endpoints.control(), Peers::Req, &limits)?;
        let admin = Router::bind(&endpoints.admin(), Peers::Req, &limits)?;
        let results = Router::bind(&endpoints.result(), Peers::Dealer, &limits)?;
        let events = EventSubscriber::bind(&endpoints.node_events(), &limits)?;
        // Bound last, so that a client that can connect finds all other sockets in place.
        let clients = Router::bind(&endpoints.client(), Peers::Dealer, &limits)?;
        Ok(Self { sockets: Sockets { clients, admin, control, results, events }, socket_dir, limits })
    }

    /// The addresses of the sockets, also after their directory has moved.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        endpoints(&self.socket_dir)
    }
}

/// Addresses of the sockets in a directory that may move. Holds the directory weakly: it is removed with its
/// owner, even while connections are still closing.
pub(super) fn endpoints(dir: &Arc<SocketDir>) -> Endpoints {
    let dir = Arc::downgrade(dir);
    Endpoints::found_by(move || dir.upgrade().map(|dir| dir.path()).unwrap_or_default())
}
