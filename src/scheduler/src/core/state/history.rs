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

#[cfg(test)]
mod tests {
    use super::*;

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
