//! The command line as types. The doc comments are the help.
//!
//! Does not: look at the world; what depends on it is refused by the command itself.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};

use lamagrid_domain::TaskId;

use crate::output::Format;

/// The version, and what this side speaks.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let (major, minor) = (lamagrid_wire::frame::MAJOR, lamagrid_wire::frame::MINOR);
    format!("{} (protocol {major}.{minor})", env!("CARGO_PKG_VERSION"))
});

const AFTER_HELP: &str = "\
Examples:
  lamagrid scheduler                     run the scheduler of the default data directory
  lamagrid node list                     which nodes are connected, and what they serve
  lamagrid task show ID --output json    how a task is doing, for a program

Other programs:
  lamagrid pynode     run a Python node: Lama Cleaner's own models behind the grid (see its --help)
  lamagrid-node       run a Rust node, which needs libtorch
  lama-cleaner-grid   run Lama Cleaner's server, with a scheduler and the nodes of this host

Exit codes:
   0  done
   1  refused or unknown, or the scheduler could not run
   2  the command line is wrong
  65  a task failed: invalid input
  69  no scheduler answers; or a task failed: no node for it
  70  a task failed: its model, or a defect of LamaGrid
  73  a task failed: no memory or disk left
  75  overloaded, or no answer in time
  76  the versions of two programs do not fit
  78  the configuration is wrong";

/// Looks after a grid: its scheduler, tasks, nodes, queues and configuration.
#[derive(Debug, Parser)]
#[command(
    name = "lamagrid",
    bin_name = "lamagrid",
    version = VERSION.as_str(),
    after_help = AFTER_HELP,
    arg_required_else_help = true,
    subcommand_value_name = "NOUN",
    subcommand_help_heading = "Nouns",
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// Read this configuration file instead of $LAMAGRID_CONFIG or the one in its default place.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The scheduler's data directory, which tells one scheduler of this host from another.
    #[arg(long, global = true, value_name = "DIR", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) data_dir: Option<String>,
    /// How to answer: a table for people, or JSON for programs, whose keys are never renamed or removed.
    #[arg(
        long,
        global = true,
        value_name = "table|json",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub(crate) output: Format,
}

/// What the command is about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Run the scheduler until it is told to end (SIGTERM, or Ctrl-C).
    #[command(after_help = "\
Examples:
  lamagrid scheduler --data-dir /var/lib/lamagrid
  lamagrid scheduler --set scheduler.lease_ms=30000 --set log.format=json")]
    Scheduler(SchedulerArgs),
    /// Show or check the configuration.
    #[command(
        after_help = "Example:\n  lamagrid config show --origin",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Show or cancel a task.
    #[command(
        after_help = "Example:\n  lamagrid task show 000102030405060708090a0b0c0d0e0f",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Task {
        #[command(subcommand)]
        verb: TaskVerb,
    },
    /// List nodes.
    #[command(
        after_help = "Example:\n  lamagrid node list",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Node {
        #[command(subcommand)]
        verb: NodeVerb,
    },
    /// Show queues.
    #[command(
        after_help = "Example:\n  lamagrid queue show",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Queue {
        #[command(subcommand)]
        verb: QueueVerb,
    },
}

/// `lamagrid scheduler`
#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    /// End when stdin closes: for a parent that holds its other end, and so takes the scheduler down with itself.
    #[arg(long)]
    pub(crate) lifeline: bool,
    /// Set a configuration key, stronger than file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<(String, String)>,
}

/// `lamagrid config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print every key with its value.
    #[command(after_help = "\
Examples:
  lamagrid config show                      every key with its value, as a configuration file would say it
  lamagrid config show --origin             the same, with the layer that each value comes from
  lamagrid config show --output json        a list of {key, value, origin}; the value is TOML")]
    Show {
        /// Also print where each value comes from: default, file, environment or flag.
        #[arg(long)]
        origin: bool,
    },
    /// Check the configuration: exit code 0 if it is right, 78 if not.
    #[command(after_help = "\
Examples:
  lamagrid config check                        what a process started here would read
  lamagrid config check deploy/lamagrid.toml   this file, with the environment above it")]
    Check {
        /// The file to check; without it, the one that a process would read.
        file: Option<PathBuf>,
    },
    /// Print the embedded default, which explains every key.
    #[command(after_help = "\
Example:
  lamagrid config default > ~/.config/lamagrid/config.toml")]
    Default,
}

/// `lamagrid task`
#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// Show how a task is doing. The exit code is the failure's if it failed.
    #[command(after_help = "\
Examples:
  lamagrid task show 000102030405060708090a0b0c0d0e0f
  lamagrid task show 000102030405060708090a0b0c0d0e0f --output json")]
    Show {
        /// The task's id: 32 hexadecimal digits, in the X-Lamagrid-Task header and the logs.
        id: TaskId,
    },
    /// Cancel a task that waits or runs. One that has ended stays as it is.
    #[command(after_help = "\
Example:
  lamagrid task cancel 000102030405060708090a0b0c0d0e0f")]
    Cancel {
        /// The task's id: 32 hexadecimal digits.
        id: TaskId,
    },
}

/// `lamagrid node`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes that are connected, with what they serve and how busy they are.
    #[command(after_help = "\
Examples:
  lamagrid node list
  lamagrid node list --output json")]
    List,
}

/// `lamagrid queue`
#[derive(Debug, Subcommand)]
pub(crate) enum QueueVerb {
    /// Show how many tasks wait and run in each queue.
    #[command(after_help = "\
Examples:
  lamagrid queue show
  lamagrid queue show --output json")]
    Show,
}

/// `KEY=VALUE`; the value may be empty and may hold more equal signs.
fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example node.slots=2".to_owned()),
    }
}
