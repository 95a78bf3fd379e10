//! Checks the type and range of one value.
//!
//! Does not: change values, except that text from the environment and from flags is parsed to the key's type, or
//! check rules between keys ([`crate::load`]).

use std::net::{IpAddr, SocketAddr};

use toml::Value;

use crate::choice::Device;
use crate::error::ConfigError;
use crate::key::KeyPath;
use crate::names::{NAME_RULE, is_name};
use crate::origin::Origin;
use crate::schema::{Key, Kind};
use crate::signature::Argument;

/// Longest quotation of a rejected value in an error message, characters.
const QUOTED_MAX: usize = 80;
/// A node has at most this many labels, so that more could never be met.
const MAX_LABELS: usize = 32;

/// Whether this is a host name; `*.NAME` means all its subdomains, `*` every host.
fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text == "*" || (name.len() <= 253 && name.split('.').all(is_label))
}

/// Whether this is an origin as browsers send it in `Origin`: scheme, host and optional port. `*` is every origin.
fn is_origin(text: &str) -> bool {
    let Some((scheme, place)) = text.split_once("://") else {
        return text == "*";
    };
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (place, None),
    };
    let is_address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    matches!(scheme, "http" | "https")
        && (is_address || (!host.contains('*') && is_host(host)))
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Whether this is an IP address or a network, `ADDRESS/PREFIX`.
fn is_network(text: &str) -> bool {
    let (address, prefix) =
        text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    prefix.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most))
}

/// A key that is being read from a layer.
pub(crate) struct Place<'a> {
    pub(crate) key: &'static Key,
    pub(crate) path: &'a KeyPath,
    pub(crate) layer: &'a Origin,
}

impl Place<'_> {
    /// Parses the text of a variable or flag to the key's type, without checking its range.
    pub(crate) fn typed(&self, text: &str) -> Result<Value, ConfigError> {
        match self.key.kind {
            Kind::Integer { .. } => text
                .trim()
                .replace('_', "")
                .parse()
                .map(Value::Integer)
                .map_err(|_| self.wrong_type(format!("the text {}", quoted(text)))),
            Kind::Boolean => text
                .trim()
                .parse()
                .map(Value::Boolean)
                .map_err(|_| self.wrong_type(format!("the text {}", quoted(text)))),
            Kind::Names | Kind::Labels | Kind::Hosts | Kind::Origins | Kind::Networks | Kind::Arguments
                if text.trim_start().starts_with('[') =>
            {
                let line = format!("list = {text}");
                let table = line.parse::<toml::Table>();
                let list = table.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("list"));
                list.ok_or_else(|| self.wrong_type(format!("the text {}", quoted(text))))
            }
            Kind::Names | Kind::Labels | Kind::Hosts | Kind::Origins | Kind::Networks | Kind::Arguments => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                Ok(Value::Array(names.map(|name| Value::String(name.to_owned())).collect()))
            }
            Kind::Choice(_)
            | Kind::Device
            | Kind::Path
            | Kind::Text { .. }
            | Kind::OptionalName
            | Kind::QueueName
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
                self.allow(words.contains(&text.as_str()), value, || {
                    let shown = words.iter().map(|word| if word.is_empty() { "\"\"" } else { *word });
                    format!("one of {}", shown.collect::<Vec<_>>().join(", "))
                })
            }
            (Kind::Device, Value::String(text)) => {
                self.allow(text.parse::<Device>().is_ok(), value, || "auto, cpu, cuda or cuda:N".to_owned())
            }
            (Kind::Path, Value::String(text)) => {
                self.allow(!text.contains('\0'), value, || "a path without a zero byte".to_owned())
            }
            (Kind::Boolean, Value::Boolean(_)) => Ok(()),
            (Kind::Text { holds, allowed }, Value::String(text)) => {
                self.allow(holds(text), value, || allowed.to_owned())
            }
            (Kind::OptionalName, Value::String(text)) => {
                self.allow(text.is_empty() || is_name(text), value, || format!("\"\" or {NAME_RULE}"))
            }
            (Kind::Address, Value::String(text)) => {
                self.allow(text.is_empty() || text.parse::<SocketAddr>().is_ok(), value, || {
                    "\"\" or an address with its port, such as 127.0.0.1:8871".to_owned()
                })
            }
            (Kind::QueueName, Value::String(text)) => {
                self.allow(text.is_empty() || is_name(text), value, || format!("\"\" or {NAME_RULE}"))
            }
            (Kind::Names, Value::Array(items)) => {
                self.allow_each(items, is_name, || format!("a list of names, each {NAME_RULE}"))?;
                self.allow(!items.is_empty(), value, || "a list of at least one name".to_owned())
            }
            (Kind::Labels, Value::Array(items)) => {
                self.allow_each(items, is_name, || format!("a list of labels, each {NAME_RULE}"))?;
                self.allow(items.len() <= MAX_LABELS, value, || {
                    format!("a list of at most {MAX_LABELS} labels")
                })
            }
            (Kind::Hosts, Value::Array(items)) => self.allow_each(items, is_host, || {
                "a list of host names without port, such as pictures.example.com, *.example.com or *"
                    .to_owned()
            }),
            (Kind::Origins, Value::Array(items)) => self.allow_each(items, is_origin, || {
                "a list of origins without path, such as https://app.example.com, or *".to_owned()
            }),
            (Kind::Networks, Value::Array(items)) => self.allow_each(items, is_network, || {
                "a list of addresses and networks, such as 127.0.0.1 or 10.0.0.0/8".to_owned()
            }),
            (Kind::Arguments, Value::Array(items)) => {
                self.allow_each(items, |text| text.parse::<Argument>().is_ok(), || {
                    "a list of the network's arguments, each image, erased, mask or several joined by +, such as \
                     image+mask"
                        .to_owned()
                })?;
                let texts = items.iter().filter_map(Value::as_str);
                let parts: Vec<&str> = texts.flat_map(|text| text.split('+')).collect();
                let count = |name| parts.iter().filter(|part| **part == name).count();
                let is_complete = count("mask") == 1
                    && count("image") <= 1
                    && count("erased") <= 1
                    && count("image") + count("erased") > 0;
                self.allow(is_complete, value, || {
                    "a list of arguments that holds mask once, and image or erased or both once".to_owned()
                })
            }
            (_, found) => Err(self.wrong_type(described(found))),
        }
    }

    fn allow(&self, holds: bool, value: &Value, allowed: impl FnOnce() -> String) -> Result<(), ConfigError> {
        if holds { Ok(()) } else { Err(self.out_of_range(shortened(&value.to_string()), allowed())) }
    }

    /// Checks each item of a list of strings.
    fn allow_each(
        &self,
        items: &[Value],
        holds: impl Fn(&str) -> bool,
        allowed: impl FnOnce() -> String,
    ) -> Result<(), ConfigError> {
        for item in items {
            let Some(text) = item.as_str() else {
                return Err(self.wrong_type(format!("a list that holds {}", described(item))));
            };
            if !holds(text) {
                return Err(self.out_of_range(quoted(text), allowed()));
            }
        }
        Ok(())
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

/// A valid assignment of the key, in the layer's syntax.
pub(crate) fn example(key: &Key, path: &KeyPath, layer: &Origin) -> String {
    let bare = key.sample.trim_matches(['"', '[', ']']).trim_matches('"');
    match layer {
        Origin::Default | Origin::File(_) => format!("{path} = {}", key.sample),
        Origin::Env(variable) => format!("{variable}={bare}"),
        Origin::Flag => format!("{path}={bare}"),
    }
}

/// A value with its type, for an error message: `the string "20s"`.
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
