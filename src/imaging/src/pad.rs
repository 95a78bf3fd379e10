//! Padding to the sizes a model accepts.
//!
//! Does not: crop back; the content keeps its place at the origin, so taking `(H, W)` from there undoes it.
//! A patch calls it for the picture and for the mask, with the same size.

use crate::boxes::Rect;
use crate::image::{Image, ImageError, Layout, pixels};

/// The sizes that a model accepts: upstream's `pad_mod`, `pad_to_square` and `min_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadRule {
    /// Both sides are made a multiple of this, pixels.
    pub modulo: usize,
    /// Whether both sides are made equal, to the longer one.
    pub square: bool,
    /// Least side, pixels; a multiple of `modulo`.
    pub min_size: Option<usize>,
}

impl PadRule {
    /// The rule of a model that wants multiples of `modulo` pixels and nothing else.
    pub const fn multiple_of(modulo: usize) -> Self {
        Self { modulo, square: false, min_size: None }
    }

    /// The rule of a model whose only size is `side` x `side` pixels, for pictures that are not larger.
    pub const fn square_of(side: usize) -> Self {
        Self { modulo: side, square: true, min_size: Some(side) }
    }

    /// The size that a picture of `height` x `width` pixels is padded to.
    ///
    /// # Errors
    /// [`ImageError::PadRule`] if the rule is impossible, [`ImageError::TooLarge`] if the result is.
    ///
    /// Source: Lama Cleaner `helper.pad_img_to_modulo`, 1.2.5.
    pub fn padded(&self, height: usize, width: usize) -> Result<(usize, usize), ImageError> {
        let impossible = ImageError::PadRule { modulo: self.modulo, min_size: self.min_size };
        let least = self.min_size.unwrap_or(0);
        if self.modulo == 0 || !least.is_multiple_of(self.modulo) {
            return Err(impossible);
        }
        let too_large = || ImageError::TooLarge { height, width };
        let mut out_height = height.checked_next_multiple_of(self.modulo).ok_or_else(too_large)?.max(least);
        let mut out_width = width.checked_next_multiple_of(self.modulo).ok_or_else(too_large)?.max(least);
        if self.square {
            out_height = out_height.max(out_width);
            out_width = out_height;
        }
        pixels(out_height, out_width)?;
        Ok((out_height, out_width))
    }
}

/// Pads `image` below and on the right, mirroring with the edge pixel repeated.
///
/// Input `(H, W, C)`, output [`PadRule::padded`]. A pad longer than the picture goes on reflecting, as numpy's
/// `symmetric` does.
///
/// # Errors
/// As [`PadRule::padded`].
///
/// Source: Lama Cleaner `helper.pad_img_to_modulo`, 1.2.5; parity: `tests/golden`.
pub fn pad<L: Layout>(image: &Image<L>, rule: &PadRule) -> Result<Image<L>, ImageError> {
    let size = rule.padded(image.height(), image.width())?;
    padded(image, &Rect::whole(image.height(), image.width()), size)
}

/// As [`pad`], for the part of `image` inside `rect`, which lies in the picture, and to a known `size`.
pub(crate) fn padded<L: Layout>(
    image: &Image<L>,
    rect: &Rect,
    size: (usize, usize),
) -> Result<Image<L>, ImageError> {
    let mut data = Vec::with_capacity(size.0 * size.1 * L::CHANNELS);
    padded_rows(image, rect, size, |_, row| data.extend_from_slice(row));
    Image::new(size.0, size.1, data)
}

/// The rows of [`padded`], one after the other, without that picture: `each(y, row)` gets whole padded rows.
pub(crate) fn padded_rows<L: Layout>(
    image: &Image<L>,
    rect: &Rect,
    size: (usize, usize),
    mut each: impl FnMut(usize, &[u8]),
) {
    let (height, width) = (rect.height(), rect.width());
    let mut longer = Vec::new();
    for y in 0..size.0 {
        let row = image.span(rect.top + reflect(y, height), rect.left, rect.right);
        if size.1 == width {
            each(y, row);
            continue;
        }
        longer.clear();
        longer.extend_from_slice(row);
        for x in width..size.1 {
            let at = reflect(x, width) * L::CHANNELS;
            longer.extend_from_slice(&row[at..at + L::CHANNELS]);
        }
        each(y, &longer);
    }
}

/// The source index of padded index `i` for a side of `n > 0` pixels: `0..n`, then `n-1..=0`, and again.
fn reflect(i: usize, n: usize) -> usize {
    let j = i % (2 * n);
    if j < n { j } else { 2 * n - 1 - j }
}
