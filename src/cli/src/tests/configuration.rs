//! Tests `lamagrid config`, and how commands report an invalid configuration.

use serde_json::{Value, json};

use super::run;

fn file(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_default_is_printed_unchanged() {
    let ran = run(&["config", "default"], &[("LAMAGRID__NODE__SLOTS", "2")]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, lamagrid_config::default_toml(), ""));
    let ran = run(&["config", "default", "--output", "json"], &[("LAMAGRID__NODE__SLOTS", "2")]);
    let rows: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    assert!(rows.iter().all(|row| row["origin"] == "default"), "{}", ran.out);
}

#[test]
fn show_prints_an_equivalent_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "[models.\"sd1.5\"]\npath = \"/m/s.pt\"\n[node]\nmodels = [\"lama\", \"sd1.5\"]");
    let env = [("LAMAGRID__NODE__SLOTS", "2")];
    let first = run(&["config", "show", "--config", &path, "--data-dir", "/d"], &env);
    assert_eq!((first.code, first.err.as_str()), (0, ""));
    assert!(
        first.out.contains("\nnode.slots = 2\n") && first.out.contains("data_dir = \"/d\"\n"),
        "{}",
        first.out
    );
    let again = run(&["config", "show", "--config", &file(&dir, &first.out)], &[]);
    assert_eq!(again, first);
}

#[test]
fn show_names_the_layer_of_each_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "[client]\nping_ms = 500");
    let env = [("LAMAGRID_CONFIG", path.as_str()), ("LAMAGRID__NODE__SLOTS", "2")];
    let line = |ran: &super::Ran, key: &str| {
        let line = ran.out.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let ran = run(&["config", "show", "--origin", "--data-dir", "/d"], &env);
    assert_eq!(ran.code, 0);
    assert_eq!(line(&ran, "KEY"), "KEY VALUE ORIGIN");
    assert_eq!(line(&ran, "node.slots"), "node.slots 2 environment variable LAMAGRID__NODE__SLOTS");
    assert_eq!(line(&ran, "client.ping_ms"), format!("client.ping_ms 500 file {path}"));
    assert_eq!(line(&ran, "data_dir"), "data_dir \"/d\" flag");
    assert_eq!(line(&ran, "node.threads"), "node.threads 0 default");
    let ran = run(&["config", "show", "--data-dir", "/d", "--output", "json"], &env);
    let rows: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    let row = |key: &str| rows.iter().find(|row| row["key"] == key).unwrap().clone();
    let origin = format!("file {path}");
    assert_eq!(row("client.ping_ms"), json!({"key": "client.ping_ms", "value": "500", "origin": origin}));
    assert_eq!(row("data_dir"), json!({"key": "data_dir", "value": "\"/d\"", "origin": "flag"}));
}

#[test]
fn check_names_the_files_it_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "[client]\nping_ms = 500\nsilence_ms = 2000");
    let env = [("LAMAGRID__NODE__SLOTS", "2")];
    let ran = run(&["config", "check", &path], &env);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(
        ran.out.starts_with(&format!(
            "the configuration is right: file {path} (2 values), environment (1), flags (0)"
        )),
        "{}",
        ran.out
    );
    let ran = run(&["config", "check", "--output", "json", "--config", &path], &env);
    let mut found: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(found["values"]["default"].take().as_u64().unwrap() > 20, "{}", ran.out);
    let values = json!({"default": null, "file": 2, "environment": 1, "flag": 0});
    assert_eq!(found, json!({"ok": true, "file": path, "values": values}));
    let ran = run(&["config", "check"], &[]);
    assert!(ran.code == 0 && ran.out.contains("right: no file (0 values)"), "{}", ran.out);
    let home = dir.path().join("home/.config/lamagrid");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::copy(&path, home.join("config.toml")).unwrap();
    let home = dir.path().join("home");
    let ran = run(&["config", "check"], &[("HOME", home.to_str().unwrap())]);
    assert!(ran.out.contains("/home/.config/lamagrid/config.toml (2 values)"), "{}", ran.out);
}

#[test]
fn an_invalid_configuration_is_reported_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "[node]\nslot = 2");
    let missing = dir.path().join("missing.toml");
    let missing = missing.to_str().unwrap();
    for (args, env, code, words) in [
        (vec!["config", "check", &path], vec![], 78, "unknown key `node.slot`"),
        (vec!["config", "check", &path], vec![], 78, "did you mean `node.slots`?"),
        (vec!["config", "show", "--config", &path], vec![], 78, "unknown key `node.slot`"),
        (vec!["queue", "show", "--config", &path], vec![], 78, "unknown key `node.slot`"),
        (vec!["scheduler", "--config", &path], vec![], 78, "unknown key `node.slot`"),
        (vec!["config", "check", missing], vec![], 78, "No such file"),
        (vec!["config", "check"], vec![("LAMAGRID__NODE__SLOTS", "many")], 78, "LAMAGRID__NODE__SLOTS"),
        (vec!["scheduler", "--set", "node.slots=many"], vec![], 78, "`node.slots` in flag"),
        (vec!["scheduler", "--set", "node.slot=1"], vec![], 78, "did you mean `node.slots`?"),
        (vec!["config", "check", &path, "--config", missing], vec![], 2, "given twice"),
    ] {
        let ran = run(&args, &env);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
        assert!(ran.err.starts_with("error: ") && ran.err.contains(words), "{args:?}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{args:?}: {}", ran.err);
    }
}
