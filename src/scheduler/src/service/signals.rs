//! What tells the process to end, and what does not: SIGTERM, SIGINT, the end of its parent; SIGHUP.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// A process group and a parent tell of the same end twice; a person who insists takes longer.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    parent: Option<mpsc::Receiver<()>>,
    told: Option<Instant>,
}

impl Signals {
    /// From here on no signal ends the process by itself.
    pub(super) fn install(lifeline: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            parent: lifeline.then(watch_parent).transpose()?,
            told: None,
        })
    }

    /// Resolves with the reason once the process shall end.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn end(&mut self) -> &'static str {
        let reason = loop {
            let parent = self.parent.as_mut();
            let parent_gone = async {
                match parent {
                    Some(parent) => parent.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.terminate.recv() => break "SIGTERM",
                _ = self.interrupt.recv() => break "SIGINT",
                _ = parent_gone => break "parent ended",
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP: reload is not available yet; restart to apply a changed configuration");
                }
            }
        };
        self.told = Some(Instant::now());
        reason
    }

    /// Resolves once a person insists.
    pub(super) async fn again(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            if self.told.is_none_or(|told| told.elapsed() >= SAME_SIGNAL) {
                return;
            }
        }
    }
}

/// Hears when standard input ends. A plain thread: nothing may wait for its read when the process ends.
fn watch_parent() -> io::Result<mpsc::Receiver<()>> {
    let (ended, parent) = mpsc::channel::<()>(1);
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = ended.blocking_send(());
    })?;
    Ok(parent)
}
