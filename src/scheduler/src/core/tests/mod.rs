//! Scenarios: what one input after the other leads to, with the full list of effects. What is not in a list was
//! not sent and not written.

mod admin;
mod admission;
mod clients;
mod clocks;
mod grid;
mod isolation;
mod limits;
mod lost;
mod nodes;
mod overlap;
mod retries;
mod uploads;

pub(super) use grid::{config, finished, info, spec, task};
