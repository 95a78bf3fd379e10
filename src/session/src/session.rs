//! Connects a node's backend, in any language, to its scheduler.
//!
//! The protocol runs on a thread of its own, so that liveness, cancels and progress continue while a backend
//! computes. All functions block and may be called from any thread.
//!
//! Does not: know models or pixels.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use lamagrid_config::own_socket_finder;
use lamagrid_domain::{Failure, FailureKind, ModelName, NodeInfo};
use lamagrid_gate::{Bundle, SchedulerRoute};
use lamagrid_hardware::Sampler;
use lamagrid_transport::Endpoints;

use crate::job::Job;
use crate::runner;
use crate::settings::Adjust;
use crate::state::shared::Shared;
use crate::state::{DrainedBy, Offers};

/// How long [`Session::close`] waits for its thread, which says goodbye within half of it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// The scheduler to connect to, and the node's description.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The scheduler's sockets, if it is on this host.
    pub endpoints: Endpoints,
    /// The bundle for a scheduler on another host; `None` on the scheduler's own host.
    pub bundle: Option<Arc<Bundle>>,
    /// The node's description.
    pub info: NodeInfo,
    /// Number of tasks that the node can run at once.
    pub slots: u16,
    /// Number of further tasks that are prepared while the slots are busy; for callers of [`Job::enter_slot`].
    pub overlap: u16,
    /// The source of the live figures; `None` sends none.
    pub sampler: Option<Arc<Sampler>>,
    /// Adjusts the process when the scheduler changes settings; `None` if they cannot change.
    pub adjust: Option<Arc<dyn Adjust>>,
}

/// The session could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the session's thread: {0}")]
pub struct SessionError(#[from] std::io::Error);

/// The result of [`Session::next_job`].
#[derive(Debug)]
pub enum NextJob {
    /// A task.
    Job(Job),
    /// No task arrived in time.
    Idle,
    /// There will be no more tasks: `Some` is the scheduler's refusal, `None` means that the node left.
    Closed(Option<Failure>),
}

/// A node's session with its scheduler. Dropping it says goodbye without waiting for running work.
#[derive(Debug)]
pub struct Session {
    pub(crate) shared: Arc<Shared>,
    /// Taken by the first call of `close`.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    /// Starts registering the node. Returns at once, and keeps trying until the scheduler is available.
    ///
    /// # Errors
    /// [`SessionError`] if the host cannot start a thread or a runtime.
    pub fn start(options: SessionOptions) -> Result<Self, SessionError> {
        let SessionOptions { endpoints, bundle, info, slots, overlap, sampler, adjust } = options;
        let shared = Arc::new(Shared::new(info, slots, overlap, adjust));
        // On the caller's thread: it reads the environment, which a Python program changes on no other.
        let sockets = bundle.is_some().then(own_socket_finder);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("session".into()).spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| {
                runtime.block_on(async {
                    let refused = |text: String| Some(Failure::new(FailureKind::InvalidInput, text));
                    let route = match (bundle.as_deref(), sockets) {
                        (Some(bundle), Some(Ok(sockets))) => {
                            match SchedulerRoute::far(Endpoints::found_by(sockets), bundle) {
                                Ok(route) => route,
                                Err(error) => return refused(error.to_string()),
                            }
                        }
                        (_, Some(Err(error))) => return refused(error.to_string()),
                        (_, None) | (None, _) => SchedulerRoute::near(endpoints),
                    };
                    theirs.set_blobs(route.blobs());
                    runner::run(&theirs, &route, sampler.as_deref()).await
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

    /// Waits at most `wait` for the next task.
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

    /// Announces the models that are in memory now.
    pub fn set_loaded(&self, models: Vec<ModelName>) {
        self.shared.set_loaded(models);
    }

    /// Replaces the offered models. If other models are offered or withheld than before, the node registers again; its work goes on.
    pub fn set_offers(&self, offers: Offers) {
        self.shared.set_offers(offers);
    }

    /// Takes no more tasks, returns those that have not entered a slot, finishes and delivers the others, then leaves.
    pub fn drain(&self) {
        self.shared.drain(DrainedBy::Owner);
    }

    /// Returns the number of CPU threads for the inferences from now on, once after each change; 0 leaves it to the
    /// backend. The thread that runs the model asks between tasks.
    #[must_use]
    pub fn take_threads(&self) -> Option<u32> {
        self.shared.lock().take_threads()
    }

    /// Leaves now; the scheduler gives running tasks to other nodes. Waits at most two seconds.
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
            // A panic of the thread was caught and reported through `ended`.
            let _ = thread.join();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}
