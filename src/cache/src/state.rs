//! The public state of a task, and the order in which its states follow each other.

use serde::{Deserialize, Serialize};

use lamagrid_domain::{Advance, Owner, Status};
use lamagrid_protocol::message::TaskInfo;
use lamagrid_protocol::pack;

/// The largest encoded state that is cached; the longest failure text takes about 8 KiB.
pub const MAX_STATE_BYTES: usize = 16 * 1024;

/// A task as its owner may see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskState {
    /// The owner; for others the task does not exist.
    pub owner: Owner,
    /// The status. While the task has not ended, `stages` and the counters of failures may be incomplete.
    pub info: TaskInfo,
    /// Size of the result; `None` without a result, or if it is unknown.
    #[serde(default)]
    pub result_bytes: Option<u64>,
    /// Progress of the work on a node.
    #[serde(default)]
    pub progress: Option<Advance>,
}

impl TaskState {
    /// A state as the scheduler told it.
    #[must_use]
    pub fn told(owner: Owner, info: TaskInfo) -> Self {
        Self { owner, info, result_bytes: None, progress: None }
    }

    /// Its place in the order of the task's states.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::of(self.info.status, self.info.counters.attempts)
    }

    /// True if only its place in the queue can change without a newer version.
    pub(crate) fn is_queued(&self) -> bool {
        self.info.status == Status::Queued
    }

    /// Encodes the state; `None` if it is larger than [`MAX_STATE_BYTES`].
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        pack(self).ok().filter(|bytes| bytes.len() <= MAX_STATE_BYTES)
    }

    /// Decodes a state; `None` for other bytes, such as those of another version of the program.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut state: Self = rmp_serde::from_slice(bytes).ok()?;
        state.info.failure = state.info.failure.map(lamagrid_domain::Failure::bounded);
        Some(state)
    }
}

/// The place of a state among the states of its task. It depends on no clock and no memory: both the scheduler and a
/// reader compute it from the status and the number of attempts, which the store counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64);

impl Version {
    /// States of tasks that have ended: nothing but a release comes after them. Lua's numbers are exact up to 2^53.
    const ENDED: u64 = 1 << 52;
    /// The task's result was released.
    pub(crate) const RELEASED: Self = Self(Self::ENDED + 1);
    /// The task was removed.
    pub(crate) const GONE: Self = Self((1 << 53) - 1);

    /// The version of a status: an attempt begins, it is queued again, the next attempt begins, the task ends.
    #[must_use]
    pub fn of(status: Status, attempts: u32) -> Self {
        let attempts = u64::from(attempts);
        match status {
            Status::Queued => Self(2 * attempts + 1),
            Status::Processing => Self(2 * attempts),
            Status::Completed | Status::Failed | Status::Cancelled => Self(Self::ENDED),
        }
    }

    /// The number, for tables and scripts.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// True if the task has ended or is gone.
    #[must_use]
    pub fn is_final(self) -> bool {
        self.0 >= Self::ENDED
    }

    #[cfg(test)]
    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use lamagrid_domain::{Counters, Failure, FailureKind, Stages, TaskId};

    use super::*;

    /// A state of task number `id`, for tests.
    pub(crate) fn state(id: u8, status: Status, attempts: u32) -> TaskState {
        let info = TaskInfo {
            id: TaskId::from_bytes([id; 16]),
            model: "lama".parse().unwrap(),
            queue: "gpu".parse().unwrap(),
            status,
            failure: None,
            position: None,
            wait_ms: None,
            node: None,
            counters: Counters { attempts, ..Counters::default() },
            stages: Stages::default(),
            created_wall_ms: 7,
            finished_wall_ms: None,
        };
        TaskState::told("me".parse().unwrap(), info)
    }

    #[test]
    fn versions_grow_over_the_life_of_a_task() {
        use Status::{Cancelled, Completed, Failed, Processing, Queued};
        let life = [(Queued, 0), (Processing, 1), (Queued, 1), (Processing, 2), (Queued, 2), (Completed, 2)];
        let versions: Vec<_> =
            life.iter().map(|(status, attempts)| Version::of(*status, *attempts)).collect();
        assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
        for ended in [Completed, Failed, Cancelled].map(|status| Version::of(status, 0)) {
            assert!(ended > Version::of(Queued, u32::MAX) && ended < Version::RELEASED);
        }
        assert!(Version::RELEASED < Version::GONE && Version::GONE.is_final());
    }

    #[test]
    fn states_survive_encoding_and_other_bytes_are_none() {
        let mut one = state(1, Status::Failed, 2);
        one.info.failure = Some(Failure::new(FailureKind::Inference, "\u{fff}".repeat(5_000)));
        one.progress = Some(Advance::default());
        assert_eq!(TaskState::decode(&one.encode().unwrap()), Some(one));
        assert_eq!(TaskState::decode(b"\x83\x00"), None);
        assert_eq!(TaskState::decode(b""), None);
    }
}
