//! The history of a task, bounded.

use lamagrid_domain::{Entry, Milestone};

/// Entries kept: the first quarter and the latest ones. One entry between them counts those that were dropped.
const MAX_ENTRIES: usize = 64;
const KEPT_FIRST: usize = MAX_ENTRIES / 4;

/// Appends an entry, and drops one from the middle of a full history.
pub(crate) fn record(history: &mut Vec<Entry>, entry: Entry) {
    if history.len() >= MAX_ENTRIES {
        let dropped = history.remove(KEPT_FIRST + 1);
        let before = &mut history[KEPT_FIRST];
        match &mut before.what {
            Milestone::Skipped { entries } => *entries += 1,
            _ => *before = Entry { what: Milestone::Skipped { entries: 2 }, ..dropped },
        }
    }
    history.push(entry);
}

/// Sums up the milliseconds that a task waited in queues and on nodes that gave it back, by the stored part of its history.
/// Its current wait lasts until `until_wall_ms`; `None` if a node has it, since its last assignment has no entry there.
pub(crate) fn waited_ms(accepted_wall_ms: u64, history: &[Entry], until_wall_ms: Option<u64>) -> u64 {
    let (mut waited_ms, mut since, mut assigned) = (0_u64, Some(accepted_wall_ms), None);
    let lasted = |since: Option<u64>, until: u64| since.map_or(0, |since| until.saturating_sub(since));
    for Entry { at_wall_ms, what, .. } in history {
        match what {
            Milestone::Assigned { .. } => {
                waited_ms = waited_ms.saturating_add(lasted(since.take(), *at_wall_ms));
                assigned = Some(*at_wall_ms);
            }
            // It waited on the node, too.
            Milestone::GivenBack => {
                waited_ms = waited_ms.saturating_add(lasted(assigned.take(), *at_wall_ms));
                since = Some(*at_wall_ms);
            }
            Milestone::Failed { .. } | Milestone::NodeLost { .. } => since = Some(*at_wall_ms),
            Milestone::Skipped { .. } => (since, assigned) = (None, None),
            Milestone::Accepted
            | Milestone::Replays { .. }
            | Milestone::Ended { .. }
            | Milestone::ReplayedAs { .. } => {}
        }
    }
    waited_ms.saturating_add(until_wall_ms.map_or(0, |until| lasted(since, until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_summed_up_between_attempts() {
        let at = |at_wall_ms, what| Entry { at_wall_ms, attempt: 1, what };
        let assigned =
            |at_wall_ms| at(at_wall_ms, Milestone::Assigned { node: "n".parse().unwrap(), spilled_to: None });
        assert_eq!((waited_ms(100, &[], Some(150)), waited_ms(100, &[], None)), (50, 0));
        let tried = [assigned(110), at(140, Milestone::GivenBack)];
        assert_eq!((waited_ms(100, &tried, Some(160)), waited_ms(100, &tried, None)), (60, 40));
        // The clock was set back meanwhile, or entries are missing.
        assert_eq!(waited_ms(100, &tried, Some(1)), 40);
        let gap = [assigned(110), at(120, Milestone::Skipped { entries: 3 }), assigned(150)];
        assert_eq!(waited_ms(100, &gap, None), 10);
    }

    #[test]
    fn a_full_history_keeps_its_first_and_latest_entries_and_counts_the_others() {
        let mut history = Vec::new();
        for at_wall_ms in 0..100 {
            record(&mut history, Entry { at_wall_ms, attempt: 0, what: Milestone::GivenBack });
        }
        assert_eq!(history.len(), MAX_ENTRIES);
        assert_eq!(history[KEPT_FIRST].what, Milestone::Skipped { entries: 100 - MAX_ENTRIES as u32 + 1 });
        assert_eq!((history[KEPT_FIRST - 1].at_wall_ms, history[MAX_ENTRIES - 1].at_wall_ms), (15, 99));
    }
}
