//! Draws random ids, tokens and identities from the operating system.

use lamagrid_domain::TaskId;

use crate::wall_clock::wall_ms;

/// Draws a new task's id: the wall clock's milliseconds in 48 bits, then 80 random bits.
///
/// Ids drawn at about the same time are neighbours in the store's indexes, so that a commit writes few pages. The time also
/// lets a scheduler recognize an id that is older than its records. The random part makes ids unique.
#[must_use]
pub fn new_task_id() -> TaskId {
    TaskId::drawn_at(wall_ms(), random_id())
}

/// Draws 16 random bytes, for tokens and identities.
#[must_use]
pub fn random_id() -> [u8; 16] {
    random_bytes()
}

/// Draws `N` random bytes.
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
