//! Tests `lamagrid key`: from a token to its revocation, and invalid input. X8

use super::{Ran, run};

fn key(dir: &std::path::Path, words: &[&str]) -> Ran {
    let data_dir = dir.join("data").display().to_string();
    run(&[&["key"][..], words, &["--data-dir", &data_dir]].concat(), &[])
}

#[test]
fn a_key_is_shown_once_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    assert!(key(dir.path(), &["list"]).out.contains("there is no API key"));
    let made = key(dir.path(), &["create", "ci", "--max-tasks", "3", "--max-priority", "-2"]);
    assert_eq!(made.code, 0);
    let token = made.out.trim();
    assert_eq!(token.len(), 84, "only the token, for scripts: {token}");
    assert!(made.err.contains("shown only now"));
    let shown = key(dir.path(), &["show", "ci", "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&shown["role"], &shown["limits"]["max_tasks"]), (&"user".into(), &3.into()));
    assert_eq!(
        (&shown["limits"]["max_priority"], &shown["revoked"]),
        (&(-2).into(), &serde_json::Value::Null)
    );
    let id = shown["id"].as_str().unwrap();
    assert!(token.contains(id) && !key(dir.path(), &["list"]).out.contains(token));
    let again = key(dir.path(), &["create", "ci"]);
    assert_eq!((again.code, again.err.contains("already: revoke it")), (1, true));
    assert!(key(dir.path(), &["revoke", id]).out.contains("revoked"));
    assert!(key(dir.path(), &["list"]).out.contains("revoked"));
}

#[test]
fn invalid_words_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (words, code) in [
        (&["create", "x", "--role", "root"][..], 2),
        (&["create", "x", "--rate", "0"], 2),
        (&["create", "x", "--max-tasks", "-1"], 2),
        (&["create", ""], 1),
        (&["revoke", "nothing"], 1),
        (&["show", "nothing"], 1),
        (&["list", "--join", "x"], 2),
    ] {
        assert_eq!(key(dir.path(), words).code, code, "{words:?}");
    }
}
