//! A process that works on tasks, one per device.
//!
//! [`Session`] speaks with the scheduler on a thread of its own; a [`Pipeline`] turns its tasks into pixels and
//! their results into files; [`backend::serve`] runs them through a [`Backend`] in between. The supervisor starts
//! one worker process per device and restarts it.
//!
//! Does not: link libtorch or name tch; `lamagrid-torch-worker` does, and the Python node brings a backend
//! of its own.
//!
//! Invariant: a result is held from [`Job::finish`] until the scheduler has it on record, over any number of
//! connections.

pub mod backend;
pub mod flags;
pub mod hardware;
pub mod libtorch;
pub mod settings;
pub mod supervisor;
pub mod weights;
pub mod worker;

mod failure;
mod impatience;
mod pipeline;
mod session;

pub use backend::{Backend, Progress, Work};
pub use pipeline::{Entered, Exit, Files, Inputs, Made, Next, Pictures, Pipeline};
pub use session::{Job, NextJob, Output, Session, SessionError, SessionOptions};
