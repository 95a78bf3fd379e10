//! The layer that a value comes from.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// A layer of the configuration. Its `Display` form fits into an error message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The embedded default.
    Default,
    /// The configuration file at this path.
    File(PathBuf),
    /// The environment variable of this name.
    Env(String),
    /// A command-line flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(variable) => write!(f, "environment variable {variable}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One key with its value and its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Dotted path.
    pub key: String,
    /// The value as TOML.
    pub value: String,
    /// The layer.
    pub origin: Origin,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` = {} ({})", self.key, self.value, self.origin)
    }
}
