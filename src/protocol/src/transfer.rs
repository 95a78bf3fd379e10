//! The transfer of one blob, as a line of the preamble asks for it.

use lamagrid_domain::{LeaseToken, Role, TaskId};

/// Which blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// An input, for a node.
    Input(LeaseToken, Role),
    /// The result of an attempt, from a node.
    Attempt(LeaseToken),
    /// An input, from the task's owner.
    Upload(TaskId, Role),
    /// The result, for the task's owner.
    Result(TaskId),
}

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the scheduler, from this byte on.
    From(u64),
    /// To the scheduler.
    Write {
        /// Bytes in all.
        len: u64,
        /// Resumes a transfer that was cut.
        again: bool,
    },
}

/// One transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Which blob.
    pub blob: Blob,
    /// Which way.
    pub direction: Direction,
}

impl Transfer {
    /// Reads the words behind the version in a line; `None` if they ask for no transfer.
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

    /// The words that ask for it.
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
