//! API keys: what they are, how they are stored, and which of them a running scheduler accepts.

mod key;
mod live;
mod rate;
mod store;
mod token;

pub use key::{ApiKey, KeyId, KeyLimits, KeyRole, NewKey, RoleError};
pub use store::{CreatedKey, KeyError, KeyStore};

pub(crate) use live::{LiveKey, LiveKeys};
pub(crate) use store::open_database;
pub(crate) use token::Token;
