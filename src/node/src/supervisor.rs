//! Starts one worker process per device, restarts it when it dies, and ends when all have ended for good.
//!
//! Does not: speak with the scheduler or link libtorch.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Sent, kill_process};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use lamagrid_config::libtorch::LibtorchError;
use lamagrid_process::{Backoff, Parent, SAME_REQUEST, StopRequest, StopSignals};

use crate::cancel_watchdog;

/// Exit code for errors that a person must fix before a restart can succeed (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;
/// Exit code of a worker whose device cannot be used, or is lost (`EX_UNAVAILABLE`).
pub const EXIT_DEVICE: u8 = 69;
/// Exit codes after which a restart would fail in the same way: refused input or name, incompatible version, configuration.
const FINAL_CODES: [u8; 3] = [65, 76, EXIT_CONFIG];
/// The dynamic loader's own exit code.
const LOADER_FAILED: i32 = 127;
/// The dynamic loader fails within this time; a worker that ran longer ended for another reason.
const LOADING: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A worker that ran at least this long was healthy: its death counts as the first one again.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// Time after which a draining worker is killed.
const DRAIN_PATIENCE: Duration = Duration::from_millis(6_500);
/// Time after which a worker that must stop at once is killed; it says goodbye meanwhile.
const STOP_PATIENCE: Duration = Duration::from_millis(2_500);

/// The command line of a worker process, and the limit of its restarts.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The node's name.
    pub name: String,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Environment variables that are set in addition to the supervisor's.
    pub env: Vec<(String, OsString)>,
    /// Maximum number of times per minute that it may end itself to stop a cancelled task.
    pub cancel_restarts_per_minute: u32,
    /// The directory of its libtorch; `None` if it does not use libtorch.
    pub libtorch: Option<PathBuf>,
}

/// The workers of a node.
#[derive(Debug)]
pub struct Plans {
    /// Those that are started.
    pub workers: Vec<Plan>,
    /// The one that is started when none of them can use its device; `None` where a flag names the devices.
    pub fallback: Option<Plan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Run,
    Drain,
    Stop,
}

/// Starts and restarts the workers. While it exists, SIGTERM, SIGINT and SIGHUP do not end the process directly.
#[derive(Debug)]
pub struct Supervisor {
    runtime: Runtime,
    signals: StopSignals,
}

impl Supervisor {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// If the host cannot create a runtime, a thread or a signal handler.
    pub fn new(parent: Parent) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _entered = runtime.enter();
            StopSignals::install(parent)?
        };
        Ok(Self { runtime, signals })
    }

    /// Runs the workers until all have ended for good, by themselves or because the process was told to end. Returns the
    /// highest of their exit codes, where a device that cannot be used counts as an error of the configuration.
    #[must_use]
    pub fn run(self, plans: Plans) -> u8 {
        let Self { runtime, signals } = self;
        runtime.block_on(keep_all(plans, signals))
    }
}

async fn keep_all(plans: Plans, mut signals: StopSignals) -> u8 {
    let Plans { workers: plans, mut fallback } = plans;
    let (phase, told) = watch::channel(Phase::Run);
    let mut workers = JoinSet::new();
    for plan in plans {
        workers.spawn(keep(plan, told.clone()));
    }
    let (mut code, mut has_device) = (0, false);
    let mut draining_since = None;
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(Ok(EXIT_DEVICE)) => code = code.max(EXIT_CONFIG),
                Some(ended) => {
                    has_device = true;
                    code = code.max(ended.unwrap_or(1));
                }
                None => match fallback.take() {
                    Some(plan) if !has_device => {
                        tracing::warn!(node.id = plan.name, "no GPU of this host can be used, for the reasons above; models run on the processor");
                        code = 0;
                        workers.spawn(keep(plan, told.clone()));
                    }
                    _ => return code,
                },
            },
            request = signals.next() => {
                let first = *draining_since.get_or_insert_with(Instant::now);
                let again = first.elapsed() >= SAME_REQUEST;
                tracing::info!(reason = request.as_str(), again, "told to end");
                let wanted = match request {
                    StopRequest::Terminate if !again => Phase::Drain,
                    StopRequest::Terminate | StopRequest::Interrupt | StopRequest::ParentEnded => Phase::Stop,
                };
                phase.send_modify(|phase| *phase = (*phase).max(wanted));
            }
        }
    }
}

/// The supervisor's reaction to the end of a worker.
enum Next {
    Leave(u8),
    Restart,
}

/// Runs one worker, and restarts it until it ends for good or the supervisor is told to end. Returns the exit code.
async fn keep(plan: Plan, mut told: watch::Receiver<Phase>) -> u8 {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut deaths = 0_u32;
    let mut budget = RestartBudget::new(plan.cancel_restarts_per_minute);
    loop {
        let began = Instant::now();
        let status = match start(&plan, budget.delay()) {
            Ok(child) => watch_over(child, &mut told).await,
            Err(error) => {
                let program = plan.program.display();
                tracing::error!(%program, %error, "cannot start the worker; reinstall lamagrid-node if its file is missing");
                return EXIT_CONFIG;
            }
        };
        if *told.borrow() != Phase::Run {
            return 0;
        }
        match judge(&plan, status, began.elapsed()) {
            Next::Leave(code) => return code,
            Next::Restart => {}
        }
        if status.signal() == Some(cancel_watchdog::ENDED_ITSELF.as_raw()) {
            tracing::info!(node.id = plan.name, "worker ended itself to stop a task; starting it again");
            budget.record();
            continue;
        }
        if began.elapsed() >= GOOD_LIFE {
            backoff.reset();
            deaths = 0;
        }
        deaths += 1;
        // The first restart is immediate, because tasks wait for the worker.
        let pause = if deaths == 1 { Duration::ZERO } else { backoff.pause() };
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(node.id = plan.name, %status, deaths, pause_ms, "worker died; restarting it");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = told.wait_for(|phase| *phase != Phase::Run) => return 0,
        }
    }
}

/// Limits how often a worker may end itself to stop a cancelled task.
#[derive(Debug)]
struct RestartBudget {
    per_minute: usize,
    ends: VecDeque<Instant>,
}

impl RestartBudget {
    const MINUTE: Duration = Duration::from_secs(60);

    fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute as usize, ends: VecDeque::new() }
    }

    fn record(&mut self) {
        self.ends.push_back(Instant::now());
    }

    /// Time after its start during which the next worker must not end itself.
    fn delay(&mut self) -> Duration {
        self.ends.retain(|at| at.elapsed() < Self::MINUTE);
        if self.per_minute == 0 {
            return Duration::MAX;
        }
        let over = self.ends.len().checked_sub(self.per_minute);
        over.map_or(Duration::ZERO, |index| Self::MINUTE.saturating_sub(self.ends[index].elapsed()))
    }
}

fn start(plan: &Plan, not_before: Duration) -> std::io::Result<Child> {
    let not_before_ms = u64::try_from(not_before.as_millis()).unwrap_or(u64::MAX);
    let child = Command::new(&plan.program)
        .args(&plan.args)
        .envs(plan.env.iter().map(|(name, value)| (name, value)))
        .env(cancel_watchdog::NOT_BEFORE, not_before_ms.to_string())
        .stdin(Stdio::piped()) // closing it tells the worker to stop
        .kill_on_drop(true)
        .spawn()?;
    tracing::info!(node.id = plan.name, worker.pid = child.id(), program = %plan.program.display(), "worker started");
    Ok(child)
}

/// Waits for the worker to end, and forwards the supervisor's stop requests to it.
async fn watch_over(mut child: Child, told: &mut watch::Receiver<Phase>) -> ExitStatus {
    // Taken out of the child, because `Child::wait` would close it.
    let mut stdin = child.stdin.take();
    let mut passed_on = Phase::Run;
    let mut kill_at: Option<tokio::time::Instant> = None;
    loop {
        let wanted = *told.borrow_and_update();
        if wanted > passed_on {
            passed_on = wanted;
            if wanted == Phase::Drain {
                terminate(&child);
                kill_at = Some(tokio::time::Instant::now() + DRAIN_PATIENCE);
            } else {
                // Closing its standard input makes the worker say goodbye and end.
                stdin.take();
                kill_at = Some(tokio::time::Instant::now() + STOP_PATIENCE);
            }
        }
        let killing = async {
            match kill_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = child.wait() => return status.unwrap_or_default(),
            changed = told.changed() => if changed.is_err() { std::future::pending::<()>().await },
            () = killing => {
                kill_at = None;
                // The call may fail if the worker has just ended, which `wait` reports.
                let _ = child.start_kill();
            }
        }
    }
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, Sent::TERM)
    {
        tracing::debug!(%error, "the worker ended before it could be told to");
    }
}

fn judge(plan: &Plan, status: ExitStatus, lived: Duration) -> Next {
    match (status.code(), &plan.libtorch) {
        (Some(0), _) => {
            tracing::info!(node.id = plan.name, "worker left as it was told");
            Next::Leave(0)
        }
        (Some(code), _) if code == i32::from(EXIT_DEVICE) => {
            tracing::error!(
                node.id = plan.name,
                "the worker's device cannot be used, for the reason above; it is not started again until this node is"
            );
            Next::Leave(EXIT_DEVICE)
        }
        (Some(LOADER_FAILED), Some(dir)) if lived < LOADING => {
            let error = LibtorchError::Unloadable { dir: dir.clone() };
            tracing::error!(node.id = plan.name, %error, "the worker cannot run");
            Next::Leave(EXIT_CONFIG)
        }
        (Some(code), _) => match u8::try_from(code) {
            Ok(code) if FINAL_CODES.contains(&code) => {
                tracing::error!(node.id = plan.name, code, "the worker gave up; its reason stands above");
                Next::Leave(code)
            }
            _ => Next::Restart,
        },
        (None, _) => Next::Restart,
    }
}
