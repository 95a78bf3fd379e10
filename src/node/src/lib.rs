//! Runs a node: one worker process per device, under a supervisor that restarts it.
//!
//! A worker holds a [`Session`](lamagrid_session::Session) with the scheduler; [`backend::serve`] takes tasks from it and runs them
//! through a [`Backend`](backend::Backend).
//!
//! Does not: link libtorch or call tch; `lamagrid-torch-worker` does. Python nodes have their own backend and share only the
//! session.

pub mod backend;
pub mod capabilities;
pub mod devices;
pub mod flags;
pub mod memory;
pub mod model_cache;
pub mod settings;
pub mod signature;
pub mod supervisor;
pub mod worker;

mod cancel_watchdog;
