//! Tests the errors of `lamagrid scheduler` when it cannot start.

use std::fs::{self, File};

use super::run;

/// Starts a scheduler that must refuse to run, and returns its error text.
fn refusal(data_dir: &str) -> String {
    let ran = run(&["scheduler", "--data-dir", data_dir], &[]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    ran.err
}

#[test]
fn an_unusable_data_directory_is_named_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    // Root may write anywhere, so a file stands in for a read-only home directory.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let data = format!("{}/data", file.display());
    assert_eq!(
        refusal(&data),
        format!(
            "error: cannot use the data directory {data}: Not a directory (os error 20); choose a writable one \
             with --data-dir\n"
        )
    );
}

#[test]
fn a_second_instance_reports_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    fs::write(&path, "4711\n").unwrap();
    let lock = File::options().write(true).open(&path).unwrap();
    lock.lock().unwrap();
    let data = dir.path().display().to_string();
    assert_eq!(
        refusal(&data),
        format!(
            "error: another scheduler (pid 4711) runs on the data directory {data}: use that one, stop it, or \
             choose another directory with --data-dir\n"
        )
    );
}
