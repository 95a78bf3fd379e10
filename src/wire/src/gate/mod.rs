//! The gate: the one way from the network to the private sockets of a scheduler, and its mirror image on other hosts.
//!
//! ZeroMQ authenticates nobody and trusts every length, so nothing from the network reaches it that was not
//! judged here: mutual TLS, a line that names the channel, the handshake's identity replaced by the
//! certificate's, every frame's header followed.
//!
//! Does not: issue certificates, know messages, or reconnect.

mod accept;
mod allow_list;
mod blobs;
mod bundle;
mod credentials;
mod dial;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod line;
mod papers;
mod places;
mod registry;
mod relay;
mod way;
mod zmtp;

pub use accept::{Gate, GateError};
pub use allow_list::{AllowList, Fingerprint};
pub use blobs::{BlobError, Blobs, Grant, Ticket};
pub use bundle::{Bundle, BundleError};
pub use credentials::{
    Certificate, Credentials, CredentialsError, PeerRole, SCHEDULER_NAME, check_name, is_node_of,
};
pub use dial::{Dialler, DiallerError, probe};
pub use registry::{Origin, Registry};
pub use way::{Lanes, Way};
