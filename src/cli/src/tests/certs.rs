//! Tests `lamagrid certs`: from an authority to a bundle, and invalid input. R4.3

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lamagrid_gate::{Bundle, Certs, PeerRole};

use super::{Ran, run};

fn certs(dir: &Path, words: &[&str]) -> Ran {
    let data_dir = dir.join("data").display().to_string();
    run(&[&["certs"][..], words, &["--data-dir", &data_dir]].concat(), &[])
}

#[test]
fn init_issue_and_bundle_make_private_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    let issue = ["issue", "--role", "node", "--name", "gpu-1", "--queue", "gpu", "--days", "10"];
    assert_eq!(certs(dir.path(), &issue).code, 0);
    let out = dir.path().join("gpu-1.bundle");
    let words = ["bundle", "gpu-1", "--scheduler", "10.0.0.5:8872", "--out", out.to_str().unwrap()];
    let ran = certs(dir.path(), &words);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("lamagrid-node --join"), "{}", ran.out);
    let bundle = Bundle::read(&out, &[]).unwrap();
    let certificate = bundle.credentials.certificate().unwrap();
    assert_eq!(bundle.scheduler, "10.0.0.5:8872");
    assert_eq!((certificate.role, certificate.name.as_str()), (PeerRole::Node, "gpu-1"));
    assert_eq!(certificate.queues, ["gpu".parse().unwrap()]);
    let certs_dir = dir.path().join("data/certs");
    let files =
        |dir: &Path| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    for file in [files(&certs_dir), files(&certs_dir.join("issued")), vec![out]].concat() {
        if file.is_dir() {
            continue;
        }
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    assert_eq!(std::fs::metadata(certs_dir).unwrap().permissions().mode() & 0o777, 0o700);
    let listed = certs(dir.path(), &["list"]);
    let row: Vec<_> = listed.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1], row[2], row.last().copied()), ("gpu-1", "node", "gpu", Some("soon")));
    assert_eq!(certs(dir.path(), &["revoke", "gpu-1"]).code, 0);
    assert!(certs(dir.path(), &["list"]).out.contains("revoked"));
}

#[test]
fn no_name_overwrites_the_authority_or_the_scheduler() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    let certs_dir = dir.path().join("data/certs");
    let read = || ["authority.pem", "scheduler.pem"].map(|file| std::fs::read(certs_dir.join(file)).unwrap());
    let before = read();
    for name in ["authority", "scheduler"] {
        assert_eq!(certs(dir.path(), &["issue", "--role", "node", "--name", name]).code, 0);
    }
    assert_eq!(read(), before);
}

#[test]
fn invalid_requests_are_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let node = ["issue", "--role", "node", "--name", "gpu-1"];
    let refused = |words: &[&str], code: u8, text: &str| {
        let ran = certs(dir.path(), words);
        assert_eq!(ran.code, code, "{words:?}: {}", ran.err);
        assert!(ran.err.contains(text), "{words:?}: {}", ran.err);
    };
    refused(&node, 1, "run `lamagrid certs init` first");
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    refused(&["init"], 1, "exists already");
    refused(&["issue", "--role", "node", "--name", "../gpu"], 1, "a name has 1 to 64 letters");
    refused(
        &["issue", "--role", "root", "--name", "a"],
        2,
        "a role is one of scheduler, node, client, admin",
    );
    refused(&["issue", "--role", "scheduler", "--name", "a"], 1, "is made by `lamagrid certs init`");
    refused(&["issue", "--role", "client", "--name", "a", "--queue", "gpu"], 1, "--queue is for");
    refused(&["bundle", "gpu-1", "--scheduler", "h:1"], 1, "no certificate of the name gpu-1");
    refused(&["bundle", "gpu-1", "--scheduler", "nowhere"], 2, "write HOST:PORT");
    refused(&["revoke", "gpu-1"], 1, "no certificate of the name gpu-1");
    assert_eq!(certs(dir.path(), &node).code, 0);
    assert_eq!(certs(dir.path(), &["revoke", "gpu-1"]).code, 0);
    refused(&node, 1, "the name gpu-1 was revoked");
    refused(&["bundle", "gpu-1", "--scheduler", "h:1"], 1, "the name gpu-1 was revoked");
    std::fs::write(dir.path().join("data/certs/issued.json"), "{").unwrap();
    refused(&["list"], 1, "is not a list of certificates");
}

fn issue(dir: &Path, role: &str, name: &str, queues: &[&str]) -> Ran {
    let queues = queues.iter().flat_map(|queue| ["--queue", queue]).collect::<Vec<_>>();
    certs(dir, &[&["issue", "--role", role, "--name", name][..], &queues].concat())
}

fn ledger(dir: &Path) -> PathBuf {
    dir.join("data/certs/issued.json")
}

/// Number of valid certificates of a name.
fn valid(dir: &Path, name: &str) -> usize {
    let listed = certs(dir, &["list", "--output", "json"]);
    let rows: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    row["fingerprints"].as_array().unwrap().len()
}

/// R4.3: a renewed certificate leaves the older one valid; one with fewer rights revokes it.
#[test]
fn a_certificate_with_fewer_rights_revokes_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    for (role, queues, count) in [
        ("node", &["gpu"][..], 1),
        ("node", &["gpu"], 2),
        ("node", &["cpu", "gpu"], 3),
        ("node", &[], 4),
        ("node", &["gpu"], 1),
        ("client", &[], 1),
    ] {
        let ran = issue(dir.path(), role, "gpu-1", queues);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert_eq!(valid(dir.path(), "gpu-1"), count, "{role} {queues:?}");
    }
    let ran = issue(dir.path(), "node", "gpu-1", &[]);
    assert!(ran.out.contains("the older certificate may do what this one may not"), "{}", ran.out);
}

/// R7.1: a node's name may be its certificate's name followed by a number.
#[test]
fn names_that_nodes_of_two_certificates_could_share_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    for (role, name, like) in [
        ("node", "gpu", None),
        ("node", "gpu-1", Some("gpu")),
        ("node", "gpu-a", None),
        ("node", "gpu-65536", None),
        ("node", "gpu", None),
        ("client", "gpu-2", None),
        ("node", "cpu-3", None),
        ("node", "cpu", Some("cpu-3")),
        ("node", "cpu-3-1", Some("cpu-3")),
    ] {
        let ran = issue(dir.path(), role, name, &[]);
        assert_eq!(ran.code, u8::from(like.is_some()), "{name}: {}", ran.err);
        if let Some(like) = like {
            assert!(ran.err.contains(&format!("the name {name} is too like {like}")), "{}", ran.err);
        }
    }
    assert_eq!(certs(dir.path(), &["revoke", "gpu"]).code, 0);
    assert_eq!(issue(dir.path(), "node", "gpu-1", &[]).code, 0);
}

#[test]
fn without_a_ledger_nothing_is_issued_listed_or_bundled() {
    let dir = tempfile::tempdir().unwrap();
    assert!(certs(dir.path(), &["list"]).err.contains("run `lamagrid certs init` first"));
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    assert_eq!(issue(dir.path(), "node", "gpu-1", &[]).code, 0);
    std::fs::remove_file(ledger(dir.path())).unwrap();
    for words in [
        &["list"][..],
        &["revoke", "gpu-1"],
        &["issue", "--role", "node", "--name", "gpu-2"],
        &["bundle", "gpu-1", "--scheduler", "h:1"],
    ] {
        let ran = certs(dir.path(), words);
        assert_eq!(ran.code, 1, "{words:?}");
        assert!(ran.err.contains("so none is valid: put a backup in its place"), "{words:?}: {}", ran.err);
    }
}

/// Older versions wrote ledgers without fingerprints.
#[test]
fn a_ledger_without_fingerprints_takes_them_from_the_last_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    for name in ["gpu-1", "gpu-2"] {
        assert_eq!(issue(dir.path(), "node", name, &[]).code, 0);
    }
    let text = std::fs::read_to_string(ledger(dir.path())).unwrap();
    let mut rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    for row in rows.as_array_mut().unwrap() {
        row.as_object_mut().unwrap().remove("fingerprints").unwrap();
    }
    std::fs::write(ledger(dir.path()), rows.to_string()).unwrap();
    std::fs::remove_file(dir.path().join("data/certs/issued/gpu-2.pem")).unwrap();
    assert_eq!((valid(dir.path(), "gpu-1"), valid(dir.path(), "gpu-2")), (1, 0));
    assert!(certs(dir.path(), &["list"]).out.contains("not let in: issue it again"));
    // A scheduler's start adds the fingerprints that it finds, as the next change does.
    let kept =
        |dir: &Path| std::fs::read_to_string(ledger(dir)).unwrap().matches("fingerprints\": [\n").count();
    assert_eq!(kept(dir.path()), 0);
    Certs::of(&dir.path().join("data")).migrate().unwrap();
    assert_eq!(kept(dir.path()), 1);
    assert_eq!(issue(dir.path(), "node", "gpu-2", &[]).code, 0);
    std::fs::remove_file(dir.path().join("data/certs/issued/gpu-1.pem")).unwrap();
    assert_eq!((valid(dir.path(), "gpu-1"), valid(dir.path(), "gpu-2")), (1, 1));
}

#[test]
fn concurrent_commands_lose_no_change() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(certs(dir.path(), &["init"]).code, 0);
    assert_eq!(issue(dir.path(), "client", "bad", &[]).code, 0);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let dir = dir.path();
            scope.spawn(move || assert_eq!(issue(dir, "client", &format!("web-{n}"), &[]).code, 0));
        }
        scope.spawn(|| assert_eq!(certs(dir.path(), &["revoke", "bad"]).code, 0));
    });
    let listed = certs(dir.path(), &["list"]);
    assert_eq!(listed.out.lines().count(), 10, "{}", listed.out);
    assert!(listed.out.lines().any(|line| line.starts_with("bad ") && line.ends_with("revoked")));
}
