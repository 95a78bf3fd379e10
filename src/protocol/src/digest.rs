//! Computes BLAKE3 hashes of blobs and of tasks' payloads.

use lamagrid_domain::{Hash, TaskSpec};

use crate::pack;

/// The BLAKE3 hash of `bytes`.
#[must_use]
pub fn hash(bytes: &[u8]) -> Hash {
    Hash::new(*blake3::hash(bytes).as_bytes())
}

/// Computes the BLAKE3 hash of bytes that come in pieces.
#[derive(Debug, Clone, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> Hash {
        Hash::new(*self.0.finalize().as_bytes())
    }
}

/// The digest that identifies a task's payload: model, parameters and the hashes of the inputs. Two
/// submissions of one id with the same digest are the same task.
///
/// Priority, durability and deadline are left out: a repeated submission may change them.
#[must_use]
pub fn payload_digest(spec: &TaskSpec) -> Hash {
    let payload = (&spec.model, &spec.params, &spec.blobs);
    let bytes = pack(&payload).expect("a task's parts have no maps with non-text keys");
    hash(&bytes)
}
