//! Parses the time spans of command lines.

use std::time::Duration;

/// The error for a text that is no time span.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a number with its unit: 90s, 10m, 2h or 30d")]
pub(crate) struct SpanError;

/// Parses a number with its unit.
pub(crate) fn span(text: &str) -> Result<Duration, SpanError> {
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(SpanError)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(SpanError),
    };
    let number: u64 = number.parse().map_err(|_| SpanError)?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or(SpanError)
}
