//! Scenarios: a sequence of inputs, each with the full list of its effects. An effect that is not listed was neither sent
//! nor written.

mod admin;
mod admission;
mod clients;
mod clocks;
mod grid;
mod isolation;
mod limits;
mod lines;
mod lost;
mod node_admin;
mod nodes;
mod overlap;
mod retries;
mod routing;
mod uploads;

pub(super) use grid::{config, finished, info, spec, task};
