//! ZeroMQ sockets between the processes of one host; the gate carries them to other hosts.
//!
//! Does not: know what messages mean, or reconnect.
//!
//! Invariant: the only crate that names `zeromq`.

pub mod link;
pub mod request;
pub mod router;
pub mod zmtp;

mod connection;
mod endpoint;
mod events;
mod lane;
mod listener;
mod outbox;

pub use endpoint::{Endpoints, SocketError, file_identity};
pub use events::{EventPublisher, EventSubscriber};
pub use lane::{LaneEvent, LaneReceiver, LaneSender};
pub use listener::{ConnectionLimits, SocketFile};
