//! Stores blobs in a directory, and serves their transfers between hosts on the accepting side.
//!
//! [`Spool`] is the directory; [`Staging`] keeps uploads of which no task is known yet; [`Grants`] holds the permissions
//! of certificates; [`serve()`] moves one blob over a stream. The dialling side is the gate's blob client, since it needs the gate's connections.
//!
//! Does not: open connections, know certificates beyond their names, or decide who gets a grant.

mod grants;
mod serve;
mod spool;
mod staging;

pub use grants::{Grant, Grants, Ticket};
pub use serve::{KEPT_OPEN, refuse, serve};
pub use spool::{BlobName, Spool, SpoolError, Swept, Writer};
pub use staging::{StagedFile, StagedWriter, Staging};
