//! Builds the subscriber from filter, line format and writers.
//!
//! Does not: change process globals; [`crate::init`] installs the subscriber.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use tracing::Subscriber;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::writer::{MakeWriterExt, OptionalWriter};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use lamagrid_config::{LogFormat, LogLevel};

use crate::LogError;
use crate::rotate::RotatedFile;

/// Most lines waiting for the file's thread, usually a few MiB; further lines are dropped.
const WAITING_LINES_MAX: usize = 8192;

/// Builds the filter from `directives` (the environment variable) or else from the configured level.
///
/// Below `info` only LamaGrid's own lines pass, since debug lines of libraries would bury them. Only errors
/// of zeromq pass, because it warns of every closed connection and of every missing socket file.
pub(crate) fn filter(level: LogLevel, directives: Option<String>) -> Result<EnvFilter, LogError> {
    let value = directives.unwrap_or_else(|| match level {
        LogLevel::Error | LogLevel::Warn | LogLevel::Info => {
            format!("{},zeromq=error", level.as_str())
        }
        // A directive applies to every target with this prefix: lamagrid_node, lamagrid_gate, ...
        LogLevel::Debug | LogLevel::Trace => format!("info,zeromq=error,lamagrid={}", level.as_str()),
    });
    EnvFilter::builder().parse(&value).map_err(|source| LogError::Filter { value, source })
}

/// The file's writer, `None` without a file; replaced after a fork.
pub(crate) type FileWriter = Arc<RwLock<Option<NonBlocking>>>;

struct ToFile(FileWriter);

impl<'w> MakeWriter<'w> for ToFile {
    type Writer = OptionalWriter<NonBlocking>;

    fn make_writer(&'w self) -> Self::Writer {
        // Never blocks: in a forked child the lock may be held by a thread that does not exist there.
        match self.0.try_read().ok().and_then(|slot| slot.clone()) {
            Some(writer) => OptionalWriter::some(writer),
            None => OptionalWriter::none(),
        }
    }
}

/// Starts a thread that writes the file; returns the thread's writer, the file's path and the guard.
pub(crate) fn in_background(file: RotatedFile) -> (NonBlocking, PathBuf, WorkerGuard) {
    let path = file.path().to_owned();
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES_MAX)
        .lossy(true)
        .thread_name("log-file")
        .finish(file);
    (writer, path, guard)
}

/// Builds the subscriber, which writes the same lines to `stderr` and, if present, to the file.
pub(crate) fn build<W>(
    format: LogFormat,
    filter: impl Layer<Registry> + Send + Sync,
    stderr: W,
    file: FileWriter,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // One layer for both, so that each line is formatted once. The file comes first because stderr may block.
    let lines = lines(format, ToFile(file).and(stderr));
    tracing_subscriber::registry().with(filter).with(lines)
}

/// Builds the layer of one format and writer, without colours, since the file must not contain terminal codes.
fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // The layer reports its own errors with `eprintln!`, which panics when stderr is closed.
    let layer = fmt::layer().with_writer(writer).with_ansi(false).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.boxed(),
        // Event fields are at the top level beside level and message, as log processors expect.
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

/// Standard error; write errors are ignored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One call per line, so that lines of several threads do not mix.
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use serde_json::Value;
    use tracing::{debug, error, info, info_span};

    use super::*;

    /// Runs `act` with a subscriber that writes to memory and, with `dir`, to a file; returns the lines in memory.
    fn written(format: LogFormat, directives: &str, dir: Option<&Path>, act: impl FnOnce()) -> String {
        let memory = Arc::new(Mutex::new(Vec::new()));
        let filter = filter(LogLevel::Info, Some(directives.to_owned())).unwrap();
        let file = dir.map(|dir| in_background(RotatedFile::open(dir, "test", 7).unwrap()));
        let (file, _guard) = match file {
            Some((writer, _, guard)) => (Some(writer), Some(guard)),
            None => (None, None),
        };
        let subscriber = build(format, filter, Memory(Arc::clone(&memory)), Arc::new(RwLock::new(file)));
        tracing::subscriber::with_default(subscriber, act);
        let bytes = memory.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[derive(Clone)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Memory {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_json_line_carries_message_fields_and_spans() {
        let lines = written(LogFormat::Json, "info", None, || {
            let _span = info_span!("serve", task.id = "t-1").entered();
            info!(infer_ms = 42, outcome = "completed\nreally", "task finished");
            debug!("not shown");
        });
        assert_eq!(lines.lines().count(), 1, "{lines}");
        let line: Value = serde_json::from_str(&lines).unwrap();
        assert_eq!(line["message"], "task finished");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["infer_ms"], 42);
        assert_eq!(line["outcome"], "completed\nreally");
        assert_eq!(line["spans"][0]["task.id"], "t-1");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[test]
    fn a_text_line_has_no_terminal_codes() {
        let lines = written(LogFormat::Text, "info", None, || info!(node.id = "n-1", "node lost"));
        assert!(lines.ends_with("node lost node.id=\"n-1\"\n"), "{lines}");
        assert!(!lines.contains('\u{1b}'), "no terminal codes: {lines:?}");
    }

    #[test]
    fn the_file_gets_the_same_lines() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("made/here");
        let lines = written(LogFormat::Json, "info", Some(&place), || {
            info!("one");
            error!("two");
        });
        assert_eq!(std::fs::read_to_string(place.join("test.log")).unwrap(), lines);
    }

    #[test]
    fn a_failure_is_reported_once_with_its_chain_and_backtrace() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the store")]
        struct Outer(#[source] io::Error);
        let failure = Outer(io::Error::other("disk on fire\nand smoking"));
        let lines = written(LogFormat::Json, "info", None, || crate::report(&failure, "start failed"));
        let line: Value = serde_json::from_str(&lines).unwrap();
        assert_eq!(line["message"], "start failed");
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["error"], "cannot open the store: disk on fire\\nand smoking");
        assert!(line["backtrace"].as_str().unwrap().contains("report"), "{line}");
        assert!(line["location"].as_str().unwrap().contains("subscriber.rs:"), "{line}");
        assert_eq!(written(LogFormat::Json, "off", None, || crate::report(&failure, "unseen")), "");
    }

    #[test]
    fn the_level_applies_to_lamagrid_and_the_variable_replaces_it() {
        let show =
            |level, variable: Option<&str>| filter(level, variable.map(str::to_owned)).unwrap().to_string();
        assert_eq!(show(LogLevel::Warn, None), "zeromq=error,warn");
        assert_eq!(show(LogLevel::Debug, None), "lamagrid=debug,zeromq=error,info");
        assert_eq!(show(LogLevel::Debug, Some("error")), "error");
        let lines = written(LogFormat::Text, "info,lamagrid=debug", None, || {
            debug!(target: "lamagrid_node::session", "ours");
            debug!(target: "zeromq", "theirs");
        });
        assert!(lines.contains("ours") && !lines.contains("theirs"), "{lines}");
        let error = filter(LogLevel::Info, Some("info,x=loud".to_owned())).unwrap_err();
        assert!(
            error.to_string().starts_with("`info,x=loud` in LAMAGRID_LOG is not a log filter"),
            "{error}"
        );
    }
}
