//! The command line of `lamagrid key`. The doc comments are the help texts.

use clap::{Args, Subcommand};

use lamagrid_api::KeyRole;

/// `lamagrid key`
#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Create a key and print its token, which cannot be shown again.
    #[command(after_help = "\
Examples:
  lamagrid key create ci
  lamagrid key create shop --rate 20 --max-tasks 100 --max-task-bytes 50000000 --output json
  lamagrid key create dashboard --role operator")]
    Create(CreateKeyArgs),
    /// List the keys, revoked ones included.
    #[command(after_help = "Example:\n  lamagrid key list --output json")]
    List,
    /// Show a key with its limits.
    #[command(after_help = "Example:\n  lamagrid key show ci")]
    Show {
        /// The key's id or name.
        key: String,
    },
    /// Revoke a key; a running scheduler refuses it within a second. Its tasks go on.
    #[command(after_help = "Example:\n  lamagrid key revoke ci")]
    Revoke {
        /// The key's id or name.
        key: String,
    },
}

/// Contents of a new key.
#[derive(Debug, Args)]
pub(crate) struct CreateKeyArgs {
    /// Name of its holder; no two valid keys have the same.
    pub(crate) name: String,
    /// Role of its holder: user (its own tasks), operator (also the tasks of others, nodes, statistics) or admin (also
    /// the pictures of others).
    #[arg(long, value_name = "ROLE", default_value = "user")]
    pub(crate) role: KeyRole,
    /// Requests per second; no limit if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Unfinished tasks; no limit of its own if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub(crate) max_tasks: Option<u64>,
    /// Bytes of one task's pictures; no limit of its own if not given.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub(crate) max_task_bytes: Option<u64>,
    /// Bytes of the pictures of all unfinished tasks; no limit of its own if not given.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub(crate) max_bytes: Option<u64>,
    /// The highest priority of its tasks, -128 to 127.
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true)]
    pub(crate) max_priority: i8,
}
