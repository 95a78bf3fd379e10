//! One typed configuration: embedded default < file < environment < flag. Also finds this host's directories, sockets
//! and libtorch.
//!
//! Does not: watch files, parse command lines, or hold secrets.
//!
//! Every process calls [`Config::load`] once at its start. Each value is checked in its own layer, so an error is
//! reported with its key and layer even if a stronger layer overrides the value. The embedded default,
//! [`default_toml`], contains and documents every key.
//!
//! This is the only crate that uses `strsim`, and with `hardware` the only one that uses `toml`.

pub mod libtorch;

mod check;
mod choice;
mod dirs;
mod error;
mod key;
mod load;
mod model;
mod model_check;
mod names;
mod origin;
mod schema;
mod signature;
mod socket_dir;

pub use choice::{Device, LogFormat, LogLevel, NeededDevice, RequiredDevice};
pub use error::ConfigError;
pub use load::{Loaded, process_env};
pub use model::{
    ApiConfig, ClientConfig, Config, GateConfig, HttpConfig, LimitsConfig, LogConfig, ModelConfig,
    NeedConfig, NodeConfig, QueueConfig, RequiresConfig, RetryConfig, RetryPolicy, SchedulerConfig,
    StoreConfig,
};
pub use origin::{Origin, Row};
pub use schema::most_similar;
pub use signature::{Argument, Blend, Colour, MaskRange, MaskType, Part, ValueRange};
pub use socket_dir::{SocketDir, find_sockets, own_socket_finder, running_scheduler, socket_finder};

/// The embedded default: every key with its comment and its default value.
#[must_use]
pub fn default_toml() -> &'static str {
    include_str!("default.toml")
}
