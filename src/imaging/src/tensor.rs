//! Pictures to and from the plain arrays that networks take and give.
//!
//! Does not: know torch, or own a model's memory: rows are written where the caller says and read where they are.

use std::ops::Range;

use crate::blend::wrap_to_u8;
use crate::image::{Gray, Image, ImageError, Rgb, pixels};

/// Every u8 value divided by 255, in float32.
///
/// A true division: a product with the reciprocal gives other bits for 126 of the 256 values.
const UNIT: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = value as f32 / 255.0;
        value += 1;
    }
    table
};

/// As [`UNIT`], in -1..=1: doubled, then less 1, in float32.
const SIGNED: [f32; 256] = {
    let mut table = UNIT;
    let mut value = 0;
    while value < 256 {
        table[value] = table[value] * 2.0 - 1.0;
        value += 1;
    }
    table
};

/// Every u8 value in float32.
const BYTE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = value as f32;
        value += 1;
    }
    table
};

/// The range of the float32 values of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToneRange {
    /// 0..=1, a true division by 255.
    Unit,
    /// -1..=1, [`ToneRange::Unit`] doubled, less 1.
    Signed,
    /// 0..=255.
    Byte,
}

impl ToneRange {
    const fn table(self) -> &'static [f32; 256] {
        match self {
            Self::Unit => &UNIT,
            Self::Signed => &SIGNED,
            Self::Byte => &BYTE,
        }
    }
}

/// One channel of a row of RGB pixels as float32 in `range`.
pub(crate) fn rgb_row_to_f32(row: &[u8], channel: usize, range: ToneRange, out: &mut [f32]) {
    let table = range.table();
    for (pixel, value) in row.chunks_exact(3).zip(out) {
        *value = table[usize::from(pixel[channel])];
    }
}

/// OpenCV's weights of red, green and blue in a grey value, in units of `2^-15`.
const GRAY: [u32; 3] = [9_798, 19_235, 3_735];

/// A row of RGB pixels as float32 grey in 0..=255, whole numbers.
///
/// Source: OpenCV `cvtColor(COLOR_RGB2GRAY)` of u8.
pub(crate) fn rgb_row_to_gray_f32(row: &[u8], out: &mut [f32]) {
    for ([red, green, blue], value) in row.as_chunks::<3>().0.iter().zip(out) {
        let sum = u32::from(*red) * GRAY[0] + u32::from(*green) * GRAY[1] + u32::from(*blue) * GRAY[2];
        *value = ((sum + (1 << 14)) >> 15) as f32;
    }
}

/// The numbers that stand for the two parts of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskTones<T> {
    /// Where the mask is 0.
    pub keep: T,
    /// Where it is not 0.
    pub hole: T,
}

/// A row of a mask as a network's numbers.
pub(crate) fn mask_row<T: Copy>(row: &[u8], tones: MaskTones<T>, out: &mut [T]) {
    for (mask, value) in row.iter().zip(out) {
        *value = if *mask > 0 { tones.hole } else { tones.keep };
    }
}

/// `(H, W, 3)` u8 to `(1, 3, H, W)` float32 in 0..=1, contiguous.
///
/// Source: Lama Cleaner `helper.norm_img`, 1.2.5; parity: `tests/golden`.
pub fn rgb_to_nchw_f32(image: &Image<Rgb>) -> Vec<f32> {
    let mut out = vec![0.0; image.data().len()];
    for (channel, plane) in out.chunks_exact_mut(image.height() * image.width()).enumerate() {
        rgb_row_to_f32(image.data(), channel, ToneRange::Unit, plane);
    }
    out
}

/// `(H, W)` u8 to `(1, 1, H, W)` int64: 1 where the mask is not 0.
///
/// Source: Lama Cleaner `model/lama.py`, `(mask > 0) * 1`, 1.2.5; parity: `tests/golden`.
pub fn mask_to_i64(mask: &Gray) -> Vec<i64> {
    let mut out = vec![0; mask.data().len()];
    mask_row(mask.data(), MaskTones { keep: 0, hole: 1 }, &mut out);
    out
}

/// `(H, W, 3)` u8 to `(1, 1, H, W)` float32 grey in 0..=255.
///
/// Source: Lama Cleaner `model/manga.py`, 1.2.5; parity: `tests/pure`.
pub fn rgb_to_gray_f32(image: &Image<Rgb>) -> Vec<f32> {
    let mut out = vec![0.0; image.data().len() / 3];
    rgb_row_to_gray_f32(image.data(), &mut out);
    out
}

/// The meaning of a model's float32 values, and their conversion to u8 samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tones {
    /// `(1, 3, H, W)` RGB, nominally 0..=1: times 255, clipped, truncated; NaN gives 0.
    ///
    /// Source: Lama Cleaner `model/lama.py`, 1.2.5.
    UnitRgb,
    /// `(1, 3, H, W)` RGB, nominally -1..=1: times 127.5, plus 127.5, rounded to even, clipped; NaN gives 0.
    ///
    /// Source: IOPaint `model/mi_gan.py`, 1.6.
    SignedRgb,
    /// `(1, 3, H, W)` RGB, nominally 0..=255: rounded to even, clipped; NaN gives 0.
    ByteRgb,
    /// `(1, 1, H, W)` grey, nominally -1..=1: times 127.5, plus 127.5, then [`wrap_to_u8`].
    ///
    /// Source: Lama Cleaner `model/manga.py`, 1.2.5.
    SignedGray,
}

impl Tones {
    /// Values per pixel.
    #[must_use]
    pub const fn channels(self) -> usize {
        match self {
            Self::UnitRgb | Self::SignedRgb | Self::ByteRgb => 3,
            Self::SignedGray => 1,
        }
    }
}

/// `(1, C, H, W)` float32 to be read as rows of u8 pixels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nchw<'a> {
    values: &'a [f32],
    tones: Tones,
    width: usize,
    /// Pixels.
    len: usize,
}

impl<'a> Nchw<'a> {
    /// `values` are those of `height * width` pixels; None if they are of more or fewer.
    pub(crate) fn new(values: &'a [f32], tones: Tones, height: usize, width: usize) -> Option<Self> {
        let len = height.checked_mul(width)?;
        (values.len() == len.checked_mul(tones.channels())?).then_some(Self { values, tones, width, len })
    }

    /// Pixels `columns` of row `y`, as many as `out` has room for.
    pub(crate) fn row(&self, y: usize, columns: Range<usize>, out: &mut [u8]) {
        let from = y * self.width;
        let plane = |c: usize| {
            let start = c * self.len + from;
            &self.values[start + columns.start..start + columns.end]
        };
        let out = out.as_chunks_mut::<3>().0.iter_mut();
        let colours = || plane(0).iter().zip(plane(1)).zip(plane(2));
        match self.tones {
            Tones::UnitRgb => {
                for (pixel, ((r, g), b)) in out.zip(colours()) {
                    *pixel = [cast(*r), cast(*g), cast(*b)];
                }
            }
            Tones::SignedRgb => {
                for (pixel, ((r, g), b)) in out.zip(colours()) {
                    *pixel = [*r, *g, *b].map(|value| round(value * 127.5 + 127.5));
                }
            }
            Tones::ByteRgb => {
                for (pixel, ((r, g), b)) in out.zip(colours()) {
                    *pixel = [*r, *g, *b].map(round);
                }
            }
            Tones::SignedGray => {
                for (pixel, value) in out.zip(plane(0)) {
                    *pixel = [wrap_to_u8(f64::from(value * 127.5 + 127.5)); 3];
                }
            }
        }
    }
}

/// `2^23`: an f32 from here on has no fraction, so that adding it to a small value rounds that to a whole number,
/// which is then in the low bits.
const WHOLE: f32 = 8_388_608.0;

/// `clip(value * 255, 0, 255)`, truncated; NaN gives 0, as numpy's `clip` keeps it and its cast then drops it.
///
/// The same as `as u8` after a clamp, in operations that the compiler does four at a time: rounded, and one less
/// where that was upwards.
fn cast(value: f32) -> u8 {
    let value = value * 255.0;
    let value = if value > 0.0 { value } else { 0.0 };
    let value = if value < 255.0 { value } else { 255.0 };
    let rounded = value + WHOLE;
    let up = u32::from(rounded - WHOLE > value);
    rounded.to_bits().wrapping_sub(up) as u8
}

/// Rounded to even and clipped; NaN gives 0.
fn round(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, 255.0) as u8
}

/// `(1, C, H, W)` float32 to a picture, as `tones` says.
///
/// # Errors
/// [`ImageError::Empty`] or [`ImageError::TooLarge`] for the size, [`ImageError::WrongLength`] if `nchw` does
/// not have `C * H * W` values.
///
/// Source: as [`Tones`]; parity: `tests/golden`, `tests/pure`.
pub fn nchw_f32_to_rgb(
    nchw: &[f32],
    tones: Tones,
    height: usize,
    width: usize,
) -> Result<Image<Rgb>, ImageError> {
    let pixels = pixels(height, width)?;
    let wrong = ImageError::WrongLength { expected: tones.channels() * pixels, found: nchw.len() };
    let values = Nchw::new(nchw, tones, height, width).ok_or(wrong)?;
    let mut data = vec![0; 3 * pixels];
    for (y, row) in data.chunks_exact_mut(3 * width).enumerate() {
        values.row(y, 0..width, row);
    }
    Image::new(height, width, data)
}

#[cfg(test)]
mod tests {
    use super::cast;

    #[test]
    fn cast_truncates_and_clips() {
        let mut values: Vec<f32> = (0..=2_000).map(|i| i as f32 / 1_000.0 - 0.5).collect();
        let around = |v: u8| (-2i32..=2).map(move |d| ((f32::from(v) / 255.0).to_bits() as i32 + d) as u32);
        values.extend((1..=255).flat_map(around).map(f32::from_bits));
        values.extend([
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -0.0,
            f32::MAX,
            f32::MIN,
            f32::MIN_POSITIVE,
        ]);
        for value in values {
            assert_eq!(cast(value), (value * 255.0).clamp(0.0, 255.0) as u8, "{value}");
        }
    }
}
