//! Decodes the blobs of a task into pictures, checking their sizes before any pixels are allocated. A
//! plugin's files are passed on unchanged.

use std::time::Instant;

use bytes::Bytes;

use lamagrid_domain::{BlobForm, BlobMeta, Failure, FailureKind, OutputForm, PictureFormat, Role, Scalar};
use lamagrid_imaging::codec::{self, CodecError};
use lamagrid_imaging::{Image, Layout, Rgb};

use super::{Carried, Files, Inputs, Pictures};
use crate::failure::stopped;
use crate::job::Job;

/// From this size in bytes, a picture and its mask are decoded in parallel; below, starting a thread takes longer.
const APART_BYTES: usize = 64 * 1024;

/// The parameter that requests upstream's EXIF handling; also defined in `python/lamagrid/options.py`.
const KEEP_ORIENTATION: &str = "keep_orientation";

/// Reads the inputs of a task, and the alpha and metadata that its result must carry.
///
/// # Errors
/// [`FailureKind::InvalidInput`] if the pictures differ in size, exceed `max_pixels` or do not allow the
/// requested output form; or if a plugin's inputs are not files.
pub(super) fn read(job: &Job, max_pixels: u64) -> Result<(Inputs, Carried), Failure> {
    if job.is_cancelled() {
        return Err(stopped());
    }
    if job.spec().model.plugin().is_some() {
        return Ok((Inputs::Files(files(job)?), Carried::default()));
    }
    let (pictures, carried) = pictures(job, max_pixels)?;
    Ok((Inputs::Pictures(pictures), carried))
}

/// Reads a plugin's inputs without decoding them: its result depends on its own decoder and on the file's bytes.
fn files(job: &Job) -> Result<Files, Failure> {
    let file = |role| match job.meta(role) {
        None => Ok(None),
        Some(BlobMeta { form: BlobForm::Encoded, .. }) => job.input(role).map(Some),
        Some(BlobMeta { form: BlobForm::Raw { .. }, .. }) => {
            Err(invalid(format!("the {role} of a plugin's task must be a file, not plain pixels")))
        }
    };
    let image = file(Role::Image)?.ok_or_else(|| invalid("the task has no image".into()))?;
    Ok(Files { image, example: file(Role::Example)? })
}

fn pictures(job: &Job, max_pixels: u64) -> Result<(Pictures, Carried), Failure> {
    let meta = |role| job.meta(role).ok_or_else(|| invalid(format!("the task has no {role}")));
    let (image_meta, mask_meta) = (meta(Role::Image)?, meta(Role::Mask)?);
    if let OutputForm::Encoded { format, .. } = job.spec().output
        && !codec::encodes(format)
    {
        return Err(invalid(format!("no {format} files are written here: ask for another format")));
    }
    // The size of a raw array is known, so it is checked before the bytes are read.
    let sizes = (check(image_meta, 3, max_pixels)?, check(mask_meta, 1, max_pixels)?);
    if let (Some(image), Some(mask)) = sizes {
        check_same(image, mask)?;
    }
    let (image_file, mask_file) = (job.input(Role::Image)?, job.input(Role::Mask)?);
    let began = Instant::now();
    let apart = sizes == (None, None) && image_file.len().max(mask_file.len()) >= APART_BYTES;
    let image = move || match sizes.0 {
        Some(size) => Ok((plain(Role::Image, size, image_file)?, Carried::default())),
        None => decode(job, &image_file, max_pixels),
    };
    let mask = move || match sizes.1 {
        Some(size) => plain(Role::Mask, size, mask_file),
        None => {
            let decode = if keeps_orientation(job) { codec::decode_mask } else { codec::decode_mask_upright };
            decode(&mask_file, max_pixels).map_err(|error| unreadable(Role::Mask, &error))
        }
    };
    let (image, mask) = if apart {
        std::thread::scope(|scope| {
            let mask = scope.spawn(mask);
            let image = image();
            (image, mask.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    } else {
        (image(), mask())
    };
    // As in upstream, an error in the picture is reported before one in the mask.
    let ((image, mut carried), mask) = (image?, mask?);
    let example = job.meta(Role::Example).map(|meta| example(job, meta, max_pixels)).transpose()?;
    carried.decode = began.elapsed();
    let side = |(height, width): (usize, usize)| (height as u32, width as u32); // at most 2^24
    check_same(side(image.shape()), side(mask.shape()))?;
    Ok((Pictures { image, mask, example }, carried))
}

/// True if the result's EXIF must equal upstream's, including the orientation; inputs for which that cannot
/// be guaranteed are rejected.
fn keeps_orientation(job: &Job) -> bool {
    matches!(job.spec().params.get(KEEP_ORIENTATION), Some(Scalar::Bool(true)))
}

/// Decodes the picture file, with the parts that the output form carries over.
fn decode(job: &Job, file: &[u8], max_pixels: u64) -> Result<(Image<Rgb>, Carried), Failure> {
    let decode = if keeps_orientation(job) { codec::decode } else { codec::decode_upright };
    let codec::Picture { pixels, alpha, metadata } =
        decode(file, max_pixels).map_err(|error| unreadable(Role::Image, &error))?;
    match job.spec().output {
        OutputForm::Raw => Ok((pixels, Carried::default())),
        OutputForm::Encoded { format: PictureFormat::Jpeg, .. } if alpha.is_some() => {
            Err(invalid("the image has an alpha channel, and jpeg has no room for that: ask for png".into()))
        }
        OutputForm::Encoded { .. } => Ok((pixels, Carried { alpha, metadata, ..Carried::default() })),
    }
}

fn example(job: &Job, meta: &BlobMeta, max_pixels: u64) -> Result<Image<Rgb>, Failure> {
    let size = check(meta, 3, max_pixels)?;
    let file = job.input(Role::Example)?;
    if let Some(size) = size {
        return plain(Role::Example, size, file);
    }
    let decode = if keeps_orientation(job) { codec::decode } else { codec::decode_upright };
    let decoded = decode(&file, max_pixels).map_err(|error| unreadable(Role::Example, &error))?;
    Ok(decoded.pixels)
}

fn check_same(image: (u32, u32), mask: (u32, u32)) -> Result<(), Failure> {
    if image == mask {
        return Ok(());
    }
    // Upstream's wording, including the misspelling, which clients may search for.
    Err(invalid(format!("Mask shape{mask:?} not queal to Image shape{image:?}")))
}

/// `(height, width)` of a raw array with `channels`; `None` for a file, whose header has the size.
fn check(meta: &BlobMeta, channels: u8, max_pixels: u64) -> Result<Option<(u32, u32)>, Failure> {
    let role = meta.role;
    let BlobForm::Raw { height, width, channels: found } = meta.form else { return Ok(None) };
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
    Ok(Some((height, width)))
}

fn plain<L: Layout>(role: Role, (height, width): (u32, u32), bytes: Bytes) -> Result<Image<L>, Failure> {
    // Bytes from the spool have no other owner, so that this conversion does not copy them.
    Image::new(height as usize, width as usize, Vec::from(bytes))
        .map_err(|error| invalid(format!("the {role} cannot be read: {error}")))
}

fn invalid(text: String) -> Failure {
    Failure::new(FailureKind::InvalidInput, text)
}

/// The failure of a file that cannot be decoded, or of a result that cannot be encoded.
pub(super) fn unreadable(what: impl std::fmt::Display, error: &CodecError) -> Failure {
    Failure::new(FailureKind::InvalidInput, format!("the {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_arrays_with_wrong_channels_size_or_length_are_rejected() {
        let meta = |height, width, channels, len| BlobMeta {
            role: Role::Image,
            len,
            hash: lamagrid_protocol::hash(b""),
            form: BlobForm::Raw { height, width, channels },
        };
        assert_eq!(check(&meta(2, 5, 3, 30), 3, 100).unwrap(), Some((2, 5)));
        assert_eq!(check(&BlobMeta { form: BlobForm::Encoded, ..meta(2, 5, 3, 30) }, 3, 100).unwrap(), None);
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
