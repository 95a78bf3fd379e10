//! Retries of tasks whose attempt ended without a result.

use lamagrid_config::RetryPolicy;
use lamagrid_domain::{Entry, Milestone, Retry};

#[cfg(any(test, feature = "sabotage"))]
use crate::core::fault::Faults;
use crate::core::state::leases::{Orphan, OrphanedBy};

/// How an attempt ended without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Its node was lost and had no other task: held against the task.
    Crash,
    /// Its node was lost and had other tasks as well: each of them is tried again alone, which shows the cause.
    SharedCrash,
    /// Its node was lost, and that says nothing about the task.
    Innocent,
    /// Its node gave it back: it drains, said goodbye, or was asked to.
    GivenBack,
}

impl Loss {
    /// The loss of an attempt whose node did not come back for it.
    ///
    /// If the attempt was all that the node had, it is held responsible. Of several attempts any may have been the
    /// cause: one that ran, or one whose inputs were too much for the node.
    pub(crate) fn of_orphan(orphan: Orphan, cause: OrphanedBy) -> Self {
        match (cause, orphan.was_alone) {
            (OrphanedBy::LostSession, true) => Self::Crash,
            (OrphanedBy::LostSession, false) => Self::SharedCrash,
            (OrphanedBy::Restart | OrphanedBy::Takeover, _) => Self::Innocent,
        }
    }

    /// Planted faults: every neighbour is charged, or no crash counts.
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) fn distorted(self, faults: Faults) -> Self {
        use crate::core::fault::Fault;
        match self {
            Self::SharedCrash if faults.is_planted(Fault::NeighbourCounted) => Self::Crash,
            Self::Crash if faults.is_planted(Fault::CrashUncounted) => Self::Innocent,
            loss => loss,
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Crash => "its node was lost while it had this task alone",
            Self::SharedCrash => "its node was lost while it had several tasks: each is tried again alone",
            Self::Innocent => "its node was lost, or did not have it any more; that is not held against it",
            Self::GivenBack => "its node gave it back",
        }
    }
}

/// Whether a node that the task does not avoid could try it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherNode {
    Connected,
    Missing,
}

/// The consequence of a reported failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another attempt, on a node that the task does not avoid.
    Elsewhere,
    /// Another attempt after a delay.
    AfterBackOff,
    /// The task fails for good: another attempt would fail as well.
    Fail,
    /// The task is given up, and can be replayed.
    DeadLetter,
}

impl Verdict {
    /// `failures` counts this one.
    pub(crate) fn of(retry: Retry, failures: u32, failure_limit: u32, other: OtherNode) -> Self {
        match retry {
            Retry::Never => Self::Fail,
            Retry::Later if failures < failure_limit => Self::AfterBackOff,
            Retry::Elsewhere if failures < failure_limit && other == OtherNode::Connected => Self::Elsewhere,
            Retry::Later | Retry::Elsewhere => Self::DeadLetter,
        }
    }
}

/// The delay after this many failures: exponential with full jitter, so that tasks that failed together do not come
/// back together.
pub(crate) fn back_off_ms(policy: RetryPolicy, failures: u32, random: u64) -> u64 {
    let exponent = failures.saturating_sub(1).min(20);
    let ceiling = policy.base_ms.saturating_mul(1 << exponent).min(policy.cap_ms).max(1);
    random % ceiling + 1
}

/// Whether a task shared a node with others when the node was lost, by its history.
pub(crate) fn has_shared_a_loss(history: &[Entry]) -> bool {
    history.iter().any(|entry| matches!(entry.what, Milestone::NodeLost { shared: true, .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_failure_that_is_allowed_ends_the_task() {
        let verdicts = [
            (Retry::Never, 1, OtherNode::Connected, Verdict::Fail),
            (Retry::Later, 1, OtherNode::Missing, Verdict::AfterBackOff),
            (Retry::Later, 2, OtherNode::Connected, Verdict::DeadLetter),
            (Retry::Elsewhere, 1, OtherNode::Connected, Verdict::Elsewhere),
            (Retry::Elsewhere, 1, OtherNode::Missing, Verdict::DeadLetter),
            (Retry::Elsewhere, 2, OtherNode::Connected, Verdict::DeadLetter),
        ];
        for (retry, failures, other, verdict) in verdicts {
            assert_eq!(Verdict::of(retry, failures, 2, other), verdict, "{retry:?} {failures} {other:?}");
        }
    }

    #[test]
    fn the_back_off_doubles_up_to_its_cap_and_never_ends_at_once() {
        let policy = RetryPolicy { failure_limit: 9, base_ms: 100, cap_ms: 350 };
        let longest = [1, 2, 3, 99].map(|failures| {
            (0..1_000).map(|random| back_off_ms(policy, failures, random)).max().unwrap_or(0)
        });
        assert_eq!(longest, [100, 200, 350, 350]);
        assert_eq!(back_off_ms(policy, 1, 0), 1);
    }
}
