//! Random ids, tokens and identities, from the operating system.

/// 16 random bytes, for ids and tokens.
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
