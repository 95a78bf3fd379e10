//! Defines a task: ids, states, transitions, failures, capabilities and parameters.
//!
//! Holds every type that the crates share, so that a task means the same in the scheduler, on a node, in the
//! store and in Python.
//!
//! Does not: read a clock, open a file or a socket, draw a random number. Ids are built from bytes that the caller drew.
//!
//! Invariant: a task leaves [`State::Queued`] and [`State::Assigned`] only through [`State::apply`].

mod blob;
mod capability;
mod date;
mod failure;
mod history;
mod ids;
mod name;
mod picture;
mod state;
mod task;
mod text;

pub use blob::{BlobForm, BlobMeta, Hash, Role};
pub use capability::{
    DeviceClass, LiveFigures, MemoryUse, ModelOffer, NodeInfo, NodeKind, WithheldModel, is_upstreams_model,
};
pub use date::rfc3339;
pub use failure::{Failure, FailureFamily, FailureKind, MAX_MESSAGE_CHARS, Retry};
pub use history::{Entry, Milestone};
pub use ids::{BootId, LeaseToken, ParseIdError, SessionId, TaskId};
pub use name::{ClientName, ModelName, NameError, NodeName, Owner, QueueName};
pub use picture::{OutputForm, PictureFormat, PictureFormatError, PictureSize};
pub use state::{Activity, Advance, Event, IllegalTransition, State, Status};
pub use task::{Counters, Durability, Params, ParamsError, Scalar, Stages, TaskSpec};
pub use text::{Label, Line, LineFeeds, Reason, printable};
