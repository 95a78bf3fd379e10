//! Logs an error at the place where it is handled.
//!
//! Does not: decide whether an error is worth a line; its handler does.

use std::backtrace::Backtrace;
use std::error::Error;
use std::panic::Location;

use tracing::{Level, enabled, error};

/// Longest error text in a line, in bytes: texts from other processes must not fill the disk.
const CHAIN_MAX_BYTES: usize = 4096;

/// Longest backtrace in a line, in bytes. The deepest frames, which matter most, come first and are kept.
const BACKTRACE_MAX_BYTES: usize = 32 * 1024;

/// Logs an error once, with its sources, the caller's location and a backtrace.
///
/// `message` is a constant that says which operation failed. The fields: `error`, the texts of the error and
/// its sources on one line, joined by `: `; `location`; `backtrace`, of this call.
#[track_caller]
pub fn report(error: &dyn Error, message: &str) {
    // Skipped early: capturing a backtrace takes milliseconds.
    if !enabled!(Level::ERROR) {
        return;
    }
    let location = Location::caller();
    let backtrace = bounded_backtrace();
    error!(error = %chain(error), %location, %backtrace, "{message}");
}

/// Joins the texts of an error and its sources with `: `, with control characters escaped.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        // Some errors already include their source's text.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        if text.len() > CHAIN_MAX_BYTES {
            break;
        }
        next = source.source();
    }
    shortened(one_line(&text), CHAIN_MAX_BYTES)
}

/// The caller's backtrace, truncated.
pub(crate) fn bounded_backtrace() -> String {
    shortened(Backtrace::force_capture().to_string(), BACKTRACE_MAX_BYTES)
}

/// Escapes control characters, so that the text cannot start a log line of its own.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

fn shortened(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Link(String, Option<Box<Link>>);

    impl fmt::Display for Link {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl Error for Link {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|link| link as &(dyn Error + 'static))
        }
    }

    fn linked(texts: &[&str]) -> Link {
        let (first, rest) = texts.split_first().unwrap();
        Link((*first).to_owned(), (!rest.is_empty()).then(|| Box::new(linked(rest))))
    }

    #[test]
    fn sources_are_joined_on_one_line() {
        assert_eq!(chain(&linked(&["a", "b", "c"])), "a: b: c");
        assert_eq!(chain(&linked(&["a: b", "b"])), "a: b", "not twice");
        assert_eq!(chain(&linked(&["a\n2026 ERROR forged\u{1b}[2J"])), "a\\n2026 ERROR forged\\u{1b}[2J");
    }

    #[test]
    fn a_long_error_text_is_truncated() {
        let long = "é".repeat(CHAIN_MAX_BYTES);
        let text = chain(&linked(&["x", &long, "never reached"]));
        assert!(text.len() <= CHAIN_MAX_BYTES + 3 && text.ends_with("é..."));
    }
}
