//! Why an attempt or a task failed: data that is stored, sent, counted and shown.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::printable;

/// Longest message of a failure, in characters; foreign text is cut here.
pub const MAX_MESSAGE_CHARS: usize = 2_000; // a libtorch message without its C++ stack

/// The closed list of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The node died or fell silent while it held the task, too often; or no node is connected at all.
    NodeLost,
    /// A connection broke and the work could not be taken up again.
    Disconnected,
    /// The task's own time limit passed.
    DeadlineExceeded,
    /// It waited for a node longer than it may.
    WaitedTooLong,
    /// One attempt took longer than it may.
    RanTooLong,
    /// The device or the host had no memory left.
    OutOfMemory,
    /// A disk was full or refused to write.
    DiskFull,
    /// A bound was reached: queue, bytes, or eviction by more important work.
    Overloaded,
    /// No connected node serves this model.
    UnknownModel,
    /// The model's file is missing, broken or of another signature.
    ModelLoad,
    /// The model ran and failed.
    Inference,
    /// The request itself cannot be worked on.
    InvalidInput,
    /// Somebody who may do so cancelled it.
    Cancelled,
    /// The two sides speak different versions.
    Incompatible,
    /// A defect of ours.
    Internal,
}

impl<'de> Deserialize<'de> for FailureKind {
    /// A word that this version does not know, from a newer one, is a defect as far as it can tell.
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
    /// Models and their input.
    Model,
    /// Cancelled, incompatible, internal.
    Other,
}

/// What to do with a task whose attempt failed this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Another attempt would fail the same way.
    Never,
    /// After a back-off, on any node.
    Later,
    /// Only on another node; where there is none, the task fails.
    Elsewhere,
}

impl FailureKind {
    /// All kinds, for tables and tests.
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

    /// Whether it says something about the node rather than about the task.
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

    /// Whether a failure that a node reported is worth another attempt.
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

    /// The HTTP status that a task API answers with.
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

    /// The exit code of a command that ends with this failure.
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

    /// The class in `lamagrid.errors` that carries this kind.
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

    /// The word in logs, metrics and JSON.
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

/// A recorded reason: its kind and one text for people that says what happened, to what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The closed kind that decides retry, status and class.
    pub kind: FailureKind,
    /// At most [`MAX_MESSAGE_CHARS`] characters, none of which steers a terminal.
    #[serde(deserialize_with = "bounded_text")]
    pub message: String,
}

/// Bounds a message that another process wrote.
fn bounded_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    Ok(printable(&text, MAX_MESSAGE_CHARS, true).into_owned())
}

impl Failure {
    /// A failure with `message` cut to [`MAX_MESSAGE_CHARS`].
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }.bounded()
    }

    /// The same with its message cut; for failures whose message was written directly.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if let Cow::Owned(text) = printable(&self.message, MAX_MESSAGE_CHARS, true) {
            self.message = text;
        } else if let Some((at, _)) = self.message.char_indices().nth(MAX_MESSAGE_CHARS) {
            self.message.truncate(at);
        }
        self
    }

    /// The same with its message cut to so many bytes, where one message of the protocol holds several failures.
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
    fn message_is_cut_at_a_character_border() {
        let failure = Failure::new(FailureKind::Inference, "é".repeat(MAX_MESSAGE_CHARS + 5));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn a_message_steers_no_terminal() {
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
