//! Accepts connections on a private Unix socket, and enforces limits before and after their handshake.
//!
//! Replaces the accepting side of the `zeromq` crate, which keeps 100,000 messages for a peer that does not
//! read, has no handshake timeout, and loses events of its monitor (decision 0020).

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use lamagrid_process::MemoryTrim;

use crate::connection::{Inbox, Kind, handshake};
use crate::endpoint::{SocketError, file_identity, socket_path, unlink_stale};
use crate::outbox::{MAX_TOTAL_BYTES, Outbox, OutboxBudget};

/// Limit on the time from the connection to the end of its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Limit on connections of one socket before their handshake; one more closes the oldest, so that silent
/// peers cannot block others.
const MAX_HANDSHAKES: usize = 64;
/// Pause after an accept that failed for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Descriptors reserved for the store, the log, HTTP connections and other files.
const DESCRIPTORS_OF_OTHERS: usize = 96;

/// Limits shared by the private sockets of a process: on connections, in total and per peer process, and on
/// the bytes that wait for peers.
///
/// Connections get a quarter of the descriptors, and leave the rest to the gate.
#[derive(Debug, Clone)]
pub struct ConnectionLimits(Arc<Limits>);

#[derive(Debug)]
struct Limits {
    most: usize,
    of_one_process: usize,
    open: Mutex<Open>,
    outboxes: OutboxBudget,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_pid: HashMap<i32, usize>,
}

impl Default for ConnectionLimits {
    /// Derives the limits from the number of descriptors that this process may open now.
    fn default() -> Self {
        Self::new((lamagrid_process::descriptors::limit().saturating_sub(DESCRIPTORS_OF_OTHERS) / 4).max(16))
    }
}

impl ConnectionLimits {
    fn new(most: usize) -> Self {
        let of_one_process = most - most / 4;
        let (open, outboxes) = (Mutex::default(), OutboxBudget::default());
        Self(Arc::new(Limits { most, of_one_process, open, outboxes }))
    }

    /// True if more than half of the budget for unread bytes is used. Then large messages should be held back
    /// from peers that have not read their last one.
    #[must_use]
    pub fn is_much_unread(&self) -> bool {
        self.0.outboxes.bytes() > MAX_TOTAL_BYTES / 2
    }

    /// Creates an outbox for one more connection.
    pub(crate) fn outbox(&self) -> Outbox {
        self.0.outboxes.outbox()
    }

    /// Counts a connection of the process `pid` until the slot is dropped; `None` if a limit is reached.
    /// Connections of this process are exempt, because a gate in it has limits of its own.
    fn enter(&self, pid: i32) -> Option<Slot> {
        let mut open = self.0.open.lock();
        let is_own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
        let of_process = open.by_pid.get(&pid).copied().unwrap_or(0);
        if !is_own && (open.all >= self.0.most || of_process >= self.0.of_one_process) {
            return None;
        }
        open.all += 1;
        *open.by_pid.entry(pid).or_default() += 1;
        Some(Slot { limits: self.clone(), pid })
    }
}

/// One connection counted against the limits.
#[derive(Debug)]
pub(crate) struct Slot {
    limits: ConnectionLimits,
    pid: i32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.limits.0.open.lock();
        open.all -= 1;
        if let Some(count) = open.by_pid.get_mut(&self.pid) {
            *count -= 1;
            if *count == 0 {
                open.by_pid.remove(&self.pid);
            }
        }
    }
}

/// A connection that has completed its handshake.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: UnixStream,
    pub(crate) inbox: Inbox,
    /// The identity that a gate in this process assigned to its peer; `None` for connections of other processes.
    pub(crate) identity: Option<Bytes>,
    pub(crate) slot: Slot,
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    /// Receives replacement sockets from [`SocketFile::bind_anew`].
    bound_anew: mpsc::UnboundedReceiver<UnixListener>,
    kind: Kind,
    limits: ConnectionLimits,
}

/// The file of a bound socket; removed on drop, and thus before another socket of that name is bound.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode number.
    file: Option<(u64, u64)>,
    bound_anew: mpsc::UnboundedSender<UnixListener>,
}

impl SocketFile {
    /// True if the file was removed or replaced, so that new peers cannot connect. Existing connections stay open.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.file.is_none() || file_identity(&self.path) != self.file
    }

    /// Binds `address` again for the same listener, which then accepts on the new socket.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind_anew(&mut self, address: &str) -> Result<(), SocketError> {
        let (socket, path) = bind(address)?;
        (self.file, self.path) = (file_identity(&path), path);
        // Fails only if the listener has ended.
        let _ = self.bound_anew.send(socket);
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_lost() {
            // A remaining file is replaced by the next bind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(address: &str) -> Result<(UnixListener, PathBuf), SocketError> {
    unlink_stale(address);
    let bind_error = |source| SocketError::Bind { address: address.to_owned(), source };
    let path = socket_path(address).ok_or_else(|| bind_error(std::io::ErrorKind::Unsupported.into()))?;
    Ok((UnixListener::bind(path).map_err(bind_error)?, path.to_owned()))
}

impl Listener {
    /// Binds `address`, after removing a socket file that a killed process may have left.
    ///
    /// # Errors
    /// [`SocketError::Bind`].
    pub(crate) fn bind(
        address: &str,
        kind: Kind,
        limits: &ConnectionLimits,
    ) -> Result<(Self, SocketFile), SocketError> {
        let (socket, path) = bind(address)?;
        let (sender, bound_anew) = mpsc::unbounded_channel();
        let file = SocketFile { file: file_identity(&path), path, bound_anew: sender };
        Ok((Self { socket, bound_anew, kind, limits: limits.clone() }, file))
    }

    /// Accepts until dropped. Calls `serve` in a separate task for each connection after its handshake.
    pub(crate) async fn accept<F>(mut self, serve: impl Fn(Accepted) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (mut handshakes, mut connections) = (JoinSet::new(), JoinSet::new());
        let (mut oldest, mut trim) = (VecDeque::new(), MemoryTrim::default());
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                Some(socket) = self.bound_anew.recv() => {
                    self.socket = socket;
                    continue;
                }
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(accepted)) = done {
                        connections.spawn(serve(accepted));
                    }
                    continue;
                }
                Some(_) = connections.join_next() => {
                    trim.schedule();
                    continue;
                }
                () = trim.due() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(socket = self.kind.name(), %error, "cannot accept a connection, waiting a moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or(0);
            let Some(slot) = self.limits.enter(pid) else {
                tracing::debug!(socket = self.kind.name(), pid, "refused a connection: too many are open");
                continue;
            };
            let task: AbortHandle = handshakes.spawn(shake_hands(stream, self.kind, pid, slot));
            while oldest.front().is_some_and(AbortHandle::is_finished) {
                oldest.pop_front();
            }
            oldest.push_back(task);
            if handshakes.len() > MAX_HANDSHAKES
                && let Some(silent) = oldest.pop_front()
            {
                silent.abort();
            }
        }
    }
}

async fn shake_hands(mut stream: UnixStream, kind: Kind, pid: i32, slot: Slot) -> Option<Accepted> {
    let reason = match tokio::time::timeout(HANDSHAKE, handshake(&mut stream, kind)).await {
        Ok(Ok((identity, inbox))) => {
            let is_own = u32::try_from(pid).is_ok_and(|pid| pid == std::process::id());
            let identity = Some(identity).filter(|identity| is_own && !identity.is_empty());
            return Some(Accepted { stream, inbox, identity, slot });
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no handshake within {} s", HANDSHAKE.as_secs()),
    };
    tracing::debug!(pid, reason, "a connection was dropped");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_leaves_room_for_others_and_the_own_gate_is_exempt() {
        let limits = ConnectionLimits::new(16);
        let of_one: Vec<Slot> = std::iter::from_fn(|| limits.enter(1)).collect();
        assert_eq!(of_one.len(), 12);
        let of_others: Vec<Slot> = (2..).map_while(|pid| limits.enter(pid)).collect();
        assert_eq!(of_others.len(), 4);
        let own = i32::try_from(std::process::id()).expect("a pid is positive");
        assert!(limits.enter(own).is_some());
        drop(of_one);
        assert!(limits.enter(9).is_some());
    }
}
