//! Counts pictures, and shows how far a run is: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::output::Streams;
use crate::units::duration_ms;

/// Interval of the bar on a terminal, and of lines elsewhere.
const BAR_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Characters of the bar.
const WIDTH: u64 = 24;
/// Moves to the begin of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// How many pictures ended in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Counts {
    pub(crate) total: u64,
    pub(crate) done: u64,
    /// Done by an earlier run.
    pub(crate) skipped: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
}

impl Counts {
    fn ended(&self) -> u64 {
        self.done + self.skipped + self.failed + self.cancelled
    }
}

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Terminal,
    Lines,
}

/// The progress of a run.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) counts: Counts,
    began: Instant,
    place: Place,
    /// A bar is on the terminal, which other output must clear.
    is_shown: bool,
}

impl Progress {
    pub(crate) fn new(total: u64) -> Self {
        let place = if std::io::stderr().is_terminal() { Place::Terminal } else { Place::Lines };
        Self { counts: Counts { total, ..Counts::default() }, began: Instant::now(), place, is_shown: false }
    }

    /// Interval at which it is shown.
    pub(crate) fn interval(&self) -> Duration {
        match self.place {
            Place::Terminal => BAR_EVERY,
            Place::Lines => LINE_EVERY,
        }
    }

    /// Shows the current state.
    pub(crate) fn show(&mut self, streams: &mut Streams) {
        let line = line(&self.counts, self.began.elapsed());
        match self.place {
            Place::Terminal => {
                streams.say(&format!("{CLEAR}{} {line}", bar(&self.counts)));
                self.is_shown = true;
            }
            Place::Lines => streams.say(&format!("{line}\n")),
        }
    }

    /// Removes the bar, before other output.
    pub(crate) fn clear(&mut self, streams: &mut Streams) {
        if std::mem::take(&mut self.is_shown) {
            streams.say(CLEAR);
        }
    }

    /// Time since the begin.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

fn bar(counts: &Counts) -> String {
    let full = (counts.ended() * WIDTH).checked_div(counts.total).unwrap_or(0).min(WIDTH);
    let (full, rest) = ("#".repeat(full as usize), ".".repeat((WIDTH - full) as usize));
    format!("[{full}{rest}]")
}

fn line(counts: &Counts, elapsed: Duration) -> String {
    let Counts { total, done, skipped, failed, .. } = *counts;
    let mut line = format!("{done} done, {failed} failed");
    if skipped > 0 {
        line.push_str(&format!(", {skipped} skipped"));
    }
    line.push_str(&format!(" of {total}"));
    let worked = (done + failed) as f64;
    let seconds = elapsed.as_secs_f64();
    if worked > 0.0 && seconds > 0.0 {
        let left = total.saturating_sub(counts.ended()) as f64;
        let left_ms = left * seconds / worked * 1_000.0;
        line.push_str(&format!(", {:.1} per second, {} left", worked / seconds, duration_ms(left_ms)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_rate_and_time_left_of_the_work_itself() {
        let counts = Counts { total: 400, done: 58, skipped: 100, failed: 2, cancelled: 0 };
        let shown = line(&counts, Duration::from_secs(30));
        assert_eq!(shown, "58 done, 2 failed, 100 skipped of 400, 2.0 per second, 2 min 0 s left");
        assert_eq!(bar(&counts), "[#########...............]");
        let none = Counts { total: 3, ..Counts::default() };
        assert_eq!(line(&none, Duration::ZERO), "0 done, 0 failed of 3");
        assert_eq!(bar(&Counts::default()), "[........................]");
        let all = Counts { total: 3, done: 3, ..Counts::default() };
        assert_eq!(line(&all, Duration::from_secs(3)), "3 done, 0 failed of 3, 1.0 per second, 0 ms left");
    }
}
