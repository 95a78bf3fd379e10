//! The gate: the one way from the network to the private sockets of a scheduler, and its mirror image on other hosts.
//!
//! ZeroMQ authenticates nobody and trusts every length, so nothing from the network reaches it that was not
//! judged here: mutual TLS, a line that names the channel, the handshake's identity replaced by the
//! certificate's, every frame's header followed.
//!
//! Does not: issue certificates, know messages, or reconnect.

mod accept;
mod allow_list;
mod blob_client;
mod blobs;
mod bundle;
mod connect;
mod credentials;
mod dial;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod line;
mod papers;
mod places;
mod probe;
mod registry;
mod relay;
mod trouble;
mod validity;
mod way;
mod zmtp;

pub use accept::{Gate, GateError};
pub use allow_list::{AllowList, Fingerprint};
pub use blob_client::{BlobError, Blobs};
pub use blobs::{Grant, Ticket};
pub use bundle::{Bundle, BundleError};
pub use credentials::{
    Certificate, Credentials, CredentialsError, PeerRole, SCHEDULER_NAME, check_name, is_node_of,
};
pub use dial::{Dialler, DiallerError};
pub use probe::{Probed, answering, probe};
pub use registry::{Origin, Registry};
pub use trouble::Trouble;
pub use way::{Lanes, Way};
