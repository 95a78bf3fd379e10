//! `lamagrid scheduler`: sets up logs, limits and signals for a long-running process, then runs the
//! scheduler and the HTTP server beside it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use lamagrid_api::Health;
use lamagrid_config::Loaded;
use lamagrid_logs::LogError;
use lamagrid_process::{Parent, SAME_REQUEST, StopRequest, StopSignals, descriptors};
use lamagrid_scheduler::{DataDir, Listeners, Metrics, SchedulerError, Shutdown, StoreError};

use crate::error::CliError;

/// Runs the scheduler until a signal, or the end of its parent, asks it to end.
pub(crate) fn run(loaded: Loaded, parent: Parent) -> Result<(), CliError> {
    let Loaded { config, remarks, .. } = loaded;
    let data_dir = config.data_dir()?;
    // First, because the logs create their folder in it.
    make_private(&data_dir)?;
    // Kept to the very end: dropping it writes the last lines.
    let _logs = match lamagrid_logs::init("scheduler", &config.log, &config.log_dir()?) {
        // The calling program has set up logging already; the scheduler's lines go there.
        Err(LogError::AlreadySet { .. }) => None,
        logs => Some(logs?),
    };
    for remark in remarks {
        tracing::warn!("configuration: {remark}");
    }
    // Images and prompts are private, whatever mode an older data directory has.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    // Hundreds of hosts need more file descriptors than a shell's default.
    descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(SchedulerError::from)?;
    let ended: Result<(), SchedulerError> = runtime.block_on(async {
        // Installed first, so that a signal cannot kill a start that has much to recover.
        let signals = StopSignals::install(parent)?;
        let (ask, shutdown) = watch::channel(Shutdown::No);
        tokio::spawn(pass_on(signals, ask));
        let data_dir = DataDir::open(&config)?;
        let listeners = Listeners::bind(&data_dir)?;
        let metrics = Arc::new(Metrics::new());
        let figures = Arc::new(Figures(Arc::clone(&metrics)));
        let _http = lamagrid_api::serve(&config, data_dir.path(), &listeners.endpoints(), figures);
        lamagrid_scheduler::run(&config, data_dir, listeners, metrics, shutdown).await
    });
    // Does not wait for blocking tasks, which may never return.
    runtime.shutdown_background();
    ended.map_err(|error| {
        if is_for_the_log(&error) {
            lamagrid_logs::report(&error, "scheduler ended");
        }
        error.into()
    })
}

/// The scheduler's figures, as the HTTP server shows them.
struct Figures(Arc<Metrics>);

impl Health for Figures {
    fn metrics(&self) -> String {
        self.0.text()
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    fn not_ready(&self) -> Option<&'static str> {
        self.0.not_ready()
    }
}

/// Asks the scheduler to end at the first signal, and to end at once when a user repeats it.
async fn pass_on(mut signals: StopSignals, ask: watch::Sender<Shutdown>) {
    let request = signals.next().await;
    let since = Instant::now();
    ask.send_replace(Shutdown::Finish(request.as_str()));
    loop {
        if signals.next().await != StopRequest::ParentEnded && since.elapsed() >= SAME_REQUEST {
            ask.send_replace(Shutdown::Now);
        }
    }
}

/// Creates the data directory if it is missing, readable by its owner alone, because it will hold users'
/// images.
pub(crate) fn make_private(data_dir: &Path) -> Result<(), CliError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| SchedulerError::DataDir { path: data_dir.to_owned(), source }.into())
}

/// True if the error also belongs in the log file. The others concern only the user who just started the
/// scheduler.
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
