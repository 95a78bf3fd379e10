//! Checks one value against its key, and the whole against the rules between keys.
//!
//! Does not: change values, except that text from environment and flags becomes the key's type.

use std::net::SocketAddr;

use toml::Value;

use crate::choice::Device;
use crate::error::ConfigError;
use crate::key::KeyPath;
use crate::load::Origin;
use crate::schema::{Key, Kind};

/// What is quoted of a foreign value in a message; characters.
const QUOTED_MAX: usize = 80;

/// What a queue's, model's or node's name must be. Names appear in addresses, logs and metrics.
pub(crate) const NAME_RULE: &str =
    "a name: 1 to 64 letters, digits, `.`, `_` or `-`, a letter or digit first";

pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// A key, its path and the layer that is being read.
pub(crate) struct Place<'a> {
    pub(crate) key: &'static Key,
    pub(crate) path: &'a KeyPath,
    pub(crate) layer: &'a Origin,
}

impl Place<'_> {
    /// Reads text from a variable or flag as the key's type; the result is not checked yet.
    pub(crate) fn typed(&self, text: &str) -> Result<Value, ConfigError> {
        match self.key.kind {
            Kind::Integer { .. } => text
                .trim()
                .replace('_', "")
                .parse()
                .map(Value::Integer)
                .map_err(|_| self.wrong_type(format!("the text {}", quoted(text)))),
            Kind::Names if text.trim_start().starts_with('[') => {
                let line = format!("list = {text}");
                let table = line.parse::<toml::Table>();
                let list = table.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("list"));
                list.ok_or_else(|| self.wrong_type(format!("the text {}", quoted(text))))
            }
            Kind::Names => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                Ok(Value::Array(names.map(|name| Value::String(name.to_owned())).collect()))
            }
            Kind::Choice(_)
            | Kind::Device
            | Kind::Path
            | Kind::RequiredPath
            | Kind::OptionalName
            | Kind::QueueName
            | Kind::Loopback
            | Kind::Address => Ok(Value::String(text.to_owned())),
        }
    }

    /// Checks type and range.
    pub(crate) fn check(&self, value: &Value) -> Result<(), ConfigError> {
        match (self.key.kind, value) {
            (Kind::Integer { min, max }, Value::Integer(number)) => {
                self.allow((min..=max).contains(number), value, || format!("between {min} and {max}"))
            }
            (Kind::Choice(words), Value::String(text)) => {
                self.allow(words.contains(&text.as_str()), value, || format!("one of {}", words.join(", ")))
            }
            (Kind::Device, Value::String(text)) => {
                self.allow(text.parse::<Device>().is_ok(), value, || "auto, cpu, cuda or cuda:N".to_owned())
            }
            (Kind::Path, Value::String(text)) => {
                self.allow(!text.contains('\0'), value, || "a path without a zero byte".to_owned())
            }
            (Kind::RequiredPath, Value::String(text)) => {
                self.allow(!text.is_empty() && !text.contains('\0'), value, || {
                    "the path of a file".to_owned()
                })
            }
            (Kind::OptionalName, Value::String(text)) => {
                self.allow(text.is_empty() || is_name(text), value, || format!("\"\" or {NAME_RULE}"))
            }
            (Kind::Loopback, Value::String(text)) => self.allow(
                text.is_empty() || text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback()),
                value,
                || {
                    "\"\" or a loopback address with its port, such as 127.0.0.1:8871: for other hosts put a proxy \
                     with TLS in front"
                        .to_owned()
                },
            ),
            (Kind::Address, Value::String(text)) => {
                self.allow(text.is_empty() || text.parse::<SocketAddr>().is_ok(), value, || {
                    "\"\" or an address with its port, such as 0.0.0.0:8872".to_owned()
                })
            }
            (Kind::QueueName, Value::String(text)) => {
                self.allow(is_name(text), value, || NAME_RULE.to_owned())
            }
            (Kind::Names, Value::Array(items)) => {
                if let Some(item) = items.iter().find(|item| !item.is_str()) {
                    return Err(self.wrong_type(format!("a list that holds {}", described(item))));
                }
                let names: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                if let Some(name) = names.iter().find(|name| !is_name(name)) {
                    return Err(self.out_of_range(quoted(name), format!("a list of names, each {NAME_RULE}")));
                }
                self.allow(!names.is_empty(), value, || "a list of at least one name".to_owned())
            }
            (_, found) => Err(self.wrong_type(described(found))),
        }
    }

    fn allow(&self, holds: bool, value: &Value, allowed: impl FnOnce() -> String) -> Result<(), ConfigError> {
        if holds { Ok(()) } else { Err(self.out_of_range(shortened(&value.to_string()), allowed())) }
    }

    fn out_of_range(&self, value: String, allowed: String) -> ConfigError {
        ConfigError::OutOfRange { key: self.path.to_string(), layer: self.layer.clone(), value, allowed }
    }

    fn wrong_type(&self, found: String) -> ConfigError {
        ConfigError::WrongType {
            key: self.path.to_string(),
            layer: self.layer.clone(),
            found,
            wanted: self.key.kind.wanted(),
            example: example(self.key, self.path, self.layer),
        }
    }
}

/// A line that sets the key rightly, as that layer would write it.
pub(crate) fn example(key: &Key, path: &KeyPath, layer: &Origin) -> String {
    let bare = key.sample.trim_matches(['"', '[', ']']).trim_matches('"');
    match layer {
        Origin::Default | Origin::File(_) => format!("{path} = {}", key.sample),
        Origin::Env(variable) => format!("{variable}={bare}"),
        Origin::Flag => format!("{path}={bare}"),
    }
}

/// A value with its type, for a sentence: `the string "20s"`.
pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string {}", quoted(text)),
        Value::Integer(number) => format!("the integer {number}"),
        Value::Float(number) => format!("the float {number}"),
        Value::Boolean(flag) => format!("the boolean {flag}"),
        Value::Datetime(_) => "a date or time".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

fn quoted(text: &str) -> String {
    shortened(&format!("{text:?}"))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
