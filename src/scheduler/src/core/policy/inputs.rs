//! Checks the inputs of a submission against their announcement.

use bytes::Bytes;

use lamagrid_domain::{BlobForm, Failure, FailureKind, Role, TaskSpec};
use lamagrid_protocol::frame::MAX_INLINE_BYTES;

/// Room beside the pixels in an encoded file: metadata, colour profiles.
const FILE_SLACK_BYTES: u64 = 1 << 20;

/// The largest input: raw RGB of `max_pixels`, or a file of that many uncompressed pixels.
pub(crate) fn max_bytes(max_pixels: u64) -> u64 {
    max_pixels.saturating_mul(4).saturating_add(FILE_SLACK_BYTES)
}

/// Checks the announced blobs, and the inline frames against them.
pub(crate) fn check(
    max_pixels: u64,
    spec: &TaskSpec,
    inline_roles: &[Role],
    inline: &[Bytes],
) -> Result<(), Failure> {
    let mut roles: Vec<Role> = spec.blobs.iter().map(|b| b.role).collect();
    roles.sort_unstable();
    let count = roles.len();
    roles.dedup();
    if roles.len() != count || roles.contains(&Role::Result) {
        return invalid("a task has each of image, mask and example at most once");
    }
    if !roles.contains(&Role::Image) {
        return invalid("the image is missing");
    }
    for blob in &spec.blobs {
        if blob.len > max_bytes(max_pixels) {
            return invalid(format!(
                "{} has {} bytes, more than {max_pixels} pixels have",
                blob.role, blob.len
            ));
        }
        if let BlobForm::Raw { height, width, channels } = blob.form {
            let pixels = u64::from(height) * u64::from(width);
            if blob.form.raw_len() != Some(blob.len) || pixels == 0 || !matches!(channels, 1 | 3) {
                return invalid(format!(
                    "{} has {} bytes, which is not {height} x {width} x {channels}",
                    blob.role, blob.len
                ));
            }
            if pixels > max_pixels {
                return invalid(format!(
                    "{} has {pixels} pixels, at most {} are allowed (limits.max_pixels)",
                    blob.role, max_pixels
                ));
            }
        }
    }
    if inline_roles.len() != inline.len() {
        return invalid("the inline frames do not match their roles");
    }
    for (role, bytes) in inline_roles.iter().zip(inline) {
        let announced = spec.blobs.iter().find(|b| b.role == *role).map(|b| b.len);
        if announced != Some(bytes.len() as u64) || bytes.len() > MAX_INLINE_BYTES {
            return invalid(format!("the inline {role} is not what was announced"));
        }
    }
    Ok(())
}

fn invalid(text: impl Into<String>) -> Result<(), Failure> {
    Err(Failure::new(FailureKind::InvalidInput, text))
}
