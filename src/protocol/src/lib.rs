//! Defines the messages between the processes of a grid: their encoding, limits and versions, and the preamble before ZMTP.
//!
//! Does not: read or write sockets, make decisions, or keep state.
//!
//! Invariant: every frame that [`frame`] returns was checked against the limits before it was decoded.

pub mod frame;
pub mod message;
pub mod preamble;
pub mod transfer;

mod digest;
mod pack;
mod peer;

pub use digest::{Hasher, hash, payload_digest};
pub use pack::pack;
pub use peer::PeerId;
