//! Random ids, tokens and identities, from the operating system.

use lamagrid_domain::TaskId;

use crate::wall_clock::wall_ms;

/// A new task's id: the wall clock's milliseconds in 48 bits, then 80 random ones.
///
/// Those of one time are neighbours in the store's indexes, so that a commit writes few pages, and a scheduler can tell
/// an id that is older than what it remembers. The random part keeps ids apart.
#[must_use]
pub fn new_task_id() -> TaskId {
    TaskId::drawn_at(wall_ms(), random_id())
}

/// 16 random bytes, for tokens and identities.
#[must_use]
pub fn random_id() -> [u8; 16] {
    random_bytes()
}

/// `N` random bytes.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .expect("Linux has getrandom(2), which never fails once the system has booted");
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn task_ids_begin_with_the_time_and_differ() {
        let before = wall_ms();
        let ids: HashSet<_> = (0..1_000).map(|_| new_task_id()).collect();
        let after = wall_ms();
        assert_eq!(ids.len(), 1_000);
        for id in ids {
            assert!((before..=after).contains(&id.drawn_wall_ms()), "{id}");
        }
    }
}
