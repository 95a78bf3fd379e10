//! Errors of capability files, with messages that name file and key, and say what to write.

use std::path::PathBuf;

/// Why a capability file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// It cannot be read.
    #[error(
        "cannot read the capability file `{}` ({source}); check its path and permissions, or write one: \
         lamagrid-node capabilities --write FILE", path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It is not TOML, has a key that does not exist, or a value of another type.
    #[error(
        "the capability file `{}` is wrong at line {line}, column {column} (`{source_line}`): {message}{remedy}",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// The parser's message; of an unknown key it lists those that exist.
        message: String,
        /// The line, with its key.
        source_line: String,
        /// The text or value to write there, or empty.
        remedy: String,
    },
    /// A value is not allowed.
    #[error("`{key}` in the capability file `{}` is {found}; write {wanted}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Dotted path.
        key: String,
        /// The value that was found.
        found: String,
        /// A value that is allowed, for the message.
        wanted: String,
    },
    /// It cannot be written.
    #[error("cannot write `{}` ({source}); remove an older file first, or choose another path", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}
