//! The command line as types. The doc comments are the help.
//!
//! Does not: look at the world; what depends on it is refused by the command itself.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};

use lamagrid_domain::{ClientName, ModelName, NodeName, QueueName, Status, TaskId};
use lamagrid_gate::PeerRole;

use crate::output::Format;

/// The version, and what this side speaks.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let (major, minor) = (lamagrid_protocol::frame::MAJOR, lamagrid_protocol::frame::MINOR);
    format!("{} (protocol {major}.{minor})", env!("CARGO_PKG_VERSION"))
});

const AFTER_HELP: &str = "\
Examples:
  lamagrid scheduler                     run the scheduler of the default data directory
  lamagrid node list                     which nodes are connected, and what they serve
  lamagrid task list --state failed      which tasks failed, newest first
  lamagrid task show ID                  what happened to a task, and when
  lamagrid dead list                     tasks that were given up, and can be replayed

Other programs:
  lamagrid model      list, fetch and check the files of Lama Cleaner's models (see its --help)
  lamagrid pynode     run a Python node: Lama Cleaner's own models behind the grid (see its --help)
  lamagrid-node       run a Rust node, which needs libtorch
  lama-cleaner-grid   run Lama Cleaner's server, with a scheduler and the nodes of this host

Exit codes:
   0  done
   1  refused or unknown; the scheduler could not run; what `doctor`, `model pull` or `model verify` looks at is not right
   2  the command line is wrong
  65  a task failed: invalid input; or a bundle cannot be used
  69  no scheduler answers, or it does not let this host in; or a task failed: no node for it
  70  a task failed: its model, or a defect of LamaGrid
  73  a task failed: no memory or disk left
  75  overloaded, or no answer in time
  76  the versions of two programs do not fit
  78  the configuration is wrong
 130  ended by Ctrl-C; or a task was cancelled
 141  what read the output has gone";

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
    /// PendingRequest the scheduler of another host, by a file of `lamagrid certs bundle` for the role admin; `doctor`
    /// takes any.
    #[arg(long, global = true, value_name = "BUNDLE", conflicts_with = "data_dir")]
    pub(crate) join: Option<PathBuf>,
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
    /// List, show or replay dead letters: tasks that were tried and given up.
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
    /// Remove ended tasks with their pictures before their retention is over.
    #[command(after_help = "\
Examples:
  lamagrid purge --older-than 10m --yes           what ended at least ten minutes ago
  lamagrid purge --older-than 30d --dead --yes    dead letters of more than a month")]
    Purge(PurgeArgs),
    /// Make, list and revoke the certificates by which hosts know each other.
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
    /// Look for what keeps this host out of a grid: bundle, port, clock, version, libtorch, disk.
    #[command(after_help = "\
Examples:
  lamagrid doctor                        on the scheduler's host
  lamagrid doctor --join gpu-1.bundle    on a host that joins a scheduler elsewhere
Ends with 1 if something is bad.")]
    Doctor,
    /// List or drain nodes.
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
    /// List tasks, the newest first: those that live, and those that ended and are in retention.
    #[command(after_help = "\
Examples:
  lamagrid task list
  lamagrid task list --state queued --state processing --queue gpu
  lamagrid task list --client 10.0.0.7 --limit 1000 --output json")]
    List(ListArgs),
    /// Show how a task is doing, and what happened to it. The exit code is the failure's if it failed.
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
    /// Try a task again now: one that waits after a failure is due at once, a dead letter is submitted again.
    #[command(after_help = "\
Example:
  lamagrid task retry 000102030405060708090a0b0c0d0e0f")]
    Retry {
        /// The task's id: 32 hexadecimal digits.
        id: TaskId,
    },
}

/// Which tasks are listed.
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
    /// Only tasks that were submitted on behalf of this client.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Option<ClientName>,
    /// List this many at most.
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
        /// List this many at most.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a dead letter with the reason of every attempt.
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
    /// What ended at least this long ago: 90s, 10m, 2h or 30d.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) older_than: std::time::Duration,
    /// Dead letters, and nothing else.
    #[arg(long)]
    pub(crate) dead: bool,
    /// Do it: what is removed cannot be had again.
    #[arg(long, required = true)]
    pub(crate) yes: bool,
}

/// `lamagrid node`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes that are connected, with what they serve and how busy they are.
    #[command(after_help = "\
States:
  ready     it can take a task now
  busy      all its slots work
  suspect   nothing was heard of it for a while: it gets no new tasks
  aside     it failed task after task: it gets one from time to time, to see whether it works again
  draining  it finishes what it has begun, and leaves

Examples:
  lamagrid node list
  lamagrid node list --output json")]
    List,
    /// Let a node finish what it has begun, and leave; other nodes do the rest.
    #[command(after_help = "\
Example:
  lamagrid node drain gpu-host-1")]
    Drain {
        /// The node's name, as `lamagrid node list` shows it.
        name: NodeName,
    },
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
    /// Give none of a queue's tasks to nodes any more. What runs goes on, and new tasks are accepted.
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
    /// Make the authority of this data directory, and the scheduler's own certificate.
    #[command(after_help = "Example:\n  lamagrid certs init")]
    Init,
    /// Issue a certificate, or a new one for the same name.
    #[command(after_help = "\
Examples:
  lamagrid certs issue --role node --name gpu-1 --queue gpu
  lamagrid certs issue --role client --name web-1 --days 90")]
    Issue(IssueArgs),
    /// Make the scheduler's own certificate anew, by the same authority: a running scheduler shows it from then on.
    #[command(after_help = "Example:\n  lamagrid certs renew")]
    Renew,
    /// List what was issued, and until when it is good.
    #[command(after_help = "Example:\n  lamagrid certs list --output json")]
    List,
    /// Refuse a certificate from now on, open connections included.
    #[command(after_help = "Example:\n  lamagrid certs revoke gpu-1")]
    Revoke {
        /// The certificate's name.
        name: String,
    },
    /// Write the one file that a host needs: where the scheduler is, its certificate and its key.
    #[command(
        after_help = "Example:\n  lamagrid certs bundle gpu-1 --scheduler 10.0.0.5:8872 --out gpu-1.bundle"
    )]
    Bundle(BundleArgs),
}

/// What a certificate says.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// What its holder may do: node, client (submit tasks) or admin (also administer the scheduler).
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: PeerRole,
    /// Its name; a node is called so.
    #[arg(long)]
    pub(crate) name: String,
    /// A queue that the node may serve; without one, all. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Vec<QueueName>,
    /// How long it is good.
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

/// What a bundle says.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// The certificate's name.
    pub(crate) name: String,
    /// Where hosts reach the scheduler: gate.listen, by a name or address that they can use.
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub(crate) scheduler: String,
    /// Where to write it; without this, NAME.bundle in the current directory.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// An address that another host can dial.
fn host_and_port(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match parts.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) if !text.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err("write HOST:PORT, for example 10.0.0.5:8872".to_owned()),
    }
}

fn state(text: &str) -> Result<Status, String> {
    let states = [Status::Queued, Status::Processing, Status::Completed, Status::Failed, Status::Cancelled];
    let found = states.into_iter().find(|state| state.as_str() == text);
    found.ok_or_else(|| format!("a state is one of {}", states.map(Status::as_str).join(", ")))
}

/// A number with its unit.
fn span(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || "write a number with its unit: 90s, 10m, 2h or 30d".to_owned();
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

/// `KEY=VALUE`; the value may be empty and may hold more equal signs.
fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, for example node.slots=2".to_owned()),
    }
}
