//! Padding to the sizes a model accepts.
//!
//! Does not: crop back; the content keeps its place at the origin, so taking `(H, W)` from there undoes it.
//! The strategy calls it for the picture and for the mask, with the same rule.

use std::borrow::Cow;

use crate::boxes::Rect;
use crate::image::{Image, ImageError, Layout, pixels};

/// What sizes a model accepts: upstream's `pad_mod`, `pad_to_square` and `min_size`.
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

/// Pads `image` below and on the right, mirroring with the edge pixel repeated; borrows if nothing is added.
///
/// Input `(H, W, C)`, output [`PadRule::padded`]. A pad longer than the picture goes on reflecting, as numpy's
/// `symmetric` does.
///
/// # Errors
/// As [`PadRule::padded`].
///
/// Source: Lama Cleaner `helper.pad_img_to_modulo`, 1.2.5; parity: `tests/golden`.
pub fn pad<'a, L: Layout>(image: &'a Image<L>, rule: &PadRule) -> Result<Cow<'a, Image<L>>, ImageError> {
    pad_region(image, &Rect::whole(image.height(), image.width()), rule)
}

/// As [`pad`], for the part of `image` inside `rect`, which lies in the picture: one copy, not two.
pub(crate) fn pad_region<'a, L: Layout>(
    image: &'a Image<L>,
    rect: &Rect,
    rule: &PadRule,
) -> Result<Cow<'a, Image<L>>, ImageError> {
    let (height, width) = (rect.height(), rect.width());
    let (out_height, out_width) = rule.padded(height, width)?;
    if (out_height, out_width) == image.shape() && (height, width) == image.shape() {
        return Ok(Cow::Borrowed(image));
    }
    let row_samples = out_width * L::CHANNELS;
    let mut data = Vec::with_capacity(out_height * row_samples);
    for y in 0..height {
        let row = image.span(rect.top + y, rect.left, rect.right);
        data.extend_from_slice(row);
        for x in width..out_width {
            let at = reflect(x, width) * L::CHANNELS;
            data.extend_from_slice(&row[at..at + L::CHANNELS]);
        }
    }
    for y in height..out_height {
        let at = reflect(y, height) * row_samples;
        data.extend_from_within(at..at + row_samples);
    }
    Image::new(out_height, out_width, data).map(Cow::Owned)
}

/// The source index of padded index `i` for a side of `n > 0` pixels: `0..n`, then `n-1..=0`, and again.
fn reflect(i: usize, n: usize) -> usize {
    let j = i % (2 * n);
    if j < n { j } else { 2 * n - 1 - j }
}
