//! `_native.NodeSession`: the native part of a Python node.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyBytes};

use lamagrid_client::Endpoints;
use lamagrid_config::socket_finder;
use lamagrid_domain::{BlobForm, Failure, ModelName, ModelOffer, NodeKind, NodeName, Role, Stages};
use lamagrid_hardware::{Capabilities, CudaEnvironment, Gpu, Roots};
use lamagrid_imaging::{Image, Rgb};
use lamagrid_session::{
    Adjust, Adjustment, ChangeRefused, DeviceWatch, Entered, Exit, Files, Inputs, Made, Next, Pictures,
    Pipeline, Session, SessionOptions, read_node_bundle,
};

use crate::arguments::{failure_kind, parsed, patience, role};
use crate::enter::{outside, poll};
use crate::process::Own;
use crate::{configuration, errors};

/// Number of tasks that are decoded while Python works on one.
const OVERLAP: u16 = 1;

#[derive(Debug)]
struct Node {
    session: Arc<Session>,
    pipeline: Pipeline,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Close explicitly: the pipeline's threads keep the session alive until then.
        self.session.close();
    }
}

/// A node's session with its scheduler, and the pipeline that decodes and encodes its images, on threads of
/// their own.
#[pyclass(module = "lamagrid._native", frozen)]
#[derive(Debug)]
pub(crate) struct NodeSession {
    node: Own<Node>,
    /// True once the session has reported that no more tasks will come.
    closed: AtomicBool,
    watch: DeviceWatch,
}

/// Changes of settings while the node runs. Python itself sets the threads: see [`NodeSession::take_threads`].
#[derive(Debug)]
struct Adjuster;

impl Adjust for Adjuster {
    fn adjust(&self, adjustment: Adjustment) -> Result<(), ChangeRefused> {
        if adjustment.slots.is_some_and(|slots| slots > 1) {
            let text = "a Python node works on one task at a time: its models keep state; start a node for each device";
            return Err(ChangeRefused(text.to_owned()));
        }
        let level = adjustment.log_level.map_or(Ok(()), lamagrid_logs::set_level);
        level.map_err(|error| ChangeRefused(error.to_string()))
    }
}

impl NodeSession {
    fn ours(&self, py: Python<'_>) -> PyResult<&Node> {
        let forked = || errors::invalid(py, "this node's session was started before a fork; start another");
        self.node.get().ok_or_else(forked)
    }
}

/// The GPU that torch calls `device`; `None` for the processor. One that was not detected has only its name.
fn gpu_of(device: &str, found: &Capabilities) -> Option<Gpu> {
    if device == "cpu" {
        return None;
    }
    let index = match device.split_once(':') {
        Some(("cuda", index)) => index.parse().ok(),
        _ => (device == "cuda").then_some(0),
    };
    let detected = index.and_then(|index| found.hardware.torch_gpu(index)).cloned();
    Some(detected.unwrap_or_else(|| Gpu::undetected(device.to_owned(), String::new(), 0)))
}

/// Registration of a node, as a dictionary from Python: `_NodeOptions` in `_native.pyi`.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct NodeOptions {
    data_dir: Option<PathBuf>,
    name: String,
    kind: String,
    device: String,
    models: Vec<String>,
    slots: u16,
    /// The `models` whose files are not on this host.
    missing: Vec<String>,
    /// Bundle for a scheduler on another host; `None` for this host's.
    join: Option<PathBuf>,
    /// The capability file, if there is one.
    capabilities: Option<PathBuf>,
    /// `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`; `None` if they are not set.
    cuda_visible_devices: Option<String>,
    cuda_device_order: Option<String>,
}

#[pymethods]
impl NodeSession {
    /// Registers a node and keeps it registered across reconnections.
    #[new]
    fn new(py: Python<'_>, options: NodeOptions) -> PyResult<Self> {
        let NodeOptions { data_dir, name, kind, device, models, slots, missing, join, capabilities, .. } =
            options;
        let cuda = CudaEnvironment {
            visible_devices: options.cuda_visible_devices,
            device_order: options.cuda_device_order,
        };
        let roots = Roots::default();
        let found = outside(py, || Capabilities::detect(&roots, &cuda, capabilities.as_deref()));
        let found = found.map_err(|error| errors::invalid(py, &error.to_string()))?;
        found.hardware.log_remarks();
        let wrong = |error| errors::config(py, &error);
        let config = configuration::load(data_dir.as_deref()).map_err(wrong)?.config;
        let data_dir = config.data_dir().map_err(wrong)?;
        let name: NodeName = parsed(py, &name)?;
        let bundle = join.map(|path| read_node_bundle(&path).map(Arc::new)).transpose();
        let bundle = bundle.map_err(|error| errors::invalid(py, &error.to_string()))?;
        let endpoints = Endpoints::found_by(socket_finder(&data_dir).map_err(wrong)?);
        let offer = |text: String| -> PyResult<ModelOffer> {
            let model: ModelName = parsed(py, &text)?;
            let named = config.models.get(&text).map(|configured| &configured.queue);
            let named = named.filter(|queue| !queue.is_empty()).map(|queue| parsed(py, queue)).transpose()?;
            let routed = named.is_none();
            let queue = named.unwrap_or_else(|| model.default_queue());
            Ok(ModelOffer {
                model,
                queue,
                loaded: false,
                present: !missing.contains(&text),
                routed,
                memory_bytes: 0,
                pinned: false,
            })
        };
        let kind = [NodeKind::Torch, NodeKind::Python, NodeKind::Echo]
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(|| {
                errors::invalid(py, &format!("node kind {kind:?} is none of torch, python, echo"))
            })?;
        if slots != 1 || config.node.slots != 1 {
            let slots = u32::from(slots).max(config.node.slots);
            let text = format!(
                "node.slots is {slots}, but a Python node works on one task at a time: its models keep state; leave \
                 node.slots at 1 for it, and start a node for each device"
            );
            return Err(errors::invalid(py, &text));
        }
        let offers: Vec<ModelOffer> = models.into_iter().map(offer).collect::<PyResult<_>>()?;
        let served: Vec<ModelOffer> = offers.into_iter().filter(|offer| found.offers(&offer.model)).collect();
        if served.is_empty() {
            let text =
                "the capability file leaves out every model of this node: remove one from its `leave_out`";
            return Err(errors::invalid(py, text));
        }
        let gpu = gpu_of(&device, &found);
        let info = found.node_info(name, kind, served, gpu.as_ref());
        // The loop of the node ends once its session is closed.
        let watch = DeviceWatch::default();
        let sampler = watch.sample(gpu, info.memory_bytes, || {});
        let internal = |error: &dyn std::fmt::Display| errors::internal(py, &error.to_string());
        let sampler = Some(Arc::new(sampler.map_err(|error| internal(&error))?));
        let adjust: Option<Arc<dyn Adjust>> = Some(Arc::new(Adjuster));
        let options = SessionOptions { endpoints, bundle, info, slots, overlap: OVERLAP, sampler, adjust };
        let session = Arc::new(Session::start(options).map_err(|error| internal(&error))?);
        watch.guard(&session);
        let pipeline = Pipeline::start(&session, slots, config.limits.max_pixels)
            .map_err(|error| internal(&format!("cannot start the threads of the node: {error}")))?;
        Ok(Self { node: Own::new(Node { session, pipeline }), closed: AtomicBool::new(false), watch })
    }

    /// Waits at most `wait` seconds for the next task. Raises if the scheduler refused the node for good.
    fn next_job(&self, py: Python<'_>, wait: f64) -> PyResult<Option<Job>> {
        let pipeline = &self.ours(py)?.pipeline;
        let found =
            poll(py, patience(py, Some(wait), Duration::ZERO)?, |slice| match pipeline.next(slice) {
                Next::Task(entered) => Some(Ok(entered)),
                Next::Closed(Some(failure)) => Some(Err(failure)),
                Next::Idle => None,
                Next::Closed(None) => {
                    self.closed.store(true, Ordering::Relaxed);
                    // Waits out the slice, so that a caller that polls a closed session does not spin.
                    std::thread::sleep(slice);
                    None
                }
            })?;
        match found {
            None => Ok(None),
            Some(Ok(entered)) => Job::new(py, *entered).map(Some),
            Some(Err(failure)) => Err(errors::failure(py, failure.kind, &failure.message)),
        }
    }

    /// True once `next_job` has found that no more tasks will come, because the node was closed or drained.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Why the node's GPU is lost, which closed the node; `None` while it works.
    #[getter]
    fn lost(&self) -> Option<&str> {
        self.watch.lost()
    }

    /// Reports the models that are in memory now.
    fn set_loaded(&self, py: Python<'_>, models: Vec<String>) -> PyResult<()> {
        let models = models.iter().map(|model| parsed(py, model)).collect::<PyResult<_>>()?;
        let session = &self.ours(py)?.session;
        outside(py, || session.set_loaded(models));
        Ok(())
    }

    /// The number of threads for the models from now on, once after each change; 0 leaves it to torch.
    fn take_threads(&self, py: Python<'_>) -> PyResult<Option<u32>> {
        Ok(self.ours(py)?.session.take_threads())
    }

    /// Accepts no more tasks, finishes and delivers the running ones, then leaves the grid.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let session = &self.ours(py)?.session;
        outside(py, || session.drain());
        Ok(())
    }

    /// Leaves the grid now; the scheduler gives running tasks to other nodes. Waits at most two seconds.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let session = &self.ours(py)?.session;
        outside(py, || session.close());
        Ok(())
    }
}

/// One attempt, in its slot. Dropping it unfinished fails it with an internal error.
#[pyclass(module = "lamagrid._native", frozen)]
#[derive(Debug)]
pub(crate) struct Job {
    /// `None` once it is finished. Locked only while detached from Python, so that a lock's holder never
    /// waits for the GIL.
    job: Own<Mutex<Option<(lamagrid_session::Job, Exit)>>>,
    /// Inputs that Python has not taken yet; each can be taken once.
    untaken: Mutex<Untaken>,
    spec: Py<PyAny>,
    attempt: u32,
}

/// Samples with their height, width and channels.
type Samples = (Vec<u8>, usize, usize, usize);

/// Samples in Python's memory, with their height, width and channels.
type Taken<'py> = (Bound<'py, PyByteArray>, (usize, usize, usize));

/// Inputs of a task: images for a model, files for a plugin.
#[derive(Debug, Default)]
struct Untaken {
    image: Option<Samples>,
    mask: Option<Samples>,
    example: Option<Samples>,
    image_file: Option<Bytes>,
    example_file: Option<Bytes>,
}

impl Untaken {
    fn new(inputs: Inputs) -> Self {
        match inputs {
            Inputs::Pictures(pictures) => Self::pictures(pictures),
            Inputs::Files(Files { image, example }) => {
                Self { image_file: Some(image), example_file: example, ..Self::default() }
            }
        }
    }

    fn pictures(Pictures { image, mask, example }: Pictures) -> Self {
        let colours = |image: Image<Rgb>| {
            let (height, width) = image.shape();
            (image.into_data(), height, width, 3)
        };
        let (height, width) = mask.shape();
        Self {
            image: Some(colours(image)),
            mask: Some((mask.into_data(), height, width, 1)),
            example: example.map(colours),
            ..Self::default()
        }
    }
}

impl Job {
    fn new(py: Python<'_>, Entered { job, inputs, exit }: Entered) -> PyResult<Self> {
        let spec = pythonize::pythonize(py, job.spec())?.unbind();
        let (attempt, untaken) = (job.attempt(), Mutex::new(Untaken::new(inputs)));
        Ok(Self { spec, attempt, untaken, job: Own::new(Mutex::new(Some((job, exit)))) })
    }

    /// Runs `work` on the unfinished job, without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&lamagrid_session::Job) -> T + Send,
    ) -> PyResult<T> {
        let Some(job) = self.job.get() else { return Err(Self::over(py)) };
        outside(py, || job.lock().as_ref().map(|(job, _)| work(job))).ok_or_else(|| Self::over(py))
    }

    fn settle(&self, py: Python<'_>, result: Result<(Made, Stages), Failure>) -> PyResult<()> {
        let Some(job) = self.job.get() else { return Err(Self::over(py)) };
        let settled = outside(py, || job.lock().take().map(|(job, exit)| exit.leave(job, result)));
        settled.ok_or_else(|| Self::over(py))
    }

    fn over(py: Python<'_>) -> PyErr {
        errors::invalid(py, "this task was finished before, or belongs to another process")
    }
}

#[pymethods]
impl Job {
    /// The task's specification: its model, parameters and inputs.
    #[getter]
    fn spec(&self, py: Python<'_>) -> Py<PyAny> {
        self.spec.clone_ref(py)
    }

    /// Number of the attempt, starting at 1.
    #[getter]
    fn attempt(&self) -> u32 {
        self.attempt
    }

    /// True if the work should stop.
    #[getter]
    fn cancelled(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, lamagrid_session::Job::is_cancelled)
    }

    /// Takes the image of a role, upright: its samples, copied into Python's memory, and their height, width
    /// and channels. `None` if the task has no such image, or it was taken before.
    fn take<'py>(&self, py: Python<'py>, role: &str) -> PyResult<Option<Taken<'py>>> {
        let taken = {
            let mut untaken = self.untaken.lock();
            match self::role(py, role)? {
                Role::Image => untaken.image.take(),
                Role::Mask => untaken.mask.take(),
                Role::Example => untaken.example.take(),
                Role::Result => None,
            }
        };
        let Some((samples, height, width, channels)) = taken else { return Ok(None) };
        let array = PyByteArray::new_with(py, samples.len(), |out| {
            outside(py, || out.copy_from_slice(&samples));
            Ok(())
        })?;
        Ok(Some((array, (height, width, channels))))
    }

    /// Takes the file of a role of a plugin's task. `None` if the task has no such file, or it was taken
    /// before.
    fn take_file<'py>(&self, py: Python<'py>, role: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let file = {
            let mut untaken = self.untaken.lock();
            match self::role(py, role)? {
                Role::Image => untaken.image_file.take(),
                Role::Example => untaken.example_file.take(),
                Role::Mask | Role::Result => None,
            }
        };
        let Some(file) = file else { return Ok(None) };
        let bytes = PyBytes::new_with(py, file.len(), |out| {
            outside(py, || out.copy_from_slice(&file));
            Ok(())
        })?;
        Ok(Some(bytes))
    }

    /// Reports that the model is being loaded; `step` of `of` is the progress of its download. False means
    /// stop.
    #[pyo3(signature = (step=0, of=0))]
    fn loading(&self, py: Python<'_>, step: u32, of: u32) -> PyResult<bool> {
        self.with(py, |job| job.loading(step, of) == ControlFlow::Continue(()))
    }

    /// Reports progress; false means stop.
    fn step(&self, py: Python<'_>, step: u32, of: u32) -> PyResult<bool> {
        self.with(py, |job| job.step(step, of) == ControlFlow::Continue(()))
    }

    /// Finishes the task with BGR samples of shape `(height, width, 3)`, and with the milliseconds that
    /// loading and running the model took. `shape` is height and width.
    #[pyo3(signature = (data, shape, load_ms=0.0, infer_ms=0.0))]
    fn finish(
        &self,
        py: Python<'_>,
        data: PyBackedBytes,
        shape: (u32, u32),
        load_ms: f64,
        infer_ms: f64,
    ) -> PyResult<()> {
        let (height, width) = shape;
        let wanted = BlobForm::Raw { height, width, channels: 3 }.raw_len();
        if wanted != Some(data.len() as u64) {
            let text =
                format!("the result holds {} bytes, but {height} x {width} x 3 are needed", data.len());
            return Err(errors::invalid(py, &text));
        }
        let stages = Stages { load_ms, infer_ms, ..Stages::default() };
        self.settle(py, Ok((Made::Bgr { bytes: Bytes::from_owner(data), height, width }, stages)))
    }

    /// Finishes a plugin's task with the file that it made.
    #[pyo3(signature = (data, load_ms=0.0, infer_ms=0.0))]
    fn finish_file(&self, py: Python<'_>, data: PyBackedBytes, load_ms: f64, infer_ms: f64) -> PyResult<()> {
        let stages = Stages { load_ms, infer_ms, ..Stages::default() };
        self.settle(py, Ok((Made::File(Bytes::from_owner(data)), stages)))
    }

    /// Ends the attempt with a failure.
    fn fail(&self, py: Python<'_>, kind: &str, message: &str) -> PyResult<()> {
        let kind = failure_kind(py, kind)?;
        self.settle(py, Err(Failure::new(kind, message)))
    }
}
