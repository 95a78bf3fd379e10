//! One inpainting request, from picture and mask to the bytes that are encoded.
//!
//! Does not: load or run a model; `forward` does. Nodes call [`inpaint`], which is upstream's
//! `InpaintModel.__call__` and the server's final `astype(uint8)` in one.

use crate::blend::{blend_f64, blend_u8, wrap_to_u8};
use crate::boxes::{Rect, boxes_from_mask, crop_box};
use crate::image::{Bgr, Gray, Image, ImageError, Rgb};
use crate::pad::{PadRule, pad_region};
use crate::resize::{RowResizer, resize_cubic};

/// How pictures too large for the model are handled. Numbers are a form's: any value may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HdStrategy {
    /// The model sees the picture as it is.
    Original,
    /// The model sees the picture shrunk until its longer side is `limit`.
    Resize {
        /// Longest side that is left alone, pixels.
        limit: i64,
    },
    /// The model sees a rectangle around each blob of the mask.
    Crop {
        /// Longest side that is left alone, pixels.
        trigger: i64,
        /// Added around each blob, pixels.
        margin: i64,
    },
}

impl HdStrategy {
    /// The strategy called `name`; any name that upstream does not know means Original there, and here.
    pub fn from_form(name: &str, resize_limit: i64, crop_trigger: i64, crop_margin: i64) -> Self {
        match name {
            "Resize" => Self::Resize { limit: resize_limit },
            "Crop" => Self::Crop { trigger: crop_trigger, margin: crop_margin },
            _ => Self::Original,
        }
    }
}

/// Why a request has no answer. Only [`InpaintError::Forward`] may pass when tried again.
#[derive(Debug, thiserror::Error)]
pub enum InpaintError<E> {
    /// Picture and mask differ in size.
    #[error("picture is {image:?} pixels but its mask {mask:?}")]
    MaskShape {
        /// `(H, W)` of the picture.
        image: (usize, usize),
        /// `(H, W)` of the mask.
        mask: (usize, usize),
    },
    /// The resize limit, 0 or below or far under the aspect ratio, leaves no pixels. OpenCV refuses too.
    #[error("a resize limit of {limit} leaves nothing of {image:?} pixels")]
    EmptyResize {
        /// The limit, pixels.
        limit: i64,
        /// `(H, W)` of the picture.
        image: (usize, usize),
    },
    /// The negative crop margin leaves no pixels of a blob.
    #[error("a crop margin of {margin} leaves nothing of a blob")]
    EmptyCrop {
        /// The margin, pixels.
        margin: i64,
    },
    /// The model's answer does not have the size of what it was given.
    #[error("model answered {found:?} pixels to {expected:?}")]
    AnswerShape {
        /// `(H, W)` given.
        expected: (usize, usize),
        /// `(H, W)` received.
        found: (usize, usize),
    },
    /// A derived picture cannot exist.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The model failed.
    #[error("model failed")]
    Forward(#[source] E),
}

/// A model's forward pass: padded picture and mask in, a picture of the same size out.
type Forward<'a, E> = &'a mut dyn FnMut(&Image<Rgb>, &Gray) -> Result<Image<Bgr>, E>;

/// Fills the masked part of `image` with what `forward` makes of it; `(H, W, 3)` in and out.
///
/// `mask` is `(H, W)`; the server sends 0 and 255 only, other values blend. `forward` sees sizes allowed by
/// `pad`, and masks with grey edges under Resize. It is called once, except under Crop above the trigger: there
/// once per blob, never for an empty mask, and always with the picture as it came; where crops overlap, later
/// ones win. A picture's longer side counts as at least 3, as upstream's maximum includes the channels.
///
/// # Errors
/// [`InpaintError`]; everything but [`InpaintError::Forward`] and [`InpaintError::AnswerShape`] is found out
/// before the first call of `forward`.
///
/// Source: Lama Cleaner `model/base.py` and `server.py`, 1.2.5; parity: `tests/golden`.
pub fn inpaint<E>(
    image: Image<Rgb>,
    mask: &Gray,
    hd: &HdStrategy,
    pad: &PadRule,
    forward: Forward<'_, E>,
) -> Result<Image<Bgr>, InpaintError<E>> {
    if image.shape() != mask.shape() {
        return Err(InpaintError::MaskShape { image: image.shape(), mask: mask.shape() });
    }
    // At most MAX_SIDE_PX, so the cast is exact.
    let longest = image.height().max(image.width()).max(3) as i64;
    match *hd {
        HdStrategy::Crop { trigger, margin } if longest > trigger => crop(image, mask, margin, pad, forward),
        HdStrategy::Resize { limit } if longest > limit => resize(image, mask, limit, pad, forward),
        _ => original(image, mask, pad, forward),
    }
}

/// Runs the model on the part of the picture inside `rect`; the answer keeps its padding.
fn run<E>(
    image: &Image<Rgb>,
    mask: &Gray,
    rect: &Rect,
    rule: &PadRule,
    forward: Forward<'_, E>,
) -> Result<Image<Bgr>, InpaintError<E>> {
    let padded_image = pad_region(image, rect, rule)?;
    let padded_mask = pad_region(mask, rect, rule)?;
    let answer = forward(&padded_image, &padded_mask).map_err(InpaintError::Forward)?;
    if answer.shape() != padded_image.shape() {
        return Err(InpaintError::AnswerShape { expected: padded_image.shape(), found: answer.shape() });
    }
    Ok(answer)
}

fn rgb_to_bgr(pixel: &[u8]) -> [u8; 3] {
    [pixel[2], pixel[1], pixel[0]]
}

fn original<E>(
    mut image: Image<Rgb>,
    mask: &Gray,
    rule: &PadRule,
    forward: Forward<'_, E>,
) -> Result<Image<Bgr>, InpaintError<E>> {
    let (height, width) = image.shape();
    let answer = run(&image, mask, &Rect::whole(height, width), rule, forward)?;
    for y in 0..height {
        let pixels = image.span_mut(y, 0, width).chunks_exact_mut(3);
        let answers = answer.span(y, 0, width).chunks_exact(3);
        for ((pixel, ours), mask) in pixels.zip(answers).zip(mask.span(y, 0, width)) {
            let blended = blend_u8([ours[0], ours[1], ours[2]], rgb_to_bgr(pixel), *mask);
            pixel.copy_from_slice(&blended);
        }
    }
    Ok(image.assume_bgr())
}

fn crop<E>(
    image: Image<Rgb>,
    mask: &Gray,
    margin: i64,
    rule: &PadRule,
    forward: Forward<'_, E>,
) -> Result<Image<Bgr>, InpaintError<E>> {
    let (height, width) = image.shape();
    let mut rects = boxes_from_mask(mask);
    let mut padded_pixels = 0u64;
    for rect in &mut rects {
        *rect = crop_box(rect, height, width, margin).ok_or(InpaintError::EmptyCrop { margin })?;
        let (rows, columns) = rule.padded(rect.height(), rect.width())?;
        padded_pixels = padded_pixels.saturating_add((rows * columns) as u64);
    }
    let answer = |rect: &Rect, forward: Forward<'_, E>| {
        let mut answer = run(&image, mask, rect, rule, forward)?;
        blend_crop(&mut answer, &image, mask, rect);
        Ok(answer)
    };
    // The model must see every crop of the untouched picture. Few crops: keep the answers, then turn the
    // picture itself into the result. More than a picture's worth of them: keep a second picture instead.
    if padded_pixels > (height * width) as u64 {
        let mut result = image.clone().into_bgr();
        for rect in &rects {
            paste(&mut result, rect, &answer(rect, &mut *forward)?);
        }
        return Ok(result);
    }
    let answers =
        rects.iter().map(|rect| answer(rect, &mut *forward)).collect::<Result<Vec<_>, InpaintError<E>>>()?;
    let mut result = image.into_bgr();
    for (rect, answer) in rects.iter().zip(&answers) {
        paste(&mut result, rect, answer);
    }
    Ok(result)
}

/// Blends the picture inside `rect` into the model's answer for it, whose padding stays as it is.
fn blend_crop(answer: &mut Image<Bgr>, image: &Image<Rgb>, mask: &Gray, rect: &Rect) {
    for y in 0..rect.height() {
        let answers = answer.span_mut(y, 0, rect.width()).chunks_exact_mut(3);
        let pixels = image.span(rect.top + y, rect.left, rect.right).chunks_exact(3);
        let mask = mask.span(rect.top + y, rect.left, rect.right);
        for ((ours, pixel), mask) in answers.zip(pixels).zip(mask) {
            let blended = blend_u8([ours[0], ours[1], ours[2]], rgb_to_bgr(pixel), *mask);
            ours.copy_from_slice(&blended);
        }
    }
}

fn paste(result: &mut Image<Bgr>, rect: &Rect, answer: &Image<Bgr>) {
    for y in 0..rect.height() {
        let row = result.span_mut(rect.top + y, rect.left, rect.right);
        row.copy_from_slice(answer.span(y, 0, rect.width()));
    }
}

/// The size of `(height, width)` shrunk to `limit`, if it is one. Python's `int` truncates, so does the cast.
///
/// Source: Lama Cleaner `helper.resize_max_size`, 1.2.5.
fn shrunk((height, width): (usize, usize), limit: i64) -> Option<(usize, usize)> {
    let longest = height.max(width);
    if longest as i64 <= limit {
        return Some((height, width));
    }
    let ratio = limit as f64 / longest as f64;
    let side = |side: usize| (side as f64 * ratio + 0.5) as usize;
    Some((side(height), side(width))).filter(|(height, width)| *height > 0 && *width > 0)
}

fn resize<E>(
    image: Image<Rgb>,
    mask: &Gray,
    limit: i64,
    rule: &PadRule,
    forward: Forward<'_, E>,
) -> Result<Image<Bgr>, InpaintError<E>> {
    let size = image.shape();
    let small = shrunk(size, limit).ok_or(InpaintError::EmptyResize { limit, image: size })?;
    let small_image = resize_cubic(&image, small.0, small.1)?;
    let small_mask = resize_cubic(mask, small.0, small.1)?;
    let answer = run(&small_image, &small_mask, &Rect::whole(small.0, small.1), rule, forward)?;

    let mut result = image.into_bgr();
    let Some(columns) = restored_columns(mask) else { return Ok(result) };
    let mut resizer = RowResizer::<3>::new(small, size, columns.clone());
    for y in 0..size.0 {
        let mask_row = mask.span(y, columns.start, columns.end);
        if !mask_row.iter().any(|value| is_replaced(*value)) {
            continue;
        }
        let row = resizer.row(y, |y, blended| {
            let answers = answer.span(y, 0, small.1).chunks_exact(3);
            let pixels = small_image.span(y, 0, small.1).chunks_exact(3);
            let inputs = answers.zip(pixels).zip(small_mask.span(y, 0, small.1));
            for (((ours, pixel), mask), out) in inputs.zip(blended) {
                *out = blend_f64([ours[0], ours[1], ours[2]], rgb_to_bgr(pixel), *mask);
            }
        });
        let pixels = result.span_mut(y, columns.start, columns.end).chunks_exact_mut(3);
        for ((x, value), pixel) in columns.clone().zip(mask_row).zip(pixels) {
            if is_replaced(*value) {
                pixel.copy_from_slice(&row.pixel(x).map(wrap_to_u8));
            }
        }
    }
    Ok(result)
}

/// Whether Resize takes a pixel from the enlarged answer: upstream restores the picture where `mask < 127`.
fn is_replaced(mask: u8) -> bool {
    mask >= 127
}

/// The columns between the first and the last pixel that Resize replaces, if there is one.
fn restored_columns(mask: &Gray) -> Option<std::ops::Range<usize>> {
    let mut found: Option<std::ops::Range<usize>> = None;
    for row in mask.data().chunks_exact(mask.width()) {
        let Some(first) = row.iter().position(|value| is_replaced(*value)) else { continue };
        let last = row.iter().rposition(|value| is_replaced(*value)).unwrap_or(first);
        found = Some(match found {
            Some(columns) => columns.start.min(first)..columns.end.max(last + 1),
            None => first..last + 1,
        });
    }
    found
}
