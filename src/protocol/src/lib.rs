//! What the processes of one grid say to each other: messages, frames, their limits and versions, and the line before ZMTP.
//!
//! Does not: read or write sockets, decide anything, remember anything.
//!
//! Invariant: every frame that leaves [`frame`] was checked against the limits before it was decoded.

pub mod frame;
pub mod message;
pub mod preamble;
pub mod transfer;

mod digest;
mod pack;
mod peer;

pub use digest::{hash, payload_digest};
pub use pack::pack;
pub use peer::PeerId;
