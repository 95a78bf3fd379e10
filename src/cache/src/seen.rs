//! The newest version that a reader has shown of each task, so that a state never goes back for its users.

use std::collections::HashMap;

use lamagrid_domain::TaskId;

use crate::state::Version;

/// Two generations of this many tasks are remembered.
const GENERATION: usize = 8_192;

/// Versions by task; the tasks that were not shown for longest are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    new: HashMap<TaskId, Version>,
    old: HashMap<TaskId, Version>,
}

impl Seen {
    /// True unless a newer state of the task was shown.
    pub(crate) fn allows(&self, id: TaskId, version: Version) -> bool {
        self.new.get(&id).or_else(|| self.old.get(&id)).is_none_or(|shown| *shown <= version)
    }

    /// A state is shown. An older one of the scheduler itself, whose store may have been restored, changes nothing here:
    /// copies of it are not used, and the scheduler is asked.
    pub(crate) fn note(&mut self, id: TaskId, version: Version) {
        let newest =
            self.new.get(&id).or_else(|| self.old.get(&id)).map_or(version, |shown| version.max(*shown));
        self.new.insert(id, newest);
        if self.new.len() > GENERATION {
            self.old = std::mem::take(&mut self.new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> TaskId {
        TaskId::from_bytes((n as u128).to_be_bytes())
    }

    #[test]
    fn older_states_are_not_allowed_and_memory_is_bounded() {
        let mut seen = Seen::default();
        seen.note(id(0), Version::from_number(3));
        assert!(!seen.allows(id(0), Version::from_number(2)) && seen.allows(id(0), Version::from_number(3)));
        for n in 1..=3 * GENERATION {
            seen.note(id(n), Version::from_number(9));
        }
        assert!(seen.allows(id(0), Version::from_number(2)));
        assert!(!seen.allows(id(3 * GENERATION), Version::from_number(8)));
        assert!(seen.new.len() + seen.old.len() <= 2 * GENERATION + 1);
    }
}
