//! Random ids, tokens and identities, from the operating system.

use std::time::{SystemTime, UNIX_EPOCH};

use lamagrid_domain::TaskId;

/// A new task's id: the wall clock's milliseconds in 48 bits, then 80 random ones.
///
/// Those of one time are neighbours in the store's indexes, so that a commit writes few pages; any other 16 bytes do as
/// well, only slower. A clock that stands still or goes back costs speed alone: the random part keeps ids apart.
#[must_use]
pub fn new_task_id() -> TaskId {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut bytes = random_id();
    bytes[..6].copy_from_slice(&since.as_millis().to_be_bytes()[10..]);
    TaskId::from_bytes(bytes)
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

    fn wall_ms() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
    }

    #[test]
    fn task_ids_begin_with_the_time_and_differ() {
        let before = wall_ms();
        let ids: HashSet<_> = (0..1_000).map(|_| new_task_id()).collect();
        let after = wall_ms();
        assert_eq!(ids.len(), 1_000);
        for id in ids {
            let drawn = u64::from_be_bytes(id.as_bytes()[..8].try_into().unwrap()) >> 16;
            assert!((before..=after).contains(&drawn), "{id}");
        }
    }
}
