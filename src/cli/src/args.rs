//! Defines the command line as types. The doc comments are the help texts.
//!
//! Does not: check values against files or schedulers; the commands do.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};

use lamagrid_domain::{ClientName, ModelName, NodeName, QueueName, Status, TaskId};
use lamagrid_gate::PeerRole;

use crate::key_args::KeyVerb;
use crate::output::Format;

/// Version of the program and of its protocol.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let (major, minor) = (lamagrid_protocol::frame::MAJOR, lamagrid_protocol::frame::MINOR);
    format!("{} (protocol {major}.{minor})", env!("CARGO_PKG_VERSION"))
});

const AFTER_HELP: &str = "\
Examples:
  lamagrid scheduler                     run the scheduler of the default data directory
  lamagrid node list                     list the connected nodes and their models
  lamagrid node show NAME                show everything known about a node
  lamagrid task list --state failed      list failed tasks, newest first
  lamagrid task show ID                  show a task's state and history
  lamagrid dead list                     list tasks that failed for good and can be replayed

Other programs:
  lamagrid model      list, fetch and check the files of Lama Cleaner's models (see its --help)
  lamagrid pynode     run a Python node: Lama Cleaner's own models behind the grid (see its --help)
  lamagrid-node       run a Rust node, which needs libtorch
  lama-cleaner-grid   run Lama Cleaner's server, with a scheduler and the nodes of this host

Exit codes:
   0  done
   1  refused or unknown; the scheduler could not run; `doctor`, `model pull` or `model verify` found a fault
   2  the command line is invalid
  65  a task failed: invalid input; or a bundle cannot be used
  69  no scheduler answers, or it does not let this host in; or a task failed: no node for it
  70  a task failed: its model, or a defect of LamaGrid
  73  a task failed: no memory or disk left
  75  overloaded, or no answer in time
  76  the versions of two programs are incompatible
  78  the configuration is invalid
 130  ended by Ctrl-C; or a task was cancelled
 141  the reader of the output has gone";

/// Manages a grid: its scheduler, tasks, nodes, queues and configuration.
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

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// Read this configuration file instead of $LAMAGRID_CONFIG or the one in its default place.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Data directory of the scheduler; it selects a scheduler of this host.
    #[arg(long, global = true, value_name = "DIR", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) data_dir: Option<String>,
    /// Use the scheduler of another host, by a file that `lamagrid certs bundle` wrote for the role admin;
    /// `doctor` takes a file for any role.
    #[arg(long, global = true, value_name = "BUNDLE", conflicts_with = "data_dir")]
    pub(crate) join: Option<PathBuf>,
    /// Format of the answer: a table for people, or JSON for programs, whose keys are never renamed or
    /// removed.
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

/// The first word of a command.
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
    /// List, show, cancel or retry tasks.
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
    /// List, show or replay dead letters: tasks that failed and are not tried again.
    #[command(
        after_help = "Example:\n  lamagrid dead list",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Dead {
        #[command(subcommand)]
        verb: DeadVerb,
    },
    /// Remove ended tasks and their images before their retention is over.
    #[command(after_help = "\
Examples:
  lamagrid purge --older-than 10m --yes           tasks that ended at least ten minutes ago
  lamagrid purge --older-than 30d --dead --yes    dead letters older than 30 days")]
    Purge(PurgeArgs),
    /// Make, list and revoke the certificates by which hosts identify each other.
    #[command(
        after_help = "\
Example, from nothing to a second GPU host:
  lamagrid certs init
  lamagrid certs issue --role node --name gpu-1
  lamagrid certs bundle gpu-1 --scheduler 10.0.0.5:8872",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Certs {
        #[command(subcommand)]
        verb: CertsVerb,
    },
    /// Make, list and revoke the keys by which programs use the HTTP API.
    #[command(
        after_help = "Example:\n  lamagrid key create ci --role user --max-tasks 100",
        arg_required_else_help = true,
        subcommand_value_name = "VERB",
        subcommand_help_heading = "Verbs",
        disable_help_subcommand = true
    )]
    Key {
        #[command(subcommand)]
        verb: KeyVerb,
    },
    /// Check everything that can keep this host out of a grid: bundle, port, clock, version, libtorch, disk.
    #[command(after_help = "\
Examples:
  lamagrid doctor                        on the scheduler's host
  lamagrid doctor --join gpu-1.bundle    on a host that joins a scheduler elsewhere
The exit code is 1 if a check fails.")]
    Doctor,
    /// List and show nodes, drain, remove or change them.
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
    /// Show how many tasks ended, and how long they waited and ran, per queue and model.
    #[command(after_help = "\
Examples:
  lamagrid stats
  lamagrid stats --output json")]
    Stats,
    /// Show, pause or resume queues.
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
    /// End when stdin closes: a parent process that holds its other end takes the scheduler down when it
    /// ends.
    #[arg(long)]
    pub(crate) lifeline: bool,
    /// Set a configuration key, overriding file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<(String, String)>,
}

/// `lamagrid config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Print every key with its value.
    #[command(after_help = "\
Examples:
  lamagrid config show                      every key with its value, as a valid configuration file
  lamagrid config show --origin             the same, with the layer of each value
  lamagrid config show --output json        a list of {key, value, origin}; the value is TOML")]
    Show {
        /// Also print the source of each value: default, file, environment or flag.
        #[arg(long)]
        origin: bool,
    },
    /// Check the configuration: exit code 0 if it is valid, 78 if not.
    #[command(after_help = "\
Examples:
  lamagrid config check                        the configuration that a process started here would read
  lamagrid config check deploy/lamagrid.toml   this file, overridden by the environment")]
    Check {
        /// The file to check; by default the one that a process would read.
        file: Option<PathBuf>,
    },
    /// Print the embedded default configuration, which explains every key.
    #[command(after_help = "\
Example:
  lamagrid config default > ~/.config/lamagrid/config.toml")]
    Default,
}

/// `lamagrid task`
#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// List tasks, the newest first: waiting and running ones, and ended ones in retention.
    #[command(after_help = "\
Examples:
  lamagrid task list
  lamagrid task list --state queued --state processing --queue gpu
  lamagrid task list --client 10.0.0.7 --limit 1000 --output json")]
    List(ListArgs),
    /// Show a task's state and history. If the task failed, the exit code is its failure's.
    #[command(after_help = "\
Examples:
  lamagrid task show 000102030405060708090a0b0c0d0e0f
  lamagrid task show 000102030405060708090a0b0c0d0e0f --output json")]
    Show {
        /// The task's id: 32 hexadecimal digits, as in the X-Lamagrid-Task header and the logs.
        id: TaskId,
    },
    /// Cancel a waiting or running task. A task that has ended stays as it is.
    #[command(after_help = "\
Example:
  lamagrid task cancel 000102030405060708090a0b0c0d0e0f")]
    Cancel {
        /// The task's id: 32 hexadecimal digits.
        id: TaskId,
    },
    /// Try a task again now: a task that waits after a failure is due at once, a dead letter is submitted
    /// again.
    #[command(after_help = "\
Example:
  lamagrid task retry 000102030405060708090a0b0c0d0e0f")]
    Retry {
        /// The task's id: 32 hexadecimal digits.
        id: TaskId,
    },
}

/// Selects the tasks to list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only tasks in this state: queued, processing, completed, failed or cancelled. May be repeated.
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub(crate) state: Vec<Status>,
    /// Only tasks of this queue.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<QueueName>,
    /// Only tasks of this model.
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<ModelName>,
    /// Only tasks that were submitted for this client.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Option<ClientName>,
    /// List at most this many.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

/// `lamagrid dead`
#[derive(Debug, Subcommand)]
pub(crate) enum DeadVerb {
    /// List dead letters, the newest first.
    #[command(after_help = "\
Examples:
  lamagrid dead list
  lamagrid dead list --output json")]
    List {
        /// List at most this many.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a dead letter with the reason of every failed attempt.
    #[command(after_help = "\
Example:
  lamagrid dead show 000102030405060708090a0b0c0d0e0f")]
    Show {
        /// The task's id: 32 hexadecimal digits.
        id: TaskId,
    },
    /// Submit a dead letter again, as a new task with the same inputs.
    #[command(after_help = "\
Example:
  lamagrid dead replay 000102030405060708090a0b0c0d0e0f")]
    Replay {
        /// The task's id: 32 hexadecimal digits.
        id: TaskId,
    },
}

/// `lamagrid purge`
#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// Remove tasks that ended at least this long ago: 90s, 10m, 2h or 30d.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) older_than: std::time::Duration,
    /// Remove dead letters instead of other ended tasks.
    #[arg(long)]
    pub(crate) dead: bool,
    /// Confirm: removed tasks cannot be restored.
    #[arg(long, required = true)]
    pub(crate) yes: bool,
}

/// `lamagrid node`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the connected nodes, their models and their load.
    #[command(after_help = "\
States:
  ready     it can take a task now
  busy      all its slots are in use
  suspect   it has been silent for a while and gets no new tasks
  aside     it failed several tasks in a row and gets only a trial task from time to time
  draining  it finishes its tasks, then leaves

Examples:
  lamagrid node list
  lamagrid node list --output json")]
    List,
    /// Show everything known about a node: device, memory, models, queues, tasks, orders and changes.
    #[command(after_help = "\
Examples:
  lamagrid node show gpu-host-1
  lamagrid node show gpu-host-1 --output json")]
    Show {
        /// The node's name, as `lamagrid node list` shows it.
        name: NodeName,
    },
    /// Let a node finish the tasks that it has begun, then leave; other nodes run the remaining tasks.
    ///
    /// The order holds over broken connections and restarts of the scheduler until the node has left. A node that is
    /// started again after that serves.
    #[command(after_help = "\
Example:
  lamagrid node drain gpu-host-1")]
    Drain {
        /// The node's name, as `lamagrid node list` shows it.
        name: NodeName,
    },
    /// Take back a drain or a removal: the node takes tasks again.
    #[command(after_help = "\
Example:
  lamagrid node undrain gpu-host-1")]
    Undrain {
        /// The node's name.
        name: NodeName,
    },
    /// Give a node's tasks to other nodes at once, and refuse the node until `undrain`.
    ///
    /// Its process ends. Restarts of the node and of the scheduler change nothing.
    #[command(after_help = "\
Example:
  lamagrid node remove gpu-host-1")]
    Remove {
        /// The node's name, as `lamagrid node list` shows it.
        name: NodeName,
    },
    /// Change settings of a running node, and wait until it has executed or refused them.
    ///
    /// It executes all of them or none. A node that is started again has the settings of its flags and configuration.
    #[command(after_help = "\
Examples:
  lamagrid node set gpu-host-1 --models lama,manga
  lamagrid node set cpu-host-1 --threads 4 --log-level debug
  lamagrid node set echo-1 --slots 4 --timeout 10s")]
    Set(SetArgs),
}

/// New settings of a node.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The node's name, as `lamagrid node list` shows it.
    pub(crate) name: NodeName,
    /// The models that it offers, with commas: of those that it was started with.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) models: Option<Vec<ModelName>>,
    /// Number of tasks that it runs at once; torch and Python nodes run one.
    #[arg(long, value_name = "N")]
    pub(crate) slots: Option<u16>,
    /// CPU threads of one inference; with 0, torch chooses.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// The lowest severity that it logs: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Its labels, with commas, in place of those before; an empty text removes all.
    #[arg(long, value_name = "LABEL,...")]
    pub(crate) labels: Option<String>,
    /// Wait at most this long for its answer: 30s or 2m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    pub(crate) timeout: std::time::Duration,
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
    /// Stop giving a queue's tasks to nodes. Running tasks go on, and new tasks are accepted.
    #[command(after_help = "\
Example:
  lamagrid queue pause gpu")]
    Pause {
        /// The queue's name.
        name: QueueName,
    },
    /// Give the tasks of a paused queue to nodes again.
    #[command(after_help = "\
Example:
  lamagrid queue resume gpu")]
    Resume {
        /// The queue's name.
        name: QueueName,
    },
}

/// `lamagrid certs`
#[derive(Debug, Subcommand)]
pub(crate) enum CertsVerb {
    /// Create the certificate authority of this data directory, and the scheduler's own certificate.
    #[command(after_help = "Example:\n  lamagrid certs init")]
    Init,
    /// Issue a certificate, or another one for the same name.
    #[command(after_help = "\
Examples:
  lamagrid certs issue --role node --name gpu-1 --queue gpu
  lamagrid certs issue --role client --name web-1 --days 90")]
    Issue(IssueArgs),
    /// Issue a new certificate for the scheduler, by the same authority; a running scheduler uses it within a
    /// second.
    #[command(after_help = "Example:\n  lamagrid certs renew")]
    Renew,
    /// List the issued certificates and their ends.
    #[command(after_help = "Example:\n  lamagrid certs list --output json")]
    List,
    /// Revoke a certificate; a running scheduler closes its open connections, too.
    #[command(after_help = "Example:\n  lamagrid certs revoke gpu-1")]
    Revoke {
        /// The certificate's name.
        name: String,
    },
    /// Write the one file that a host needs: the scheduler's address, the host's certificate and its key.
    #[command(
        after_help = "Example:\n  lamagrid certs bundle gpu-1 --scheduler 10.0.0.5:8872 --out gpu-1.bundle"
    )]
    Bundle(BundleArgs),
}

/// Contents of a new certificate.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// Role of its holder: node, client (submit tasks) or admin (also administer the scheduler).
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: PeerRole,
    /// Name of its holder, for example the node's name.
    #[arg(long)]
    pub(crate) name: String,
    /// A queue that the node may serve; all queues if not given. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Vec<QueueName>,
    /// Days for which it is valid.
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

/// Contents of a bundle.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// The certificate's name.
    pub(crate) name: String,
    /// Address at which other hosts reach the scheduler: gate.listen, with a host name or address that they
    /// can use.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub(crate) scheduler: String,
    /// File to write; by default NAME.bundle in the current directory.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// Why the value of an option is invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ValueError {
    #[error("write HOST:PORT, for example 10.0.0.5:8872")]
    Address,
    #[error("a state is one of {0}")]
    State(String),
    #[error("write a number with its unit: 90s, 10m, 2h or 30d")]
    Duration,
    #[error("write KEY=VALUE, for example node.slots=2")]
    Assignment,
}

/// Parses an address that another host can dial.
fn host_and_port(text: &str) -> Result<String, ValueError> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match parts.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) if !text.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err(ValueError::Address),
    }
}

fn state(text: &str) -> Result<Status, ValueError> {
    let states = [Status::Queued, Status::Processing, Status::Completed, Status::Failed, Status::Cancelled];
    let found = states.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| ValueError::State(states.map(Status::as_str).join(", ")))
}

/// Parses a number with its unit.
fn span(text: &str) -> Result<std::time::Duration, ValueError> {
    let wrong = || ValueError::Duration;
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(wrong)
}

/// Parses `KEY=VALUE`; the value may be empty and may contain further equal signs.
fn assignment(text: &str) -> Result<(String, String), ValueError> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(ValueError::Assignment),
    }
}
