//! Pictures to and from the plain arrays that LaMa's network takes and gives.
//!
//! Does not: know torch. The node wraps these buffers as tensors of the stated shapes.

use crate::image::{Bgr, Gray, Image, ImageError, Rgb, pixels};

/// `(H, W, 3)` u8 to `(1, 3, H, W)` float32 in 0..=1, contiguous.
///
/// A true division by 255: a product with its reciprocal gives other bits for 126 of the 256 values.
///
/// Source: Lama Cleaner `helper.norm_img`, 1.2.5; parity: `tests/golden`.
pub fn rgb_to_nchw_f32(image: &Image<Rgb>) -> Vec<f32> {
    let table: [f32; 256] = std::array::from_fn(|value| value as f32 / 255.0);
    let area = image.height() * image.width();
    let mut out = vec![0.0; 3 * area];
    let (red, rest) = out.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((r, g), b)) in image.data().chunks_exact(3).zip(planes) {
        *r = table[usize::from(pixel[0])];
        *g = table[usize::from(pixel[1])];
        *b = table[usize::from(pixel[2])];
    }
    out
}

/// `(H, W)` u8 to `(1, 1, H, W)` int64: 1 where the mask is not 0.
///
/// Source: Lama Cleaner `model/lama.py`, `(mask > 0) * 1`, 1.2.5; parity: `tests/golden`.
pub fn mask_to_i64(mask: &Gray) -> Vec<i64> {
    mask.data().iter().map(|value| i64::from(*value > 0)).collect()
}

/// `(1, 3, H, W)` float32 RGB, nominally 0..=1, to a BGR picture: times 255 in float32, clipped, truncated.
///
/// NaN gives 0, as numpy's `clip` keeps it and its cast then drops it.
///
/// # Errors
/// [`ImageError::Empty`] or [`ImageError::TooLarge`] for the size, [`ImageError::WrongLength`] if `nchw` does
/// not have `3 * H * W` values.
///
/// Source: Lama Cleaner `model/lama.py`, 1.2.5; parity: `tests/golden`.
pub fn nchw_f32_to_bgr(nchw: &[f32], height: usize, width: usize) -> Result<Image<Bgr>, ImageError> {
    let area = pixels(height, width)?;
    if nchw.len() != 3 * area {
        return Err(ImageError::WrongLength { expected: 3 * area, found: nchw.len() });
    }
    // `as u8` truncates, and takes NaN to 0.
    let cast = |value: f32| (value * 255.0).clamp(0.0, 255.0) as u8;
    let (red, rest) = nchw.split_at(area);
    let (green, blue) = rest.split_at(area);
    let mut data = vec![0; 3 * area];
    for (pixel, ((r, g), b)) in data.chunks_exact_mut(3).zip(red.iter().zip(green).zip(blue)) {
        pixel.copy_from_slice(&[cast(*b), cast(*g), cast(*r)]);
    }
    Image::new(height, width, data)
}
