//! Values with a fixed set of words.
//!
//! Does not: look for devices; a node checks whether `cuda:3` exists.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The lowest severity that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Needs an operator.
    Error,
    /// Degraded; recovers without an operator.
    Warn,
    /// Starts, stops and one line per finished task.
    Info,
    /// Every protocol message.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    pub(crate) const WORDS: &'static [&'static str] = &["error", "warn", "info", "debug", "trace"];

    /// The level of a word of the configuration file.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        let levels = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];
        levels.into_iter().find(|level| level.as_str() == word)
    }

    /// The word of the configuration file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Plain text.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    pub(crate) const WORDS: &'static [&'static str] = &["text", "json"];
}

/// The class of device that a queue requires of its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequiredDevice {
    /// The key is not set: it requires nothing.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Every node.
    Any,
    /// Nodes with a GPU.
    Gpu,
    /// Nodes that run models on the processor.
    Cpu,
}

impl RequiredDevice {
    pub(crate) const WORDS: &'static [&'static str] = &["", "any", "gpu", "cpu"];
}

/// The class of device that a model needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NeededDevice {
    /// The built-in choice for the model.
    #[default]
    Auto,
    /// Any, but a GPU rather than a CPU.
    Any,
    /// Only a GPU.
    Gpu,
    /// Only a processor.
    Cpu,
}

impl NeededDevice {
    pub(crate) const WORDS: &'static [&'static str] = &["auto", "any", "gpu", "cpu"];
}

/// Where models run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// Every GPU; the processor on a host without one.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU with this index, as CUDA counts them.
    Cuda(u16),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .filter(|index| index.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("unknown device `{text}`; use auto, cpu, cuda or cuda:N")),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_one_of_four_forms() {
        assert_eq!("auto".parse(), Ok(Device::Auto));
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:12".parse(), Ok(Device::Cuda(12)));
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
        for bad in ["", "gpu", "cuda:", "cuda:+1", "cuda:70000", "CUDA"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }
}
