//! MessagePack with named fields, as headers and rows hold it.

use serde::Serialize;

/// Room for nearly every header and row, so that its buffer does not grow while it is written.
const USUAL_BYTES: usize = 512;

/// A value as a MessagePack map.
///
/// # Errors
/// A map within it has keys that are not text.
pub fn pack<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    rmp_serde::encode::write_named(&mut bytes, value)?;
    Ok(bytes)
}
