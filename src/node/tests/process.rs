//! Tests `lamagrid-node` as users start it: a supervisor and its workers, with real processes and signals.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails with its test")]

mod fake;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fake::{Fake, Received, pattern, rgb_to_bgr, short_dir};

use lamagrid_domain::NodeKind;
use lamagrid_protocol::message::{AttemptOutcome, NodeEvent, Stored};

/// A running supervisor. Dropping it kills it, whereupon its workers end, too.
struct Node {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Node {
    fn start(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lamagrid-node"))
            .args(["--lifeline", "--name", "n", "--data-dir"])
            .arg(dir.join("data"))
            .args(args)
            .env("XDG_RUNTIME_DIR", dir)
            .env("XDG_CONFIG_HOME", dir)
            .env_remove("LAMAGRID_CONFIG")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("| {line}");
                let _ = said.send(line);
            }
        });
        Self { child, lines }
    }

    /// Waits for the next log line that contains all `words`.
    fn line(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no line with {words:?}"));
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        signal_pid(self.child.id(), signal);
    }

    fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the node did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal_pid(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn wait_until_gone(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while lives(pid) {
        assert!(Instant::now() < deadline, "process {pid} is an orphan");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a fake scheduler where a node with this directory looks for one.
async fn scheduler(dir: &Path) -> Fake {
    // The socket directory depends on the node's environment, so a node is started to log it. It must have ended before the
    // test starts its own.
    let node = Node::start(dir, &["--backend", "echo"], &[]);
    let field = |line: String, name: &str| {
        line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    let sockets = field(node.line(&["node is starting"]), "sockets=");
    let worker = field(node.line(&["worker started"]), "worker.pid=").parse().unwrap();
    drop(node);
    wait_until_gone(worker);
    Fake::start(Path::new(&sockets)).await
}

const ECHO: [&str; 4] = ["--backend", "echo", "--model", "lama"];

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_replaced_and_a_drained_node_leaves() {
    let dir = short_dir();
    let mut fake = scheduler(dir.path()).await;
    let mut node = Node::start(dir.path(), &ECHO, &[]);
    let (_, first, _) = fake.welcome(vec![]).await;
    assert_eq!((first.info.kind, first.info.device.as_str()), (NodeKind::Echo, "cpu"));
    assert!(lives(first.info.pid) && first.info.pid != node.child.id());
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 60_000)]);
    fake.assign(&spec, token).await;

    signal_pid(first.info.pid, rustix::process::Signal::KILL);
    let began = Instant::now();
    let (_, second, ready) = fake.welcome(vec![]).await;
    assert!(began.elapsed() < Duration::from_secs(2), "the first restart is immediate");
    assert_ne!(second.info.pid, first.info.pid);
    // Credit for one slot and one prepared task.
    assert_eq!((second.slots, second.overlap, ready.credit), (1, 1, 2));
    assert_eq!((second.info.name, second.running.len()), (first.info.name, 0));

    let (spec, token) = fake.task(10, 10, &[("echo_ms", 500)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    node.signal(rustix::process::Signal::TERM);
    let (delivery, blobs) = fake.delivery().await;
    assert!(matches!(delivery.outcome, AttemptOutcome::Done { inline: true, .. }));
    assert_eq!(blobs[0], rgb_to_bgr(&pattern(10, 10)));
    fake.reply(Stored { token, accepted: true }.into()).await;
    fake.until(|received| matches!(received, Received::Goodbye).then_some(())).await;
    assert!(node.wait(Duration::from_secs(5)).success());
    assert!(!lives(second.info.pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_killed_supervisor_or_a_closed_lifeline() {
    let dir = short_dir();
    let mut fake = scheduler(dir.path()).await;
    let mut node = Node::start(dir.path(), &ECHO, &[]);
    let (_, hello, _) = fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 60_000)]);
    fake.assign(&spec, token).await;
    node.signal(rustix::process::Signal::KILL);
    fake.until(|received| matches!(received, Received::Goodbye).then_some(())).await;
    wait_until_gone(hello.info.pid);
    node.wait(Duration::from_secs(1));

    let mut node = Node::start(dir.path(), &ECHO, &[]);
    let (_, hello, _) = fake.welcome(vec![]).await;
    drop(node.child.stdin.take());
    fake.until(|received| matches!(received, Received::Goodbye).then_some(())).await;
    assert!(node.wait(Duration::from_secs(5)).success());
    assert!(!lives(hello.info.pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_carry_live_figures_within_the_limits_of_the_capability_file() {
    let dir = short_dir();
    let mut fake = scheduler(dir.path()).await;
    let file = dir.path().join("node.toml");
    std::fs::write(&file, "labels = ['lab-2']\nleave_out = ['manga']\n[cpu]\nmemory_mib = 16\n").unwrap();
    let file = format!("--capabilities={}", file.display());
    let flags = ["--device", "cpu", "--model", "manga", &file];
    let _node = Node::start(dir.path(), &[&ECHO[..], &flags].concat(), &[]);
    let (_, hello, _) = fake.welcome(vec![]).await;
    assert_eq!((hello.info.memory_bytes, hello.info.labels), (16 << 20, vec!["lab-2".into()]));
    assert_eq!((hello.info.models.len(), hello.info.models[0].model.as_str()), (1, "lama"));
    let figures = fake
        .until(|received| match received {
            Received::Event(NodeEvent::Heartbeat(heartbeat)) => heartbeat.figures,
            _ => None,
        })
        .await;
    assert_eq!(figures.free_memory_bytes, Some(16 << 20));
    assert!(figures.resident_bytes > 1 << 20, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_devices_are_several_nodes_and_a_second_signal_stops_at_once() {
    let dir = short_dir();
    let mut fake = scheduler(dir.path()).await;
    let mut node = Node::start(dir.path(), &[&ECHO[..], &["--device", "cpu,cpu"]].concat(), &[]);
    let (_, one, _) = fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 60_000)]);
    fake.assign(&spec, token).await;
    let (_, two, _) = fake.welcome(vec![]).await;
    let mut names = [one.info.name.to_string(), two.info.name.to_string()];
    names.sort();
    assert_eq!(names, ["n-0", "n-1"]);
    node.signal(rustix::process::Signal::TERM);
    node.line(&["draining"]);
    // A service manager signals the supervisor and its workers; this counts as one request.
    node.signal(rustix::process::Signal::TERM);
    for worker in [one.info.pid, two.info.pid] {
        // The idle worker may have ended already.
        let pid = rustix::process::Pid::from_raw(worker as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(node.child.try_wait().unwrap().is_none(), "a task still runs");
    let began = Instant::now();
    node.signal(rustix::process::Signal::TERM);
    assert!(node.wait(Duration::from_secs(5)).success());
    // Does not wait for the time that the first signal allows the running task.
    assert!(began.elapsed() < Duration::from_millis(3_000), "{:?}", began.elapsed());
    assert!(!lives(one.info.pid) && !lives(two.info.pid));
}

/// R4.4: the node ends within the time that a service manager allows before it kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_gives_a_long_task_back_in_time_and_a_hangup_does_nothing() {
    let dir = short_dir();
    let mut fake = scheduler(dir.path()).await;
    let mut node = Node::start(dir.path(), &ECHO, &[]);
    let (_, hello, _) = fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 600_000)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    for pid in [node.child.id(), hello.info.pid] {
        signal_pid(pid, rustix::process::Signal::HUP);
    }
    node.line(&["SIGHUP", "reload is not available yet"]);
    let began = Instant::now();
    node.signal(rustix::process::Signal::TERM);
    node.line(&["draining"]);
    fake.until(|received| matches!(received, Received::Goodbye).then_some(())).await;
    assert!(node.wait(Duration::from_secs(8)).success());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(!lives(hello.info.pid));
}

/// A worker suspended by SIGSTOP cannot end by itself and is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_worker_does_not_delay_the_end_of_its_supervisor() {
    let dir = short_dir();
    let mut fake = scheduler(dir.path()).await;
    let mut node = Node::start(dir.path(), &ECHO, &[]);
    let (_, hello, _) = fake.welcome(vec![]).await;
    signal_pid(hello.info.pid, rustix::process::Signal::STOP);
    let began = Instant::now();
    node.signal(rustix::process::Signal::TERM);
    assert!(node.wait(Duration::from_secs(10)).success());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    wait_until_gone(hello.info.pid);
}

#[test]
fn a_missing_or_wrong_libtorch_is_explained_with_its_own_exit_code() {
    let dir = short_dir();
    let nothing = dir.path().to_str().unwrap();
    let mut node = Node::start(dir.path(), &["--backend", "torch"], &[("LAMAGRID_LIBTORCH", nothing)]);
    node.line(&["needs libtorch 2.11.0", nothing, "pip install torch==2.11.0"]);
    assert_eq!(node.wait(Duration::from_secs(5)).code(), Some(78));

    let package = dir.path().join("torch");
    std::fs::create_dir_all(package.join("lib")).unwrap();
    std::fs::write(package.join("lib/libtorch_cpu.so"), b"not a library").unwrap();
    std::fs::write(package.join("version.py"), "__version__ = '2.6.0+cpu'\n").unwrap();
    let package = package.to_str().unwrap();
    let mut node = Node::start(dir.path(), &["--backend", "torch"], &[("LAMAGRID_LIBTORCH", package)]);
    node.line(&["needs libtorch 2.11.0 and found 2.6.0+cpu", "pip install torch==2.11.0"]);
    assert_eq!(node.wait(Duration::from_secs(5)).code(), Some(78));
}

#[cfg(feature = "torch")]
#[test]
fn a_libtorch_that_does_not_load_is_explained_after_the_worker_tried() {
    let dir = short_dir();
    let package = dir.path().join("torch");
    std::fs::create_dir_all(package.join("lib")).unwrap();
    std::fs::write(package.join("lib/libtorch_cpu.so"), b"not a library").unwrap();
    std::fs::write(package.join("version.py"), "__version__ = '2.11.0+cpu'\n").unwrap();
    let package = package.to_str().unwrap();
    let mut node = Node::start(dir.path(), &["--backend", "torch"], &[("LAMAGRID_LIBTORCH", package)]);
    node.line(&["could not load libtorch 2.11.0", package, "pip install --force-reinstall torch==2.11.0"]);
    assert_eq!(node.wait(Duration::from_secs(5)).code(), Some(78));
}
