//! Runs models: the trait of a backend, and the loop that passes it the session's tasks.
//!
//! Does not: know the protocol ([`lamagrid_session::Session`]) or any framework.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use lamagrid_domain::{Failure, FailureKind, MemoryUse, ModelName, ModelOffer, Params, Stages};
use lamagrid_imaging::{Gray, Image, Rgb};
use lamagrid_session::{Entered, Inputs, Job, Made, Next, Pictures, Pipeline, Session, millis, panicked};

mod broken;
mod echo;
mod inference;
mod offers;

use broken::BrokenModels;
pub use echo::Echo;
pub use inference::inference_failure;
pub use offers::OfferTable;

pub use lamagrid_session::stopped;

/// Longest wait for a task; after it the loop checks whether files of broken models have changed.
const WAIT: Duration = Duration::from_secs(1);

/// Receives the progress of a backend's work.
pub trait Progress: Sync {
    /// Reports the progress of the work; `of` is 0 if the total is unknown. Returns `Break` if the task is no longer wanted.
    fn step(&self, step: u32, of: u32) -> ControlFlow<()>;

    /// Reports the progress of loading the model; for a download, in percent. Returns `Break` as [`Progress::step`] does.
    fn loading(&self, step: u32, of: u32) -> ControlFlow<()>;
}

impl Progress for Job {
    fn step(&self, step: u32, of: u32) -> ControlFlow<()> {
        Self::step(self, step, of)
    }

    fn loading(&self, step: u32, of: u32) -> ControlFlow<()> {
        Self::loading(self, step, of)
    }
}

/// Discards progress and never breaks, for loads that belong to no task.
#[derive(Debug, Clone, Copy)]
pub struct SilentProgress;

impl Progress for SilentProgress {
    fn step(&self, _step: u32, _of: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn loading(&self, _step: u32, _of: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A task with its checked pictures.
#[derive(Debug)]
pub struct Work<'a> {
    /// The task's model.
    pub model: &'a ModelName,
    /// Upstream's parameters for it.
    pub params: &'a Params,
    /// The picture.
    pub image: Image<Rgb>,
    /// The mask, of the same size; white is the hole.
    pub mask: Gray,
}

/// The result of a task, with its times [`Stages::infer_ms`] and [`Stages::pixels_ms`].
#[derive(Debug)]
pub struct Answer {
    /// The picture, of the size of [`Work::image`].
    pub image: Image<Rgb>,
    /// The times; only the backend's own stages are used.
    pub stages: Stages,
    /// The memory that it used; `None` if it was not measured.
    pub memory: Option<MemoryUse>,
}

/// Whether a model's files can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// They were checked, or need no check.
    Verified,
    /// They are on this host, but were not checked since they changed.
    Unverified,
    /// At least one is downloaded at the first use, and checked then.
    Fetchable,
    /// They cannot be used, for this reason.
    Unusable(String),
}

/// Runs models. Its calls block, so each backend has its own thread.
pub trait Backend {
    /// The models that it serves, each with whether it is in memory.
    fn models(&self) -> Vec<ModelOffer>;

    /// The files that a model is loaded from.
    fn files(&self, _model: &ModelName) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The state of a model's files.
    fn file_state(&self, _model: &ModelName) -> FileState {
        FileState::Verified
    }

    /// Checks a model's files: by their sum if it is known, else by loading them.
    ///
    /// # Errors
    /// As [`Backend::load`].
    fn verify(&mut self, _model: &ModelName) -> Result<(), Failure> {
        Ok(())
    }

    /// Loads a model into memory and returns the time that this took: zero if it was loaded already.
    ///
    /// # Errors
    /// [`FailureKind::ModelLoad`] with the file, its origin and a remedy, or [`FailureKind::UnknownModel`].
    fn load(&mut self, model: &ModelName, progress: &dyn Progress) -> Result<Duration, Failure>;

    /// Uses this number of CPU threads from the next task on; 0 for the number that it chose at its start. Called on
    /// the backend's own thread.
    fn set_threads(&mut self, _threads: u32) {}

    /// Runs one task, whose model is already loaded.
    ///
    /// # Errors
    /// A [`Failure`]; its kind decides whether the task gets another attempt.
    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure>;
}

/// Runs tasks until the session ends; returns the reason unless the node itself ended it. Between tasks it verifies the models
/// that `offers` does not offer yet.
pub fn serve(
    session: &Session,
    pipeline: &Pipeline,
    backend: &mut dyn Backend,
    mut offers: OfferTable,
) -> Option<Failure> {
    let mut broken = BrokenModels::default();
    for model in offers.withheld() {
        broken.record_failure(&model, backend);
    }
    loop {
        let wait = if offers.has_pending() { Duration::ZERO } else { WAIT };
        let Entered { job, inputs, exit } = match pipeline.next(wait) {
            Next::Task(entered) => *entered,
            Next::Idle if offers.has_pending() => {
                if let Some(model) = offers.verify_next(backend) {
                    broken.record_failure(&model, backend);
                }
                session.set_offers(offers.offers(backend));
                continue;
            }
            Next::Idle => {
                // Report a repaired model at once: until then the scheduler sends no tasks for it.
                let repaired = broken.reload_changed(backend);
                if !repaired.is_empty() {
                    repaired.iter().for_each(|model| offers.settle(model, Ok(())));
                    session.set_loaded(loaded(backend));
                    session.set_offers(offers.offers(backend));
                }
                continue;
            }
            Next::Closed(failure) => return failure,
        };
        if let Some(threads) = session.take_threads() {
            backend.set_threads(threads);
        }
        let result = catch_unwind(AssertUnwindSafe(|| attempt(&job, inputs, backend)))
            .unwrap_or_else(|panic| Err(panicked("backend", panic.as_ref())));
        let failed = result.as_ref().err().filter(|failure| failure.kind == FailureKind::ModelLoad);
        let model = &job.spec().model;
        match failed {
            Some(_) => broken.record_failure(model, backend),
            None => broken.record_success(model),
        }
        session.set_loaded(loaded(backend));
        // A file that could not be downloaded may be there next time; one that is here and cannot be loaded must change.
        let unusable = failed.filter(|_| backend.file_state(model) != FileState::Fetchable);
        let changed = unusable.map(|failure| {
            offers.settle(model, Err(failure.clone()));
            offers.offers(backend)
        });
        exit.leave(job, result);
        if let Some(changed) = changed {
            session.set_offers(changed);
        }
    }
}

/// The models that are in memory.
pub(crate) fn loaded(backend: &dyn Backend) -> Vec<ModelName> {
    backend.models().into_iter().filter(|offer| offer.loaded).map(|offer| offer.model).collect()
}

fn attempt(job: &Job, inputs: Inputs, backend: &mut dyn Backend) -> Result<(Made, Stages), Failure> {
    let model = &job.spec().model;
    let Some(offer) = backend.models().into_iter().find(|offer| offer.model == *model) else {
        let text = format!("this node does not serve the model {model}");
        return Err(Failure::new(FailureKind::UnknownModel, text));
    };
    let Inputs::Pictures(Pictures { image, mask, .. }) = inputs else {
        let text =
            format!("{model} is a plugin, and only Python nodes run those: lamagrid pynode --plugin NAME");
        return Err(Failure::new(FailureKind::UnknownModel, text));
    };
    if !offer.loaded && job.loading(0, 0).is_break() {
        return Err(stopped());
    }
    let load = backend.load(model, job)?;
    let Answer { image, mut stages, memory } =
        backend.run(Work { model, params: &job.spec().params, image, mask }, job)?;
    if let Some(memory) = memory {
        job.set_memory(memory);
    }
    stages.load_ms = millis(load);
    Ok((Made::Rgb(image), stages))
}
