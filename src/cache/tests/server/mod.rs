//! A real Redis server on a Unix socket, which is killed, frozen and filled.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lamagrid_config::{CacheConfig, RedisUrl};

const START: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) struct Server {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("lg-redis").tempdir_in("/tmp").unwrap();
        let mut server = Self { dir, child: None };
        server.restart();
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn config(&self) -> CacheConfig {
        CacheConfig {
            url: RedisUrl::new(&format!("unix://{}", self.socket().display())),
            password_file: PathBuf::new(),
            prefix: "grid".to_owned(),
            timeout_ms: 25,
        }
    }

    /// Starts it with what it saved last.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is missing: `make deps` installs it");
        self.child = Some(child);
        let until = Instant::now() + START;
        while self.try_ask("PING").is_none_or(|answer| !answer.starts_with("+PONG")) {
            assert!(Instant::now() < until, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn try_ask(&self, command: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut buffer = vec![0; 1 << 16];
        let read = stream.read(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
    }

    /// Sends one command and returns the beginning of its answer.
    pub(crate) fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|| panic!("no answer to {command}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
