//! The directory that holds blobs, and the accepting end of their transfer between hosts.
//!
//! [`Spool`] is the directory; [`Grants`] says which certificate may read and write which blob; [`serve`] moves one over a
//! stream. The dialling end is the gate's blob client, since it needs the gate's connections.
//!
//! Does not: open connections, know certificates beyond their names, or decide what is granted.

mod grants;
mod serve;
mod spool;

pub use grants::{Grant, Grants, Ticket};
pub use serve::{KEPT_OPEN, refuse, serve};
pub use spool::{BlobName, Spool, SpoolError, Swept, Writer};
