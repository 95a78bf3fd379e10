//! One inpainting request, from picture and mask to the bytes that are encoded.
//!
//! Does not: load or run a model; `forward` does. Nodes call [`inpaint`], which is upstream's
//! `InpaintModel.__call__` and the server's final `astype(uint8)` in one.

use std::borrow::Cow;
use std::ops::Range;

use crate::blend::{blend_f64, blend_row, wrap_to_u8};
use crate::boxes::{Rect, boxes_from_mask, crop_box};
use crate::image::{Gray, Image, ImageError, Rgb};
use crate::pad::{PadRule, padded};
use crate::patch::Patch;
use crate::resize::{RowResizer, resize_cubic};
use crate::tensor::{Nchw, Tones};

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
    /// The size of the model's answer does not match its input.
    #[error("model answered {found} values where {expected} are needed")]
    AnswerLength {
        /// The number of values that [`Tones`] defines for the pixels of the patch.
        expected: usize,
        /// The number of values that the model returned.
        found: usize,
    },
    /// A derived picture cannot exist.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The model failed.
    #[error("model failed")]
    Forward(#[source] E),
}

/// The part of a model's answer that is pasted into the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paste {
    /// The hole of the mask, blended by its grey values.
    Hole,
    /// All that the model saw.
    All,
}

impl Paste {
    /// The mask by which an answer is blended, for a hole given by `mask`.
    fn mask(self, mask: &Gray) -> Result<Cow<'_, Gray>, ImageError> {
        Ok(match self {
            Self::Hole => Cow::Borrowed(mask),
            Self::All => Cow::Owned(Image::new(mask.height(), mask.width(), vec![255; mask.data().len()])?),
        })
    }
}

/// A model: the sizes it accepts, the meaning of its values, and its forward pass from a patch to those values.
pub struct Model<'a, A, E> {
    /// The sizes that it accepts.
    pub pad: PadRule,
    /// The channels and the range of its values.
    pub tones: Tones,
    /// The part of its answer that is used.
    pub paste: Paste,
    /// Returns [`Tones::channels`] values per pixel of the patch.
    pub forward: &'a mut dyn FnMut(&Patch<'_>) -> Result<A, E>,
}

impl<A: AsRef<[f32]>, E> Model<'_, A, E> {
    fn run(&mut self, patch: &Patch<'_>) -> Result<A, InpaintError<E>> {
        (self.forward)(patch).map_err(InpaintError::Forward)
    }

    /// The values for a patch of this size, once they are known to be as many.
    fn read<'v>(&self, answer: &'v A, (height, width): (usize, usize)) -> Result<Nchw<'v>, InpaintError<E>> {
        let values = answer.as_ref();
        let expected = self.tones.channels() * height * width;
        let wrong = InpaintError::AnswerLength { expected, found: values.len() };
        Nchw::new(values, self.tones, height, width).ok_or(wrong)
    }
}

/// Fills the masked part of `image` with what `model` makes of it; `(H, W, 3)` in and out.
///
/// `mask` is `(H, W)`; the server sends 0 and 255 only, other values blend. The model sees sizes allowed by its
/// `pad`, and masks with grey edges under Resize. It is called once, except under Crop above the trigger: there once per blob, never for an empty mask, and always
/// with the picture as it came; where crops overlap, later ones win. A picture's longer side counts as at least
/// 3, as upstream's maximum includes the channels. Pixels outside what the model saw are moved, never touched.
///
/// # Errors
/// [`InpaintError`]; everything but [`InpaintError::Forward`] and [`InpaintError::AnswerLength`] is found out
/// before the first call of `forward`.
///
/// Source: Lama Cleaner `model/base.py` and `server.py`, 1.2.5; parity: `tests/golden`.
pub fn inpaint<A: AsRef<[f32]>, E>(
    image: Image<Rgb>,
    mask: &Gray,
    hd: &HdStrategy,
    mut model: Model<'_, A, E>,
) -> Result<Image<Rgb>, InpaintError<E>> {
    let model = &mut model;
    if image.shape() != mask.shape() {
        return Err(InpaintError::MaskShape { image: image.shape(), mask: mask.shape() });
    }
    // At most MAX_SIDE_PX, so the cast is exact.
    let longest = image.height().max(image.width()).max(3) as i64;
    match *hd {
        HdStrategy::Crop { trigger, margin } if longest > trigger => crop(image, mask, margin, model),
        HdStrategy::Resize { limit } if longest > limit => {
            through_small(image, mask, limit, model, Pass { pass: 0, passes: 1 })
        }
        _ => {
            let whole = Rect::whole(image.height(), image.width());
            in_place(image, mask, whole, model)
        }
    }
}

/// As [`inpaint`], for a model whose only size is `side` x `side` pixels, with [`PadRule::square_of`] it.
///
/// A picture of that size reaches the model as it is. Of others, each blob of the mask is cut out with a margin; a crop with a
/// longer side is shrunk, and its answer enlarged again.
///
/// # Errors
/// As [`inpaint`].
///
/// Source: Lama Cleaner `model/fcf.py` `FcF.__call__`, 1.2.5, also IOPaint `model/mi_gan.py`, 1.6; parity: `tests/models`.
pub fn inpaint_fixed<A: AsRef<[f32]>, E>(
    image: Image<Rgb>,
    mask: &Gray,
    side: usize,
    mut model: Model<'_, A, E>,
) -> Result<Image<Rgb>, InpaintError<E>> {
    /// Pixels around a blob.
    const MARGIN: i64 = 128;
    let model = &mut model;
    let (height, width) = image.shape();
    if image.shape() != mask.shape() {
        return Err(InpaintError::MaskShape { image: image.shape(), mask: mask.shape() });
    }
    if (height, width) == (side, side) {
        return in_place(image, mask, Rect::whole(height, width), model);
    }
    let limit = i64::try_from(side).unwrap_or(i64::MAX);
    let mut rects = boxes_from_mask(mask);
    for rect in &mut rects {
        *rect = crop_box(rect, height, width, MARGIN).ok_or(InpaintError::EmptyCrop { margin: MARGIN })?;
        let size = (rect.height(), rect.width());
        shrunk(size, limit).ok_or(InpaintError::EmptyResize { limit, image: size })?;
    }
    // Each crop is one of the untouched picture. There may be very many: none is kept.
    let mut result = image.clone();
    for (pass, rect) in rects.iter().enumerate() {
        let size = (rect.height(), rect.width());
        let (part, hole) = (padded(&image, rect, size)?, padded(mask, rect, size)?);
        let filled = through_small(part, &hole, limit, model, Pass { pass, passes: rects.len() })?;
        paste(&mut result, rect, filled.data());
    }
    Ok(result)
}

/// Which forward pass of a picture this is.
#[derive(Debug, Clone, Copy)]
struct Pass {
    /// From 0.
    pass: usize,
    passes: usize,
}

/// The only patch of a picture: what comes of it can go straight into the picture.
fn in_place<A: AsRef<[f32]>, E>(
    mut image: Image<Rgb>,
    mask: &Gray,
    rect: Rect,
    model: &mut Model<'_, A, E>,
) -> Result<Image<Rgb>, InpaintError<E>> {
    let patch = Patch::new(&image, mask, rect, &model.pad)?;
    let size = patch.shape();
    let answer = model.run(&patch)?;
    let over = model.paste.mask(mask)?;
    blend(&mut image, (rect.top, rect.left), &model.read(&answer, size)?, &over, &rect);
    Ok(image)
}

fn crop<A: AsRef<[f32]>, E>(
    image: Image<Rgb>,
    mask: &Gray,
    margin: i64,
    model: &mut Model<'_, A, E>,
) -> Result<Image<Rgb>, InpaintError<E>> {
    let (height, width) = image.shape();
    let mut rects = boxes_from_mask(mask);
    let mut area = 0u64;
    for rect in &mut rects {
        *rect = crop_box(rect, height, width, margin).ok_or(InpaintError::EmptyCrop { margin })?;
        model.pad.padded(rect.height(), rect.width())?;
        area = area.saturating_add((rect.height() * rect.width()) as u64);
    }
    if let [rect] = *rects {
        return in_place(image, mask, rect, model);
    }
    // The model must see every crop of the untouched picture. Few crops: keep what comes of them, one after the
    // other, then paste it into the picture itself. More than a picture's worth: keep a second picture instead.
    let over = model.paste.mask(mask)?;
    let (mut result, mut kept) = (None, Vec::new());
    if area > (height * width) as u64 {
        result = Some(image.clone());
    } else {
        kept.reserve_exact(area as usize * 3);
    }
    for (pass, rect) in rects.iter().enumerate() {
        let patch = Patch::new(&image, mask, *rect, &model.pad)?.counted(pass, rects.len());
        let answer = model.run(&patch)?;
        let answer = model.read(&answer, patch.shape())?;
        let mut pasted = padded(&image, rect, (rect.height(), rect.width()))?;
        blend(&mut pasted, (0, 0), &answer, &over, rect);
        match &mut result {
            Some(result) => paste(result, rect, pasted.data()),
            None => kept.extend_from_slice(pasted.data()),
        }
    }
    if let Some(result) = result {
        return Ok(result);
    }
    let (mut result, mut kept) = (image, kept.as_slice());
    for rect in &rects {
        let (pasted, rest) = kept.split_at(rect.height() * rect.width() * 3);
        paste(&mut result, rect, pasted);
        kept = rest;
    }
    Ok(result)
}

/// Blends the answer for `rect` into `pixels`, where the corner of `rect` is at row and column `corner`.
fn blend(pixels: &mut Image<Rgb>, corner: (usize, usize), answer: &Nchw<'_>, mask: &Gray, rect: &Rect) {
    let mut row = vec![0; 3 * rect.width()];
    for y in 0..rect.height() {
        let mask = mask.span(rect.top + y, rect.left, rect.right);
        let Some(columns) = columns_where(mask, |value| value > 0) else { continue };
        let ours = &mut row[..3 * columns.len()];
        answer.row(y, columns.clone(), ours);
        let pixels = pixels.span_mut(corner.0 + y, corner.1 + columns.start, corner.1 + columns.end);
        blend_row(pixels, ours, &mask[columns]);
    }
}

fn paste(result: &mut Image<Rgb>, rect: &Rect, pasted: &[u8]) {
    for (y, row) in (rect.top..).zip(pasted.chunks_exact(3 * rect.width())) {
        result.span_mut(y, rect.left, rect.right).copy_from_slice(row);
    }
}

/// The columns between the first and the last value of a mask's row that `is`, if there is one.
fn columns_where(row: &[u8], is: impl Fn(u8) -> bool) -> Option<Range<usize>> {
    // Most rows of most masks are black, and this finds out many samples at a time.
    if row.iter().fold(0, |all, value| all | value) == 0 {
        return None;
    }
    let first = row.iter().position(|value| is(*value))?;
    let last = row.iter().rposition(|value| is(*value))?;
    Some(first..last + 1)
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

/// Shrinks picture and mask until the longer side is `limit`, and enlarges what the model answers.
fn through_small<A: AsRef<[f32]>, E>(
    mut image: Image<Rgb>,
    mask: &Gray,
    limit: i64,
    model: &mut Model<'_, A, E>,
    Pass { pass, passes }: Pass,
) -> Result<Image<Rgb>, InpaintError<E>> {
    let size = image.shape();
    let small = shrunk(size, limit).ok_or(InpaintError::EmptyResize { limit, image: size })?;
    let small_image = resize_cubic(&image, small.0, small.1)?;
    let small_mask = resize_cubic(mask, small.0, small.1)?;
    let patch = Patch::new(&small_image, &small_mask, Rect::whole(small.0, small.1), &model.pad)?;
    let patch = patch.counted(pass, passes);
    let answer = model.run(&patch)?;
    let answer = model.read(&answer, patch.shape())?;

    let (mask, small_mask) = (&*model.paste.mask(mask)?, &*model.paste.mask(&small_mask)?);
    let Some(columns) = restored_columns(mask) else { return Ok(image) };
    let mut resizer = RowResizer::<3>::new(small, size, columns.clone());
    let mut ours = vec![0; 3 * small.1];
    for y in 0..size.0 {
        let mask_row = mask.span(y, columns.start, columns.end);
        if !mask_row.iter().any(|value| is_replaced(*value)) {
            continue;
        }
        let row = resizer.row(y, |y, blended| {
            answer.row(y, 0..small.1, &mut ours);
            let answers = ours.as_chunks::<3>().0.iter();
            let pixels = small_image.span(y, 0, small.1).as_chunks::<3>().0.iter();
            let inputs = answers.zip(pixels).zip(small_mask.span(y, 0, small.1));
            for (((ours, pixel), mask), out) in inputs.zip(blended) {
                *out = blend_f64(*ours, *pixel, *mask);
            }
        });
        let mut x = columns.start;
        for run in mask_row.chunk_by(|left, right| is_replaced(*left) == is_replaced(*right)) {
            let span = x..x + run.len();
            x = span.end;
            if is_replaced(run[0]) {
                let pixels = image.span_mut(y, span.start, span.end).iter_mut();
                pixels.zip(row.samples(span)).for_each(|(pixel, sample)| *pixel = wrap_to_u8(sample));
            }
        }
    }
    Ok(image)
}

/// Whether Resize takes a pixel from the enlarged answer: upstream restores the picture where `mask < 127`.
fn is_replaced(mask: u8) -> bool {
    mask >= 127
}

/// The columns between the first and the last pixel that Resize replaces, if there is one.
fn restored_columns(mask: &Gray) -> Option<Range<usize>> {
    let rows = mask.data().chunks_exact(mask.width());
    let found = rows.filter_map(|row| columns_where(row, is_replaced));
    found.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
}
