//! `_native.NodeSession`: what a node in Python stands on.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use lamagrid_client::Endpoints;
use lamagrid_config::runtime_dir;
use lamagrid_domain::{Failure, ModelName, ModelOffer, NodeInfo, NodeKind, Stages};
use lamagrid_node::hardware::Hardware;
use lamagrid_node::{NextJob, Output, Session, SessionOptions};

use crate::arguments::{Dims, failure_kind, form, parsed, patience, role};
use crate::enter::{outside, poll};
use crate::process::Own;
use crate::{configuration, errors};

/// A node's conversation with its scheduler, on a thread of its own.
#[pyclass(module = "lamagrid._native", frozen)]
#[derive(Debug)]
pub(crate) struct NodeSession {
    session: Own<Session>,
    /// Whether the session told that no task will come any more.
    closed: AtomicBool,
}

impl NodeSession {
    fn ours(&self, py: Python<'_>) -> PyResult<&Session> {
        let forked = || errors::invalid(py, "this node's session was started before a fork; start another");
        self.session.get().ok_or_else(forked)
    }
}

#[pymethods]
impl NodeSession {
    /// Registers a node and keeps it registered, over any number of connections.
    #[new]
    fn new(
        py: Python<'_>,
        data_dir: Option<PathBuf>,
        name: &str,
        kind: &str,
        device: &str,
        models: Vec<String>,
        slots: u16,
    ) -> PyResult<Self> {
        let wrong = |error| errors::config(py, &error);
        let config = configuration::load(data_dir.as_deref()).map_err(wrong)?.config;
        let sockets = runtime_dir(&config.data_dir().map_err(wrong)?).map_err(wrong)?;
        let offer = |text: String| -> PyResult<ModelOffer> {
            let model: ModelName = parsed(py, &text)?;
            let queue = match config.models.get(&text) {
                Some(configured) => parsed(py, &configured.queue)?,
                None => model.default_queue(),
            };
            Ok(ModelOffer { model, queue, loaded: false })
        };
        let kind = [NodeKind::Torch, NodeKind::Python, NodeKind::Echo]
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(|| {
                errors::invalid(py, &format!("node kind {kind:?} is none of torch, python, echo"))
            })?;
        let hardware = Hardware::detect();
        let info = NodeInfo {
            name: parsed(py, name)?,
            kind,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: device.to_owned(),
            gpu: None,
            memory_bytes: if device == "cpu" { hardware.memory_bytes } else { 0 },
            cores: hardware.cores,
            models: models.into_iter().map(offer).collect::<PyResult<_>>()?,
            pid: std::process::id(),
        };
        let options = SessionOptions { endpoints: Endpoints::new(sockets), info, slots };
        let session = Session::start(options).map_err(|error| errors::internal(py, &error.to_string()))?;
        Ok(Self { session: Own::new(session), closed: AtomicBool::new(false) })
    }

    /// The next task, waiting at most `wait` seconds for it. Raises if the scheduler refused the node for good.
    fn next_job(&self, py: Python<'_>, wait: f64) -> PyResult<Option<Job>> {
        let session = self.ours(py)?;
        let found =
            poll(py, patience(py, Some(wait), Duration::ZERO)?, |slice| match session.next_job(slice) {
                NextJob::Job(job) => Some(Ok(job)),
                NextJob::Closed(Some(failure)) => Some(Err(failure)),
                NextJob::Idle => None,
                NextJob::Closed(None) => {
                    self.closed.store(true, Ordering::Relaxed);
                    // Whoever asks a closed session again and again must not spin.
                    std::thread::sleep(slice);
                    None
                }
            })?;
        match found {
            None => Ok(None),
            Some(Ok(job)) => Job::new(py, job).map(Some),
            Some(Err(failure)) => Err(errors::failure(py, failure.kind, &failure.message)),
        }
    }

    /// Whether `next_job` found that no task will come any more, because the node was closed or drained.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Says which models are in memory now.
    fn set_loaded(&self, py: Python<'_>, models: Vec<String>) -> PyResult<()> {
        let models = models.iter().map(|model| parsed(py, model)).collect::<PyResult<_>>()?;
        let session = self.ours(py)?;
        outside(py, || session.set_loaded(models));
        Ok(())
    }

    /// Takes no more work, finishes and delivers what runs, then says goodbye.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.ours(py)?;
        outside(py, || session.drain());
        Ok(())
    }

    /// Says goodbye now; the scheduler gives running tasks to others. Waits a second at most.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.ours(py)?;
        outside(py, || session.close());
        Ok(())
    }
}

/// One attempt. Dropped unfinished, it fails as an internal defect.
#[pyclass(module = "lamagrid._native", frozen)]
#[derive(Debug)]
pub(crate) struct Job {
    /// `None` once it is finished. Locked only while detached, so that no lock waits for the GIL.
    job: Own<Mutex<Option<lamagrid_node::Job>>>,
    spec: Py<PyAny>,
    attempt: u32,
}

impl Job {
    fn new(py: Python<'_>, job: lamagrid_node::Job) -> PyResult<Self> {
        let spec = pythonize::pythonize(py, job.spec())?.unbind();
        Ok(Self { spec, attempt: job.attempt(), job: Own::new(Mutex::new(Some(job))) })
    }

    /// Does something with the unfinished job, without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&lamagrid_node::Job) -> T + Send,
    ) -> PyResult<T> {
        let Some(job) = self.job.get() else { return Err(Self::over(py)) };
        outside(py, || job.lock().as_ref().map(work)).ok_or_else(|| Self::over(py))
    }

    fn settle(
        &self,
        py: Python<'_>,
        result: impl FnOnce() -> Result<Output, Failure> + Send,
    ) -> PyResult<()> {
        let Some(job) = self.job.get() else { return Err(Self::over(py)) };
        let settled = outside(py, || job.lock().take().map(|job| job.finish(result())));
        settled.map(drop).ok_or_else(|| Self::over(py))
    }

    fn over(py: Python<'_>) -> PyErr {
        errors::invalid(py, "this task was finished before, or belongs to another process")
    }
}

#[pymethods]
impl Job {
    /// What to do: the task's model, parameters and inputs.
    #[getter]
    fn spec(&self, py: Python<'_>) -> Py<PyAny> {
        self.spec.clone_ref(py)
    }

    /// The first attempt is 1.
    #[getter]
    fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether the work shall stop.
    #[getter]
    fn cancelled(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, lamagrid_node::Job::is_cancelled)
    }

    /// The bytes of an input, of the announced length and hash.
    fn input<'py>(&self, py: Python<'py>, role: &str) -> PyResult<Bound<'py, PyBytes>> {
        let role = self::role(py, role)?;
        let bytes = self.with(py, |job| job.input(role))?;
        let bytes = bytes.map_err(|failure| errors::failure(py, failure.kind, &failure.message))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Says how far the work is; false means stop.
    fn step(&self, py: Python<'_>, step: u32, of: u32) -> PyResult<bool> {
        self.with(py, |job| job.step(step, of) == ControlFlow::Continue(()))
    }

    /// Ends the task with a result: raw BGR pixels with their dimensions, or an encoded file; and with the
    /// milliseconds that loading the model and running it took.
    #[pyo3(signature = (data, form=None, load_ms=0.0, infer_ms=0.0))]
    fn finish(
        &self,
        py: Python<'_>,
        data: PyBackedBytes,
        form: Option<Raw>,
        load_ms: f64,
        infer_ms: f64,
    ) -> PyResult<()> {
        let form = self::form(form.map(|raw| (raw.height, raw.width, raw.channels) as Dims));
        if let Some(wanted) = form.raw_len().filter(|len| *len != data.len() as u64) {
            let text = format!("the result holds {} bytes, but its form makes {wanted}", data.len());
            return Err(errors::invalid(py, &text));
        }
        let stages = Stages { load_ms, infer_ms, ..Stages::default() };
        self.settle(py, || Ok(Output { bytes: Bytes::from_owner(data), form, stages }))
    }

    /// Ends the task with a failure.
    fn fail(&self, py: Python<'_>, kind: &str, message: &str) -> PyResult<()> {
        let kind = failure_kind(py, kind)?;
        self.settle(py, || Err(Failure::new(kind, message)))
    }
}

/// `{"height": ..., "width": ..., "channels": ...}`
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Raw {
    height: u32,
    width: u32,
    channels: u8,
}
