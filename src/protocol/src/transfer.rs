//! Encodes and parses the request of a blob transfer in a line of the preamble.

use lamagrid_domain::{LeaseToken, Role, TaskId};

/// Names a blob and its reader or writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// An input, read by a node.
    Input(LeaseToken, Role),
    /// The result of an attempt, written by a node.
    Attempt(LeaseToken),
    /// An input, written by the task's owner.
    Upload(TaskId, Role),
    /// The result, read by the task's owner.
    Result(TaskId),
}

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the scheduler, starting at this byte.
    From(u64),
    /// To the scheduler.
    Write {
        /// Total length in bytes.
        len: u64,
        /// True to resume an interrupted transfer.
        again: bool,
    },
}

/// One requested transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// The blob.
    pub blob: Blob,
    /// The direction.
    pub direction: Direction,
}

impl Transfer {
    /// Parses the words after the version in a line; `None` if they do not request a transfer.
    #[must_use]
    pub fn parse(words: &[&str]) -> Option<Self> {
        let input = |word: &str| {
            [Role::Image, Role::Mask, Role::Example].into_iter().find(|role| role.as_str() == word)
        };
        let write = |len: &str, how: &str| {
            let again = match how {
                "new" => false,
                "again" => true,
                _ => return None,
            };
            Some(Direction::Write { len: len.parse().ok()?, again })
        };
        let (blob, direction) = match words {
            ["get", token, role, from] => {
                (Blob::Input(token.parse().ok()?, input(role)?), Direction::From(from.parse().ok()?))
            }
            ["put", token, len, how] => (Blob::Attempt(token.parse().ok()?), write(len, how)?),
            ["bring", task, role, len, how] => {
                (Blob::Upload(task.parse().ok()?, input(role)?), write(len, how)?)
            }
            ["fetch", task, from] => (Blob::Result(task.parse().ok()?), Direction::From(from.parse().ok()?)),
            _ => return None,
        };
        Some(Self { blob, direction })
    }

    /// The words that request the transfer.
    #[must_use]
    pub fn words(self) -> String {
        let how = match self.direction {
            Direction::From(from) => from.to_string(),
            Direction::Write { len, again } => format!("{len} {}", if again { "again" } else { "new" }),
        };
        match self.blob {
            Blob::Input(token, role) => format!("get {token} {role} {how}"),
            Blob::Attempt(token) => format!("put {token} {how}"),
            Blob::Upload(task, role) => format!("bring {task} {role} {how}"),
            Blob::Result(task) => format!("fetch {task} {how}"),
        }
    }
}
