//! The input of a model.
//!
//! Does not: hold a padded picture. Rows are cut out, padded and converted one at a time, directly into the memory
//! that the model reads. The strategy creates patches, a backend reads them.

use crate::boxes::Rect;
use crate::image::{Gray, Image, ImageError, Rgb};
use crate::pad::{PadRule, padded, padded_rows};
use crate::tensor::{MaskTones, ToneRange, mask_row, rgb_row_to_f32, rgb_row_to_gray_f32};

/// A part of a picture and of its mask, padded to a size that the model accepts.
#[derive(Debug)]
pub struct Patch<'a> {
    image: &'a Image<Rgb>,
    mask: &'a Gray,
    rect: Rect,
    size: (usize, usize),
    pass: usize,
    passes: usize,
}

impl<'a> Patch<'a> {
    /// The part of `image` inside `rect`, which lies in the picture; `mask` is of the picture's size.
    pub(crate) fn new(
        image: &'a Image<Rgb>,
        mask: &'a Gray,
        rect: Rect,
        rule: &PadRule,
    ) -> Result<Self, ImageError> {
        let size = rule.padded(rect.height(), rect.width())?;
        Ok(Self { image, mask, rect, size, pass: 0, passes: 1 })
    }

    /// Says which of how many patches of a picture this is.
    pub(crate) fn counted(self, pass: usize, passes: usize) -> Self {
        Self { pass, passes, ..self }
    }

    /// Padded `(H, W)`.
    pub fn shape(&self) -> (usize, usize) {
        self.size
    }

    /// Which patch of the picture this is, from 0, and how many there are.
    pub fn pass(&self) -> (usize, usize) {
        (self.pass, self.passes)
    }

    /// The picture as `(1, 3, H, W)` float32 in `range`, its channels in `order`, such as `[0, 1, 2]` for RGB: `write` gets
    /// each row once, with the index of its first value, in no particular order.
    ///
    /// Source: Lama Cleaner `helper.norm_img`, 1.2.5.
    pub fn image_nchw_f32(&self, range: ToneRange, order: [usize; 3], mut write: impl FnMut(usize, &[f32])) {
        let (height, width) = self.size;
        let mut values = vec![0.0; width];
        padded_rows(self.image, &self.rect, self.size, |y, row| {
            for (plane, channel) in order.into_iter().enumerate() {
                rgb_row_to_f32(row, channel, range, &mut values);
                write((plane * height + y) * width, &values);
            }
        });
    }

    /// As [`Patch::image_nchw_f32`], times 0 where the mask is not 0.
    pub fn erased_nchw_f32(&self, range: ToneRange, order: [usize; 3], mut write: impl FnMut(usize, &[f32])) {
        let width = self.size.1;
        let mut keeps = vec![0.0; self.size.0 * width];
        self.mask_nchw(MaskTones { keep: 1.0, hole: 0.0 }, |at, row: &[f32]| {
            keeps[at..at + width].copy_from_slice(row);
        });
        let mut values = vec![0.0; width];
        self.image_nchw_f32(range, order, |at, row| {
            let keeps = &keeps[at % keeps.len()..][..width];
            for ((value, keep), out) in row.iter().zip(keeps).zip(&mut values) {
                *out = value * keep;
            }
            write(at, &values);
        });
    }

    /// The picture as `(1, 1, H, W)` float32 grey in 0..=255; `write` as for [`Patch::image_nchw_f32`].
    ///
    /// Source: Lama Cleaner `model/manga.py`, 1.2.5.
    pub fn gray_nchw_f32(&self, mut write: impl FnMut(usize, &[f32])) {
        let mut values = vec![0.0; self.size.1];
        padded_rows(self.image, &self.rect, self.size, |y, row| {
            rgb_row_to_gray_f32(row, &mut values);
            write(y * self.size.1, &values);
        });
    }

    /// The mask as `(1, 1, H, W)` of the two numbers of `tones`; `write` as for [`Patch::image_nchw_f32`].
    ///
    /// Source: Lama Cleaner `model/lama.py`, 1.2.5.
    pub fn mask_nchw<T: Copy>(&self, tones: MaskTones<T>, mut write: impl FnMut(usize, &[T])) {
        let mut values = vec![tones.keep; self.size.1];
        padded_rows(self.mask, &self.rect, self.size, |y, row| {
            mask_row(row, tones, &mut values);
            write(y * self.size.1, &values);
        });
    }

    /// The picture, `(H, W, 3)`, padded.
    ///
    /// # Errors
    /// None in practice: the size was checked.
    pub fn image(&self) -> Result<Image<Rgb>, ImageError> {
        padded(self.image, &self.rect, self.size)
    }

    /// The mask, `(H, W)`, padded; as it came, so any value is possible.
    ///
    /// # Errors
    /// As [`Patch::image`].
    pub fn mask(&self) -> Result<Gray, ImageError> {
        padded(self.mask, &self.rect, self.size)
    }
}
