//! The configuration as types, one per section.
//!
//! Does not: check ranges; [`Config::load`] did. What a value means stands in `default.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use lamagrid_domain::FailureFamily;

use crate::choice::{Device, LogFormat, LogLevel};
use crate::dirs::BaseDirs;
use crate::error::ConfigError;
use crate::names::is_name;

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Absolute, or empty where the environment names no home. Use [`Config::data_dir()`].
    pub data_dir: PathBuf,
    /// Leases, retries and retention.
    pub scheduler: SchedulerConfig,
    /// Repetitions.
    pub retry: RetryConfig,
    /// Queues by name; `gpu` and `cpu` always exist.
    pub queues: BTreeMap<String, QueueConfig>,
    /// The database and the spool.
    pub store: StoreConfig,
    /// What a node offers.
    pub node: NodeConfig,
    /// Own model files by model name.
    #[serde(default)]
    pub models: BTreeMap<String, ModelConfig>,
    /// Waiting for results.
    pub client: ClientConfig,
    /// What is accepted at all.
    pub limits: LimitsConfig,
    /// The scheduler's page for machines.
    pub http: HttpConfig,
    /// Which browsers the web server answers.
    pub web: WebConfig,
    /// The way in for other hosts.
    pub gate: GateConfig,
    /// Log lines.
    pub log: LogConfig,
}

/// `[scheduler]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// A silent node keeps its tasks this long.
    pub lease_ms: u64,
    /// A node silent for this long gets no new tasks.
    pub suspect_after_ms: u64,
    /// Time between two reports of a node.
    pub poll_ms: u64,
    /// A node accepts an assignment within this time or loses its session.
    pub accept_timeout_ms: u64,
    /// A node whose connection closed comes back within this time or is lost.
    pub closed_grace_ms: u64,
    /// A task that no known node can run fails after this time.
    pub no_node_wait_ms: u64,
    /// Nodes lost with this task alone before it fails.
    pub crash_limit: u32,
    /// A task may wait this long; 0 is for ever.
    pub wait_limit_ms: u64,
    /// An attempt may take this long; 0 is for ever.
    pub run_limit_ms: u64,
    /// A task below priority 0 rises by one after each such wait; 0 is never.
    pub ageing_ms: u64,
    /// A node that failed this many tasks in a row is set aside; 0 is never.
    pub set_aside_after: u32,
    /// A node that was set aside gets a task again after this time.
    pub probe_after_ms: u64,
    /// A result can be fetched again for this long.
    pub result_retention_s: u64,
    /// A dead letter can be replayed for this long.
    pub dead_retention_s: u64,
    /// A removed task's id is remembered for this long.
    pub tombstone_retention_s: u64,
    /// Unfinished tasks that one connection may follow.
    pub max_outstanding_per_peer: u32,
}

/// `[retry]`: what happens after a failure that a node reported, by its family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// Connections and time limits.
    pub network: RetryPolicy,
    /// Memory and disk.
    pub resource: RetryPolicy,
    /// Models.
    pub model: RetryPolicy,
    /// All else.
    pub other: RetryPolicy,
}

/// `[retry.FAMILY]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// Failures reported for a task before it fails.
    pub failure_limit: u32,
    /// Bound of the random wait before the first repetition; it doubles.
    pub base_ms: u64,
    /// The longest wait before a repetition.
    pub cap_ms: u64,
}

impl RetryConfig {
    /// The policy of a family.
    #[must_use]
    pub const fn of(&self, family: FailureFamily) -> RetryPolicy {
        match family {
            // Time limits have no keys of their own.
            FailureFamily::Network | FailureFamily::Timeout => self.network,
            FailureFamily::Resource => self.resource,
            FailureFamily::Model => self.model,
            FailureFamily::Other => self.other,
        }
    }
}

/// `[queues.NAME]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueConfig {
    /// Waiting tasks; more are refused.
    pub max_tasks: u32,
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Changes in one commit at most.
    pub group_commit_max: u32,
    /// A store that cannot commit for this long ends the process.
    pub give_up_after_ms: u64,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// As configured, empty for the host name. Use [`NodeConfig::display_name`].
    pub name: String,
    /// Tasks at the same time.
    pub slots: u32,
    /// Threads of one inference; 0 leaves the number to libtorch.
    pub threads: u32,
    /// A cancelled task may go on for this long before ending its process is considered.
    pub cancel_grace_ms: u64,
    /// How often a node's process may be ended for that.
    pub cancel_restarts_per_minute: u32,
    /// Where models run.
    pub device: Device,
    /// Names of the models that the node offers; at least one.
    pub models: Vec<String>,
}

/// `[models.NAME]`: a TorchScript file with lama's signature.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The file; absolute.
    pub path: PathBuf,
    /// The queue its tasks wait in; one of [`Config::queues`].
    pub queue: String,
    /// Image sides are padded to a multiple of this many pixels.
    pub pad_modulo: u32,
}

/// `[client]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// The bundle by which a scheduler of another host is reached; empty for one of this host.
    pub join: PathBuf,
    /// A caller waits this long for a result.
    pub timeout_ms: u64,
    /// Time between two signs of life.
    pub ping_ms: u64,
    /// After this silence the client connects anew.
    pub silence_ms: u64,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// The largest image, width times height.
    pub max_pixels: u64,
    /// Inputs and results of all tasks.
    pub max_spool_bytes: u64,
    /// Free space that is kept on the file system of the data directory; 0 is none.
    pub min_free_bytes: u64,
    /// Unfinished tasks and uploads of one client.
    pub max_client_tasks: u64,
    /// Inputs of one client's unfinished tasks and uploads.
    pub max_client_bytes: u64,
    /// Unfinished tasks and uploads of one owner.
    pub max_owner_tasks: u64,
    /// Inputs, uploads and kept results of one owner.
    pub max_owner_bytes: u64,
    /// The highest priority for certificates of the role client.
    pub max_remote_priority: i8,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// A loopback address with its port, or empty for none.
    pub listen: String,
    /// A file with the token that every request must bring, or empty for none.
    pub token_file: PathBuf,
}

/// `[web]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebConfig {
    /// Host names that are accepted besides those that always are.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may use the server, besides its own.
    pub allowed_origins: Vec<String>,
    /// Addresses and networks whose forwarded headers are believed.
    pub trusted_proxies: Vec<String>,
}

/// `[gate]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// An address with its port, or empty for none.
    pub listen: String,
    /// Open connections of one kind that one host or one certificate may have.
    pub max_connections_per_peer: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// As configured: absolute, or empty for the default place. Use [`Config::log_dir()`].
    pub dir: PathBuf,
    /// Daily files kept per process.
    pub keep_files: u32,
}

impl Config {
    /// The data directory, absolute: as configured, else `$XDG_DATA_HOME/lamagrid`, else
    /// `~/.local/share/lamagrid`. It need not exist.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`] if nothing is configured and neither variable is an absolute path.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        if self.data_dir.as_os_str().is_empty() {
            BaseDirs::of_process().data_dir()
        } else {
            Ok(self.data_dir.clone())
        }
    }

    /// The log directory, absolute: as configured, else `logs` in the data directory.
    ///
    /// # Errors
    /// As [`Config::data_dir`].
    pub fn log_dir(&self) -> Result<PathBuf, ConfigError> {
        if self.log.dir.as_os_str().is_empty() {
            Ok(self.data_dir()?.join("logs"))
        } else {
            Ok(self.log.dir.clone())
        }
    }
}

impl NodeConfig {
    /// The configured name, else the host name, else `node`.
    #[must_use]
    pub fn display_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        match rustix::system::uname().nodename().to_str() {
            Ok(host) if is_name(host) => host.to_owned(),
            _ => "node".to_owned(),
        }
    }
}
