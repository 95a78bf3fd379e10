//! Where the sockets of one scheduler lie, and what can go wrong with a socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeromq::Socket;

use lamagrid_domain::SessionId;

/// How the names of all lanes begin.
const LANE_PREFIX: &str = "lane-";

/// What went wrong with a socket, and which one.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Nobody listens there, or the connection was refused.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: String,
        /// What ZeroMQ said.
        source: zeromq::ZmqError,
    },
    /// A connection that stood broke.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// The address.
        address: String,
        /// What happened.
        reason: String,
    },
    /// Nothing came back in time.
    #[error("{address} did not answer within {waited_ms} ms")]
    Silent {
        /// The address.
        address: String,
        /// How long was waited.
        waited_ms: u128,
    },
    /// What came was not a frame of this protocol.
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
    /// The endpoints beneath `dir`, which the configuration made and checked.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self::found_by(move || dir.clone())
    }

    /// The endpoints beneath a directory that may move: `find` is asked for it whenever one of them is used.
    #[must_use]
    pub fn found_by(find: impl Fn() -> PathBuf + Send + Sync + 'static) -> Self {
        Self { dir: Arc::new(find) }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        (self.dir)()
    }

    fn ipc(&self, name: &str) -> String {
        format!("ipc://{}/{name}.sock", self.dir().display())
    }

    /// `client`: DEALER to ROUTER.
    #[must_use]
    pub fn client(&self) -> String {
        self.ipc("client")
    }

    /// `admin`: REQ to ROUTER.
    #[must_use]
    pub fn admin(&self) -> String {
        self.ipc("admin")
    }

    /// `control`: REQ to ROUTER.
    #[must_use]
    pub fn control(&self) -> String {
        self.ipc("control")
    }

    /// `result`: DEALER to ROUTER.
    #[must_use]
    pub fn result(&self) -> String {
        self.ipc("result")
    }

    /// `node-events`: PUB to SUB.
    #[must_use]
    pub fn node_events(&self) -> String {
        self.ipc("node-events")
    }

    /// The lane of the `index`-th queue of `session`: PUSH to PULL.
    ///
    /// Its name is in log lines and directories, so it says nothing about the session's id, which is a secret.
    #[must_use]
    pub fn lane(&self, session: SessionId, index: usize) -> String {
        let public = blake3::hash(session.as_bytes()).to_hex();
        self.ipc(&format!("{LANE_PREFIX}{}-{index}", &public[..16]))
    }

    /// The name of a lane's socket, by which a gate knows it.
    #[must_use]
    pub fn lane_name(address: &str) -> Option<&str> {
        let name = socket_path(address)?.file_name()?.to_str()?.strip_suffix(".sock")?;
        name.starts_with(LANE_PREFIX).then_some(name)
    }

    /// The same lane among the sockets of this directory.
    #[must_use]
    pub fn lane_of(&self, name: &str) -> String {
        self.ipc(name)
    }
}

/// Connects `socket` to `address`, and gives up after `patience`: ZeroMQ itself would wait for half a minute.
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

/// The file of an `ipc://` address.
pub(crate) fn socket_path(address: &str) -> Option<&Path> {
    address.strip_prefix("ipc://").map(Path::new)
}

/// Removes the file that a killed process left, so that `bind` succeeds. The caller holds the data directory's lock.
pub(crate) fn unlink_stale(address: &str) {
    if let Some(path) = socket_path(address) {
        // Absent is the usual case; anything else shows in the bind that follows.
        let _ = std::fs::remove_file(path);
    }
}

/// Device and inode of a file, by which a socket's own file is told from another one of its name.
#[must_use]
pub fn file_identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
