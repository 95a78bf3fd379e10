//! The one door across the GIL.
//!
//! Everything that takes time goes through here: the GIL is released, so other Python threads run, and a
//! long wait is cut into slices, so Ctrl-C is heard.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use lamagrid_client::ClientError;

use crate::{errors, process};

/// How late a signal is heard: below what a person notices, and 20 wake-ups a second cost nothing.
const SLICE: Duration = Duration::from_millis(50);

/// Waits for `future` without the GIL.
///
/// # Errors
/// What a signal handler raised (KeyboardInterrupt), and then the future is dropped.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, ClientError>> + Send,
) -> PyResult<Result<T, ClientError>> {
    let runtime = process::runtime(py)?;
    let mut future = pin!(future);
    loop {
        let slice =
            py.detach(|| runtime.block_on(async { tokio::time::timeout(SLICE, future.as_mut()).await }));
        match slice {
            Ok(result) => return Ok(result),
            Err(_) => py.check_signals()?,
        }
    }
}

/// Waits for `future` and turns its error into an exception.
///
/// # Errors
/// As [`wait`], and the class of the [`ClientError`]'s kind.
pub(crate) fn enter<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, ClientError>> + Send,
) -> PyResult<T> {
    wait(py, future)?.map_err(|error| errors::client(py, &error))
}

/// Calls `poll` with slices of `patience` until it gives something; `None` when the patience ended.
///
/// # Errors
/// What a signal handler raised.
pub(crate) fn poll<T: Send>(
    py: Python<'_>,
    patience: Duration,
    poll: impl Fn(Duration) -> Option<T> + Sync,
) -> PyResult<Option<T>> {
    let began = Instant::now();
    loop {
        let left = patience.saturating_sub(began.elapsed());
        if let Some(found) = py.detach(|| poll(left.min(SLICE))) {
            return Ok(Some(found));
        }
        py.check_signals()?;
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// Does something bounded, such as reading a file, without the GIL.
pub(crate) fn outside<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    py.detach(work)
}
