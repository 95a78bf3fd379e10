//! What can be wrong with a configuration, in words for the person who wrote it.
//!
//! Does not: collect; the first mistake is reported.

use std::io;
use std::path::PathBuf;

use crate::key::KeyPath;
use crate::origin::{Origin, Row};

/// Why there is no configuration, or why a directory that it names cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read. `named_by` is the flag or variable that names it.
    #[error("cannot read the configuration file `{}` (from {named_by}); check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What names it.
        named_by: &'static str,
        /// The system's reason.
        source: io::Error,
    },

    /// The configuration file is not TOML.
    #[error("the configuration file `{}` is not valid TOML: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The parser's reason.
        message: String,
    },

    /// A layer names a key that does not exist.
    #[error("unknown key `{key}` in {layer}; {}", suggestion(nearest, layer))]
    UnknownKey {
        /// Dotted path.
        key: String,
        /// Where it is.
        layer: Origin,
        /// The most similar key that exists, dotted.
        nearest: Option<String>,
    },

    /// A value has the wrong type.
    #[error("`{key}` in {layer} is {found}, but must be {wanted}; for example: {example}")]
    WrongType {
        /// Dotted path.
        key: String,
        /// Where it is.
        layer: Origin,
        /// What stands there.
        found: String,
        /// What is wanted.
        wanted: &'static str,
        /// A line that would be right in that layer.
        example: String,
    },

    /// A value has the right type and is not allowed.
    #[error("`{key}` in {layer} is {value}, but must be {allowed}")]
    OutOfRange {
        /// Dotted path.
        key: String,
        /// Where it is.
        layer: Origin,
        /// What stands there.
        value: String,
        /// What is allowed.
        allowed: String,
    },

    /// Two values do not fit together.
    #[error("{left} must be {rule} {right}; change one of the two")]
    Conflict {
        /// The one that is measured.
        left: Box<Row>,
        /// "less than" or "at most".
        rule: &'static str,
        /// The one it is measured by.
        right: Box<Row>,
    },

    /// A key without a default is absent.
    #[error("`{key}` is missing, though {layer} begins its section; add for example: {example}")]
    Missing {
        /// Dotted path.
        key: String,
        /// What begins the section.
        layer: Origin,
        /// A line that would be right.
        example: String,
    },

    /// The default place of a directory depends on the home directory, and there is none.
    #[error(
        "cannot find {what}: neither {variable} nor HOME is an absolute path; set one of them, or {instead}"
    )]
    NoHome {
        /// What was looked for.
        what: &'static str,
        /// The variable that would have said it.
        variable: &'static str,
        /// The setting that makes both needless.
        instead: &'static str,
    },

    /// The directory for sockets is so deep that no socket fits into it.
    #[error(
        "the socket directory `{}` is {length} bytes long, at most {limit} fit a socket's address; \
         set {variable} to a shorter path", path.display()
    )]
    PathTooLong {
        /// The directory.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The longest that works, in bytes.
        limit: usize,
        /// The variable to change.
        variable: &'static str,
    },

    /// The directory for sockets is open to others, or somebody else's.
    #[error("the socket directory `{}` is not private: {found}; remove it, or make it yours with mode 0700", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },

    /// A directory cannot be made or looked at.
    #[error("cannot {act} `{}`", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// The embedded default and the types of this crate do not agree. The tests exclude it.
    #[error("the configuration does not fit its types: {message}; please report this")]
    Internal {
        /// The parser's reason.
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
