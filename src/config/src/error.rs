//! Errors of the configuration, with messages that name the key, the layer and the remedy.
//!
//! Does not: collect errors; only the first one is reported.

use std::io;
use std::path::PathBuf;

use crate::key::KeyPath;
use crate::origin::{Origin, Row};

/// Why the configuration cannot be loaded, or a directory that it names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file `{}` (from {named_by}); check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The flag, the variable or the default that names the file.
        named_by: &'static str,
        /// The system's error.
        source: io::Error,
    },

    /// The configuration file is not TOML.
    #[error("the configuration file `{}` is not valid TOML: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's message.
        message: String,
    },

    /// A layer names a key that does not exist.
    #[error("unknown key `{key}` in {layer}; {}", suggestion(nearest, layer))]
    UnknownKey {
        /// Dotted path.
        key: String,
        /// The layer that holds it.
        layer: Origin,
        /// The most similar key that exists, dotted.
        nearest: Option<String>,
    },

    /// A value has the wrong type.
    #[error("`{key}` in {layer} is {found}, but must be {wanted}; for example: {example}")]
    WrongType {
        /// Dotted path.
        key: String,
        /// The layer that holds it.
        layer: Origin,
        /// The value that was found, with its type.
        found: String,
        /// The type that the key requires.
        wanted: &'static str,
        /// A valid assignment in that layer.
        example: String,
    },

    /// A value has the right type but is not allowed.
    #[error("`{key}` in {layer} is {value}, but must be {allowed}")]
    OutOfRange {
        /// Dotted path.
        key: String,
        /// The layer that holds it.
        layer: Origin,
        /// The value that was found.
        value: String,
        /// The allowed values.
        allowed: String,
    },

    /// Two values contradict each other.
    #[error("{left} must be {rule} {right}; change one of the two")]
    Conflict {
        /// The value that breaks the rule.
        left: Box<Row>,
        /// "less than" or "at most".
        rule: &'static str,
        /// The value it is compared with.
        right: Box<Row>,
    },

    /// A required key is absent.
    #[error("`{key}` is missing, though {layer} begins its section; add for example: {example}")]
    Missing {
        /// Dotted path.
        key: String,
        /// The layer that begins the section.
        layer: Origin,
        /// A valid assignment in that layer.
        example: String,
    },

    /// The default path of a directory depends on the home directory, which the environment does not name.
    #[error(
        "cannot find {what}: neither {variable} nor HOME is an absolute path; set one of them, or {instead}"
    )]
    NoHome {
        /// The directory that was looked for.
        what: &'static str,
        /// The variable that would name it.
        variable: &'static str,
        /// The setting that replaces both variables.
        instead: &'static str,
    },

    /// The path of the socket directory leaves too few bytes for a socket's address.
    #[error(
        "the socket directory `{}` is {length} bytes long, at most {limit} fit a socket's address; \
         set {variable} to a shorter path", path.display()
    )]
    PathTooLong {
        /// The directory.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The maximum length in bytes.
        limit: usize,
        /// The variable to change.
        variable: &'static str,
    },

    /// The socket directory belongs to another user, or other users can access it.
    #[error("the socket directory `{}` is not private: {found}; remove it, or make it yours with mode 0700", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its wrong type, owner or mode.
        found: String,
    },

    /// A directory cannot be created or examined.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// The operation that failed.
        act: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// The embedded default does not match the types of this crate, which the tests rule out.
    #[error("the configuration does not fit its types: {message}; please report this")]
    Internal {
        /// The parser's message.
        message: String,
    },
}

fn suggestion(nearest: &Option<String>, layer: &Origin) -> String {
    match (nearest, layer) {
        (None, _) => "`lamagrid config show` lists the known ones".to_owned(),
        (Some(key), Origin::Env(_)) => {
            format!("did you mean `{key}` ({})?", KeyPath::parse(key).variable())
        }
        (Some(key), _) => format!("did you mean `{key}`?"),
    }
}
