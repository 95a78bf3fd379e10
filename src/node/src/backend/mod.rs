//! What runs models, and the loop that feeds it.
//!
//! Does not: know the protocol ([`crate::Session`]) or any framework.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use lamagrid_domain::{BlobForm, Failure, FailureKind, ModelName, ModelOffer, Stages, TaskSpec};
use lamagrid_imaging::{Bgr, Gray, Image, Rgb};

use crate::session::{Job, NextJob, Output, Session, millis};

mod echo;
mod inference;
mod pixels;

pub use echo::Echo;
pub use inference::inference_failure;

/// How long the loop waits before it looks again whether the session ended.
const WAIT: Duration = Duration::from_secs(1);

/// Told by backends while they work.
pub trait Progress: Sync {
    /// How far the work is; `of` is 0 where the end is unknown. Breaks when nobody wants it any more.
    fn step(&self, step: u32, of: u32) -> ControlFlow<()>;
}

impl Progress for Job {
    fn step(&self, step: u32, of: u32) -> ControlFlow<()> {
        Self::step(self, step, of)
    }
}

/// Progress that nobody hears, of work that nobody can stop.
#[derive(Debug, Clone, Copy)]
pub struct Unheard;

impl Progress for Unheard {
    fn step(&self, _step: u32, _of: u32) -> ControlFlow<()> {
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
    pub image: Image<Bgr>,
    /// Only the backend's own share is read.
    pub stages: Stages,
}

/// Runs models. Synchronous: it has a thread of its own.
pub trait Backend {
    /// What it serves, and what of that is in memory.
    fn models(&self) -> Vec<ModelOffer>;

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

/// Pulls tasks and runs them until the session ends; gives the reason if it was not the node's own wish.
pub fn serve(session: &Session, backend: &mut dyn Backend, max_pixels: u64) -> Option<Failure> {
    loop {
        let job = match session.next_job(WAIT) {
            NextJob::Job(job) => job,
            NextJob::Idle => continue,
            NextJob::Closed(failure) => return failure,
        };
        let result = catch_unwind(AssertUnwindSafe(|| attempt(&job, backend, max_pixels)))
            .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        session.set_loaded(loaded(backend));
        conclude(job, result);
    }
}

/// The models that are in memory.
pub(crate) fn loaded(backend: &dyn Backend) -> Vec<ModelName> {
    backend.models().into_iter().filter(|offer| offer.loaded).map(|offer| offer.model).collect()
}

fn attempt(job: &Job, backend: &mut dyn Backend, max_pixels: u64) -> Result<Output, Failure> {
    let model = &job.spec().model;
    if !backend.models().iter().any(|offer| offer.model == *model) {
        let text = format!("this node does not serve the model {model}");
        return Err(Failure::new(FailureKind::UnknownModel, text));
    }
    let (image, mask) = pixels::read(job, max_pixels)?;
    let load = backend.load(model, job)?;
    let Answer { image, mut stages } = backend.run(Work { spec: job.spec(), image, mask }, job)?;
    stages.load_ms = millis(load);
    let (height, width) = image.shape();
    // An image's sides are at most 2^24.
    let form = BlobForm::Raw { height: height as u32, width: width as u32, channels: 3 };
    Ok(Output { bytes: image.into_data().into(), form, stages })
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Failure::new(FailureKind::Internal, format!("the node's backend panicked, which is a defect: {said}"))
}

/// Delivers, and writes the one line of a finished task.
fn conclude(job: Job, result: Result<Output, Failure>) {
    let (id, attempt, model) = (job.spec().id, job.attempt(), job.spec().model.clone());
    let began = Instant::now();
    let failure = result.as_ref().err().cloned();
    let cancelled = job.is_cancelled();
    let stages = job.finish(result);
    let Stages { transfer_ms, load_ms, infer_ms, pixels_ms, store_ms, .. } = stages;
    match failure {
        _ if cancelled => tracing::info!(task.id = %id, attempt, model = %model, "task cancelled"),
        Some(failure) => {
            let kind = failure.kind.as_str();
            tracing::warn!(task.id = %id, attempt, model = %model, kind, reason = failure.message, "task failed");
        }
        None => {
            let (transfer_ms, load_ms, infer_ms) = (tenths(transfer_ms), tenths(load_ms), tenths(infer_ms));
            let (pixels_ms, store_ms) = (tenths(pixels_ms), tenths(store_ms));
            tracing::info!(
                task.id = %id, attempt, model = %model, transfer_ms, load_ms, infer_ms, pixels_ms, store_ms,
                "task done"
            );
        }
    }
    tracing::debug!(task.id = %id, deliver_ms = tenths(millis(began.elapsed())), "delivered");
}

/// Milliseconds as a person wants to read them.
fn tenths(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// The failure of work that was stopped as told; it is not delivered.
#[must_use]
pub fn stopped() -> Failure {
    Failure::new(FailureKind::Cancelled, "stopped as told")
}
