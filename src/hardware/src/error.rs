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
    /// It is not TOML.
    #[error("the capability file `{}` is not valid TOML: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's message.
        message: String,
    },
    /// It has a key that does not exist.
    #[error("unknown key `{key}` in the capability file `{}`; write one of: {known}; or remove it", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Dotted path.
        key: String,
        /// The keys that exist there.
        known: String,
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
