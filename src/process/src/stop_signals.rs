//! Receives requests to stop this process: SIGTERM, SIGINT or the end of its parent. SIGHUP is logged and ignored.

use std::io;
use std::time::Duration;

use rustix::process::{getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::parent_watch;

/// Two requests within this time count as one, because a process group and a parent both forward the same
/// request. A person takes longer to repeat it.
pub const SAME_REQUEST: Duration = Duration::from_secs(1);

/// Whether the end of the parent process is a request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// Yes: standard input is a pipe that the parent holds open.
    Watched,
    /// No: the process may outlive its parent.
    Ignored,
}

impl From<bool> for Parent {
    /// Converts the value of a `--lifeline` flag.
    fn from(is_watched: bool) -> Self {
        if is_watched { Self::Watched } else { Self::Ignored }
    }
}

/// The source of a request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRequest {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// The parent has ended.
    ParentEnded,
}

impl StopRequest {
    /// The name in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::ParentEnded => "parent ended",
        }
    }
}

/// The receiver of stop requests. While it exists, SIGTERM, SIGINT and SIGHUP do not end the process.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    parent: Option<mpsc::Receiver<()>>,
}

impl StopSignals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// If the host cannot install a signal handler or start a thread.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn install(parent: Parent) -> io::Result<Self> {
        let parent = match parent {
            Parent::Ignored => None,
            Parent::Watched => {
                let (ended, receiver) = mpsc::channel(1);
                parent_watch::watch(move || {
                    let _ = ended.blocking_send(());
                })?;
                Some(receiver)
            }
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            parent,
        })
    }

    /// Waits for the next request. The end of the parent is reported once.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> StopRequest {
        loop {
            let parent = self.parent.as_mut();
            let parent_ended = async {
                match parent {
                    Some(parent) => parent.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.terminate.recv() => return StopRequest::Terminate,
                _ = self.interrupt.recv() => return StopRequest::Interrupt,
                _ = parent_ended => {
                    self.parent = None;
                    return StopRequest::ParentEnded;
                }
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP: reload is not available yet; restart to apply a changed configuration");
                }
            }
        }
    }
}

/// Ends this process with an exit code, without running the destructors of libraries: a driver's may wait forever for a
/// device that is lost.
pub fn end_at_once(code: u8) -> ! {
    #[expect(unsafe_code, reason = "the standard library's `exit` runs the destructors")]
    // SAFETY: `_exit` takes any number, and does not return.
    unsafe {
        libc::_exit(code.into())
    }
}

/// Ends this process by a signal instead of `exit`, which would run destructors of libraries whose threads still compute.
pub fn end_by_signal(signal: rustix::process::Signal) {
    if kill_process(getpid(), signal).is_err() {
        std::process::abort();
    }
}
