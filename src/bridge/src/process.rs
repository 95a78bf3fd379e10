//! Keeps values from being used by a forked child of the process that made them.
//!
//! After `fork`, only the calling thread exists: a runtime's threads are gone and its sockets are shared with
//! the parent. A child therefore never uses, and never even drops, its parent's values.
//!
//! Does not: close the file descriptors that a child inherits; they close when the child ends or execs.
//!
//! Invariant: locks in this crate that a child may take are held only while attached to Python, and forks
//! happen while attached, so that a fork never copies a locked lock.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;

use parking_lot::Mutex;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::errors;

/// Worker threads of the runtime; connections need little, and hashing has threads of its own.
const WORKERS: usize = 2;
/// Threads that hash, read and write blobs.
const BLOCKING: usize = 8;

/// A value that only the process that made it may use.
#[derive(Debug)]
pub(crate) struct Own<T> {
    pid: u32,
    value: ManuallyDrop<T>,
}

impl<T> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { pid: std::process::id(), value: ManuallyDrop::new(value) }
    }

    /// True in the process that made the value.
    pub(crate) fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    /// The value; `None` in a forked child.
    pub(crate) fn get(&self) -> Option<&T> {
        self.is_ours().then(|| &*self.value)
    }

    /// The value, mutably; `None` in a forked child.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        if self.is_ours() { Some(&mut *self.value) } else { None }
    }
}

impl<T> Drop for Own<T> {
    #[expect(unsafe_code, reason = "the only way to leave a value undropped in one process of two")]
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: the value is dropped nowhere else, and not used after this.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// The runtime of this process, leaked because it lives as long as the process.
struct Leaked(&'static Runtime);

impl Deref for Leaked {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0
    }
}

/// Serializes the creation of the runtime. Locked only while attached, see the module's invariant.
static RUNTIME: Mutex<Option<Own<Leaked>>> = Mutex::new(None);

/// Returns the runtime of this process, creating it at the first use.
pub(crate) fn runtime(py: Python<'_>) -> PyResult<&'static Runtime> {
    let mut slot = RUNTIME.lock();
    if let Some(leaked) = slot.as_ref().and_then(Own::get) {
        return Ok(leaked.0);
    }
    let runtime: &'static Runtime = Box::leak(Box::new(build().map_err(|error| {
        errors::internal(py, &format!("cannot start the threads of the client: {error}"))
    })?));
    *slot = Some(Own::new(Leaked(runtime)));
    Ok(runtime)
}

fn build() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_name("lamagrid")
        .enable_all()
        .build()
}
