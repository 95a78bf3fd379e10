//! What runs models, and the loop that feeds it.
//!
//! Does not: know the protocol ([`lamagrid_session::Session`]) or any framework.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use lamagrid_domain::{Failure, FailureKind, ModelName, ModelOffer, Stages, TaskSpec};
use lamagrid_imaging::{Gray, Image, Rgb};
use lamagrid_session::{Entered, Inputs, Job, Made, Next, Pictures, Pipeline, Session, millis, panicked};

mod broken;
mod echo;
mod inference;

use broken::BrokenModels;
pub use echo::Echo;
pub use inference::inference_failure;

pub use lamagrid_session::stopped;

/// How long the loop waits before it looks again whether the session ended.
const WAIT: Duration = Duration::from_secs(1);

/// TaskStatus by backends while they work.
pub trait Progress: Sync {
    /// How far the work is; `of` is 0 where the end is unknown. Breaks when nobody wants it any more.
    fn step(&self, step: u32, of: u32) -> ControlFlow<()>;

    /// The same of loading the model, in hundredths of a fetch.
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

/// Progress that nobody hears, of work that nobody can stop.
#[derive(Debug, Clone, Copy)]
pub struct Unheard;

impl Progress for Unheard {
    fn step(&self, _step: u32, _of: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn loading(&self, _step: u32, _of: u32) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// A task with its checked pixels.
#[derive(Debug)]
pub struct Work<'a> {
    /// Model and parameters.
    pub spec: &'a TaskSpec,
    /// The picture.
    pub image: Image<Rgb>,
    /// Of the same size; white is the hole.
    pub mask: Gray,
}

/// A picture and where the time went: [`Stages::infer_ms`] and [`Stages::pixels_ms`].
#[derive(Debug)]
pub struct Answer {
    /// Of the size of [`Work::image`].
    pub image: Image<Rgb>,
    /// Only the backend's own share is read.
    pub stages: Stages,
}

/// Runs models. Synchronous: it has a thread of its own.
pub trait Backend {
    /// What it serves, and what of that is in memory.
    fn models(&self) -> Vec<ModelOffer>;

    /// The files that a model is loaded from.
    fn files(&self, _model: &ModelName) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Brings a model into memory and says how long that took: zero if it was there.
    ///
    /// # Errors
    /// [`FailureKind::ModelLoad`] with its file, where that comes from and what to do, or
    /// [`FailureKind::UnknownModel`].
    fn load(&mut self, model: &ModelName, progress: &dyn Progress) -> Result<Duration, Failure>;

    /// Works on one task whose model was loaded before.
    ///
    /// # Errors
    /// A [`Failure`] whose kind decides about another attempt.
    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure>;
}

/// Runs tasks until the session ends; gives the reason if it was not the node's own wish.
pub fn serve(session: &Session, pipeline: &Pipeline, backend: &mut dyn Backend) -> Option<Failure> {
    let mut broken = BrokenModels::default();
    loop {
        let Entered { job, inputs, exit } = match pipeline.next(WAIT) {
            Next::Task(entered) => *entered,
            Next::Idle => {
                // Says that it works again as soon as its file was replaced: the scheduler keeps tasks away until then.
                if broken.reload_changed(backend) {
                    session.set_loaded(loaded(backend));
                }
                continue;
            }
            Next::Closed(failure) => return failure,
        };
        let result = catch_unwind(AssertUnwindSafe(|| attempt(&job, inputs, backend)))
            .unwrap_or_else(|panic| Err(panicked("backend", panic.as_ref())));
        let failed = result.as_ref().err().filter(|failure| failure.kind == FailureKind::ModelLoad);
        broken.note(&job.spec().model, failed.is_some(), backend);
        session.set_loaded(loaded(backend));
        exit.leave(job, result);
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
    let Answer { image, mut stages } = backend.run(Work { spec: job.spec(), image, mask }, job)?;
    stages.load_ms = millis(load);
    Ok((Made::Rgb(image), stages))
}
