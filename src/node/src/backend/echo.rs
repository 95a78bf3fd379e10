//! Returns each task's picture unchanged, for tests and measurements without a model.

use std::time::{Duration, Instant};

use lamagrid_domain::{Failure, ModelName, ModelOffer, Stages};
use lamagrid_session::millis;

use super::{Answer, Backend, Progress, Work, stopped};

/// Interval at which a running task checks for a cancel.
const STEP: Duration = Duration::from_millis(10);
/// Longest delay that a task may ask for.
const LONGEST: Duration = Duration::from_secs(3_600);

/// The echo backend. A task takes the time of its parameter `echo_ms`; with the parameter `echo_abort` it aborts the process,
/// as a task does that crashes its nodes.
#[derive(Debug, Clone)]
pub struct Echo {
    offers: Vec<ModelOffer>,
}

impl Echo {
    /// Creates a backend for these models, all of which count as loaded.
    #[must_use]
    pub fn new(mut offers: Vec<ModelOffer>) -> Self {
        offers.iter_mut().for_each(|offer| offer.loaded = true);
        Self { offers }
    }
}

impl Backend for Echo {
    fn models(&self) -> Vec<ModelOffer> {
        self.offers.clone()
    }

    fn load(&mut self, _model: &ModelName, _progress: &dyn Progress) -> Result<Duration, Failure> {
        Ok(Duration::ZERO)
    }

    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure> {
        let began = Instant::now();
        if work.params.int("echo_abort").is_some() {
            tracing::error!(model = %work.model, "aborting, as the task asks");
            std::process::abort();
        }
        let asked = work.params.int("echo_ms").and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
        let delay = Duration::from_millis(asked).min(LONGEST);
        let of = u32::try_from(delay.as_millis() / STEP.as_millis()).unwrap_or(u32::MAX);
        for step in 0..of {
            if progress.step(step, of).is_break() {
                return Err(stopped());
            }
            // Sleep until a time counted from the start, so that the overruns of many short sleeps do not add up.
            std::thread::sleep((STEP * (step + 1)).saturating_sub(began.elapsed()));
        }
        std::thread::sleep(delay.saturating_sub(began.elapsed()));
        if progress.step(of, of).is_break() {
            return Err(stopped());
        }
        let stages = Stages { infer_ms: millis(began.elapsed()), ..Stages::default() };
        Ok(Answer { image: work.image, stages, memory: None })
    }
}
