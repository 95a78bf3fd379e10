//! Runs a list of pictures through the grid, with a bounded number and size of pictures at a time.
//!
//! Does not: decide what is done for a picture; `planner` does. Or know how the grid is reached; `transport` does.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use lamagrid_client::{NewTask, new_task_id};
use lamagrid_domain::{BatchId, Failure, FailureKind, Label, OutputForm};
use lamagrid_imaging::codec;
use lamagrid_process::{StopSignals, random_id};

use super::error::InpaintError;
use super::manifest::{Record, State};
use super::planner::{Fault, Plan, Planner, TaskSource, Work};
use super::progress::Progress;
use super::report::{Ending, PictureReport, Reporter};
use super::transport::{TaskError, Transport};
use super::walk::{FoundPicture, Pictures};
use crate::output::{Streams, Written};

/// Bytes of input files in memory: pictures beyond it wait. A larger one is worked on alone.
const BYTES_IN_FLIGHT: u64 = 512 << 20;
/// The unit in which they are counted.
const UNIT: u64 = 64 << 10;
/// Pictures that are found before they are needed.
const FOUND_AHEAD: usize = 64;
/// How long tasks have to end after Ctrl-C.
const CANCEL: Duration = Duration::from_secs(5);

/// The wish that the user expressed by Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    GoOn,
    /// Begin nothing, cancel what is under way.
    Cancel,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunEnd {
    Finished,
    Interrupted,
    /// The reader of the output has gone.
    Unread,
}

/// A run of pictures.
pub(crate) struct Batch<T> {
    pub(crate) planner: Planner,
    pub(crate) transport: T,
    /// Options of each task; its id, inputs and size are those of the picture.
    pub(crate) template: NewTask,
    pub(crate) in_flight: usize,
    /// The batch's name, for people.
    pub(crate) name: Label,
}

/// The values that all pictures of a run share.
struct Shared<T> {
    batch: Batch<T>,
    bytes: Arc<Semaphore>,
    wish: watch::Receiver<Wish>,
    batch_id: OnceCell<BatchId>,
}

/// The output of a run.
pub(crate) struct Console<'a, 'b> {
    pub(crate) progress: &'a mut Progress,
    pub(crate) reporter: &'a mut Reporter,
    pub(crate) streams: &'a mut Streams<'b>,
}

impl Console<'_, '_> {
    fn report(&mut self, report: &PictureReport) -> Result<Written, InpaintError> {
        let counts = &mut self.progress.counts;
        match report.state {
            Ending::Done => counts.done += 1,
            Ending::Skipped => counts.skipped += 1,
            Ending::Failed => counts.failed += 1,
            Ending::Cancelled => counts.cancelled += 1,
            Ending::Left => {}
        }
        self.reporter.picture(report, self.streams)
    }

    fn say(&mut self, text: &str) {
        self.progress.clear(self.streams);
        self.streams.say(text);
    }
}

impl<T: Transport> Batch<T> {
    /// Runs all pictures. After an error or a second Ctrl-C, tasks under way stay in the grid for the next run.
    ///
    /// # Errors
    /// [`InpaintError`] if the run cannot go on.
    pub(crate) async fn run(
        self,
        pictures: Pictures,
        mut signals: StopSignals,
        console: &mut Console<'_, '_>,
    ) -> Result<RunEnd, InpaintError> {
        let in_flight = self.in_flight;
        let (wishes, wish) = watch::channel(Wish::GoOn);
        let units = u32::try_from(BYTES_IN_FLIGHT / UNIT).unwrap_or(u32::MAX) as usize;
        let bytes = Arc::new(Semaphore::new(units));
        let shared = Arc::new(Shared { batch: self, bytes, wish, batch_id: OnceCell::new() });
        let mut found = walk(pictures);
        let mut running: JoinSet<Result<PictureReport, InpaintError>> = JoinSet::new();
        let mut ticks = tokio::time::interval(console.progress.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut end, mut is_exhausted) = (RunEnd::Finished, false);
        loop {
            let is_cancelling = *wishes.borrow() == Wish::Cancel;
            let may_begin = !is_exhausted && !is_cancelling && running.len() < in_flight;
            if running.is_empty() && !may_begin {
                console.reporter.batch = shared.end(end).await?;
                return Ok(end);
            }
            tokio::select! {
                biased;
                _ = signals.next() => {
                    end = RunEnd::Interrupted;
                    if is_cancelling {
                        console.say(&format!("leaving {} tasks in the grid\n", running.len()));
                        return Ok(end);
                    }
                    console.say(&format!(
                        "cancelling {} tasks; press Ctrl-C again to leave them in the grid\n", running.len()
                    ));
                    wishes.send_replace(Wish::Cancel);
                }
                Some(ended) = running.join_next() => {
                    let report = ended.map_err(|_| InpaintError::Grid { error: lamagrid_client::ClientError::Closed })??;
                    if let Written::ReaderLeft | Written::Failed(_) = console.report(&report)? {
                        end = RunEnd::Unread;
                        wishes.send_replace(Wish::Cancel);
                    }
                }
                next = found.recv(), if may_begin => match next {
                    Some(picture) => {
                        running.spawn(Arc::clone(&shared).picture(picture?));
                    }
                    None => is_exhausted = true,
                },
                _ = ticks.tick() => console.progress.show(console.streams),
            }
        }
    }
}

/// Walks through the folders on a thread of its own, a little ahead.
fn walk(pictures: Pictures) -> mpsc::Receiver<Result<FoundPicture, InpaintError>> {
    let (sender, receiver) = mpsc::channel(FOUND_AHEAD);
    tokio::task::spawn_blocking(move || {
        let visit = &mut |picture| match sender.blocking_send(Ok(picture)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        if let Err(error) = pictures.visit(visit) {
            // The run may have ended.
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

impl<T: Transport> Shared<T> {
    /// The batch of the run, opened with its first task: that of an interrupted run, or another one.
    async fn batch_id(&self) -> Result<BatchId, InpaintError> {
        let open = async || {
            let manifest = &self.batch.planner.manifest;
            let batch = match manifest.open_batch() {
                Some(batch) => batch,
                None => {
                    let batch = BatchId::from_bytes(random_id());
                    manifest.begin_batch(batch).await?;
                    batch
                }
            };
            self.batch.transport.open_batch(batch, self.batch.name.clone()).await;
            Ok(batch)
        };
        self.batch_id.get_or_try_init(open).await.copied()
    }

    /// Closes the batch once all pictures were looked at. That of an interrupted run stays open for the next one.
    async fn end(&self, end: RunEnd) -> Result<Option<BatchId>, InpaintError> {
        let manifest = &self.batch.planner.manifest;
        let batch = self.batch_id.get().copied().or_else(|| manifest.open_batch());
        if let (RunEnd::Finished, Some(batch)) = (end, batch) {
            self.batch.transport.close_batch(batch).await;
            manifest.end_batch(batch).await?;
        }
        Ok(batch)
    }

    /// Does everything for one picture.
    async fn picture(self: Arc<Self>, picture: FoundPicture) -> Result<PictureReport, InpaintError> {
        let input = picture.relative.display().to_string();
        let failed = |failure| PictureReport {
            input: input.clone(),
            output: None,
            state: Ending::Failed,
            task: None,
            failure: Some(failure),
        };
        // A file that cannot be asked for its size fails when it is read.
        let len = tokio::fs::metadata(&picture.path).await.map_or(0, |found| found.len());
        let units = (len.div_ceil(UNIT) + 1).min(BYTES_IN_FLIGHT / UNIT);
        let permit =
            Arc::clone(&self.bytes).acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX)).await;
        let shared = Arc::clone(&self);
        let planned = tokio::task::spawn_blocking(move || shared.batch.planner.plan(&picture)).await;
        let planned = planned.unwrap_or_else(|error| {
            Err(Failure::new(FailureKind::Internal, format!("the picture's reader panicked: {error}")).into())
        });
        let report = match planned {
            Err(Fault::Run(error)) => return Err(error),
            Err(Fault::Picture(failure)) => failed(failure),
            Ok(Plan::Skip(output)) => PictureReport {
                input,
                output: Some(output),
                state: Ending::Skipped,
                task: None,
                failure: None,
            },
            Ok(Plan::Note(record)) => {
                self.batch.planner.manifest.append(&record).await?;
                self.batch.transport.release(record.task).await;
                report_of(&record, Ending::Done)
            }
            Ok(Plan::Run(work)) => self.inpaint(*work).await?,
        };
        drop(permit);
        Ok(report)
    }

    async fn inpaint(&self, work: Work) -> Result<PictureReport, InpaintError> {
        let Work { mut record, inputs, size, format, profile, task: source, .. } = work;
        let Batch { planner, transport, template, .. } = &self.batch;
        let quality = planner.options.quality;
        let mut task = NewTask {
            id: record.task,
            picture: Some(size),
            output: OutputForm::Encoded { format, quality },
            batch: Some(self.batch_id().await?),
            inputs,
            ..template.clone()
        };
        if let TaskSource::Replaces(earlier) = source {
            transport.cancel(earlier).await;
        }
        if *self.wish.borrow() == Wish::Cancel && source != TaskSource::TakenUp {
            return Ok(report_of(&record, Ending::Cancelled));
        }
        planner.manifest.append(&record).await?;
        let again = (source == TaskSource::TakenUp).then(|| task.clone());
        let mut ended = self.task(task).await;
        if let Some(again) = again.filter(|_| ended.is_without_result() && *self.wish.borrow() == Wish::GoOn)
        {
            task = NewTask { id: new_task_id(), ..again };
            record.task = task.id;
            planner.manifest.append(&record).await?;
            ended = self.task(task).await;
        }
        match ended {
            TaskEnd::Left => Ok(report_of(&record, Ending::Left)),
            TaskEnd::Ended(Ok(bytes)) => {
                // Nodes answer as Lama Cleaner does, which keeps no profile.
                let with = profile.and_then(|profile| codec::with_profile(&bytes, &profile));
                self.keep(record, with.map_or(bytes, Bytes::from)).await
            }
            TaskEnd::Ended(Err(TaskError::Grid(error))) => Err(InpaintError::Grid { error }),
            TaskEnd::Ended(Err(TaskError::Failed(failure) | TaskError::Refused(failure))) => {
                let is_cancel = *self.wish.borrow() == Wish::Cancel;
                self.give_up(record, failure, if is_cancel { Ending::Cancelled } else { Ending::Failed })
                    .await
            }
        }
    }

    /// Runs a task, and cancels it if the user wishes so.
    async fn task(&self, task: NewTask) -> TaskEnd {
        let (id, transport) = (task.id, &self.batch.transport);
        let mut wish = self.wish.clone();
        let run = transport.run(task);
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return TaskEnd::Ended(ended),
            _ = wish.wait_for(|wish| *wish == Wish::Cancel) => {}
        }
        let cancelled = async {
            let (ended, ()) = tokio::join!(&mut run, transport.cancel(id));
            ended
        };
        tokio::time::timeout(CANCEL, cancelled).await.map_or(TaskEnd::Left, TaskEnd::Ended)
    }

    /// Writes a result to its place.
    async fn keep(&self, mut record: Record, bytes: Bytes) -> Result<PictureReport, InpaintError> {
        let planner = &self.batch.planner;
        record.result = Some(super::output_folder::hex(&lamagrid_protocol::hash(&bytes)[..]));
        record.state = State::Written;
        planner.manifest.append(&record).await?;
        let path = planner.output.path(&record.output);
        let (output, task) = (record.output.clone(), record.task);
        let writer = planner.output.clone();
        let written = tokio::task::spawn_blocking(move || writer.write(&output, &bytes, task)).await;
        match written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(()) => {}
            Err(source) if source.kind() == std::io::ErrorKind::StorageFull => {
                return Err(InpaintError::Out { path, source: Arc::new(source) });
            }
            Err(error) => {
                let text = format!("its result `{}` cannot be written: {error}", path.display());
                let failure = Failure::new(FailureKind::InvalidInput, text);
                return self.give_up(record, failure, Ending::Failed).await;
            }
        }
        record.state = State::Done;
        planner.manifest.append(&record).await?;
        self.batch.transport.release(record.task).await;
        Ok(report_of(&record, Ending::Done))
    }

    async fn give_up(
        &self,
        mut record: Record,
        failure: Failure,
        ending: Ending,
    ) -> Result<PictureReport, InpaintError> {
        record.state = if ending == Ending::Cancelled { State::Cancelled } else { State::Failed };
        record.failure = (ending == Ending::Failed).then_some(failure);
        self.batch.planner.manifest.append(&record).await?;
        Ok(report_of(&record, ending))
    }
}

/// How the wait for a task ended.
enum TaskEnd {
    Ended(Result<Bytes, TaskError>),
    /// The task may still be in the grid.
    Left,
}

impl TaskEnd {
    /// True if the grid has forgotten an earlier run's task, or that run cancelled it: another one repeats nothing.
    fn is_without_result(&self) -> bool {
        match self {
            Self::Ended(Err(TaskError::Refused(_))) => true,
            Self::Ended(Err(TaskError::Failed(failure))) => failure.kind == FailureKind::Cancelled,
            Self::Ended(_) | Self::Left => false,
        }
    }
}

fn report_of(record: &Record, state: Ending) -> PictureReport {
    PictureReport {
        input: record.input.clone(),
        output: Some(record.output.clone()),
        state,
        task: Some(record.task),
        failure: record.failure.clone(),
    }
}
