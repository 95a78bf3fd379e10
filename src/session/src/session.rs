//! A node's conversation with its scheduler, for any backend in any language.
//!
//! The protocol runs on a thread of its own, so that liveness, cancels and progress go on while a backend
//! computes. Everything here blocks and may be called from any thread.
//!
//! Does not: know models or pixels.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use lamagrid_config::own_socket_finder;
use lamagrid_domain::{Failure, FailureKind, ModelName, NodeInfo};
use lamagrid_gate::{Bundle, SchedulerRoute};
use lamagrid_transport::Endpoints;

use crate::job::Job;
use crate::runner;
use crate::state::Shared;

/// How long [`Session::close`] waits for its thread, which says goodbye within half of it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// With whom to talk, and about what.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The scheduler's sockets, where it is on this host.
    pub endpoints: Endpoints,
    /// How a scheduler of another host is reached; `None` on the scheduler's own.
    pub bundle: Option<Arc<Bundle>>,
    /// What the node can do.
    pub info: NodeInfo,
    /// Tasks it can work on at once.
    pub slots: u16,
    /// Tasks beyond those that are prepared while the slots work; for callers of [`Job::enter_slot`].
    pub overlap: u16,
}

/// Why no session could be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the session's thread: {0}")]
pub struct SessionError(#[from] std::io::Error);

/// What [`Session::next_job`] found.
#[derive(Debug)]
pub enum NextJob {
    /// Work.
    Job(Job),
    /// Nothing within the time.
    Idle,
    /// There will be none any more: refused by the scheduler for this reason, or, without one, left as asked.
    Closed(Option<Failure>),
}

/// A node as its scheduler sees it. Dropping it says goodbye; running work is not waited for.
#[derive(Debug)]
pub struct Session {
    pub(crate) shared: Arc<Shared>,
    /// Taken by whoever closes first.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    /// Starts to introduce the node. Returns at once: a scheduler that is not there yet is waited for.
    ///
    /// # Errors
    /// [`SessionError`] if the host gives no thread or no runtime.
    pub fn start(options: SessionOptions) -> Result<Self, SessionError> {
        let SessionOptions { endpoints, bundle, info, slots, overlap } = options;
        let shared = Arc::new(Shared::new(info, slots, overlap));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("session".into()).spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| {
                runtime.block_on(async {
                    let route = match bundle.as_deref().map(far) {
                        None => SchedulerRoute::near(endpoints),
                        Some(Ok(route)) => route,
                        Some(Err(text)) => return Some(Failure::new(FailureKind::InvalidInput, text)),
                    };
                    theirs.set_blobs(route.blobs());
                    runner::run(&theirs, &route).await
                })
            });
            let failure = std::panic::catch_unwind(run).unwrap_or_else(|_| {
                Some(Failure::new(FailureKind::Internal, "the session's thread panicked; see the log"))
            });
            theirs.lose_connection();
            theirs.end(failure);
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// The next task, waiting at most `wait` for it.
    pub fn next_job(&self, wait: Duration) -> NextJob {
        let deadline = Instant::now() + wait;
        let mut state = self.shared.lock();
        loop {
            if let Some(attempt) = state.take_waiting() {
                return NextJob::Job(Job::new(Arc::clone(&self.shared), attempt));
            }
            if let Some(failure) = state.ended() {
                return NextJob::Closed(failure);
            }
            let waited = self.shared.for_backends.wait_until(&mut state, deadline);
            if waited.timed_out() && Instant::now() >= deadline {
                return match state.take_waiting() {
                    Some(attempt) => NextJob::Job(Job::new(Arc::clone(&self.shared), attempt)),
                    None => NextJob::Idle,
                };
            }
        }
    }

    /// Says which models are in memory now.
    pub fn set_loaded(&self, models: Vec<ModelName>) {
        self.shared.set_loaded(models);
    }

    /// Takes no more work, gives back what no slot has begun with, finishes and delivers the rest, says goodbye.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Says goodbye now; the scheduler gives running tasks to others. Waits two seconds at most.
    pub fn close(&self) {
        self.shared.close();
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut state = self.shared.lock();
        while state.ended().is_none() {
            if self.shared.for_backends.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
        drop(state);
        if let Some(thread) = self.thread.lock().take() {
            // Its panic, if any, was caught and told through `ended`.
            let _ = thread.join();
        }
    }
}

/// The route to a bundle's scheduler, through sockets of this process.
fn far(bundle: &Bundle) -> Result<SchedulerRoute, String> {
    let sockets = own_socket_finder().map_err(|error| error.to_string())?;
    SchedulerRoute::far(Endpoints::found_by(sockets), bundle).map_err(|error| error.to_string())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}
