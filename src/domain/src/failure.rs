//! Defines why an attempt or a task failed, as data that is stored, sent, counted and shown.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{LineFeeds, printable};

/// Longest failure message, in characters; longer text from other processes is truncated.
pub const MAX_MESSAGE_CHARS: usize = 2_000; // a libtorch message without its C++ stack

/// The closed list of failure reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The node died or went silent too often while it held the task, or no node is connected.
    NodeLost,
    /// A connection broke and the work could not be resumed.
    Disconnected,
    /// The task's own deadline passed.
    DeadlineExceeded,
    /// The task waited for a node longer than allowed.
    WaitedTooLong,
    /// One attempt ran longer than allowed.
    RanTooLong,
    /// The device or the host ran out of memory.
    OutOfMemory,
    /// A disk was full or refused to write.
    DiskFull,
    /// A limit was reached (queue length, bytes), or a task of higher priority evicted this one.
    Overloaded,
    /// No connected node serves this model.
    UnknownModel,
    /// The model's file is missing, corrupt or has the wrong signature.
    ModelLoad,
    /// The model ran and raised an error.
    Inference,
    /// The request itself is invalid.
    InvalidInput,
    /// An authorized user cancelled the task.
    Cancelled,
    /// The two sides use incompatible versions.
    Incompatible,
    /// A defect in LamaGrid.
    Internal,
}

impl<'de> Deserialize<'de> for FailureKind {
    /// Reads an unknown word, sent by a newer version, as [`FailureKind::Internal`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(deserializer)?;
        Ok(Self::ALL.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Self::Internal))
    }
}

/// Groups of kinds, for the retry strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureFamily {
    /// Connections and silence.
    Network,
    /// Time limits.
    Timeout,
    /// Memory, disk, bounds.
    Resource,
    /// Models and their inputs.
    Model,
    /// Cancellation, incompatible versions, internal defects.
    Other,
}

/// How a task is retried after an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Not retried: another attempt would fail the same way.
    Never,
    /// Retried after a back-off, on any node.
    Later,
    /// Retried only on another node; the task fails if no other node serves it.
    Elsewhere,
}

impl FailureKind {
    /// All failure kinds, for tables and tests.
    pub const ALL: [Self; 15] = [
        Self::NodeLost,
        Self::Disconnected,
        Self::DeadlineExceeded,
        Self::WaitedTooLong,
        Self::RanTooLong,
        Self::OutOfMemory,
        Self::DiskFull,
        Self::Overloaded,
        Self::UnknownModel,
        Self::ModelLoad,
        Self::Inference,
        Self::InvalidInput,
        Self::Cancelled,
        Self::Incompatible,
        Self::Internal,
    ];

    /// The family by which the retry strategy is configured.
    #[must_use]
    pub const fn family(self) -> FailureFamily {
        match self {
            Self::NodeLost | Self::Disconnected => FailureFamily::Network,
            Self::DeadlineExceeded | Self::WaitedTooLong | Self::RanTooLong => FailureFamily::Timeout,
            Self::OutOfMemory | Self::DiskFull | Self::Overloaded => FailureFamily::Resource,
            Self::UnknownModel | Self::ModelLoad | Self::Inference | Self::InvalidInput => {
                FailureFamily::Model
            }
            Self::Cancelled | Self::Incompatible | Self::Internal => FailureFamily::Other,
        }
    }

    /// True if the failure is evidence against the node rather than against the task.
    #[must_use]
    pub const fn blames_node(self) -> bool {
        match self {
            Self::OutOfMemory
            | Self::DiskFull
            | Self::ModelLoad
            | Self::Inference
            | Self::RanTooLong
            | Self::Incompatible
            | Self::Internal => true,
            Self::NodeLost
            | Self::Disconnected
            | Self::DeadlineExceeded
            | Self::WaitedTooLong
            | Self::Overloaded
            | Self::UnknownModel
            | Self::InvalidInput
            | Self::Cancelled => false,
        }
    }

    /// How a task is retried after its node reported this kind.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::Disconnected | Self::NodeLost | Self::RanTooLong | Self::Internal => Retry::Later,
            Self::OutOfMemory
            | Self::DiskFull
            | Self::UnknownModel
            | Self::ModelLoad
            | Self::Incompatible => Retry::Elsewhere,
            Self::DeadlineExceeded
            | Self::WaitedTooLong
            | Self::Overloaded
            | Self::Inference
            | Self::InvalidInput
            | Self::Cancelled => Retry::Never,
        }
    }

    /// The HTTP status of a task API's response for this kind.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidInput => 400,
            Self::UnknownModel => 404,
            Self::Cancelled => 409,
            Self::Overloaded | Self::NodeLost | Self::Disconnected => 503,
            Self::DeadlineExceeded | Self::WaitedTooLong | Self::RanTooLong => 504,
            Self::OutOfMemory | Self::DiskFull => 507,
            Self::ModelLoad | Self::Inference | Self::Incompatible | Self::Internal => 500,
        }
    }

    /// The exit code of a command that ends with this kind.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::InvalidInput => 65,
            Self::UnknownModel | Self::NodeLost | Self::Disconnected => 69,
            Self::Internal | Self::Inference | Self::ModelLoad => 70,
            Self::OutOfMemory | Self::DiskFull => 73,
            Self::Overloaded | Self::DeadlineExceeded | Self::WaitedTooLong | Self::RanTooLong => 75,
            Self::Incompatible => 76,
            Self::Cancelled => 130,
        }
    }

    /// The name of the class in `lamagrid.errors` for this kind.
    #[must_use]
    pub const fn python_class(self) -> &'static str {
        match self {
            Self::NodeLost => "NodeLostError",
            Self::Disconnected => "DisconnectedError",
            Self::DeadlineExceeded => "DeadlineExceededError",
            Self::WaitedTooLong => "WaitedTooLongError",
            Self::RanTooLong => "RanTooLongError",
            Self::OutOfMemory => "OutOfMemoryError",
            Self::DiskFull => "DiskFullError",
            Self::Overloaded => "OverloadedError",
            Self::UnknownModel => "UnknownModelError",
            Self::ModelLoad => "ModelLoadError",
            Self::Inference => "InferenceError",
            Self::InvalidInput => "InvalidInputError",
            Self::Cancelled => "CancelledError",
            Self::Incompatible => "IncompatibleError",
            Self::Internal => "InternalError",
        }
    }

    /// The name in logs, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodeLost => "node_lost",
            Self::Disconnected => "disconnected",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::WaitedTooLong => "waited_too_long",
            Self::RanTooLong => "ran_too_long",
            Self::OutOfMemory => "out_of_memory",
            Self::DiskFull => "disk_full",
            Self::Overloaded => "overloaded",
            Self::UnknownModel => "unknown_model",
            Self::ModelLoad => "model_load",
            Self::Inference => "inference",
            Self::InvalidInput => "invalid_input",
            Self::Cancelled => "cancelled",
            Self::Incompatible => "incompatible",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A recorded failure: its kind, and a text for people that says what failed, on which object, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind, which decides the retry, the HTTP status and the exception class.
    pub kind: FailureKind,
    /// The text: at most [`MAX_MESSAGE_CHARS`] characters, without terminal control characters.
    #[serde(deserialize_with = "bounded_text")]
    pub message: String,
}

/// Truncates a message that another process wrote, and replaces its control characters.
fn bounded_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    Ok(printable(&text, MAX_MESSAGE_CHARS, LineFeeds::Keep).into_owned())
}

impl Failure {
    /// Creates a failure; `message` is truncated to [`MAX_MESSAGE_CHARS`] and its control characters are replaced.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }.bounded()
    }

    /// Truncates and cleans the message; for failures that were built without [`Failure::new`].
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if let Cow::Owned(text) = printable(&self.message, MAX_MESSAGE_CHARS, LineFeeds::Keep) {
            self.message = text;
        } else if let Some((at, _)) = self.message.char_indices().nth(MAX_MESSAGE_CHARS) {
            self.message.truncate(at);
        }
        self
    }

    /// Truncates the message to `max_bytes`, for protocol messages that hold several failures.
    #[must_use]
    pub fn cut(mut self, max_bytes: usize) -> Self {
        self.message.truncate(self.message.floor_char_boundary(max_bytes));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_truncated_at_a_character_boundary() {
        let failure = Failure::new(FailureKind::Inference, "é".repeat(MAX_MESSAGE_CHARS + 5));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn control_characters_in_a_message_are_replaced() {
        let failure = Failure::new(FailureKind::Inference, "first\nsecond\x1b]0;owned\x07");
        assert_eq!(failure.message, "first\nsecond\u{fffd}]0;owned\u{fffd}");
        assert_eq!(Failure::new(FailureKind::Inference, "éé").cut(3).message, "é");
    }

    #[test]
    fn words_equal_their_serialised_form_and_classes_are_distinct() {
        let mut classes: Vec<_> = FailureKind::ALL.iter().map(|k| k.python_class()).collect();
        classes.sort_unstable();
        classes.dedup();
        assert_eq!(classes.len(), FailureKind::ALL.len());
        let mut words: Vec<_> = FailureKind::ALL.iter().map(|k| k.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), FailureKind::ALL.len());
    }
}
