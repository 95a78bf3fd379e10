//! Lists what a run would do, and changes nothing.

use std::ops::ControlFlow;

use serde::Serialize;

use super::planner::{Fault, Plan, Planner};
use super::walk::Pictures;
use crate::Answer;
use crate::error::{CliError, REFUSED};
use crate::output::{Format, Streams, Written};
use crate::terminal_text::one_line;

/// The plan for a picture.
#[derive(Debug, Serialize)]
struct Line {
    event: &'static str,
    input: String,
    output: Option<String>,
    /// `run`, `skip` or `fail`.
    plan: &'static str,
    mask: Option<String>,
    reason: Option<String>,
}

/// How many pictures there are of each kind.
#[derive(Debug, Default, Serialize)]
struct Totals {
    event: &'static str,
    run: u64,
    skip: u64,
    fail: u64,
}

/// Lists the pictures as they are found.
///
/// # Errors
/// [`CliError`] if a folder or the list of results cannot be read.
pub(crate) fn list(
    planner: &Planner,
    pictures: &Pictures,
    format: Format,
    streams: &mut Streams,
) -> Result<Answer, CliError> {
    let mut totals = Totals { event: "dry_run", ..Totals::default() };
    let mut fault = None;
    pictures.visit(&mut |picture| {
        let input = picture.relative.display().to_string();
        let line = match planner.plan(&picture) {
            Err(Fault::Run(error)) => {
                fault = Some(error);
                return ControlFlow::Break(());
            }
            Err(Fault::Picture(failure)) => {
                totals.fail += 1;
                Line { reason: Some(failure.message), ..line(input, "fail") }
            }
            Ok(Plan::Skip(output)) => {
                totals.skip += 1;
                Line { output: Some(output), ..line(input, "skip") }
            }
            Ok(Plan::Note(record)) => {
                totals.skip += 1;
                Line { output: Some(record.output), ..line(input, "skip") }
            }
            Ok(Plan::Run(work)) => {
                totals.run += 1;
                Line { output: Some(work.record.output), mask: Some(work.mask), ..line(input, "run") }
            }
        };
        match streams.write(&shown(&line, format)) {
            Written::All => ControlFlow::Continue(()),
            Written::ReaderLeft | Written::Failed(_) => ControlFlow::Break(()),
        }
    })?;
    if let Some(error) = fault {
        return Err(error.into());
    }
    let text = match format {
        Format::Json => json(&totals),
        Format::Table => {
            let Totals { run, skip, fail, .. } = totals;
            format!("{run} would be inpainted, {skip} are done, {fail} would fail; nothing was changed\n")
        }
    };
    Ok(Answer { text, remark: None, code: if totals.fail > 0 { REFUSED } else { 0 } })
}

fn line(input: String, plan: &'static str) -> Line {
    Line { event: "picture", input, output: None, plan, mask: None, reason: None }
}

fn shown(line: &Line, format: Format) -> String {
    if format == Format::Json {
        return json(line);
    }
    let mut text = format!("{:4}  {}", line.plan, one_line(&line.input));
    if let Some(output) = line.output.as_ref().filter(|output| **output != line.input) {
        text.push_str(&format!(" -> {}", one_line(output)));
    }
    if let Some(mask) = &line.mask {
        text.push_str(&format!("  (mask {})", one_line(mask)));
    }
    if let Some(reason) = &line.reason {
        text.push_str(&format!(": {}", one_line(reason)));
    }
    text.push('\n');
    text
}

fn json(value: &impl Serialize) -> String {
    // Texts and numbers, so this cannot fail.
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}
