//! Defines a client's request, and the counters and stage times that are recorded for it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{BlobMeta, ClientName, ModelName, OutputForm, Owner, PictureSize, QueueName, TaskId};

/// Maximum number of parameters of one task; Lama Cleaner's form has 34.
const MAX_PARAMS: usize = 64;
/// Longest parameter name, in bytes.
const MAX_KEY_BYTES: usize = 64;
/// Longest text value (a prompt), in bytes.
const MAX_TEXT_BYTES: usize = 8 * 1024;
/// Longest time of a stage, in milliseconds: a year.
const MAX_STAGE_MS: f64 = 366.0 * 86_400_000.0;

/// The value of one parameter. Not nested: structured data gets a field of its own in [`TaskSpec`].
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// Explicitly absent.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number that is not an integer.
    Float(f64),
    /// A text.
    Text(String),
}

impl Serialize for Scalar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Bool(v) => serializer.serialize_bool(*v),
            Self::Int(v) => serializer.serialize_i64(*v),
            Self::Float(v) => serializer.serialize_f64(*v),
            Self::Text(v) => serializer.serialize_str(v),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl serde::de::Visitor<'_> for Any {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("null, a boolean, a number or a text")
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
            fn visit_none<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar::Int(v))
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Scalar, E> {
                i64::try_from(v).map(Scalar::Int).map_err(|_| E::custom("a whole number above 2^63"))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(v))
            }
            fn visit_str<E>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(v.to_owned()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Why a task's parameters are rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// The task has too many parameters.
    #[error("{count} parameters, at most {MAX_PARAMS} are allowed")]
    TooMany {
        /// The number of parameters given.
        count: usize,
    },
    /// A parameter's name or text is too long.
    #[error("parameter {key:?} is too long: names hold {MAX_KEY_BYTES} bytes, texts {MAX_TEXT_BYTES}")]
    TooLong {
        /// The parameter's name, truncated.
        key: String,
    },
}

/// A task's parameters by name, with the names of upstream's `Config` (`hd_strategy`, `sd_seed`, ...).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, Scalar>", into = "BTreeMap<String, Scalar>")]
pub struct Params(BTreeMap<String, Scalar>);

impl TryFrom<BTreeMap<String, Scalar>> for Params {
    type Error = ParamsError;

    fn try_from(map: BTreeMap<String, Scalar>) -> Result<Self, ParamsError> {
        if map.len() > MAX_PARAMS {
            return Err(ParamsError::TooMany { count: map.len() });
        }
        for (key, value) in &map {
            let text_len = if let Scalar::Text(text) = value { text.len() } else { 0 };
            if key.len() > MAX_KEY_BYTES || text_len > MAX_TEXT_BYTES {
                return Err(ParamsError::TooLong { key: key.chars().take(MAX_KEY_BYTES).collect() });
            }
        }
        Ok(Self(map))
    }
}

impl From<Params> for BTreeMap<String, Scalar> {
    fn from(params: Params) -> Self {
        params.0
    }
}

impl Params {
    /// The value of `key`; `None` if it was not given.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Scalar> {
        self.0.get(key)
    }

    /// The integer value of `key`; `None` if it was not given or is not an integer.
    #[must_use]
    pub fn int(&self, key: &str) -> Option<i64> {
        if let Some(Scalar::Int(v)) = self.get(key) { Some(*v) } else { None }
    }

    /// The text value of `key`; `None` if it was not given or is not a text.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        if let Some(Scalar::Text(v)) = self.get(key) { Some(v) } else { None }
    }
}

/// The failures that an acknowledged task survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Power loss: the task is written and fsynced before it is acknowledged.
    #[default]
    Full,
    /// The crash of any process: the task is written, but not fsynced, before it is acknowledged.
    Process,
}

/// One request, as its client made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The task's id, chosen by the client.
    pub id: TaskId,
    /// The user who may see and cancel the task.
    pub owner: Owner,
    /// The end user on whose behalf the owner submits; `None` for the owner itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientName>,
    /// The model to run.
    pub model: ModelName,
    /// The queue that the task waits in. In a submission with `routed` it counts only for schedulers before
    /// protocol 1.6.
    pub queue: QueueName,
    /// True if the scheduler chooses the queue; false if the submitter named it.
    #[serde(default)]
    pub routed: bool,
    /// Upstream's parameters for the model.
    pub params: Params,
    /// Higher priorities are served first; 0 is a person waiting at a browser.
    pub priority: i8,
    /// The failures that the acknowledged task survives.
    pub durability: Durability,
    /// Deadline, in milliseconds since the Unix epoch; the task fails after it.
    pub deadline_wall_ms: Option<u64>,
    /// Longest total time the task may wait for nodes before it fails, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_limit_ms: Option<u64>,
    /// Longest time without a node that can run the task, in milliseconds; `None` for the scheduler's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_node_wait_ms: Option<u64>,
    /// Longest duration of one attempt, counted from its acceptance by a node, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_limit_ms: Option<u64>,
    /// The dead letter that this task replays. Set by the scheduler; ignored in a submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<TaskId>,
    /// The form of the result.
    #[serde(default)]
    pub output: OutputForm,
    /// The size of the picture, as its submitter read it from the file's header; `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<PictureSize>,
    /// The inputs; each role at most once.
    pub blobs: Vec<BlobMeta>,
}

impl TaskSpec {
    /// Total size of the inputs, in bytes.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.blobs.iter().fold(0, |sum, b| sum.saturating_add(b.len))
    }
}

/// How often a task was attempted, and how the attempts ended. Only crashes and failures are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Number of assignments.
    pub attempts: u32,
    /// Attempts that ended by the loss of a node that had accepted; not by drain, goodbye or a scheduler restart.
    pub crashes: u32,
    /// Attempts that ended with a reported failure.
    pub failures: u32,
}

/// The time a task spent in each stage, in milliseconds: finite numbers from 0 to a year.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stages {
    /// From acceptance to the last assignment.
    #[serde(deserialize_with = "milliseconds")]
    pub queue_ms: f64,
    /// Reading and checking the inputs on the node.
    #[serde(deserialize_with = "milliseconds")]
    pub transfer_ms: f64,
    /// Decoding the input files.
    #[serde(default, deserialize_with = "milliseconds")]
    pub decode_ms: f64,
    /// Loading the model; 0 if it was in memory.
    #[serde(deserialize_with = "milliseconds")]
    pub load_ms: f64,
    /// Running the model.
    #[serde(deserialize_with = "milliseconds")]
    pub infer_ms: f64,
    /// The node's pixel work around the model: crop, pad, blend, convert.
    #[serde(deserialize_with = "milliseconds")]
    pub pixels_ms: f64,
    /// Encoding the result file.
    #[serde(default, deserialize_with = "milliseconds")]
    pub encode_ms: f64,
    /// Writing the result on the node.
    #[serde(deserialize_with = "milliseconds")]
    pub store_ms: f64,
    /// From acceptance to the recorded outcome.
    #[serde(deserialize_with = "milliseconds")]
    pub total_ms: f64,
}

/// Reads a time that another process measured. NaN becomes 0 and infinities are clamped, since averages,
/// metrics and JSON cannot hold them.
fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let ms = f64::deserialize(deserializer)?;
    Ok(if ms.is_nan() { 0.0 } else { ms.clamp(0.0, MAX_STAGE_MS) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_are_bounded() {
        let many: BTreeMap<_, _> = (0..65).map(|i| (i.to_string(), Scalar::Null)).collect();
        assert_eq!(Params::try_from(many), Err(ParamsError::TooMany { count: 65 }));
        let long = BTreeMap::from([("prompt".to_owned(), Scalar::Text("x".repeat(8193)))]);
        assert_eq!(Params::try_from(long), Err(ParamsError::TooLong { key: "prompt".into() }));
    }
}
