//! Ends the session of a process whose GPU is lost: every later call of CUDA in it would fail or hang.

use std::io;
use std::sync::{Arc, OnceLock};

use lamagrid_hardware::{Gpu, Roots, Sampler};

use crate::session::Session;

/// The state that a node's process shares with the thread that samples its device.
#[derive(Debug, Clone, Default)]
pub struct DeviceWatch(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    /// Set once it has started.
    session: OnceLock<Arc<Session>>,
    /// The reason, once the GPU is lost.
    lost: OnceLock<String>,
}

impl DeviceWatch {
    /// Samples the device for the heartbeats. If the GPU is lost, the session gives its tasks back and closes, and `leave`
    /// runs on the sampler's thread.
    ///
    /// # Errors
    /// The host cannot start a thread.
    pub fn sample(
        &self,
        gpu: Option<Gpu>,
        memory_bytes: u64,
        leave: impl FnOnce() + Send + 'static,
    ) -> io::Result<Sampler> {
        let device = gpu.as_ref().map(|gpu| format!("{} {} {}", gpu.device, gpu.name, gpu.id));
        let device = device.unwrap_or_default();
        let watched = Arc::clone(&self.0);
        Sampler::start(gpu, memory_bytes, Roots::default(), move |reason| {
            tracing::error!(
                device,
                "the GPU of this node is lost: {reason}. Running tasks go to other nodes; leaving"
            );
            let _ = watched.lost.set(reason.to_owned());
            if let Some(session) = watched.session.get() {
                session.close();
            }
            leave();
        })
    }

    /// Closes this session when the GPU is lost, or now if it is already.
    pub fn guard(&self, session: &Arc<Session>) {
        let _ = self.0.session.set(Arc::clone(session));
        if self.lost().is_some() {
            session.close();
        }
    }

    /// Why the GPU is lost; `None` while it works.
    #[must_use]
    pub fn lost(&self) -> Option<&str> {
        self.0.lost.get().map(String::as_str)
    }
}
