//! From a task's blobs to pixels and back, on threads of their own: while the device works on one task, the next
//! one is decoded and the last one encoded, and the device waits for neither.
//!
//! Does not: know the protocol ([`Session`]), a model or a device.
//!
//! The invariant worth knowing: a task enters its slot in [`Pipeline::next`] and leaves it in [`Exit::leave`].
//! Before the first it may be taken back; after the second its slot has the next task.

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

/// How long a decoder waits before it looks again whether somebody still wants its work.
const WAIT: Duration = Duration::from_secs(1);

/// A task's pixels, checked.
#[derive(Debug)]
pub struct Pictures {
    /// The picture, upright.
    pub image: Image<Rgb>,
    /// Of the same size; white is the hole.
    pub mask: Gray,
    /// Of any size, for models that take one.
    pub example: Option<Image<Rgb>>,
}

/// The files of a plugin's task, as they came.
#[derive(Debug)]
pub struct Files {
    /// The picture to work on.
    pub image: Bytes,
    /// For plugins that take a second one.
    pub example: Option<Bytes>,
}

/// What a task works on.
#[derive(Debug)]
pub enum Inputs {
    /// Of a model.
    Pictures(Pictures),
    /// Of a plugin.
    Files(Files),
}

/// What does not go through the model and is in the answer again.
#[derive(Debug, Default)]
struct Carried {
    alpha: Option<Gray>,
    metadata: Metadata,
    decode: Duration,
}

/// What a backend made.
#[derive(Debug)]
pub enum Made {
    /// Of the size of [`Pictures::image`].
    Rgb(Image<Rgb>),
    /// `(height, width, 3)` samples in BGR order, as upstream's models give them.
    Bgr {
        /// The samples.
        bytes: Bytes,
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
    },
    /// What a plugin answers, whatever it is.
    File(Bytes),
}

/// A task in its slot.
#[derive(Debug)]
pub struct Entered {
    /// What to do, and whom to tell about it.
    pub job: Job,
    /// The inputs.
    pub inputs: Inputs,
    /// The way out.
    pub exit: Exit,
}

/// What [`Pipeline::next`] found.
#[derive(Debug)]
pub enum Next {
    /// Work.
    Task(Box<Entered>),
    /// Nothing within the time.
    Idle,
    /// There will be none any more: refused by the scheduler for this reason, or, without one, left as asked.
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

/// The way out of a slot: to the encoder, and from there to the scheduler.
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
    /// Why the session ended, once it has.
    ended: Arc<OnceLock<Option<Failure>>>,
}

impl Pipeline {
    /// Starts to take tasks from `session`, whose `slots` these are.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn start(session: &Arc<Session>, slots: u16, max_pixels: u64) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = usize::from(slots).clamp(1, cores);
        // Credit bounds what is prepared; the bound here is for a session that forgets that.
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

    /// The next task whose pixels are there, waiting at most `wait` for it. It is in its slot then.
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
    /// Ends the task's time in its slot. A picture is encoded and delivered later, on another thread; while too
    /// many wait for that, this waits, too.
    pub fn leave(self, job: Job, result: Result<(Made, Stages), Failure>) {
        let (made, stages) = match result {
            Ok(made) => made,
            Err(failure) => return conclude(job, Err(failure)),
        };
        let leaving = Leaving { job, made, stages, carried: self.carried };
        match self.encoders.send(leaving) {
            Ok(()) => {}
            // Only a panic ends an encoder while somebody may send to it.
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
                // The first of several decoders says it for all.
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
                    return; // nobody works here any more; the job says so when it is dropped
                }
            }
            Err(failure) => conclude(job, Err(failure)),
        }
    }
}

fn finish(leaving: Leaving) {
    let Leaving { job, made, mut stages, carried } = leaving;
    // Here and not before: a slot is free once an encoder has time for what it made.
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

/// Delivers, and writes the one line of a finished task.
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

/// Milliseconds as a person wants to read them.
fn tenths(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
