//! BLAKE3 hashes of blobs and of what a task asks for.

use lamagrid_domain::{Hash, TaskSpec};

use crate::pack;

/// BLAKE3 of `bytes`.
#[must_use]
pub fn hash(bytes: &[u8]) -> Hash {
    Hash::new(*blake3::hash(bytes).as_bytes())
}

/// What makes two submissions of one id the same task: model, parameters and the hashes of the inputs.
///
/// Priority, durability and deadline are left out: asking again more urgently is still the same task.
#[must_use]
pub fn payload_digest(spec: &TaskSpec) -> Hash {
    let payload = (&spec.model, &spec.params, &spec.blobs);
    let bytes = pack(&payload).expect("a task's parts have no maps with non-text keys");
    hash(&bytes)
}
