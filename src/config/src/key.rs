//! The path of a key in its three notations: segments, dotted text, environment variable.
//!
//! Does not: know which keys exist; that is [`crate::schema`].

use std::fmt;

/// The prefix of environment variables that set a key.
pub(crate) const ENV_PREFIX: &str = "LAMAGRID__";

/// A key's path: `data_dir`, `node.slots`, or `queues.NAME.max_tasks`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyPath(pub(crate) Vec<String>);

impl KeyPath {
    /// Parses dotted text. In a named section, everything between the first and the last dot is the name
    /// (`models.sd1.5.path`), with or without TOML's quotes.
    pub(crate) fn parse(text: &str) -> Self {
        Self::join_name(text.split('.').map(str::to_owned).collect(), ".")
    }

    /// Parses the part of a variable's name after [`ENV_PREFIX`].
    pub(crate) fn from_variable(rest: &str) -> Self {
        Self::join_name(rest.to_ascii_lowercase().split("__").map(str::to_owned).collect(), "__")
    }

    fn join_name(parts: Vec<String>, separator: &str) -> Self {
        match parts.as_slice() {
            [section, name @ .., table, leaf] if !name.is_empty() && is_inner_table(section, table) => {
                let name = name.join(separator);
                let name = name.trim_matches('"').to_owned();
                Self(vec![section.clone(), name, table.clone(), leaf.clone()])
            }
            [section, name @ .., leaf] if !name.is_empty() && is_named_section(section) => {
                let name = name.join(separator);
                let name = name.trim_matches('"').to_owned();
                Self(vec![section.clone(), name, leaf.clone()])
            }
            _ => Self(parts),
        }
    }

    pub(crate) fn child(&self, segment: &str) -> Self {
        let mut path = self.0.clone();
        path.push(segment.to_owned());
        Self(path)
    }

    pub(crate) fn segments(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    /// The section and the name, if the path lies in a named section.
    pub(crate) fn section_and_name(&self) -> Option<(&str, &str)> {
        match self.0.as_slice() {
            [section, name, ..] if is_named_section(section) => Some((section, name)),
            _ => None,
        }
    }

    /// The environment variable that sets this key.
    pub(crate) fn variable(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|part| variable_part(part)).collect();
        format!("{ENV_PREFIX}{}", parts.join("__"))
    }
}

/// Whether each table of this section holds an inner table of that name (`[queues.NAME.requires]`).
fn is_inner_table(section: &str, table: &str) -> bool {
    matches!((section, table), ("queues", "requires") | ("models", "need"))
}

/// Whether this top-level section holds a table per name (`[queues.NAME]`).
pub(crate) fn is_named_section(section: &str) -> bool {
    matches!(section, "queues" | "models")
}

/// A segment as it is written in the name of an environment variable.
pub(crate) fn variable_part(segment: &str) -> String {
    segment.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            let bare = !segment.is_empty()
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if bare { f.write_str(segment)? } else { write!(f, "{segment:?}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_dots() {
        let plain = KeyPath::parse("models.sd1.5.path");
        assert_eq!(plain.0, ["models", "sd1.5", "path"]);
        assert_eq!(plain.to_string(), "models.\"sd1.5\".path");
        assert_eq!(KeyPath::parse(&plain.to_string()), plain);
        assert_eq!(plain.variable(), "LAMAGRID__MODELS__SD1_5__PATH");
        let inner = KeyPath::parse("models.sd1.5.need.device");
        assert_eq!(inner.0, ["models", "sd1.5", "need", "device"]);
        assert_eq!(KeyPath::parse(&inner.to_string()), inner);
        assert_eq!(
            KeyPath::from_variable("QUEUES__BIG__REQUIRES__LABELS").to_string(),
            "queues.big.requires.labels"
        );
    }

    #[test]
    fn a_variable_is_read_without_regard_to_case() {
        assert_eq!(KeyPath::from_variable("NODE__SLOTS").to_string(), "node.slots");
        assert_eq!(KeyPath::from_variable("DATA_DIR").to_string(), "data_dir");
        assert_eq!(KeyPath::from_variable("QUEUES__A__B__MAX_TASKS").0, ["queues", "a__b", "max_tasks"]);
    }
}
