//! From the blobs of a task to pictures, checked before a byte of them is read.

use lamagrid_domain::{BlobForm, BlobMeta, Failure, FailureKind, Role};
use lamagrid_imaging::{Gray, Image, Layout, Rgb};

use crate::session::Job;

/// Picture and mask of a task.
///
/// # Errors
/// [`FailureKind::InvalidInput`] if they are not plain arrays of one size within `max_pixels`.
pub(super) fn read(job: &Job, max_pixels: u64) -> Result<(Image<Rgb>, Gray), Failure> {
    let meta = |role| job.meta(role).ok_or_else(|| invalid(format!("the task has no {role}")));
    let image_size = check(meta(Role::Image)?, 3, max_pixels)?;
    let mask_size = check(meta(Role::Mask)?, 1, max_pixels)?;
    if image_size != mask_size {
        // Upstream's words, which clients may look for.
        return Err(invalid(format!("Mask shape{mask_size:?} not queal to Image shape{image_size:?}")));
    }
    Ok((picture(job, Role::Image, image_size)?, picture(job, Role::Mask, mask_size)?))
}

/// `(height, width)` of a plain array of `channels`.
fn check(meta: &BlobMeta, channels: u8, max_pixels: u64) -> Result<(u32, u32), Failure> {
    let role = meta.role;
    let BlobForm::Raw { height, width, channels: found } = meta.form else {
        return Err(invalid(format!("this node reads plain pixels only, and the {role} is an encoded file")));
    };
    if found != channels {
        return Err(invalid(format!("the {role} has {found} channels where {channels} are needed")));
    }
    if height == 0 || width == 0 {
        return Err(invalid(format!("the {role} is empty: {height}x{width} pixels")));
    }
    if u64::from(height) * u64::from(width) > max_pixels {
        return Err(invalid(format!(
            "the {role} has {height}x{width} pixels; limits.max_pixels allows {max_pixels}"
        )));
    }
    if meta.form.raw_len() != Some(meta.len) {
        return Err(invalid(format!(
            "the {role} is said to be {height}x{width}x{channels} but has {} bytes",
            meta.len
        )));
    }
    Ok((height, width))
}

fn picture<L: Layout>(job: &Job, role: Role, (height, width): (u32, u32)) -> Result<Image<L>, Failure> {
    let bytes = job.input(role)?;
    // The only owner of what came from the spool: no copy there.
    Image::new(height as usize, width as usize, Vec::from(bytes))
        .map_err(|error| invalid(format!("the {role} cannot be read: {error}")))
}

fn invalid(text: String) -> Failure {
    Failure::new(FailureKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_plain_array_is_refused() {
        let meta = |height, width, channels, len| BlobMeta {
            role: Role::Image,
            len,
            hash: lamagrid_wire::hash(b""),
            form: BlobForm::Raw { height, width, channels },
        };
        assert_eq!(check(&meta(2, 5, 3, 30), 3, 100).unwrap(), (2, 5));
        for (meta, text) in [
            (meta(2, 5, 3, 29), "the image is said to be 2x5x3 but has 29 bytes"),
            (meta(2, 5, 1, 10), "the image has 1 channels where 3 are needed"),
            (meta(0, 5, 3, 0), "the image is empty: 0x5 pixels"),
            (meta(11, 10, 3, 330), "the image has 11x10 pixels; limits.max_pixels allows 100"),
            (
                meta(u32::MAX, u32::MAX, 3, 1),
                "the image has 4294967295x4294967295 pixels; limits.max_pixels allows 100",
            ),
        ] {
            let failure = check(&meta, 3, 100).unwrap_err();
            assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::InvalidInput, text));
        }
    }
}
