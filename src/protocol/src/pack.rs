//! Encodes values as MessagePack with named fields, for headers and database rows.

use serde::Serialize;

/// Initial buffer size: enough for nearly every header and row, so that the buffer rarely grows.
const USUAL_BYTES: usize = 512;

/// Encodes a value as a MessagePack map.
///
/// # Errors
/// If a map within the value has keys that are not text.
pub fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    rmp_serde::encode::write_named(&mut bytes, value)?;
    Ok(bytes)
}
