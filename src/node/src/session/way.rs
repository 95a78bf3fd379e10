//! The way to the scheduler: its sockets, or a gate's that lead to it.

use lamagrid_domain::Failure;
use lamagrid_wire::Endpoints;
use lamagrid_wire::gate::{Blobs, Bundle, Dialler, DiallerError};
use lamagrid_wire::message::Welcome;

/// How the scheduler is reached.
pub(super) struct Way {
    endpoints: Endpoints,
    /// None on the scheduler's own host.
    dialler: Option<Dialler>,
}

impl Way {
    /// Makes the sockets that lead to another host, where a bundle says which.
    pub(super) fn open(endpoints: Endpoints, bundle: Option<&Bundle>) -> Result<Self, DiallerError> {
        let dialler =
            bundle.map(|bundle| Dialler::open(&bundle.credentials, &bundle.scheduler, endpoints.dir()));
        Ok(Self { endpoints, dialler: dialler.transpose()? })
    }

    pub(super) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// What to look at while the scheduler does not answer.
    pub(super) fn hint(&self) -> &'static str {
        match &self.dialler {
            None => "it must use the same data directory",
            Some(_) => "it must run with gate.listen, and the bundle must name an address that leads there",
        }
    }

    /// What moves blobs, where that is not the file system.
    pub(super) fn blobs(&self) -> Option<Blobs> {
        self.dialler.as_ref().map(Dialler::blobs)
    }

    /// Why the scheduler's gate refused this node for good.
    pub(super) fn refused(&self) -> Option<Failure> {
        self.dialler.as_ref().and_then(Dialler::refused)
    }

    /// Makes the lanes of a session reachable; each under the address at which this host finds it. They are closed
    /// when what is returned is dropped.
    pub(super) fn lanes(&self, welcome: &mut Welcome) -> Result<Lanes<'_>, DiallerError> {
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
pub(super) struct Lanes<'a> {
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
