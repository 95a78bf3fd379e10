//! `lamagrid certs`: from an authority to a bundle, and what bad input gets. R4.3

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lamagrid_wire::gate::{Bundle, PeerRole};

use super::{Ran, run};

fn certs(dir: &Path, words: &[&str]) -> Ran {
    let data_dir = dir.join("data").display().to_string();
    run(&[&["certs"][..], words, &["--data-dir", &data_dir]].concat(), &[])
}

#[test]
fn from_nothing_to_a_bundle_that_names_its_holder() {
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
fn no_name_replaces_what_belongs_to_the_authority() {
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
fn what_is_asked_wrongly_is_refused_with_what_to_do() {
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
