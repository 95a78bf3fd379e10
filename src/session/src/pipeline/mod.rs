//! Decodes inputs and encodes results on separate threads. While the device works on one task, the next one
//! is decoded and the last one encoded, so that the device does not wait for either.
//!
//! Does not: know the protocol ([`Session`]), a model or a device.
//!
//! Invariant: a task enters its slot in [`Pipeline::next`] and leaves it in [`Exit::leave`]. Before it enters
//! it can be recalled; after it left, the slot has the next task.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use lamagrid_domain::{BlobForm, Failure, FailureKind, OutputForm, PictureFormat, Stages};
use lamagrid_imaging::codec::{self, CodecError, Metadata};
use lamagrid_imaging::{Bgr, Gray, Image, Rgb};

use crate::failure::{panicked, stopped};
use crate::job::{Job, Output, millis};
use crate::session::{NextJob, Session};

mod inputs;

/// Interval at which a waiting decoder checks whether it should end.
const WAIT: Duration = Duration::from_secs(1);

/// The decoded and checked pictures of a task.
#[derive(Debug)]
pub struct Pictures {
    /// The picture, rotated upright.
    pub image: Image<Rgb>,
    /// The mask, of the same size; white is the hole.
    pub mask: Gray,
    /// The example picture, of any size, for models that take one.
    pub example: Option<Image<Rgb>>,
}

/// The files of a plugin's task, unchanged.
#[derive(Debug)]
pub struct Files {
    /// The picture to work on.
    pub image: Bytes,
    /// The second picture, for plugins that take one.
    pub example: Option<Bytes>,
}

/// The inputs of a task.
#[derive(Debug)]
pub enum Inputs {
    /// The inputs of a model.
    Pictures(Pictures),
    /// The inputs of a plugin.
    Files(Files),
}

/// Parts of the input that bypass the model and are added to the result.
#[derive(Debug, Default)]
struct Carried {
    alpha: Option<Gray>,
    metadata: Metadata,
    decode: Duration,
}

/// The result of a backend.
#[derive(Debug)]
pub enum Made {
    /// A picture with the size of [`Pictures::image`].
    Rgb(Image<Rgb>),
    /// `(height, width, 3)` samples in BGR order, as upstream's models return them.
    Bgr {
        /// The samples.
        bytes: Bytes,
        /// Number of rows.
        height: u32,
        /// Number of columns.
        width: u32,
    },
    /// A plugin's file, which is returned unchanged.
    File(Bytes),
}

/// A task that has entered its slot.
#[derive(Debug)]
pub struct Entered {
    /// The task, with its progress and cancellation.
    pub job: Job,
    /// The task's inputs.
    pub inputs: Inputs,
    /// The way out of the slot.
    pub exit: Exit,
}

/// The result of [`Pipeline::next`].
#[derive(Debug)]
pub enum Next {
    /// A task.
    Task(Box<Entered>),
    /// No task arrived in time.
    Idle,
    /// There will be no more tasks: `Some` is the scheduler's refusal, `None` means that the node left.
    Closed(Option<Failure>),
}

struct Prepared {
    job: Job,
    inputs: Inputs,
    carried: Carried,
}

struct Leaving {
    job: Job,
    made: Made,
    stages: Stages,
    carried: Carried,
}

/// Takes a task out of its slot: to an encoder, and from there to the scheduler.
#[derive(Debug)]
pub struct Exit {
    carried: Carried,
    encoders: Sender<Leaving>,
}

/// The threads around the slots of one session. They end with the session and the last [`Pipeline`] and [`Exit`].
#[derive(Debug)]
pub struct Pipeline {
    prepared: Receiver<Prepared>,
    encoders: Sender<Leaving>,
    /// The reason why the session ended, once it has.
    ended: Arc<OnceLock<Option<Failure>>>,
}

impl Pipeline {
    /// Starts threads that take tasks from `session`, which has this number of `slots`.
    ///
    /// # Errors
    /// If the host cannot start a thread.
    pub fn start(session: &Arc<Session>, slots: u16, max_pixels: u64) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = usize::from(slots).clamp(1, cores);
        // Credit already limits the prepared tasks; this bound protects against a session that exceeds it.
        let (ready, prepared) = bounded(usize::from(slots) * 2);
        let (encoders, leaving) = bounded(threads);
        let ended = Arc::new(OnceLock::new());
        for index in 0..threads {
            let (session, ready, ended) = (Arc::clone(session), ready.clone(), Arc::clone(&ended));
            spawn(format!("decode-{index}"), move || decode_all(&session, &ready, &ended, max_pixels))?;
            let leaving = leaving.clone();
            spawn(format!("encode-{index}"), move || leaving.iter().for_each(finish))?;
        }
        Ok(Self { prepared, encoders, ended })
    }

    /// Waits at most `wait` for the next decoded task, which enters its slot.
    pub fn next(&self, wait: Duration) -> Next {
        let deadline = Instant::now() + wait;
        loop {
            match self.prepared.recv_deadline(deadline) {
                Ok(Prepared { job, inputs, carried }) => {
                    if job.enter_slot() {
                        let exit = Exit { carried, encoders: self.encoders.clone() };
                        return Next::Task(Box::new(Entered { job, inputs, exit }));
                    }
                    job.finish(Err(stopped()));
                }
                Err(RecvTimeoutError::Timeout) => return Next::Idle,
                Err(RecvTimeoutError::Disconnected) => {
                    return Next::Closed(self.ended.get().cloned().flatten());
                }
            }
        }
    }
}

impl Exit {
    /// Takes the task out of its slot. Another thread encodes and delivers a picture later; this blocks while
    /// too many results wait for an encoder.
    pub fn leave(self, job: Job, result: Result<(Made, Stages), Failure>) {
        let (made, stages) = match result {
            Ok(made) => made,
            Err(failure) => return conclude(job, Err(failure)),
        };
        let leaving = Leaving { job, made, stages, carried: self.carried };
        match self.encoders.send(leaving) {
            Ok(()) => {}
            // An encoder ends only by a panic while this sender exists.
            Err(refused) => finish(refused.into_inner()),
        }
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name).spawn(work).map(drop)
}

fn decode_all(
    session: &Session,
    ready: &Sender<Prepared>,
    ended: &OnceLock<Option<Failure>>,
    max_pixels: u64,
) {
    loop {
        let job = match session.next_job(WAIT) {
            NextJob::Job(job) => job,
            NextJob::Idle => continue,
            NextJob::Closed(failure) => {
                // Only the first of several decoders sets it.
                let _ = ended.set(failure);
                return;
            }
        };
        let prepare = std::panic::AssertUnwindSafe(|| inputs::read(&job, max_pixels));
        match std::panic::catch_unwind(prepare)
            .unwrap_or_else(|panic| Err(panicked("decoder", panic.as_ref())))
        {
            Ok((inputs, carried)) => {
                if ready.send(Prepared { job, inputs, carried }).is_err() {
                    return; // the pipeline was dropped; dropping the job reports that
                }
            }
            Err(failure) => conclude(job, Err(failure)),
        }
    }
}

fn finish(leaving: Leaving) {
    let Leaving { job, made, mut stages, carried } = leaving;
    // Freed only here, so that the slot counts as busy until an encoder has time for its result.
    job.leave_slot(Duration::from_secs_f64(stages.load_ms.max(0.0) / 1e3));
    if job.is_cancelled() {
        return conclude(job, Err(stopped()));
    }
    let began = Instant::now();
    stages.decode_ms = millis(carried.decode);
    let output = job.spec().output;
    let encode = std::panic::AssertUnwindSafe(|| encode(made, output, &carried));
    let encoded =
        std::panic::catch_unwind(encode).unwrap_or_else(|panic| Err(panicked("encoder", panic.as_ref())));
    stages.encode_ms = millis(began.elapsed());
    conclude(job, encoded.map(|(bytes, form)| Output { bytes, form, stages }));
}

fn encode(made: Made, output: OutputForm, carried: &Carried) -> Result<(Bytes, BlobForm), Failure> {
    match (made, output) {
        (Made::File(file), _) => Ok((file, BlobForm::Encoded)),
        (Made::Rgb(image), OutputForm::Raw) => {
            let (height, width) = image.shape();
            // An image's sides are at most 2^24.
            Ok((image.into_bgr().into_data().into(), raw(height as u32, width as u32)))
        }
        (Made::Bgr { bytes, height, width }, OutputForm::Raw) => Ok((bytes, raw(height, width))),
        (Made::Rgb(image), OutputForm::Encoded { format, quality }) => {
            write(&image, format, quality, carried)
        }
        (Made::Bgr { bytes, height, width }, OutputForm::Encoded { format, quality }) => {
            let image = Image::<Bgr>::new(height as usize, width as usize, bytes.into());
            write(&image.map_err(|error| internal(&error))?.into_rgb(), format, quality, carried)
        }
    }
}

fn write(
    image: &Image<Rgb>,
    format: PictureFormat,
    quality: u8,
    carried: &Carried,
) -> Result<(Bytes, BlobForm), Failure> {
    let file = codec::encode(image, carried.alpha.as_ref(), format, quality, &carried.metadata);
    let file = file.map_err(|error| match error {
        CodecError::Unsupported { .. } => inputs::unreadable("result", &error),
        _ => internal(&format!("the result cannot be written as {format}: {error}")),
    })?;
    Ok((file.into(), BlobForm::Encoded))
}

fn internal(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Internal, error.to_string())
}

fn raw(height: u32, width: u32) -> BlobForm {
    BlobForm::Raw { height, width, channels: 3 }
}

/// Delivers a task's result and logs one line about it.
fn conclude(job: Job, result: Result<Output, Failure>) {
    let (id, attempt, model) = (job.spec().id, job.attempt(), job.spec().model.clone());
    let began = Instant::now();
    let failure = result.as_ref().err().cloned();
    let cancelled = job.is_cancelled();
    let stages = job.finish(result);
    let Stages { transfer_ms, decode_ms, load_ms, infer_ms, pixels_ms, encode_ms, store_ms, .. } = stages;
    match failure {
        _ if cancelled => tracing::info!(task.id = %id, attempt, model = %model, "task cancelled"),
        Some(failure) => {
            let kind = failure.kind.as_str();
            tracing::warn!(task.id = %id, attempt, model = %model, kind, reason = failure.message, "task failed");
        }
        None => {
            let (transfer_ms, decode_ms, load_ms) = (tenths(transfer_ms), tenths(decode_ms), tenths(load_ms));
            let (infer_ms, pixels_ms) = (tenths(infer_ms), tenths(pixels_ms));
            let (encode_ms, store_ms) = (tenths(encode_ms), tenths(store_ms));
            tracing::info!(
                task.id = %id, attempt, model = %model, transfer_ms, decode_ms, load_ms, infer_ms, pixels_ms,
                encode_ms, store_ms, "task done"
            );
        }
    }
    tracing::debug!(task.id = %id, deliver_ms = tenths(millis(began.elapsed())), "delivered");
}

/// Rounds milliseconds to tenths, for the log.
fn tenths(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
