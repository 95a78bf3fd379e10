//! Tests logging in a whole process. The test program starts itself, because logging is set up once per process.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use lamagrid_config::{Config, LogFormat, LogLevel};

/// Runs the ignored test `child` in a separate process, as a node would run.
fn run_child(dir: &Path, stderr: Stdio, filter: &str) -> Output {
    run_test("child", dir, stderr, filter)
}

fn run_test(name: &str, dir: &Path, stderr: Stdio, filter: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture", "--quiet"])
        .env("TEST_LOG_DIR", dir)
        .env("LAMAGRID_LOG", filter)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap()
}

#[test]
#[ignore = "the process that the other tests start"]
fn child() {
    let mut config = Config::default().log;
    config.format = LogFormat::Json;
    let dir = std::env::var_os("TEST_LOG_DIR").unwrap();
    let guard = lamagrid_logs::init("node", &config, Path::new(&dir)).unwrap();
    assert!(lamagrid_logs::init("node", &config, Path::new(&dir)).is_err(), "twice");
    tracing::info!(slots = 2, "ready");
    let thread = std::thread::Builder::new().name("device".to_owned());
    thread.spawn(|| panic!("no\nmemory")).unwrap().join().unwrap_err();
    tracing::info!(file = guard.file().is_some(), dropped = guard.dropped_lines(), "still here");
}

#[test]
#[ignore = "the process that the test of levels starts"]
fn child_of_levels() {
    assert!(lamagrid_logs::set_level(LogLevel::Debug).is_err(), "there is no log yet");
    let mut config = Config::default().log;
    config.format = LogFormat::Json;
    let dir = std::env::var_os("TEST_LOG_DIR").unwrap();
    let _guard = lamagrid_logs::init("node", &config, Path::new(&dir)).unwrap();
    for level in [LogLevel::Debug, LogLevel::Error, LogLevel::Info] {
        lamagrid_logs::set_level(level).unwrap();
        tracing::debug!(target: "lamagrid_node", "details at {}", level.as_str());
        tracing::info!("one line at {}", level.as_str());
    }
}

#[test]
fn the_level_changes_while_the_process_runs() {
    let dir = tempfile::tempdir().unwrap();
    let output = run_test("child_of_levels", dir.path(), Stdio::piped(), "error");
    assert!(output.status.success());
    let expected = ["details at debug", "one line at debug", "one line at info"];
    assert_eq!(messages(&lines(&output.stderr)), expected);
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn messages(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["message"].as_str().unwrap()).collect()
}

#[test]
fn lines_and_panics_go_to_stderr_and_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let output = run_child(dir.path(), Stdio::piped(), "");
    assert!(output.status.success());
    let on_stderr = lines(&output.stderr);
    assert_eq!(messages(&on_stderr), ["ready", "thread panicked", "still here"]);
    assert_eq!(lines(&std::fs::read(dir.path().join("node.log")).unwrap()), on_stderr);
    assert_eq!((&on_stderr[0]["slots"], &on_stderr[2]["file"]), (&2.into(), &true.into()));
    let panic = &on_stderr[1];
    assert_eq!((&panic["panic"], &panic["thread"]), (&"no\\nmemory".into(), &"device".into()));
    assert!(panic["location"].as_str().unwrap().contains("process.rs:"), "{panic}");
    assert!(panic["backtrace"].as_str().unwrap().contains("process::child"), "{panic}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches("memory").count(), 1, "a panic is told once: {text}");
}

#[test]
fn a_directory_that_cannot_be_written_causes_one_warning() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = run_child(&file.join("logs"), Stdio::piped(), "");
    assert!(output.status.success());
    let lines = lines(&output.stderr);
    assert_eq!(messages(&lines)[1..], ["ready", "thread panicked", "still here"]);
    assert_eq!(lines[0]["level"], "WARN");
    assert!(lines[0]["dir"].as_str().unwrap().ends_with("/file/logs"), "{}", lines[0]);
    assert!(lines[0]["error"].as_str().unwrap().contains("Not a directory"), "{}", lines[0]);
    assert_eq!(lines[3]["file"], false);
}

#[test]
fn a_closed_stderr_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    // A pipe without a reader.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = run_child(dir.path(), writer.into(), "");
    assert!(output.status.success());
    let in_file = lines(&std::fs::read(dir.path().join("node.log")).unwrap());
    assert_eq!(messages(&in_file), ["ready", "thread panicked", "still here"]);
}

#[test]
fn the_variable_replaces_the_configured_level() {
    let dir = tempfile::tempdir().unwrap();
    let output = run_child(dir.path(), Stdio::piped(), "error");
    assert_eq!(messages(&lines(&output.stderr)), ["thread panicked"]);
    let output = run_child(dir.path(), Stdio::piped(), "off");
    assert!(output.status.success() && lines(&output.stderr).is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("memory"), "a panic that is not logged goes the usual way: {text}");
}
