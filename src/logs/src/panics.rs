//! Logs panics.
//!
//! Does not: catch them, or decide whether a panic ends a thread or becomes a failure.

use std::panic::PanicHookInfo;

use tracing::{Level, enabled, error};

use crate::report::{bounded_backtrace, one_line};

/// Installs a hook that logs every panic as one `error` line with message, location, thread and backtrace.
///
/// The previous hook runs only if errors are not logged, so that each panic is reported exactly once.
pub(crate) fn install_hook() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !enabled!(Level::ERROR) {
            before(info);
            return;
        }
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let current = std::thread::current();
        let thread = current.name().unwrap_or("unnamed");
        let backtrace = bounded_backtrace();
        error!(panic = %one_line(text(info)), %location, thread, %backtrace, "thread panicked");
    }));
}

fn text<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    info.payload_as_str().unwrap_or("a payload that is not text")
}
