//! Messages, frames, limits and sockets between the processes of one grid.
//!
//! Does not: decide anything, remember anything, know what a queue is. Siblings (client, scheduler, node)
//! meet only here.
//!
//! Invariant: the only crate that names `zeromq`, and every frame that leaves [`frame`] was checked against
//! the limits before it was decoded.

pub mod descriptors;
pub mod frame;
pub mod gate;
pub mod link;
pub mod message;
mod random;
pub mod request;
pub mod router;
pub mod spool;

mod connection;
mod digest;
mod endpoint;
mod events;
mod lane;
mod listener;
mod memory;
mod outbox;
mod pack;
mod zmtp;

pub use digest::{hash, payload_digest};
pub use endpoint::{Endpoints, SocketError};
pub use events::{EventPublisher, EventSubscriber};
pub use lane::{LaneEvent, LaneReceiver, LaneSender};
pub use listener::{ConnectionLimits, SocketFile};
pub use pack::pack;
pub use random::{new_task_id, random_bytes, random_id};
