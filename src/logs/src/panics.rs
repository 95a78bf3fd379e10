//! Panics as log lines.
//!
//! Does not: catch them; whether a panic ends a thread or becomes a failure is decided elsewhere.

use std::panic::PanicHookInfo;

use tracing::{Level, enabled, error};

use crate::report::{bounded_backtrace, one_line};

/// Makes every panic of the process one `error` line with message, place, thread and backtrace.
///
/// The hook that was there before runs only where errors are not logged, so that a panic is told
/// exactly once.
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
