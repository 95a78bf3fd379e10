//! The one place that writes: tables for people, JSON for programs, errors to stderr.
//!
//! Does not: know commands; what can be shown says itself how it looks, see [`Show`].

use std::io::{self, ErrorKind, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::CliError;
use crate::terminal_text::one_line;

/// How to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; may change with any version.
    #[default]
    Table,
    /// For programs; keys are never renamed or removed.
    Json,
}

/// Something that a command gives: its JSON by `Serialize`, its text for people here.
pub(crate) trait Show: Serialize {
    /// For people; ends without a line end.
    fn table(&self) -> String;
}

impl Format {
    /// The answer in this format, with its line end.
    pub(crate) fn render(self, answer: &impl Show) -> Result<String, CliError> {
        let mut text = match self {
            Self::Table => answer.table(),
            Self::Json => serde_json::to_string_pretty(answer)?,
        };
        text.push('\n');
        Ok(text)
    }
}

/// Columns under headings, without lines; an empty `header` leaves the headings out.
pub(crate) fn columns(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header);
    }
    // Much of it came from other processes.
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>()));
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    // Blanks at the end of a row are of no use to anybody, and wrap in a narrow terminal.
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// What became of a text for stdout.
#[derive(Debug)]
pub(crate) enum Written {
    All,
    /// `lamagrid ... | head`: not an error.
    ReaderLeft,
    Failed(io::Error),
}

/// Where a command writes to.
pub(crate) struct Streams<'a> {
    pub(crate) out: &'a mut dyn Write,
    pub(crate) err: &'a mut dyn Write,
}

impl Streams<'_> {
    /// Writes to stdout.
    pub(crate) fn write(&mut self, text: &str) -> Written {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => Written::All,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Written::ReaderLeft,
            Err(error) => Written::Failed(error),
        }
    }

    /// Writes to stderr. Who closed it does not want to know.
    pub(crate) fn say(&mut self, text: &str) {
        let _ = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }
}
