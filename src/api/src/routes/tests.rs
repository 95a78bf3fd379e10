//! The committed description of the API.

use super::*;

/// Compares the committed description with the code; `UPDATE_DOCS=1` writes it.
#[test]
fn the_committed_description_is_the_code_s() {
    let text = openapi().to_pretty_json().unwrap() + "\n";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
}
