//! Names the sockets of one scheduler, and defines socket errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeromq::Socket;

use lamagrid_domain::SessionId;

/// The prefix of all lanes' names.
const LANE_PREFIX: &str = "lane-";

/// Why an operation on a socket failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The socket could not be connected.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: String,
        /// ZeroMQ's error.
        source: zeromq::ZmqError,
    },
    /// An established connection broke.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// The address.
        address: String,
        /// The reason.
        reason: String,
    },
    /// No answer arrived within the time limit.
    #[error("{address} did not answer within {waited_ms} ms")]
    Silent {
        /// The address.
        address: String,
        /// The time limit, in milliseconds.
        waited_ms: u128,
    },
    /// The received bytes were not a frame of this protocol.
    #[error(transparent)]
    Frame(#[from] lamagrid_protocol::frame::FrameError),
}

/// The private Unix sockets of one scheduler, all in one directory of mode 0700.
#[derive(Clone)]
pub struct Endpoints {
    dir: Arc<dyn Fn() -> PathBuf + Send + Sync>,
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Endpoints").field(&self.dir()).finish()
    }
}

impl From<PathBuf> for Endpoints {
    fn from(dir: PathBuf) -> Self {
        Self::new(dir)
    }
}

impl From<&Path> for Endpoints {
    fn from(dir: &Path) -> Self {
        Self::new(dir)
    }
}

impl Endpoints {
    /// Names the sockets in `dir`, which the configuration created and checked.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self::found_by(move || dir.clone())
    }

    /// Names the sockets in a directory that may change: `find` is called at each use.
    #[must_use]
    pub fn found_by(find: impl Fn() -> PathBuf + Send + Sync + 'static) -> Self {
        Self { dir: Arc::new(find) }
    }

    /// The directory of the sockets.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        (self.dir)()
    }

    fn ipc(&self, name: &str) -> String {
        format!("ipc://{}/{name}.sock", self.dir().display())
    }

    /// The address of the `client` channel: DEALER to ROUTER.
    #[must_use]
    pub fn client(&self) -> String {
        self.ipc("client")
    }

    /// The address of the `admin` channel: REQ to ROUTER.
    #[must_use]
    pub fn admin(&self) -> String {
        self.ipc("admin")
    }

    /// The address of the `control` channel: REQ to ROUTER.
    #[must_use]
    pub fn control(&self) -> String {
        self.ipc("control")
    }

    /// The address of the `result` channel: DEALER to ROUTER.
    #[must_use]
    pub fn result(&self) -> String {
        self.ipc("result")
    }

    /// The address of the `node-events` channel: PUB to SUB.
    #[must_use]
    pub fn node_events(&self) -> String {
        self.ipc("node-events")
    }

    /// The address of the lane of the `index`-th queue of `session`: PUSH to PULL.
    ///
    /// The name contains a hash of the session's id instead of the id, which is secret: the name appears in
    /// log lines and directories.
    #[must_use]
    pub fn lane(&self, session: SessionId, index: usize) -> String {
        let public = blake3::hash(session.as_bytes()).to_hex();
        self.ipc(&format!("{LANE_PREFIX}{}-{index}", &public[..16]))
    }

    /// The name of a lane's socket, under which a gate relays it; `None` if `address` is not a lane.
    #[must_use]
    pub fn lane_name(address: &str) -> Option<&str> {
        let name = socket_path(address)?.file_name()?.to_str()?.strip_suffix(".sock")?;
        name.starts_with(LANE_PREFIX).then_some(name)
    }

    /// The address of the lane `name` in this directory.
    #[must_use]
    pub fn lane_of(&self, name: &str) -> String {
        self.ipc(name)
    }
}

/// Connects `socket` to `address` within `patience`; ZeroMQ itself would retry for half a minute.
pub(crate) async fn connect(
    socket: &mut impl Socket,
    address: &str,
    patience: Duration,
) -> Result<(), SocketError> {
    match tokio::time::timeout(patience, socket.connect(address)).await {
        Ok(connected) => {
            connected.map_err(|source| SocketError::Connect { address: address.to_owned(), source })
        }
        Err(_) => Err(SocketError::Silent { address: address.to_owned(), waited_ms: patience.as_millis() }),
    }
}

/// The path of an `ipc://` address; `None` for other addresses.
pub(crate) fn socket_path(address: &str) -> Option<&Path> {
    address.strip_prefix("ipc://").map(Path::new)
}

/// Removes the socket file that a killed process left, so that `bind` succeeds. The caller holds the data directory's lock.
pub(crate) fn unlink_stale(address: &str) {
    if let Some(path) = socket_path(address) {
        // Usually the file is absent; any other error shows in the bind that follows.
        let _ = std::fs::remove_file(path);
    }
}

/// Device and inode number of a file. They distinguish a socket's own file from a later one with the same name.
#[must_use]
pub fn file_identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
