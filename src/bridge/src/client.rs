//! `_native.Client`: the native part of `lamagrid.TaskClient`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict};

use lamagrid_client::{ClientError, ClientOptions, Endpoint, Endpoints, TaskEvent};
use lamagrid_config::socket_finder;
use lamagrid_domain::{BlobForm, TaskId};

use crate::arguments::{Blob, new_task, parsed, patience};
use crate::enter::{enter, outside, wait};
use crate::process::{Own, runtime};
use crate::{configuration, errors};

/// A client of one scheduler. Each process opens its own connection, at its first call.
#[pyclass(module = "lamagrid._native", frozen)]
#[derive(Debug)]
pub(crate) struct Client {
    endpoints: Endpoints,
    /// Bundle for a scheduler on another host; `None` for this host's.
    join: Option<PathBuf>,
    /// Address of the scheduler, for error texts.
    address: String,
    options: ClientOptions,
    /// Timeout of calls that give none.
    timeout: Duration,
    /// Connection of this process. After a fork it still is the parent's, and the child replaces it. Locked
    /// only while attached to Python, see `process`.
    live: Mutex<Option<Own<lamagrid_client::Client>>>,
}

impl Client {
    fn live(&self, py: Python<'_>) -> PyResult<lamagrid_client::Client> {
        let mut slot = self.live.lock();
        if let Some(client) = slot.as_ref().and_then(Own::get) {
            return Ok(client.clone());
        }
        let _inside = runtime(py)?.enter();
        let endpoint = match &self.join {
            None => Endpoint::near(&self.endpoints),
            Some(bundle) => far(py, bundle)?,
        };
        let client = lamagrid_client::Client::with_endpoint(endpoint, self.options.clone());
        *slot = Some(Own::new(client.clone()));
        Ok(client)
    }
}

/// Endpoint of a scheduler on another host. Call it inside the runtime.
fn far(py: Python<'_>, bundle: &Path) -> PyResult<Endpoint> {
    Endpoint::far(bundle).map_err(|error| errors::invalid(py, &error.to_string()))
}

#[pymethods]
impl Client {
    /// Reads the configuration, but does not connect. `data_dir` overrides the configured one; `runtime_dir`
    /// names the socket directory itself; `join` is the bundle for a scheduler on another host. Without any
    /// of them, the configured bundle counts.
    #[new]
    #[pyo3(signature = (data_dir=None, owner=None, *, runtime_dir=None, join=None))]
    fn new(
        py: Python<'_>,
        data_dir: Option<PathBuf>,
        owner: Option<&str>,
        runtime_dir: Option<PathBuf>,
        join: Option<PathBuf>,
    ) -> PyResult<Self> {
        let wrong = |error| errors::config(py, &error);
        let loaded = configuration::load(data_dir.as_deref()).map_err(wrong)?;
        let config = loaded.config;
        let configured = Some(config.client.join.clone()).filter(|path| !path.as_os_str().is_empty());
        let is_near = data_dir.is_some() || runtime_dir.is_some();
        let join = join.or(configured.filter(|_| !is_near));
        let data_dir = config.data_dir().map_err(wrong)?;
        let endpoints = match runtime_dir {
            Some(dir) => Endpoints::new(dir),
            None => Endpoints::found_by(socket_finder(&data_dir).map_err(wrong)?),
        };
        let mut options = ClientOptions {
            ping: Duration::from_millis(config.client.ping_ms),
            silence: Duration::from_millis(config.client.silence_ms),
            data_dir: Some(data_dir),
            ..ClientOptions::default()
        };
        let mut address = endpoints.client();
        if let Some(bundle) = &join {
            // Read here as well, so that an invalid bundle raises at once.
            let named = Endpoint::named(bundle).map_err(|error| errors::invalid(py, &error.to_string()))?;
            (address, options.owner) = named;
        }
        if let Some(owner) = owner {
            options.owner = parsed(py, owner)?;
        }
        let timeout = Duration::from_millis(config.client.timeout_ms);
        Ok(Self { endpoints, join, address, options, timeout, live: Mutex::new(None) })
    }

    /// Timeout of calls that give none, in seconds.
    #[getter]
    fn timeout_s(&self) -> f64 {
        self.timeout.as_secs_f64()
    }

    /// Address of the scheduler.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// Owner of the submitted tasks.
    #[getter]
    fn owner(&self) -> &str {
        self.options.owner.as_str()
    }

    /// Submits a task and returns its id once the scheduler has recorded it.
    #[pyo3(signature = (spec, blobs, timeout=None))]
    fn submit(&self, spec: &Bound<'_, PyDict>, blobs: Vec<Blob>, timeout: Option<f64>) -> PyResult<String> {
        let py = spec.py();
        let task = new_task(spec, blobs)?;
        let id = task.id;
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        enter(py, client.submit(task, limit))?;
        Ok(id.to_string())
    }

    /// Waits for a task's end and returns its result; `None` if the time ran out. Raises if the task failed.
    #[pyo3(signature = (id, timeout=None))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        id: &str,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let id: TaskId = parsed(py, id)?;
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        let outcome = match wait(py, client.wait(id, limit))? {
            Ok(outcome) => outcome,
            Err(ClientError::Timeout { trouble: None, .. }) => return Ok(None),
            Err(error) => return Err(errors::client(py, &error)),
        };
        let dict = PyDict::new(py);
        dict.set_item("task", pythonize::pythonize(py, &outcome.task)?)?;
        let result = outcome.into_result().map_err(|failure| errors::ended(py, id, &failure))?;
        // Read directly into Python's memory, without the GIL; no other code has a reference to it yet.
        let fill = |out: &mut [u8]| {
            outside(py, || result.read_into(out)).map_err(|error| errors::client(py, &error))
        };
        let len = usize::try_from(result.meta.len).map_err(|_| {
            errors::internal(py, &format!("the result of task {id} does not fit into memory"))
        })?;
        match result.meta.form {
            BlobForm::Raw { height, width, channels } => {
                dict.set_item("dims", (height, width, channels))?;
                dict.set_item("data", PyByteArray::new_with(py, len, fill)?)?;
            }
            BlobForm::Encoded => {
                dict.set_item("dims", py.None())?;
                dict.set_item("data", PyBytes::new_with(py, len, fill)?)?;
            }
        }
        Ok(Some(dict))
    }

    /// Asks the scheduler to cancel a task, and returns its state then.
    #[pyo3(signature = (id, timeout=None))]
    fn cancel<'py>(&self, py: Python<'py>, id: &str, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let id = parsed(py, id)?;
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        let task = enter(py, client.cancel(id, limit))?;
        Ok(pythonize::pythonize(py, &task)?)
    }

    /// Returns a task's state.
    #[pyo3(signature = (id, timeout=None))]
    fn status<'py>(&self, py: Python<'py>, id: &str, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let id = parsed(py, id)?;
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        let task = enter(py, client.query(id, limit))?;
        Ok(pythonize::pythonize(py, &task)?)
    }

    /// Follows a task: returns an iterator over its events from now on.
    fn follow(&self, py: Python<'_>, id: &str) -> PyResult<Follow> {
        let id: TaskId = parsed(py, id)?;
        let client = self.live(py)?;
        let follow = enter(py, client.follow(id))?;
        Ok(Follow { id, inner: Mutex::new(Some(Own::new(follow))) })
    }

    /// Returns the connected nodes, the queues and the scheduler's version.
    #[pyo3(signature = (timeout=None))]
    fn survey<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyDict>> {
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        let overview = enter(py, client.survey(limit))?;
        let dict = PyDict::new(py);
        dict.set_item("version", &overview.version)?;
        dict.set_item("nodes", pythonize::pythonize(py, &overview.nodes)?)?;
        dict.set_item("queues", pythonize::pythonize(py, &overview.queues)?)?;
        Ok(dict)
    }

    /// Returns the states of several tasks in one round trip; `None` for tasks that the scheduler does not
    /// know.
    #[pyo3(signature = (ids, timeout=None))]
    fn statuses<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<String>,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
        let ids = ids.iter().map(|id| parsed(py, id)).collect::<PyResult<Vec<TaskId>>>()?;
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        let tasks = enter(py, async {
            let ask = |id| {
                let client = client.clone();
                tokio::spawn(async move { client.query(id, limit).await })
            };
            let mut tasks = Vec::new();
            for asked in ids.into_iter().map(ask).collect::<Vec<_>>() {
                tasks.push(match asked.await.map_err(|_| ClientError::Closed)? {
                    Ok(task) => Some(task),
                    Err(ClientError::Unknown { .. }) => None,
                    Err(error) => return Err(error),
                });
            }
            Ok(tasks)
        })?;
        tasks
            .iter()
            .map(|task| Ok(task.as_ref().map(|task| pythonize::pythonize(py, task)).transpose()?))
            .collect()
    }

    /// Tells the scheduler that the result was read and can be deleted.
    #[pyo3(signature = (id, timeout=None))]
    fn release(&self, py: Python<'_>, id: &str, timeout: Option<f64>) -> PyResult<()> {
        let id = parsed(py, id)?;
        let (client, limit) = (self.live(py)?, patience(py, timeout, self.timeout)?);
        enter(py, client.release(id, limit))
    }
}

/// Events of one task.
#[pyclass(module = "lamagrid._native", frozen)]
#[derive(Debug)]
pub(crate) struct Follow {
    id: TaskId,
    /// Taken out while a call waits. Locked only while attached to Python, see `process`.
    inner: Mutex<Option<Own<lamagrid_client::TaskWatch>>>,
}

#[pymethods]
impl Follow {
    /// Waits for the next event; the last one has a terminal status. `None` if the time ran out or no more
    /// events follow.
    #[pyo3(signature = (timeout=None))]
    fn next_event<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let limit = patience(py, timeout, Duration::MAX)?;
        let id = self.id;
        let Some(mut own) = self.inner.lock().take() else {
            return Err(errors::invalid(
                py,
                &format!("two threads read the events of task {id}; follow it in each"),
            ));
        };
        let event = match own.get_mut() {
            None => {
                Err(errors::invalid(py, &format!("task {id} was followed before a fork; follow it again")))
            }
            Some(follow) => wait(py, async {
                // A timeout is no error here; it returns `None`.
                tokio::time::timeout(limit, follow.next()).await.unwrap_or(Ok(None))
            }),
        };
        *self.inner.lock() = Some(own);
        let event = event?.map_err(|error| errors::client(py, &error))?;
        event.map(|event| described(py, event)).transpose()
    }
}

fn described(py: Python<'_>, event: TaskEvent) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("status", event.status.as_str())?;
    dict.set_item("activity", event.advance.activity.as_str())?;
    dict.set_item("step", event.advance.step)?;
    dict.set_item("of", event.advance.of)?;
    Ok(dict)
}
