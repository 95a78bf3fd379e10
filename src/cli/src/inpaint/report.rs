//! Reports each picture: as JSON lines on stdout, and failures as JSON lines in a file in OUT.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use lamagrid_domain::{BatchId, Failure, TaskId};

use super::error::InpaintError;
use super::progress::Counts;
use crate::output::{Format, Streams, Written};
use crate::terminal_text::one_line;
use crate::units::duration_ms;

/// Name of the file of failures in OUT.
pub(crate) const NAME: &str = ".lamagrid-failures.jsonl";
/// Failures that the summary shows.
const SHOWN: usize = 10;

/// How a picture ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    Done,
    Skipped,
    Failed,
    Cancelled,
    /// Left in the grid for the next run.
    Left,
}

/// One picture of a run.
#[derive(Debug, Serialize)]
pub(crate) struct PictureReport {
    pub(crate) input: String,
    pub(crate) output: Option<String>,
    pub(crate) state: Ending,
    pub(crate) task: Option<TaskId>,
    pub(crate) failure: Option<Failure>,
}

/// One line of JSON.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Picture(&'a PictureReport),
    Summary {
        #[serde(flatten)]
        counts: Counts,
        seconds: f64,
        failures: Option<&'a Path>,
        batch: Option<BatchId>,
    },
}

/// The reports of a run.
#[derive(Debug)]
pub(crate) struct Reporter {
    format: Format,
    path: PathBuf,
    /// Made at the first failure.
    file: Option<BufWriter<File>>,
    shown: Vec<String>,
    /// The batch of the run, if it had tasks.
    pub(crate) batch: Option<BatchId>,
}

impl Reporter {
    /// Begins a report; that of an earlier run is removed.
    pub(crate) fn new(folder: &Path, format: Format) -> Self {
        let path = folder.join(NAME);
        // Where it cannot be removed, the first failure says so.
        let _ = std::fs::remove_file(&path);
        Self { format, path, file: None, shown: Vec::new(), batch: None }
    }

    /// Reports a picture.
    ///
    /// # Errors
    /// [`InpaintError::Out`] if the file of failures cannot be written.
    pub(crate) fn picture(
        &mut self,
        report: &PictureReport,
        streams: &mut Streams,
    ) -> Result<Written, InpaintError> {
        let line = json(&Line::Picture(report));
        if let Some(failure) = &report.failure {
            if self.shown.len() < SHOWN {
                self.shown.push(format!("{}: {}", one_line(&report.input), one_line(&failure.message)));
            }
            self.note(&line)
                .map_err(|source| InpaintError::Out { path: self.path.clone(), source: Arc::new(source) })?;
        }
        Ok(match self.format {
            Format::Json => streams.write(&line),
            Format::Table => Written::All,
        })
    }

    fn note(&mut self, line: &str) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(File::create(&self.path)?)),
        };
        file.write_all(line.as_bytes())
    }

    /// The text at the end.
    ///
    /// # Errors
    /// [`InpaintError::Out`] if the file of failures cannot be written.
    pub(crate) fn summary(
        mut self,
        counts: &Counts,
        elapsed: std::time::Duration,
    ) -> Result<String, InpaintError> {
        let flushed = self.file.as_mut().map_or(Ok(()), |file| file.flush());
        flushed.map_err(|source| InpaintError::Out { path: self.path.clone(), source: Arc::new(source) })?;
        let path = self.file.is_some().then_some(self.path.as_path());
        if self.format == Format::Json {
            let seconds = elapsed.as_secs_f64();
            return Ok(json(&Line::Summary { counts: *counts, seconds, failures: path, batch: self.batch }));
        }
        let Counts { total, done, skipped, failed, cancelled } = *counts;
        let time = duration_ms(elapsed.as_secs_f64() * 1_000.0);
        let mut text =
            format!("{total} pictures in {time}: {done} done, {skipped} done before, {failed} failed");
        if cancelled > 0 {
            text.push_str(&format!(", {cancelled} cancelled"));
        }
        text.push('\n');
        text.extend(self.batch.map(|batch| format!("batch {batch}; see lamagrid batch show {batch}\n")));
        for line in &self.shown {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(path) = path {
            let more = failed.saturating_sub(self.shown.len() as u64);
            let more =
                if more > 0 { format!("{more} more failures; all") } else { "all failures".to_owned() };
            text.push_str(&format!("{more} are listed in {}\n", path.display()));
        }
        Ok(text)
    }
}

fn json(line: &Line<'_>) -> String {
    // Texts and numbers, so this cannot fail.
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}
