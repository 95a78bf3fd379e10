//! `lamagrid scheduler`: sets up what a long-running process needs, then hands over.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use lamagrid_config::Loaded;
use lamagrid_logs::LogError;
use lamagrid_scheduler::{Options, SchedulerError, StoreError};

use crate::error::CliError;

/// Runs the scheduler until it ends; blocks.
pub(crate) fn run(loaded: Loaded, lifeline: bool) -> Result<(), CliError> {
    let Loaded { config, remarks, .. } = loaded;
    let data_dir = config.data_dir()?;
    // Before the logs make their folder in it.
    make_private(&data_dir)?;
    // To the very end: the last lines are written when it is dropped.
    let _logs = match lamagrid_logs::init("scheduler", &config.log, &config.log_dir()?) {
        // The program that calls has logs of its own; the lines go there.
        Err(LogError::AlreadySet { .. }) => None,
        logs => Some(logs?),
    };
    lamagrid_scheduler::run(Options { config, remarks, lifeline }).map_err(|error| {
        if is_for_the_log(&error) {
            lamagrid_logs::report(&error, "scheduler ended");
        }
        error.into()
    })
}

/// Makes the data directory if it is not there: people's pictures will lie in it, so a new one is its owner's alone.
fn make_private(data_dir: &Path) -> Result<(), CliError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| SchedulerError::DataDir { path: data_dir.to_owned(), source }.into())
}

/// Whether somebody will look for the cause in the log file. The other refusals concern only who just started it.
fn is_for_the_log(error: &SchedulerError) -> bool {
    match error {
        SchedulerError::Config(_)
        | SchedulerError::DataDir { .. }
        | SchedulerError::SecondInstance { .. }
        | SchedulerError::NoCertificate { .. }
        | SchedulerError::Certificate { .. }
        | SchedulerError::Gate(_)
        | SchedulerError::Store(StoreError::Foreign { .. } | StoreError::Newer { .. }) => false,
        SchedulerError::Store(_) | SchedulerError::Socket(_) | SchedulerError::System(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_data_directory_is_private_and_an_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let new = dir.path().join("a/b");
        make_private(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o750)).unwrap();
        make_private(&new).unwrap();
        assert_eq!(mode(&new), 0o750);
    }
}
