//! Writes all output: tables for people, JSON for programs, errors to stderr.
//!
//! Does not: know commands. Each answer formats itself; see [`Show`].

use std::io::{self, ErrorKind, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::CliError;
use crate::terminal_text::one_line;

/// Format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// Table for people; may change with any version.
    #[default]
    Table,
    /// JSON for programs; keys are never renamed or removed.
    Json,
}

/// An answer of a command: JSON by `Serialize`, text for people by [`Show::table`].
pub(crate) trait Show: Serialize {
    /// Text for people, without a final line end.
    fn table(&self) -> String;
}

impl Format {
    /// Formats the answer, with a final line end.
    pub(crate) fn render(self, answer: &impl Show) -> Result<String, CliError> {
        let mut text = match self {
            Self::Table => answer.table(),
            Self::Json => serde_json::to_string_pretty(answer)?,
        };
        text.push('\n');
        Ok(text)
    }
}

/// Aligns rows in columns under headings, without lines. An empty `header` omits the headings.
pub(crate) fn columns(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !header.is_empty() {
        table.set_header(header);
    }
    // Cells may hold text of other processes, so escape control characters.
    table.add_rows(rows.into_iter().map(|row| row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>()));
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    // Removes trailing spaces, which would wrap in a narrow terminal.
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Result of writing to stdout.
#[derive(Debug)]
pub(crate) enum Written {
    All,
    /// The reader closed the pipe, as in `lamagrid ... | head`; not an error.
    ReaderLeft,
    Failed(io::Error),
}

/// Output streams of a command.
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

    /// Writes to stderr, and ignores errors: there is no other place to report them.
    pub(crate) fn say(&mut self, text: &str) {
        let _ = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }
}
