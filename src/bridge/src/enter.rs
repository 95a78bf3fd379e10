//! Runs work without the GIL.
//!
//! Every slow call goes through here. The GIL is released, so that other Python threads run, and long waits
//! are cut into slices, so that Ctrl-C works.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use lamagrid_client::ClientError;

use crate::{errors, process};

/// Longest delay of a signal: too short to notice, and 20 wake-ups a second cost little.
const SLICE: Duration = Duration::from_millis(50);

/// Waits for `future` without the GIL.
///
/// # Errors
/// The exception that a signal handler raised (KeyboardInterrupt); the future is then dropped.
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

/// Waits for `future` without the GIL, and turns its error into an exception.
///
/// # Errors
/// As [`wait`], or the exception class of the [`ClientError`]'s kind.
pub(crate) fn enter<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, ClientError>> + Send,
) -> PyResult<T> {
    wait(py, future)?.map_err(|error| errors::client(py, &error))
}

/// Calls `poll` with slices of `patience` until it returns a value; `None` once the patience is used up.
///
/// # Errors
/// The exception that a signal handler raised.
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

/// Runs bounded work, such as reading a file, without the GIL.
pub(crate) fn outside<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    py.detach(work)
}
