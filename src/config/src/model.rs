//! The configuration as types, one per section. `default.toml` documents the values.
//!
//! Does not: check ranges; [`Config::load`] does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use lamagrid_domain::FailureFamily;

use crate::choice::{Device, LogFormat, LogLevel, NeededDevice, RequiredDevice};
use crate::dirs::BaseDirs;
use crate::error::ConfigError;
use crate::names::is_name;
use crate::signature::{Argument, Blend, Colour, MaskRange, MaskType, ValueRange};

/// The whole, validated configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Absolute, or empty if the environment names no home directory. Use [`Config::data_dir()`].
    pub data_dir: PathBuf,
    /// Leases, retries and retention.
    pub scheduler: SchedulerConfig,
    /// Retries after a failure.
    pub retry: RetryConfig,
    /// Queues by name; `gpu` and `cpu` always exist.
    pub queues: BTreeMap<String, QueueConfig>,
    /// The database and the spool.
    pub store: StoreConfig,
    /// The node's models, device and slots.
    pub node: NodeConfig,
    /// Custom model files by model name.
    #[serde(default)]
    pub models: BTreeMap<String, ModelConfig>,
    /// Connection and time limits of clients.
    pub client: ClientConfig,
    /// Bounds on sizes, task counts and priorities.
    pub limits: LimitsConfig,
    /// The scheduler's HTTP endpoint for the API, metrics and health.
    pub http: HttpConfig,
    /// Access to the HTTP API.
    pub api: ApiConfig,
    /// Hosts, origins and proxies that the web server trusts.
    pub web: WebConfig,
    /// The TLS listener for other hosts.
    pub gate: GateConfig,
    /// Level, format and files of the log.
    pub log: LogConfig,
}

/// `[scheduler]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// A silent node keeps its tasks for this long.
    pub lease_ms: u64,
    /// A node silent for this long gets no new tasks.
    pub suspect_after_ms: u64,
    /// Time between two reports of a node.
    pub poll_ms: u64,
    /// A node that does not accept an assignment within this time loses its session.
    pub accept_timeout_ms: u64,
    /// A node whose connection closed must reconnect within this time, or it counts as lost.
    pub closed_grace_ms: u64,
    /// A task that no known node can run fails after this time.
    pub no_node_wait_ms: u64,
    /// A task fails when it was the only task of this many lost nodes.
    pub crash_limit: u32,
    /// Longest wait of a task for a node; 0 is no limit.
    pub wait_limit_ms: u64,
    /// Longest run of an attempt; 0 is no limit.
    pub run_limit_ms: u64,
    /// A waiting task of a priority below 0 rises by one per this interval; 0 switches it off.
    pub ageing_ms: u64,
    /// A node takes tasks of models that it has in memory before others, until those have waited this long; 0 is off.
    pub warm_first_ms: u64,
    /// A node that failed this many tasks in a row is set aside; 0 switches it off.
    pub set_aside_after: u32,
    /// A node that was set aside gets a probe task after this time.
    pub probe_after_ms: u64,
    /// A result can be fetched again for this long.
    pub result_retention_s: u64,
    /// A dead letter can be replayed for this long.
    pub dead_retention_s: u64,
    /// A removed task's id is remembered for this long.
    pub tombstone_retention_s: u64,
    /// Maximum number of unfinished tasks that one connection follows.
    pub max_outstanding_per_peer: u32,
}

/// `[retry]`: what happens after a failure that a node reported, by its family.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// Failed connections and exceeded time limits.
    pub network: RetryPolicy,
    /// Exhausted memory or disk.
    pub resource: RetryPolicy,
    /// Models that cannot be loaded.
    pub model: RetryPolicy,
    /// All other failures.
    pub other: RetryPolicy,
}

/// `[retry.FAMILY]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// A task fails after this many reported failures.
    pub failure_limit: u32,
    /// Upper bound of the random wait before the first retry; it doubles with each retry.
    pub base_ms: u64,
    /// Longest wait before a retry.
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
    /// Maximum number of waiting tasks; more are refused.
    pub max_tasks: u32,
    /// The queue whose nodes may also take tasks that waited here for `spill_after_s`; empty means none.
    pub spill_to: String,
    /// How long a task waits before nodes of `spill_to` may take it.
    pub spill_after_s: u64,
    /// The nodes that may serve the queue.
    pub requires: RequiresConfig,
}

/// `[queues.NAME.requires]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequiresConfig {
    /// The class of their device.
    pub device: RequiredDevice,
    /// Least memory of their device, in GiB; 0 requires none.
    pub memory_gib: u64,
    /// Labels that they must all have.
    pub labels: Vec<String>,
}

impl RequiresConfig {
    /// True if a key is set. A queue without a requirement is served by the nodes of the models that default to it.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// `[store]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Maximum number of changes per commit.
    pub group_commit_max: u32,
    /// The scheduler exits if its store cannot commit for this long.
    pub give_up_after_ms: u64,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// As configured; empty means the host name. Use [`NodeConfig::display_name`].
    pub name: String,
    /// Concurrent tasks.
    pub slots: u32,
    /// Threads of one inference; with 0, libtorch chooses.
    pub threads: u32,
    /// Grace period of a cancelled task before its process may be restarted.
    pub cancel_grace_ms: u64,
    /// Maximum rate of such restarts.
    pub cancel_restarts_per_minute: u32,
    /// The device that models run on.
    pub device: Device,
    /// Models that the node offers; at least one.
    pub models: Vec<String>,
    /// Memory for models and their work, in MiB; 0 is nine tenths of the memory of the device.
    pub memory_mib: u64,
}

/// `[models.NAME]`: a TorchScript file and the signature of its network.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The file, absolute; empty means the download of `url`, or the files that Lama Cleaner uses for this name.
    pub path: PathBuf,
    /// Where the file is downloaded from; empty means that it is not downloaded.
    pub url: String,
    /// The SHA-256 sum of the file in hexadecimal digits; empty means that it is not checked.
    pub sha256: String,
    /// The queue of its tasks, one of [`Config::queues`]; empty means that the scheduler chooses it.
    pub queue: String,
    /// The needs of its tasks.
    pub need: NeedConfig,
    /// True if the model stays in memory once it is loaded.
    pub pin: bool,
    /// The network's arguments, in their order.
    pub inputs: Vec<Argument>,
    /// The range of the picture's values.
    pub image_range: ValueRange,
    /// The mask's values outside the hole and in it.
    pub mask_range: MaskRange,
    /// The type of a mask that is an argument of its own.
    pub mask_type: MaskType,
    /// The order of the colours, in and out.
    pub colour: Colour,
    /// Image sides are padded to a multiple of this many pixels.
    pub pad_modulo: u32,
    /// The side of the only size that the network accepts, in pixels; 0 if it accepts others.
    pub fixed_size: u32,
    /// The range of the network's output.
    pub output_range: ValueRange,
    /// The part of the output that is pasted into the picture.
    pub blend: Blend,
}

/// `[models.NAME.need]`: 0 and `auto` stand for the built-in figures of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeedConfig {
    /// The class of device that its tasks run on.
    pub device: NeededDevice,
    /// Memory of the model alone, in MiB.
    pub memory_mib: u64,
    /// Memory that each megapixel takes beside the model, in MiB.
    pub mib_per_megapixel: u64,
    /// Pictures up to this size prefer a CPU, in megapixels.
    pub cpu_up_to_megapixels: u64,
}

/// `[client]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Connection bundle for a scheduler on another host; empty means the scheduler of this host.
    pub join: PathBuf,
    /// Longest wait for a result.
    pub timeout_ms: u64,
    /// Interval of pings while a result is awaited.
    pub ping_ms: u64,
    /// The client reconnects after this silence.
    pub silence_ms: u64,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// The largest image, width times height.
    pub max_pixels: u64,
    /// Inputs and results of all tasks, with reserved uploads.
    pub max_spool_bytes: u64,
    /// Minimum free space on the file system of the data directory; 0 switches the check off.
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
    /// An address with its port; empty switches it off.
    pub listen: String,
    /// The PEM file of the certificate for HTTPS; empty means plain HTTP, on loopback only.
    pub certificate: PathBuf,
    /// The PEM file of its key.
    pub key: PathBuf,
    /// A file with the token that every request must carry; empty means no token.
    pub token_file: PathBuf,
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// True if programs on loopback need a key, too.
    pub require_key: bool,
    /// Maximum number of connections that use the API.
    pub max_connections: usize,
}

/// `[web]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebConfig {
    /// Host names that are accepted in addition to the built-in ones.
    pub allowed_hosts: Vec<String>,
    /// Other origins whose pages may use the server.
    pub allowed_origins: Vec<String>,
    /// Addresses and networks whose forwarded headers are trusted.
    pub trusted_proxies: Vec<String>,
}

/// `[gate]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// An address with its port; empty switches it off.
    pub listen: String,
    /// Maximum number of open connections of one kind per host and per certificate.
    pub max_connections_per_peer: usize,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Lowest severity that is logged.
    pub level: LogLevel,
    /// Format of a line.
    pub format: LogFormat,
    /// Absolute as configured; empty means the default. Use [`Config::log_dir()`].
    pub dir: PathBuf,
    /// Number of daily files kept per process.
    pub keep_files: u32,
}

impl Config {
    /// The absolute data directory: as configured, else `$XDG_DATA_HOME/lamagrid`, else `~/.local/share/lamagrid`.
    /// It need not exist.
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

    /// The absolute log directory: as configured, else `logs` in the data directory.
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

impl HttpConfig {
    /// True if requests are encrypted.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }

    /// True if only programs of this host can connect.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.listen.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
    }

    /// The key that does not fit the others, and what it must be.
    pub(crate) fn fault(&self) -> Option<(&'static str, &'static str)> {
        let is_empty = |path: &PathBuf| path.as_os_str().is_empty();
        match (is_empty(&self.certificate), is_empty(&self.key)) {
            (false, true) => {
                Some(("key", "the PEM file of the certificate's key, because http.certificate is set"))
            }
            (true, false) => {
                Some(("certificate", "the PEM file of the key's certificate, because http.key is set"))
            }
            (true, true) if !self.listen.is_empty() && !self.is_loopback() => Some((
                "listen",
                "\"\" or a loopback address with its port, such as 127.0.0.1:8871, or come with http.certificate and \
                 http.key, the PEM files for HTTPS",
            )),
            _ => None,
        }
    }
}

impl ModelConfig {
    /// True if the section names a file, so that upstream's files are not used.
    #[must_use]
    pub fn has_file(&self) -> bool {
        !self.path.as_os_str().is_empty() || !self.url.is_empty()
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
