//! Runs a worker process: connects its backends to a session, and handles stop signals.
//!
//! Does not: restart itself or look for libtorch; its supervisor does.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use lamagrid_domain::{Failure, NodeInfo, NodeKind};
use lamagrid_hardware::{Capabilities, Gpu};
use lamagrid_process::{Parent, SAME_REQUEST, StopRequest, StopSignals, end_at_once, end_by_signal};
use lamagrid_session::{
    Adjust, Adjustment, ChangeRefused, DeviceWatch, Offers, Pipeline, Session, SessionOptions,
};

use crate::backend::{self, Backend, FileState, OfferTable, SilentProgress};
use crate::cancel_watchdog::{self, StartupTime};
use crate::settings::Settings;
use crate::supervisor::EXIT_DEVICE;

/// Time that tasks may take to finish after SIGTERM before they are given back. Service managers kill after ten seconds, and
/// the goodbye, the supervisor and its own parent need part of them.
const FINISHING: Duration = Duration::from_secs(4);
/// Time that an idle worker may take to return from `main` after its session is closed.
const RETURNING: Duration = Duration::from_millis(300);

/// The description that a worker registers, and the GPU that it watches.
#[derive(Debug)]
pub struct Registration {
    /// For the scheduler.
    pub info: NodeInfo,
    /// The GPU that runs the models; `None` for the processor.
    pub gpu: Option<Gpu>,
}

/// Describes a worker on `gpu`, or on the processor without one, for its registration with the scheduler.
#[must_use]
pub fn describe(settings: &Settings, kind: NodeKind, found: &Capabilities, gpu: Option<Gpu>) -> Registration {
    let info = found.node_info(settings.name.clone(), kind, settings.offers(), gpu.as_ref());
    Registration { info, gpu }
}

/// The backends of a worker, one per slot.
pub struct Backends {
    /// Runs on the calling thread of [`run`].
    pub first: Box<dyn Backend + Send>,
    /// Makes the backend of a further slot, which gets a thread of its own; `None` if the device runs one task at a time.
    pub another: Option<MakeBackend>,
}

/// Makes a backend.
pub type MakeBackend = Box<dyn Fn() -> Box<dyn Backend + Send> + Send>;

/// Changes of settings while the worker runs.
#[derive(Debug)]
struct Adjuster {
    kind: NodeKind,
    /// Takes the number of slots for which there must be backends; `None` if there is one.
    slots: Option<mpsc::Sender<u16>>,
}

impl Adjust for Adjuster {
    fn adjust(&self, adjustment: Adjustment) -> Result<(), ChangeRefused> {
        let kind = self.kind.as_str();
        if adjustment.slots.is_some_and(|slots| slots > 1) && self.slots.is_none() {
            return Err(ChangeRefused(format!(
                "a {kind} node works on one task at a time: its device runs one model after the other; for more devices \
                 start a node on each one"
            )));
        }
        if adjustment.threads.is_some() && self.kind == NodeKind::Echo {
            return Err(ChangeRefused(format!(
                "an {kind} node runs no model, so that it has no threads to set"
            )));
        }
        if let Some(level) = adjustment.log_level {
            lamagrid_logs::set_level(level).map_err(|error| ChangeRefused(error.to_string()))?;
        }
        if let (Some(slots), Some(wanted)) = (adjustment.slots, &self.slots) {
            // The thread that makes backends lives as long as the process.
            let _ = wanted.send(slots);
        }
        Ok(())
    }
}

/// Starts a thread that runs a backend for each slot after the first, as slots are added.
fn run_further_backends(
    session: Arc<Session>,
    pipeline: Arc<Pipeline>,
    another: MakeBackend,
    wanted: mpsc::Receiver<u16>,
) -> std::io::Result<()> {
    let make = move || {
        let mut running = 1;
        for slots in wanted {
            while running < slots {
                let (session, pipeline, mut backend) =
                    (Arc::clone(&session), Arc::clone(&pipeline), another());
                let serve = move || {
                    let offers = OfferTable::of(backend.as_ref());
                    backend::serve(&session, &pipeline, backend.as_mut(), offers)
                };
                match std::thread::Builder::new().name(format!("backend-{running}")).spawn(serve) {
                    Ok(_) => running += 1,
                    Err(error) => {
                        tracing::error!(%error, running, slots, "no thread for a further slot: its tasks wait");
                        break;
                    }
                }
            }
        }
    };
    std::thread::Builder::new().name("slots".into()).spawn(make).map(drop)
}

/// Runs tasks until the session ends; returns the process's exit code.
///
/// # Errors
/// If the host cannot start a thread or a runtime.
pub fn run(
    settings: &Settings,
    registration: Registration,
    parent: Parent,
    backends: Backends,
) -> anyhow::Result<u8> {
    let Registration { mut info, gpu } = registration;
    let Backends { mut first, another } = backends;
    let (began, startup) = (Instant::now(), Arc::new(StartupTime::default()));
    let mut offers = OfferTable::of(first.as_ref());
    if offers.offers(first.as_ref()).models.is_empty() {
        offers.verify_first(first.as_mut());
    }
    Offers { models: info.models, withheld: info.withheld } = offers.offers(first.as_ref());
    let max_pixels = settings.config.limits.max_pixels;
    let (name, device, pid) = (info.name.clone(), info.device.clone(), info.pid);
    let models = info.models.iter().map(|offer| offer.model.as_str()).collect::<Vec<_>>().join(",");
    tracing::info!(node.id = %name, device = %device, gpu = info.gpu.as_ref().map(|gpu| gpu.as_str()), pid, models, slots = settings.slots, "worker is up");
    let endpoints = settings.endpoints.clone();
    // One decoded task per slot is ready when the slot's running task ends; more would only wait.
    let overlap = settings.slots;
    let bundle = settings.bundle.clone();
    let watch = DeviceWatch::default();
    let sampler = watch.sample(gpu, info.memory_bytes, || {
        // The loop of an idle backend ends now, and `main` returns; one that computes may wait for the device forever.
        std::thread::sleep(RETURNING);
        end_at_once(EXIT_DEVICE);
    });
    let sampler = Some(Arc::new(sampler?));
    let (slots, wanted) = mpsc::channel();
    let _ = slots.send(settings.slots); // the receiver is below
    let adjuster = Adjuster { kind: info.kind, slots: another.is_some().then_some(slots) };
    let adjust: Option<Arc<dyn Adjust>> = Some(Arc::new(adjuster));
    let options = SessionOptions { endpoints, bundle, info, slots: settings.slots, overlap, sampler, adjust };
    let session = Arc::new(Session::start(options)?);
    watch.guard(&session);
    let pipeline = Arc::new(Pipeline::start(&session, settings.slots, max_pixels)?);
    handle_signals(Arc::clone(&session), parent)?;
    if let Some(another) = another {
        run_further_backends(Arc::clone(&session), Arc::clone(&pipeline), another, wanted)?;
    }
    if parent == Parent::Watched {
        let grace = Duration::from_millis(settings.config.node.cancel_grace_ms);
        cancel_watchdog::watch(Arc::clone(&session), grace, Arc::clone(&startup))?;
    }
    if warm_up(&session, first.as_mut(), &mut offers) {
        startup.record(began.elapsed());
    }
    let failure = backend::serve(&session, &pipeline, first.as_mut(), offers);
    if watch.lost().is_some() { Ok(EXIT_DEVICE) } else { Ok(concluded(failure.as_ref())) }
}

/// Loads the first model before a task needs it; returns true on success. The node registers meanwhile, and its first task
/// waits for the load. A model that was not verified is offered after it.
fn warm_up(session: &Session, backend: &mut dyn Backend, offers: &mut OfferTable) -> bool {
    let Some(first) = backend.models().into_iter().next() else { return false };
    if let FileState::Unusable(_) = backend.file_state(&first.model) {
        return false;
    }
    let load = std::panic::AssertUnwindSafe(|| backend.load(&first.model, &SilentProgress));
    match std::panic::catch_unwind(load) {
        Ok(Ok(_)) => {
            session.set_loaded(backend::loaded(backend));
            if backend.file_state(&first.model) == FileState::Unverified {
                let verified = backend.verify(&first.model);
                offers.settle(&first.model, verified);
                session.set_offers(offers.offers(backend));
            }
            true
        }
        Ok(Err(failure)) => {
            tracing::warn!(model = %first.model, reason = failure.message, "model is not loaded yet; it is tried again");
            false
        }
        Err(_) => {
            tracing::warn!(model = %first.model, "loading the model panicked; its tasks will try again");
            false
        }
    }
}

fn concluded(failure: Option<&Failure>) -> u8 {
    let Some(failure) = failure else { return 0 };
    tracing::error!(
        kind = failure.kind.as_str(),
        reason = failure.message,
        "the scheduler refused this node"
    );
    failure.kind.exit_code()
}

/// Starts a thread that handles stop requests, so that no computation delays them. SIGTERM drains for a limited time and then
/// stops; SIGINT and the end of the parent stop at once.
///
/// A second SIGTERM stops only a worker without a supervisor. A worker under a supervisor may get the same signal twice, from
/// its supervisor and from a process group or service manager; to stop it, the supervisor closes its standard input.
fn handle_signals(session: Arc<Session>, parent: Parent) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _entered = runtime.enter();
        StopSignals::install(parent)?
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(drain_until_stop(&session, signals, parent));
        tracing::info!("stopping at once: tasks that still run are given back");
        stop(&session);
    })?;
    Ok(())
}

/// Drains after SIGTERM, and returns when the worker must stop at once.
async fn drain_until_stop(session: &Session, mut signals: StopSignals, parent: Parent) {
    let mut draining: Option<tokio::time::Instant> = None;
    loop {
        let limit = async {
            match draining {
                Some(since) => tokio::time::sleep_until(since + FINISHING).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            request = signals.next() => match (request, draining) {
                (StopRequest::Interrupt | StopRequest::ParentEnded, _) => return,
                (StopRequest::Terminate, None) => {
                    let for_ms = FINISHING.as_millis();
                    tracing::info!(
                        for_ms,
                        "draining: running tasks are finished within this time or given back, no more are taken"
                    );
                    session.drain();
                    draining = Some(tokio::time::Instant::now());
                }
                (StopRequest::Terminate, Some(since)) => {
                    if parent == Parent::Ignored && since.elapsed() >= SAME_REQUEST {
                        return;
                    }
                }
            },
            () = limit => return,
        }
    }
}

/// Says goodbye and ends the process, even during a forward pass.
fn stop(session: &Session) {
    session.close();
    // The loop of an idle backend ends now, and `main` returns.
    std::thread::sleep(RETURNING);
    end_by_signal(Signal::KILL);
}
