//! Defines the command line of a node. Supervisor and workers share it: a worker is started with its supervisor's flags, its
//! own name and its own device.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The backend that runs the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// TorchScript models through libtorch
    Torch,
    /// Answers each task with its own picture; for tests
    Echo,
}

impl BackendChoice {
    /// The value of `--backend` for this choice.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::Echo => "echo",
        }
    }
}

const LONG_ABOUT: &str = "\
Works on the tasks of a LamaGrid scheduler.

Starts one worker process per GPU, or one without a GPU; restarts it when it dies, and stops it when it is stopped \
itself. The scheduler is found through its data directory; it may be started before or after the node.

The torch backend needs the Python package torch==2.11.0 (pip install torch==2.11.0) or LAMAGRID_LIBTORCH, a \
directory with that libtorch. No Python runs in the worker.";

const EXAMPLES: &str = "\
Examples:
  lamagrid-node                                     lama, on every GPU or else on the processor
  lamagrid-node --device cuda:0,cuda:1              only on these GPUs
  lamagrid-node capabilities                        what this host offers
  lamagrid-node capabilities --write mine.toml      writes it, to be edited for the next line
  lamagrid-node --capabilities mine.toml            less memory, fewer models, labels
  lamagrid-node --device cpu --threads 4
  lamagrid-node --model lama --model mine=/srv/models/mine.pt
  lamagrid-node --backend echo --model lama         answers with the picture itself
  lamagrid-node --join gpu-1.bundle                 for a scheduler on another host

Signals:
  SIGTERM   finish the running tasks, then leave; a second one stops at once
  SIGINT    stop at once; the scheduler gives running tasks to other nodes

Environment:
  LAMAGRID_LIBTORCH              directory with libtorch
  CUDA_VISIBLE_DEVICES           the GPUs that may be used, by index or UUID
  LAMA_MODEL_URL LAMA_MODEL_MD5  another file for lama, as in Lama Cleaner
  TORCH_HOME XDG_CACHE_HOME      where model files are kept, as in Lama Cleaner
  LAMAGRID__NODE__SLOTS ...      any key of the configuration (lamagrid config show)";

/// Works on the tasks of a LamaGrid scheduler.
#[derive(Debug, Clone, Parser)]
#[command(name = "lamagrid-node", version, long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Flags {
    /// Configuration file [default: $LAMAGRID_CONFIG or ~/.config/lamagrid/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The scheduler's data directory, by which its sockets are found
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// A file of `lamagrid certs bundle`: work for the scheduler of another host, over TLS
    #[arg(long, value_name = "BUNDLE", conflicts_with = "data_dir")]
    pub join: Option<PathBuf>,

    /// Name of this node, unique in the grid [default: the host's name, or the certificate's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Backend that runs the models
    #[arg(long, value_enum, default_value_t = BackendChoice::Torch)]
    pub backend: BackendChoice,

    /// Where models run: auto (every GPU, or else the processor), cpu, cuda or cuda:N; several, with commas, give one
    /// worker each
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub device: Vec<String>,

    /// CPU threads of one inference; with 0, torch chooses
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,

    /// Tasks that each worker takes at the same time
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,

    /// A model to serve: lama, a name from the configuration, or NAME=FILE for a TorchScript file of lama's
    /// signature; may be given several times
    #[arg(long, value_name = "NAME[=FILE]")]
    pub model: Vec<String>,

    /// A file that `lamagrid-node capabilities --write FILE` wrote: caps memory, leaves models out, adds labels
    #[arg(long, value_name = "FILE")]
    pub capabilities: Option<PathBuf>,

    /// Exit when standard input reaches its end: a parent holds it open as long as it lives
    #[arg(long)]
    pub lifeline: bool,

    /// Run the first model once on IMAGE and MASK, write OUT as PNG, print the times as JSON, and exit
    #[arg(long, num_args = 3, value_names = ["IMAGE", "MASK", "OUT"])]
    pub once: Vec<PathBuf>,

    /// Run as the worker of an echo node instead of its supervisor
    #[arg(long, hide = true)]
    pub worker_echo: bool,

    /// A command that is run instead of the node.
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
}

/// A command that is run instead of the node.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// Shows the processor, memory and GPUs that a node would offer, and faults of the hardware
    Capabilities(CapabilitiesFlags),
}

/// The flags of `lamagrid-node capabilities`.
#[derive(Debug, Clone, Args)]
pub struct CapabilitiesFlags {
    /// Write a capability file for `lamagrid-node --capabilities FILE`; an existing file is kept
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,

    /// The form of the output
    #[arg(long, value_enum, default_value_t = OutputForm::Table)]
    pub output: OutputForm,
}

/// The form of the output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// One JSON object
    Json,
    /// Lines for people
    Table,
}

impl Flags {
    /// Builds the arguments of a worker with this name on this device.
    #[must_use]
    pub fn for_worker(&self, name: &str, device: &str) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: OsString| {
            // Joined by `=`, so that a value may begin with a dash.
            let mut arg = OsString::from(format!("--{flag}="));
            arg.push(value);
            args.push(arg);
        };
        if let Some(path) = &self.config {
            add("config", path.into());
        }
        if let Some(path) = &self.data_dir {
            add("data-dir", path.into());
        }
        if let Some(path) = &self.join {
            add("join", path.into());
        }
        add("name", name.into());
        add("backend", self.backend.as_str().into());
        add("device", device.into());
        if let Some(threads) = self.threads {
            add("threads", threads.to_string().into());
        }
        if let Some(slots) = self.slots {
            add("slots", slots.to_string().into());
        }
        for model in &self.model {
            add("model", model.into());
        }
        if let Some(path) = &self.capabilities {
            add("capabilities", path.into());
        }
        if !self.once.is_empty() {
            args.push("--once".into());
            args.extend(self.once.iter().map(Into::into));
        }
        args.push("--lifeline".into());
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent_and_reach_a_worker_unchanged() {
        Flags::command().debug_assert();
        let given = [
            "lamagrid-node",
            "--config=/c.toml",
            "--data-dir",
            "/d",
            "--backend",
            "echo",
            "--device",
            "cpu,cuda:1",
            "--threads",
            "2",
            "--slots=3",
            "--model",
            "a=/a.pt",
            "--model=lama",
            "--capabilities=/n.toml",
        ];
        let flags = Flags::parse_from(given);
        assert_eq!(flags.device, ["cpu", "cuda:1"]);
        let mut args = vec![OsString::from("lamagrid-torch-worker")];
        args.extend(flags.for_worker("n-1", "cuda:1"));
        let worker = Flags::parse_from(args);
        assert_eq!(
            (worker.name.as_deref(), worker.device.as_slice()),
            (Some("n-1"), ["cuda:1".to_owned()].as_slice())
        );
        assert_eq!((worker.config, worker.data_dir), (flags.config, flags.data_dir));
        assert_eq!(worker.capabilities, flags.capabilities);
        assert_eq!((worker.threads, worker.slots, worker.model), (Some(2), Some(3), flags.model));
        assert!(worker.lifeline && worker.backend == BackendChoice::Echo);
    }
}
