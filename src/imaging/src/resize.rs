//! `cv2.resize` with `INTER_CUBIC`, on u8 and on float64.
//!
//! Does not: antialias (neither does OpenCV), or use the values of Intel IPP, which differ by 1 in some 4 % of
//! u8 samples: the reference is OpenCV with `cv2.ipp.setUseIPP(False)`, x86-64.
//!
//! Resize shrinks picture and mask with the u8 form, and enlarges the float64 blend with the other.

use std::ops::Range;

use crate::cubic::{Ring, Tap, taps};
use crate::image::{Image, ImageError, Layout, pixels};

/// Fixed-point one of OpenCV's u8 resize, per axis: `INTER_RESIZE_COEF_SCALE`.
const COEF_ONE: f32 = 2048.0;
/// Bits to drop after both axes: `2 * log2(2048)`.
const COEF_BITS: u32 = 22;
/// Samples that OpenCV's baseline SSE code takes at once; what is left of a row goes another way.
const LANES: usize = 8;
/// Adding and subtracting this rounds a small f32 to the nearest integer, ties to even: `1.5 * 2^23`.
const ROUND: f32 = 12_582_912.0;

/// `image` resized to `height` x `width` pixels.
///
/// # Errors
/// [`ImageError::Empty`] or [`ImageError::TooLarge`] for the size asked for.
///
/// Source: OpenCV 4.11 `resize.cpp`, `HResizeCubic` and `VResizeCubic` with `VResizeCubicVec_32s8u`; parity:
/// `tests/golden`.
pub fn resize_cubic<L: Layout>(
    image: &Image<L>,
    height: usize,
    width: usize,
) -> Result<Image<L>, ImageError> {
    let mut out = Image::black(height, width)?;
    if (height, width) == image.shape() {
        return Ok(image.clone());
    }
    let columns: Vec<([i32; 4], Tap)> = taps(image.width(), width, 0..width)
        .into_iter()
        .map(|tap| (tap.weights.map(|c| (c * COEF_ONE).round_ties_even() as i32), tap))
        .collect();
    let row_samples = width * L::CHANNELS;
    let mut ring = Ring::new(row_samples, 0i32);
    let rows = taps(image.height(), height, 0..height);
    for (tap, out_row) in rows.iter().zip(out.data_mut().chunks_exact_mut(row_samples)) {
        let wanted = tap.clamped(image.height());
        ring.fill(wanted, |y, sums| {
            horizontal_u8::<L>(image.span(y, 0, image.width()), image.width(), &columns, sums);
        });
        let coefs = tap.weights.map(|c| (c * COEF_ONE).round_ties_even() as i32);
        vertical_u8(ring.rows(wanted), coefs, out_row);
    }
    Ok(out)
}

/// One source row times the horizontal coefficients, as exact integers (at most 255 * 2048 * 1.4).
fn horizontal_u8<L: Layout>(row: &[u8], from: usize, columns: &[([i32; 4], Tap)], sums: &mut [i32]) {
    // Most rows of most masks.
    if row.chunks(64).all(|part| part.iter().fold(0, |all, value| all | value) == 0) {
        return sums.fill(0);
    }
    for ((coefs, tap), out) in columns.iter().zip(sums.chunks_exact_mut(L::CHANNELS)) {
        if let Some(first) = tap.inside(from) {
            let four = &row[first * L::CHANNELS..(first + 4) * L::CHANNELS];
            for (channel, sum) in out.iter_mut().enumerate() {
                *sum = weigh_u8(std::array::from_fn(|k| four[k * L::CHANNELS + channel]), coefs);
            }
        } else {
            let at = tap.clamped(from);
            for (channel, sum) in out.iter_mut().enumerate() {
                *sum = weigh_u8(at.map(|x| row[x * L::CHANNELS + channel]), coefs);
            }
        }
    }
}

/// Sums four weighted samples. The sum cannot overflow, so the innermost loop skips the checks.
fn weigh_u8(samples: [u8; 4], coefs: &[i32; 4]) -> i32 {
    let product = |k: usize| i32::from(samples[k]).wrapping_mul(coefs[k]);
    product(0).wrapping_add(product(1)).wrapping_add(product(2)).wrapping_add(product(3))
}

/// Four rows of sums to one row of pixels: whole groups of [`LANES`] samples in float32, the rest in fixed
/// point. The two differ in some ten samples per million, so which sample goes which way is part of the recipe.
fn vertical_u8(rows: [&[i32]; 4], coefs: [i32; 4], out: &mut [u8]) {
    let [r0, r1, r2, r3] = rows;
    let [b0, b1, b2, b3] = coefs.map(|c| c as f32 * (1.0 / (COEF_ONE * COEF_ONE)));
    let vector = out.len() / LANES * LANES;
    let (head, tail) = out.split_at_mut(vector);
    let sums = r0.iter().zip(r1).zip(r2.iter().zip(r3));
    for (((s0, s1), (s2, s3)), pixel) in sums.zip(head) {
        let sum = *s0 as f32 * b0 + (*s1 as f32 * b1 + (*s2 as f32 * b2 + *s3 as f32 * b3));
        // Bounded before the cast, so that it stays one instruction: the values are whole by now.
        *pixel = ((sum + ROUND) - ROUND).clamp(0.0, 255.0) as u8;
    }
    for (x, pixel) in (vector..).zip(tail) {
        let sum = r0[x] * coefs[0] + r1[x] * coefs[1] + r2[x] * coefs[2] + r3[x] * coefs[3];
        *pixel = ((sum + (1 << (COEF_BITS - 1))) >> COEF_BITS).clamp(0, 255) as u8;
    }
}

/// A float64 resize that gives only the samples asked for, and keeps four rows rather than a picture.
///
/// `N` samples per pixel. Output columns outside the range it was made for do not exist.
#[derive(Debug)]
pub(crate) struct RowResizer<const N: usize> {
    from: (usize, usize),
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    first_column: usize,
    source: Vec<[f64; N]>,
    ring: Ring<[f64; N]>,
}

impl<const N: usize> RowResizer<N> {
    /// For a picture of `from` = `(H, W)` resized to `to`, output columns `wanted` only.
    pub(crate) fn new(from: (usize, usize), to: (usize, usize), wanted: Range<usize>) -> Self {
        Self {
            from,
            rows: taps(from.0, to.0, 0..to.0),
            ring: Ring::new(wanted.len(), [0.0; N]),
            first_column: wanted.start,
            columns: taps(from.1, to.1, wanted),
            source: vec![[0.0; N]; from.1],
        }
    }

    /// One output row, ready to be sampled. `read(y, row)` writes source row `y`; rows asked for in order are
    /// read once.
    pub(crate) fn row(
        &mut self,
        y: usize,
        mut read: impl FnMut(usize, &mut [[f64; N]]),
    ) -> ResizedRow<'_, N> {
        let tap = self.rows[y];
        let wanted = tap.clamped(self.from.0);
        let (source, columns, width) = (&mut self.source, &self.columns, self.from.1);
        self.ring.fill(wanted, |row, out| {
            read(row, source);
            for (tap, out) in columns.iter().zip(out) {
                let weights = tap.weights.map(f64::from);
                *out = match tap.inside(width).and_then(|first| source[first..].first_chunk()) {
                    Some([p0, p1, p2, p3]) => weigh_pixels([p0, p1, p2, p3], weights),
                    None => weigh_pixels(tap.clamped(width).map(|x| &source[x]), weights),
                };
            }
        });
        ResizedRow { first_column: self.first_column, rows: self.ring.rows(wanted), weights: tap.weights }
    }
}

/// An output row of a [`RowResizer`].
#[derive(Debug)]
pub(crate) struct ResizedRow<'a, const N: usize> {
    first_column: usize,
    rows: [&'a [[f64; N]]; 4],
    weights: [f32; 4],
}

impl<const N: usize> ResizedRow<'_, N> {
    /// The samples of output columns `columns`, which lie in the range that the resizer was made for.
    pub(crate) fn samples(&self, columns: Range<usize>) -> impl Iterator<Item = f64> {
        let span = columns.start - self.first_column..columns.end - self.first_column;
        let [r0, r1, r2, r3] = self.rows.map(|row| row[span.clone()].as_flattened());
        let weights = self.weights.map(f64::from);
        let samples = r0.iter().zip(r1).zip(r2.iter().zip(r3));
        samples.map(move |((s0, s1), (s2, s3))| weigh([*s0, *s1, *s2, *s3], weights))
    }
}

fn weigh_pixels<const N: usize>(pixels: [&[f64; N]; 4], weights: [f64; 4]) -> [f64; N] {
    std::array::from_fn(|c| weigh(pixels.map(|pixel| pixel[c]), weights))
}

/// Four samples times four weights, added from the left: OpenCV's order, without FMA.
fn weigh([s0, s1, s2, s3]: [f64; 4], [w0, w1, w2, w3]: [f64; 4]) -> f64 {
    s0 * w0 + s1 * w1 + s2 * w2 + s3 * w3
}

/// `source`, `(H, W, N)` float64 of size `from`, resized to `to`, bit for bit as OpenCV does.
///
/// # Errors
/// [`ImageError::Empty`] or [`ImageError::TooLarge`] for either size, [`ImageError::WrongLength`] if `source`
/// does not have `H * W` pixels.
///
/// Source: OpenCV 4.11 `resize.cpp`, `HResizeCubic<double>` and `VResizeCubic<double>`; parity: `tests/golden`.
pub fn resize_cubic_f64<const N: usize>(
    source: &[[f64; N]],
    from: (usize, usize),
    to: (usize, usize),
) -> Result<Vec<[f64; N]>, ImageError> {
    let expected = pixels(from.0, from.1)?;
    if source.len() != expected {
        return Err(ImageError::WrongLength { expected, found: source.len() });
    }
    let mut out = vec![[0.0; N]; pixels(to.0, to.1)?];
    if from == to {
        return Ok(source.to_vec());
    }
    let mut resizer = RowResizer::<N>::new(from, to, 0..to.1);
    for (y, out) in out.chunks_exact_mut(to.1).enumerate() {
        let row = resizer.row(y, |y, row| row.copy_from_slice(&source[y * from.1..(y + 1) * from.1]));
        out.as_flattened_mut().iter_mut().zip(row.samples(0..to.1)).for_each(|(out, sample)| *out = sample);
    }
    Ok(out)
}
