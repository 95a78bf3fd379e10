//! Tests whole command lines, with environment and streams supplied by the test.

mod admin;
mod certs;
mod configuration;
mod doctor;
mod grid;
mod keys;
mod line;
mod scheduler;
mod streams;

use std::collections::BTreeMap;
use std::path::Path;

use crate::output::Streams;

/// Result of a command line.
#[derive(Debug, PartialEq)]
struct Ran {
    code: u8,
    out: String,
    err: String,
}

/// Runs a command line with only `env` as its environment.
fn run(args: &[&str], env: &[(&str, &str)]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let env: BTreeMap<_, _> = env.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let args = args.iter().map(ToString::to_string);
    let code = crate::run(args, env, &mut Streams { out: &mut out, err: &mut err });
    Ran { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// Compares with `tests/golden/<name>`; `LAMAGRID_WRITE_GOLDEN=1` rewrites the file.
fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("LAMAGRID_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
}
