//! Tests how `lamagrid doctor` reports faults; `tests/net` tests it on a host without faults.

use std::path::Path;

use super::{Ran, run};

fn doctor(dir: &Path, words: &[&str]) -> Ran {
    let data_dir = dir.join("data").display().to_string();
    run(&[&["doctor"][..], words].concat(), &[("LAMAGRID__DATA_DIR", &data_dir)])
}

fn certs(dir: &Path, words: &[&str]) {
    let data_dir = dir.join("data").display().to_string();
    let ran = run(&[&["certs"][..], words, &["--data-dir", &data_dir]].concat(), &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn without_a_scheduler_the_start_command_is_shown() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let ran = doctor(dir.path(), &[]);
    assert_eq!(ran.code, 1);
    let line =
        |check: &str| ran.out.lines().find(|line| line.starts_with(check)).unwrap_or_default().to_owned();
    assert!(line("disk").contains("good"), "{}", ran.out);
    assert!(line("scheduler").contains("BAD"), "{}", ran.out);
    assert!(line("scheduler").contains("start it with: lamagrid scheduler"), "{}", ran.out);
    assert!(line("gate").contains("no other host can join"), "{}", ran.out);
    assert!(ran.out.contains("libtorch"), "{}", ran.out);
}

/// "Start it" would be wrong advice: a second scheduler would only report that another one runs.
#[test]
fn an_unreachable_running_scheduler_is_not_reported_as_stopped() {
    use rustix::fs::{FlockOperation, flock};
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let data_dir = dir.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    std::fs::write(data_dir.join("lock"), "4711\n").unwrap();
    let lock = std::fs::File::open(data_dir.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let ran = doctor(dir.path(), &[]);
    assert!(ran.out.contains("it runs (pid 4711)") && ran.out.contains("which are gone"), "{}", ran.out);
    assert!(!ran.out.contains("start it with"), "{}", ran.out);
    let ran = run(&["node", "list", "--data-dir", data_dir.to_str().unwrap()], &[]);
    assert!(ran.err.contains("(pid 4711), but it does not answer"), "{}", ran.err);
    assert!(!ran.err.contains("start it with"), "{}", ran.err);
}

#[test]
fn a_gate_without_a_certificate_shows_the_command_that_makes_one() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let data_dir = dir.path().join("data").display().to_string();
    let env = [("LAMAGRID__DATA_DIR", data_dir.as_str()), ("LAMAGRID__GATE__LISTEN", "127.0.0.1:0")];
    let ran = run(&["doctor"], &env);
    assert!(ran.out.contains("run `lamagrid certs init`"), "{}", ran.out);
    certs(dir.path(), &["init"]);
    let ran = run(&["doctor", "--output", "json"], &env);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let certificate = found.as_array().unwrap().iter().find(|each| each["check"] == "certificate").unwrap();
    assert_eq!(certificate["state"], "good", "{}", ran.out);
}

#[test]
fn a_bundle_is_checked_before_any_connection() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let bundle = dir.path().join("gpu-1.bundle");
    let path = bundle.to_str().unwrap();
    let ran = doctor(dir.path(), &["--join", path]);
    assert!(ran.out.contains("No such file"), "{}", ran.out);
    std::fs::write(&bundle, "nothing").unwrap();
    assert!(doctor(dir.path(), &["--join", path]).out.contains("is this a file of `lamagrid certs bundle`?"));
    certs(dir.path(), &["init"]);
    certs(dir.path(), &["issue", "--role", "node", "--name", "gpu-1", "--days", "3"]);
    certs(dir.path(), &["bundle", "gpu-1", "--scheduler", "127.0.0.1:9", "--out", path]);
    let ran = doctor(dir.path(), &["--join", path]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("node gpu-1, for 127.0.0.1:9"), "{}", ran.out);
    assert!(ran.out.contains("certificate ends soon"), "{}", ran.out);
    assert!(ran.out.contains("does a firewall let this through?"), "{}", ran.out);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&bundle, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(doctor(dir.path(), &["--join", path]).out.contains("chmod 600"));
}
