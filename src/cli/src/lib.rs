//! Runs the `lamagrid` command: `lamagrid <noun> <verb>`.
//!
//! Does not: decide anything about tasks, or end the process; it returns the exit code.
//!
//! The console script calls [`main`] through the Python module, which may do so repeatedly.
//!
//! Invariant: answers go to stdout and errors to stderr, and only `output` writes to either.
//!
//! Only this crate names `comfy-table`; only it and the nodes' command lines name `clap`.

mod admin;
mod args;
mod certs;
mod configuration;
mod doctor;
mod error;
mod grid;
mod key_args;
mod keys;
mod node_admin;
mod node_view;
mod output;
mod scheduler;
mod task_history;
mod terminal_text;
mod units;
mod view;

use std::collections::BTreeMap;
use std::path::Path;

use admin::Admin;
use args::{CertsVerb, Cli, ConfigVerb, DeadVerb, NodeVerb, Noun, QueueVerb, TaskVerb};
use clap::Parser;
use error::{CliError, USAGE};
use key_args::KeyVerb;
use output::{Streams, Written};

use lamagrid_config::{Config, ConfigError, Loaded};

/// Runs one command line, given without the program's name, and returns its exit code.
///
/// The help lists the codes: 0 done; 1 refused, or the scheduler could not run; 2 invalid command line; 78
/// invalid configuration; all others come from [`lamagrid_domain::FailureKind::exit_code`].
pub fn main(args: impl IntoIterator<Item = String>) -> u8 {
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    run(args, lamagrid_config::process_env().collect(), &mut Streams { out: &mut out, err: &mut err })
}

fn run(args: impl IntoIterator<Item = String>, env: BTreeMap<String, String>, streams: &mut Streams) -> u8 {
    let args = std::iter::once("lamagrid".to_owned()).chain(args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            streams.say(&error.render().to_string());
            return USAGE;
        }
        // The user asked for the help or the version.
        Err(shown) => return code(streams.write(&shown.render().to_string()), 0, streams),
    };
    match dispatch(cli, env, streams) {
        Ok(answer) => {
            if let Some(remark) = &answer.remark {
                streams.say(&format!("{remark}\n"));
            }
            code(streams.write(&answer.text), answer.code, streams)
        }
        Err(error) => {
            streams.say(&format!("error: {}\n", error.text()));
            error.exit_code()
        }
    }
}

/// Exit code after the answer was written. A reader that closes the pipe early is no error.
fn code(written: Written, wanted: u8, streams: &mut Streams) -> u8 {
    match written {
        Written::All | Written::ReaderLeft => wanted,
        Written::Failed(error) => {
            streams.say(&format!("error: cannot write to stdout: {error}\n"));
            1
        }
    }
}

/// Answer of a command.
#[derive(Debug, Default)]
struct Answer {
    /// Text for stdout.
    text: String,
    /// Text for stderr, for example the reason why the code is not 0.
    remark: Option<String>,
    code: u8,
}

impl Answer {
    fn ok(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

fn dispatch(cli: Cli, env: BTreeMap<String, String>, streams: &mut Streams) -> Result<Answer, CliError> {
    let place = Place { globals: &cli.globals, env };
    let (format, join) = (cli.globals.output, cli.globals.join.as_deref());
    // clap detects this conflict only if both flags are on the same side of the noun.
    if cli.globals.data_dir.is_some() && join.is_some() {
        return Err(CliError::TwoSchedulers);
    }
    let own = match &cli.noun {
        Noun::Scheduler(_) => Some("scheduler"),
        Noun::Config { .. } => Some("config"),
        Noun::Certs { .. } => Some("certs"),
        Noun::Key { .. } => Some("key"),
        Noun::Doctor
        | Noun::Task { .. }
        | Noun::Dead { .. }
        | Noun::Purge(_)
        | Noun::Node { .. }
        | Noun::Stats
        | Noun::Queue { .. } => None,
    };
    if let (Some(noun), Some(_)) = (own, join) {
        return Err(CliError::Join(noun));
    }
    match cli.noun {
        Noun::Scheduler(options) => {
            scheduler::run(place.load(&options.set)?, options.lifeline.into()).map(|()| Answer::default())
        }
        Noun::Config { verb: ConfigVerb::Show { origin } } => {
            let origins = if origin { configuration::Origins::Show } else { configuration::Origins::Hide };
            configuration::show(&place.load(&[])?, origins, format)
        }
        Noun::Config { verb: ConfigVerb::Check { file } } => configuration::check(&place, file, format),
        Noun::Config { verb: ConfigVerb::Default } => configuration::default(format),
        Noun::Node { verb } => match verb {
            NodeVerb::List => grid::node_list(&place.load(&[])?.config, join, format),
            NodeVerb::Show { name } => place.admin()?.show_node(name),
            NodeVerb::Drain { name } => place.admin()?.drain(name),
            NodeVerb::Undrain { name } => place.admin()?.undrain(name),
            NodeVerb::Remove { name } => place.admin()?.remove(name),
            NodeVerb::Set(args) => place.admin()?.set(args, streams),
        },
        Noun::Stats => place.admin()?.stats(),
        Noun::Queue { verb: QueueVerb::Show } => grid::queue_show(&place.load(&[])?.config, join, format),
        Noun::Task { verb } => {
            let admin = place.admin()?;
            match verb {
                TaskVerb::List(args) => admin.list(args),
                TaskVerb::Show { id } => admin.show(id),
                TaskVerb::Cancel { id } => admin.cancel(id),
                TaskVerb::Retry { id } => admin.retry(id),
            }
        }
        Noun::Dead { verb } => {
            let admin = place.admin()?;
            match verb {
                DeadVerb::List { limit } => admin.list_dead(limit),
                DeadVerb::Show { id } => admin.show(id),
                DeadVerb::Replay { id } => admin.retry(id),
            }
        }
        Noun::Queue { verb: QueueVerb::Pause { name } } => place.admin()?.pause(name),
        Noun::Queue { verb: QueueVerb::Resume { name } } => place.admin()?.resume(name),
        Noun::Certs { verb } => {
            let certs = certs::CertsCommand::new(&place.load(&[])?.config.data_dir()?, format);
            match verb {
                CertsVerb::Init => certs.init(),
                CertsVerb::Issue(args) => certs.issue(&args),
                CertsVerb::Renew => certs.renew(),
                CertsVerb::List => certs.list(),
                CertsVerb::Revoke { name } => certs.revoke(&name),
                CertsVerb::Bundle(args) => certs.bundle(&args),
            }
        }
        Noun::Key { verb } => {
            let keys = keys::KeyCommand::open(&place.load(&[])?.config.data_dir()?, format)?;
            match verb {
                KeyVerb::Create(args) => keys.create(args),
                KeyVerb::List => keys.list(),
                KeyVerb::Show { key } => keys.show(&key),
                KeyVerb::Revoke { key } => keys.revoke(&key),
            }
        }
        Noun::Doctor => doctor::examine(&place.load(&[])?.config, join, format),
        Noun::Purge(args) => place.admin()?.purge(&args),
    }
}

/// The sources of the configuration.
#[derive(Debug)]
struct Place<'a> {
    globals: &'a args::Globals,
    env: BTreeMap<String, String>,
}

impl Place<'_> {
    /// Access to the scheduler that the command line selects, for administrators' requests.
    fn admin(&self) -> Result<Admin, CliError> {
        Admin::new(&self.load(&[])?.config, self.globals.join.as_deref(), self.globals.output)
    }

    /// Loads the configuration, with `set` and the global flags as its highest layer.
    fn load(&self, set: &[(String, String)]) -> Result<Loaded, ConfigError> {
        self.load_file(self.globals.config.as_deref(), set)
    }

    fn load_file(&self, file: Option<&Path>, set: &[(String, String)]) -> Result<Loaded, ConfigError> {
        let mut flags = set.to_vec();
        // Added last, because the last value of a key counts.
        flags.extend(self.globals.data_dir.iter().map(|dir| ("data_dir".to_owned(), dir.clone())));
        Config::load(file, self.env.clone().into_iter(), &flags)
    }
}

#[cfg(test)]
mod tests;
