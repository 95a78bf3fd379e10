//! How old a copy may be when it is shown.

use std::time::Duration;

use crate::state::TaskState;

/// A copy that a reader put in, and the place in the queue of every copy, count for this long.
pub const REFRESH: Duration = Duration::from_secs(1);
/// How long the scheduler vouches for the cache with each beat.
pub(crate) const LIFE: Duration = Duration::from_millis(1_500);
/// A command of the feed that reaches Redis later than this after it was sent does nothing.
pub(crate) const LATEST: Duration = Duration::from_millis(400);
/// How long the feed waits for Redis before it counts as interrupted.
pub(crate) const PUBLISH_PATIENCE: Duration = Duration::from_millis(250);
/// Committed changes are collected for this long.
pub(crate) const COLLECT: Duration = Duration::from_millis(20);
/// The longest time for which a state is shown after the scheduler has left it, if the scheduler cannot reach the
/// cache and readers can: the last beat arrived as late as possible and lived as long as possible.
pub const MAX_STALE: Duration = Duration::from_millis(2_500);

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The origin of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The scheduler's feed, which replaces it when it changes.
    Feed,
    /// A reader that asked the scheduler.
    Reader,
}

/// A copy as it may be shown after `age`; `None` if it may not.
pub(crate) fn shown(mut state: TaskState, source: Source, age: Duration) -> Option<TaskState> {
    let is_recent = age <= REFRESH;
    if source == Source::Reader && !is_recent && !state.info.status.is_terminal() {
        return None;
    }
    if !is_recent {
        (state.info.position, state.info.wait_ms) = (None, None);
    }
    Some(state)
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::Status;

    use super::*;
    use crate::state::tests::state;

    #[test]
    fn the_bound_covers_the_worst_case() {
        assert!(COLLECT + PUBLISH_PATIENCE + LATEST + LIFE <= MAX_STALE);
    }

    #[test]
    fn what_a_reader_put_in_ages_unless_it_is_final() {
        let old = REFRESH + Duration::from_millis(1);
        let mut queued = state(1, Status::Queued, 0);
        queued.info.position = Some(3);
        assert_eq!(shown(queued.clone(), Source::Reader, REFRESH), Some(queued.clone()));
        assert_eq!(shown(queued.clone(), Source::Reader, old), None);
        assert_eq!(shown(queued.clone(), Source::Feed, old).unwrap().info.position, None);
        assert!(shown(state(1, Status::Completed, 1), Source::Reader, 9 * old).is_some());
    }
}
