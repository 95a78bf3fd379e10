//! Tests commands whose reader has gone, or whose output cannot be written.

use std::io::{self, ErrorKind, Write};

use crate::output::Streams;

/// Fails every write with the same error.
struct Failing(ErrorKind);

impl Write for Failing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(self.0.into())
    }
}

fn run_into(out: ErrorKind, args: &[&str]) -> (u8, String) {
    let mut err = Vec::new();
    let args = args.iter().map(ToString::to_string);
    let streams = &mut Streams { out: &mut Failing(out), err: &mut err };
    let code = crate::run(args, std::collections::BTreeMap::new(), streams);
    (code, String::from_utf8(err).unwrap())
}

#[test]
fn a_closed_pipe_on_stdout_is_no_error() {
    for args in [&["config", "default"][..], &["--help"], &["--version"]] {
        assert_eq!(run_into(ErrorKind::BrokenPipe, args), (0, String::new()), "{args:?}");
    }
}

#[test]
fn a_failed_write_to_stdout_is_reported() {
    let (code, err) = run_into(ErrorKind::StorageFull, &["config", "default"]);
    assert_eq!(code, 1);
    assert!(err.starts_with("error: cannot write to stdout: ") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_closed_stderr_changes_nothing() {
    let mut out = Vec::new();
    let args = ["no-such-noun".to_owned()];
    let streams = &mut Streams { out: &mut out, err: &mut Failing(ErrorKind::BrokenPipe) };
    assert_eq!(crate::run(args, std::collections::BTreeMap::new(), streams), 2);
    assert_eq!(out, b"");
}
