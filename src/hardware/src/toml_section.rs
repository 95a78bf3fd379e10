//! Reads typed values from a table of a TOML file; each error names file and key, and what to write there.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::error::CapabilityError;

/// A table of a file, with the keys that it may have.
pub(crate) struct Section<'a> {
    file: &'a Path,
    /// The table's own name with a dot at its end, or empty for the whole file.
    prefix: String,
    table: &'a Table,
    known: &'static [&'static str],
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(
        file: &'a Path,
        table: &'a Table,
        known: &'static [&'static str],
    ) -> Result<Self, CapabilityError> {
        Self { file, prefix: String::new(), table, known }.checked()
    }

    fn checked(self) -> Result<Self, CapabilityError> {
        match self.table.keys().find(|key| !self.known.contains(&key.as_str())) {
            None => Ok(self),
            Some(key) => Err(CapabilityError::UnknownKey {
                path: self.file.to_owned(),
                key: format!("{}{key}", self.prefix),
                known: self.known.join(", "),
            }),
        }
    }

    /// The error for a value that must be `wanted`.
    pub(crate) fn wrong(&self, key: &str, found: &str, wanted: impl Into<String>) -> CapabilityError {
        CapabilityError::Wrong {
            path: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: found.to_owned(),
            wanted: wanted.into(),
        }
    }

    fn wrong_value(&self, key: &str, value: &Value, wanted: &str) -> CapabilityError {
        self.wrong(key, &format!("{value} ({})", value.type_str()), wanted)
    }

    /// A text; `None` if the key is absent.
    pub(crate) fn text(&self, key: &str, wanted: &str) -> Result<Option<&'a str>, CapabilityError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text)),
            Some(other) => Err(self.wrong_value(key, other, wanted)),
        }
    }

    /// `true` or `false`; `None` if the key is absent.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, CapabilityError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_value(key, other, "true or false")),
        }
    }

    /// A whole number from 1 to `most`; `None` if the key is absent.
    pub(crate) fn number(&self, key: &str, unit: &str, most: u64) -> Result<Option<u64>, CapabilityError> {
        let wanted = || format!("a whole number of {unit} from 1 to {most}, which were found on this host");
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) => match u64::try_from(*value) {
                Ok(value) if (1..=most).contains(&value) => Ok(Some(value)),
                _ => Err(self.wrong(key, &value.to_string(), wanted())),
            },
            Some(other) => Err(self.wrong_value(key, other, &wanted())),
        }
    }

    /// The texts of a list; empty if the key is absent.
    pub(crate) fn texts(&self, key: &str, wanted: &str) -> Result<Vec<&'a str>, CapabilityError> {
        match self.table.get(key) {
            None => Ok(Vec::new()),
            Some(list @ Value::Array(entries)) => entries
                .iter()
                .map(|entry| entry.as_str().ok_or_else(|| self.wrong_value(key, list, wanted)))
                .collect(),
            Some(other) => Err(self.wrong_value(key, other, wanted)),
        }
    }

    /// A table below this one; `None` if it is absent.
    pub(crate) fn section(
        &self,
        key: &str,
        known: &'static [&'static str],
    ) -> Result<Option<Self>, CapabilityError> {
        match self.table.get(key) {
            None => Ok(None),
            Some(Value::Table(table)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Self { file: self.file, prefix, table, known }.checked().map(Some)
            }
            Some(other) => Err(self.wrong_value(key, other, &format!("a table: [{}{key}]", self.prefix))),
        }
    }

    /// The tables of a list of tables; empty if it is absent.
    pub(crate) fn sections(
        &self,
        key: &str,
        known: &'static [&'static str],
    ) -> Result<Vec<Self>, CapabilityError> {
        let wanted = format!("a list of tables: [[{}{key}]]", self.prefix);
        let entries = match self.table.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(entries)) => entries,
            Some(other) => return Err(self.wrong_value(key, other, &wanted)),
        };
        let section = |(index, entry): (usize, &'a Value)| match entry {
            Value::Table(table) => {
                let prefix = format!("{}{key}[{index}].", self.prefix);
                Self { file: self.file, prefix, table, known }.checked()
            }
            other => Err(self.wrong_value(key, other, &wanted)),
        };
        entries.iter().enumerate().map(section).collect()
    }
}

/// Reads a file of TOML.
pub(crate) fn read_table(path: &Path) -> Result<Table, CapabilityError> {
    let owned = || -> PathBuf { path.to_owned() };
    let text =
        std::fs::read_to_string(path).map_err(|source| CapabilityError::Read { path: owned(), source })?;
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        CapabilityError::Syntax {
            path: owned(),
            line: 1 + before.matches('\n').count(),
            message: error.message().to_owned(),
        }
    })
}
