//! Carries frames over ZeroMQ sockets between the processes of one host; the gate relays them to other hosts.
//!
//! Does not: interpret messages, or reconnect.
//!
//! Invariant: this is the only crate that uses `zeromq`.

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
