//! Recreates the private sockets if their files are removed.
//!
//! A logout, a cleaner of temporary directories or a user may remove the files of sockets in use. Open
//! connections survive that, but new ones would find no listener.

use std::time::{Duration, Instant};

use lamagrid_transport::{Endpoints, SocketFile};

use super::listeners::{Sockets, endpoints};
use super::{EventLoop, SchedulerError};

/// Interval between checks of the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Shortest interval between two log lines about a failure.
const LOG_EVERY: Duration = Duration::from_secs(10);

impl EventLoop {
    /// Recreates the sockets if their files are gone. While that fails, the scheduler logs it and reports
    /// itself not ready.
    pub(super) fn keep_reachable(&mut self, sockets: &mut Sockets) {
        if self.looked_for_sockets.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked_for_sockets = Some(Instant::now());
        let before = self.socket_dir.path();
        let renewed = self.renew(sockets);
        match renewed {
            Ok(_) => self.metrics.sockets_found(),
            Err(_) => self.metrics.sockets_lost(),
        }
        match renewed {
            Ok(false) => {}
            Ok(true) => {
                self.unreachable = None;
                tracing::warn!(
                    removed = %before.display(), sockets = %self.socket_dir.path().display(),
                    "the sockets were removed; they are made anew, and open connections go on"
                );
            }
            Err(error) if self.unreachable.is_none_or(|at| at.elapsed() >= LOG_EVERY) => {
                self.unreachable = Some(Instant::now());
                tracing::error!(
                    sockets = %before.display(), %error,
                    "no client or node can connect: the sockets were removed, and cannot be made anew yet"
                );
            }
            Err(_) => {}
        }
    }

    fn renew(&self, sockets: &mut Sockets) -> Result<bool, SchedulerError> {
        let mut is_renewed = self.socket_dir.renew()?;
        let endpoints = endpoints(&self.socket_dir);
        for (file, address) in sockets.files(&endpoints) {
            if is_renewed || file.is_lost() {
                file.bind_anew(&address)?;
                is_renewed = true;
            }
        }
        Ok(is_renewed)
    }
}

impl Sockets {
    fn files(&mut self, endpoints: &Endpoints) -> [(&mut SocketFile, String); 5] {
        [
            (self.control.file(), endpoints.control()),
            (self.admin.file(), endpoints.admin()),
            (self.results.file(), endpoints.result()),
            (self.events.file(), endpoints.node_events()),
            (self.clients.file(), endpoints.client()),
        ]
    }
}
