//! A door to the pure functions for other programs: requests on stdin, one answer each on stdout, until stdin ends.
//!
//! Everything is little-endian and unpadded. A request is `u32` length of what follows, `u8` op, its fields. An
//! answer is `u32` length of what follows, `u8` 0 and the fields; or `u8` 1 and an error as UTF-8; or `u8` 2 and
//! a text if the request itself makes no sense. Answers come in the order of the requests, each flushed.
//!
//! Field types: `blob` is `u32` length and bytes; `text` a blob of UTF-8; `opt T` is `u8` 0, or 1 and a `T`;
//! `rgb` is `u32` H, `u32` W, `H*W*3` bytes; `grey` is `u32` H, `u32` W, `H*W` bytes; `rule` is `u32` modulo,
//! `u8` square, `u32` least side (0: none); `rect` is four `u32`: left, top, right, bottom (half-open);
//! `meta` is `opt blob` exif, `opt text` parameters; `tones` is `u8` 0 for RGB in 0..=1 (C is 3), or 1 for grey
//! in -1..=1 (C is 1).
//!
//! | op | request | answer |
//! |---|---|---|
//! | 1 pad | rule, rgb | rgb |
//! | 2 pad of a mask | rule, grey | grey |
//! | 3 boxes_from_mask | grey | u32 n, n rect |
//! | 4 crop_box | rect, u32 H, u32 W, i64 margin | opt rect |
//! | 5 resize_cubic | u32 H, u32 W, rgb | rgb |
//! | 6 resize_cubic of a mask | u32 H, u32 W, grey | grey |
//! | 7 resize_cubic_f64 | u32 H, u32 W of the result; u32 h, u32 w, h\*w\*3 f64 | H\*W\*3 f64 |
//! | 8 blend_f64 | u32 n, n\*3 u8 result, n\*3 u8 image, n u8 mask | n\*3 f64 |
//! | 9 wrap_to_u8 | u32 n, n f64 | n u8 |
//! | 10 rgb_to_nchw_f32 | rgb | 3\*H\*W f32 |
//! | 11 mask_to_i64 | grey | H\*W i64 |
//! | 12 nchw_f32_to_rgb | tones, u32 H, u32 W, C\*H\*W f32 | rgb |
//! | 13 inpaint | text strategy, i64 resize limit, i64 crop trigger, i64 crop margin, rule, u8 network, rgb, grey | rgb, u32 calls, per call u32 H, u32 W of what the network saw |
//! | 14 probe | blob | text format, text mode, u32 H, u32 W, u8 decodes |
//! | 15 decode | u64 max_pixels, blob | rgb, opt grey alpha, meta |
//! | 16 decode_mask | u64 max_pixels, blob | grey |
//! | 17 encode | text format, u8 quality, rgb, opt grey alpha, meta | blob |
//! | 18 rgb_to_gray_f32 | rgb | H\*W f32 |
//!
//! The networks of op 13 give float32 `(C, h, w)` from the padded picture `p` and mask `m` (u8), y and x counted
//! in the padded picture, which then go the way of op 12:
//! 0: `((5*p[c] + 31*c + 3*y + 7*x + 97*(m > 0) + m) % 512) / 256 - 0.5`, exact, leaves 0..1 on both sides;
//! 1: where `m > 0` `((x/2 + y/2) % 2) * 2 - 0.5` (whole-number divisions), elsewhere `p[c] / 255` in float32;
//! 2: that of 0 with `c` 0, doubled, as grey: leaves -1..1 on both sides.

use std::io::{self, Read, Write};

use lamagrid_imaging::codec::{self, Metadata};
use lamagrid_imaging::{
    HdStrategy, Image, ImageError, Layout, Luma, Model, PadRule, Paste, Patch, Rect, Rgb, Tones, blend_f64,
    boxes_from_mask, crop_box, inpaint, mask_to_i64, nchw_f32_to_rgb, pad, resize_cubic, resize_cubic_f64,
    rgb_to_gray_f32, rgb_to_nchw_f32, wrap_to_u8,
};

/// Why a request has no result.
enum Refusal {
    /// The function said no.
    Refused(String),
    /// The request ends early or names what there is not.
    Senseless(&'static str),
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Refused(error.to_string())
    }
}

/// The unread rest of a request.
struct Request<'a>(&'a [u8]);

impl<'a> Request<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (bytes, rest) =
            self.0.split_at_checked(length).ok_or(Refusal::Senseless("the request ends early"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        self.array().map(u8::from_le_bytes)
    }

    fn usize(&mut self) -> Result<usize, Refusal> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, Refusal> {
        self.array().map(i64::from_le_bytes)
    }

    /// `n` values of `N` bytes each.
    fn values<const N: usize, T>(&mut self, n: usize, read: fn([u8; N]) -> T) -> Result<Vec<T>, Refusal> {
        let length = n.checked_mul(N).ok_or(Refusal::Senseless("a length is too large"))?;
        let bytes = self.bytes(length)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect())
    }

    fn blob(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.usize()?;
        self.bytes(length)
    }

    fn text(&mut self) -> Result<&'a str, Refusal> {
        std::str::from_utf8(self.blob()?).map_err(|_| Refusal::Senseless("a text is not UTF-8"))
    }

    fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        if self.u8()? == 0 { Ok(None) } else { read(self).map(Some) }
    }

    fn image<L: Layout>(&mut self) -> Result<Image<L>, Refusal> {
        let (height, width) = (self.usize()?, self.usize()?);
        let samples = height.saturating_mul(width).saturating_mul(L::CHANNELS);
        Ok(Image::new(height, width, self.bytes(samples)?.to_vec())?)
    }

    fn rule(&mut self) -> Result<PadRule, Refusal> {
        let (modulo, square, least) = (self.usize()?, self.u8()? != 0, self.usize()?);
        Ok(PadRule { modulo, square, min_size: Some(least).filter(|least| *least > 0) })
    }

    fn rect(&mut self) -> Result<Rect, Refusal> {
        Ok(Rect { left: self.usize()?, top: self.usize()?, right: self.usize()?, bottom: self.usize()? })
    }

    fn metadata(&mut self) -> Result<Metadata, Refusal> {
        let exif = self.optional(Self::blob)?.map(<[u8]>::to_vec);
        let parameters = self.optional(Self::text)?.map(str::to_owned);
        Ok(Metadata { exif, parameters })
    }
}

/// The fields of a result.
#[derive(Default)]
struct Answer(Vec<u8>);

impl Answer {
    /// A number that came from a `u32`, or counts what was made from as many bytes.
    fn number(&mut self, value: usize) {
        self.0.extend_from_slice(&(value as u32).to_le_bytes());
    }

    fn values<const N: usize>(&mut self, values: impl IntoIterator<Item = [u8; N]>) {
        self.0.extend(values.into_iter().flatten());
    }

    fn blob(&mut self, blob: &[u8]) {
        self.number(blob.len());
        self.0.extend_from_slice(blob);
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn image<L: Layout>(&mut self, image: &Image<L>) {
        self.number(image.height());
        self.number(image.width());
        self.0.extend_from_slice(image.data());
    }

    fn rect(&mut self, rect: &Rect) {
        [rect.left, rect.top, rect.right, rect.bottom].into_iter().for_each(|edge| self.number(edge));
    }
}

/// Sample `c` of what one of the networks answers at row `y` and column `x`.
fn sample(network: u8, pixel: &[u8], mask: u8, c: usize, y: usize, x: usize) -> f32 {
    if network == 2 {
        2.0 * sample(0, pixel, mask, c, y, x)
    } else if network == 0 {
        let mask = usize::from(mask);
        let sum = 5 * usize::from(pixel[c]) + 31 * c + 3 * y + 7 * x + 97 * usize::from(mask > 0) + mask;
        (sum % 512) as f32 / 256.0 - 0.5
    } else if mask > 0 {
        ((x / 2 + y / 2) % 2) as f32 * 2.0 - 0.5
    } else {
        f32::from(pixel[c]) / 255.0
    }
}

fn tones_of(network: u8) -> Tones {
    if network == 2 { Tones::SignedGray } else { Tones::UnitRgb }
}

fn forward(network: u8, patch: &Patch<'_>) -> Result<Vec<f32>, ImageError> {
    let (image, mask) = (patch.image()?, patch.mask()?);
    let width = image.width();
    let mut values = Vec::with_capacity(image.data().len());
    for c in 0..tones_of(network).channels() {
        let pixels = image.data().chunks_exact(3).zip(mask.data()).enumerate();
        values
            .extend(pixels.map(|(i, (pixel, mask))| sample(network, pixel, *mask, c, i / width, i % width)));
    }
    Ok(values)
}

fn inpaint_once(request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let strategy = request.text()?;
    let hd = HdStrategy::from_form(strategy, request.i64()?, request.i64()?, request.i64()?);
    let (rule, network) = (request.rule()?, request.u8()?);
    let (image, mask) = (request.image()?, request.image()?);
    let mut calls = Vec::new();
    let result = inpaint(
        image,
        &mask,
        &hd,
        Model {
            pad: rule,
            tones: tones_of(network),
            paste: Paste::Hole,
            forward: &mut |patch| {
                calls.push(patch.shape());
                forward(network, patch)
            },
        },
    )?;
    answer.image(&result);
    answer.number(calls.len());
    for (height, width) in calls {
        answer.number(height);
        answer.number(width);
    }
    Ok(())
}

fn resize_f64(request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let to = (request.usize()?, request.usize()?);
    let from = (request.usize()?, request.usize()?);
    let values = request.values(from.0.saturating_mul(from.1).saturating_mul(3), f64::from_le_bytes)?;
    let resized = resize_cubic_f64(values.as_chunks::<3>().0, from, to)?;
    answer.values(resized.into_iter().flatten().map(f64::to_le_bytes));
    Ok(())
}

fn blend(request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let pixels = request.usize()?;
    let samples = pixels.saturating_mul(3);
    let (result, image, mask) = (request.bytes(samples)?, request.bytes(samples)?, request.bytes(pixels)?);
    let pairs = result.as_chunks::<3>().0.iter().zip(image.as_chunks::<3>().0).zip(mask);
    let blended = pairs.flat_map(|((result, image), mask)| blend_f64(*result, *image, *mask));
    answer.values(blended.map(f64::to_le_bytes));
    Ok(())
}

fn encode(request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let (format, quality) = (request.text()?.parse()?, request.u8()?);
    let (pixels, alpha) = (request.image()?, request.optional(Request::image)?);
    let metadata = request.metadata()?;
    answer.blob(&codec::encode(&pixels, alpha.as_ref(), format, quality, &metadata)?);
    Ok(())
}

fn decode(request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let max_pixels = request.u64()?;
    let picture = codec::decode(request.blob()?, max_pixels)?;
    answer.image(&picture.pixels);
    answer.optional(picture.alpha, |answer, alpha| answer.image(&alpha));
    answer.optional(picture.metadata.exif, |answer, exif| answer.blob(&exif));
    answer.optional(picture.metadata.parameters, |answer, text| answer.blob(text.as_bytes()));
    Ok(())
}

fn probe(request: &mut Request<'_>, answer: &mut Answer) -> Result<(), Refusal> {
    let header = codec::probe(request.blob()?)?;
    answer.blob(header.format.as_str().as_bytes());
    answer.blob(header.mode.as_str().as_bytes());
    answer.values([header.height, header.width].map(u32::to_le_bytes));
    answer.0.push(u8::from(header.decodes));
    Ok(())
}

fn answer(request: &mut Request<'_>) -> Result<Answer, Refusal> {
    let mut answer = Answer::default();
    match request.u8()? {
        1 => {
            let rule = request.rule()?;
            answer.image(&pad(&request.image::<Rgb>()?, &rule)?);
        }
        2 => {
            let rule = request.rule()?;
            answer.image(&pad(&request.image::<Luma>()?, &rule)?);
        }
        3 => {
            let boxes = boxes_from_mask(&request.image()?);
            answer.number(boxes.len());
            boxes.iter().for_each(|rect| answer.rect(rect));
        }
        4 => {
            let (blob, height, width) = (request.rect()?, request.usize()?, request.usize()?);
            let rect = crop_box(&blob, height, width, request.i64()?);
            answer.optional(rect, |answer, rect| answer.rect(&rect));
        }
        5 => {
            let (height, width) = (request.usize()?, request.usize()?);
            answer.image(&resize_cubic(&request.image::<Rgb>()?, height, width)?);
        }
        6 => {
            let (height, width) = (request.usize()?, request.usize()?);
            answer.image(&resize_cubic(&request.image::<Luma>()?, height, width)?);
        }
        7 => resize_f64(request, &mut answer)?,
        8 => blend(request, &mut answer)?,
        9 => {
            let count = request.usize()?;
            let values = request.values(count, f64::from_le_bytes)?;
            answer.0.extend(values.into_iter().map(wrap_to_u8));
        }
        10 => {
            let values = rgb_to_nchw_f32(&request.image()?);
            answer.values(values.into_iter().map(f32::to_le_bytes));
        }
        11 => answer.values(mask_to_i64(&request.image()?).into_iter().map(i64::to_le_bytes)),
        12 => {
            let tones = if request.u8()? == 0 { Tones::UnitRgb } else { Tones::SignedGray };
            let (height, width) = (request.usize()?, request.usize()?);
            let count = height.saturating_mul(width).saturating_mul(tones.channels());
            let values = request.values(count, f32::from_le_bytes)?;
            answer.image(&nchw_f32_to_rgb(&values, tones, height, width)?);
        }
        13 => inpaint_once(request, &mut answer)?,
        14 => probe(request, &mut answer)?,
        15 => decode(request, &mut answer)?,
        16 => {
            let max_pixels = request.u64()?;
            answer.image(&codec::decode_mask(request.blob()?, max_pixels)?);
        }
        17 => encode(request, &mut answer)?,
        18 => {
            let values = rgb_to_gray_f32(&request.image()?);
            answer.values(values.into_iter().map(f32::to_le_bytes));
        }
        _ => return Err(Refusal::Senseless("there is no such op")),
    }
    Ok(answer)
}

fn main() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let (mut length, mut request) = ([0; 4], Vec::new());
    loop {
        match input.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        request.resize(u32::from_le_bytes(length) as usize, 0);
        input.read_exact(&mut request)?;
        let (status, fields) = match answer(&mut Request(&request)) {
            Ok(answer) => (0, answer.0),
            Err(Refusal::Refused(text)) => (1, text.into_bytes()),
            Err(Refusal::Senseless(text)) => (2, text.as_bytes().to_vec()),
        };
        // A request is under 4 GiB, and so is what is made of any that a test sends.
        output.write_all(&(fields.len() as u32 + 1).to_le_bytes())?;
        output.write_all(&[status])?;
        output.write_all(&fields)?;
        output.flush()?;
    }
}
