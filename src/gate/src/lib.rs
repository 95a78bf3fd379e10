//! Guards the only way from the network to the private sockets of a scheduler; its counterpart runs on other hosts.
//!
//! ZeroMQ does not authenticate peers and trusts every length. The gate therefore checks everything from the
//! network before ZeroMQ reads it: it requires mutual TLS and a line that names the channel, replaces the
//! peer's identity by one with the certificate's name, and checks the header of every frame.
//!
//! Does not: interpret messages, or reconnect.
//!
//! Invariant: this is the only crate that uses `rustls` and `rcgen`.

mod accept;
mod allow_list;
mod authority;
mod blob_client;
mod bundle;
mod certificate;
mod certificate_file;
mod connect;
mod credentials;
mod dial;
mod dial_error;
mod fingerprint;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod https;
mod ledger;
mod log_limiter;
mod places;
mod preamble;
mod probe;
mod proxy;
mod registry;
mod reloading_tls;
mod scheduler_route;
mod trouble;
mod validity;
mod zmtp_guard;

pub use accept::{Gate, GateError, GateOptions};
pub use allow_list::AllowList;
pub use authority::{CertificateError, NewCertificate, Older};
pub use blob_client::{BlobClient, BlobError};
pub use bundle::{Bundle, BundleError};
pub use certificate::{Certificate, CredentialsError, IdentityError, PeerRole, SCHEDULER_NAME, is_node_of};
pub use certificate_file::CertificateFile;
pub use connect::{AddressError, ConnectError};
pub use credentials::Credentials;
pub use dial::{Dialler, DiallerError};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use https::{Https, HttpsError, HttpsStream};
pub use ledger::{Certs, CertsError, Issued, allow_list, write_private};
pub use probe::{PathError, Probed, answering, probe};
pub use registry::{Origin, Registry};
pub use scheduler_route::{Lanes, SchedulerRoute};
pub use trouble::Trouble;
