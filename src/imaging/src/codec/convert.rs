//! Pillow's mode conversions `convert("RGB")` and `convert("L")` for every mode that a reader returns.
//!
//! Does not: dither, or apply a palette's transparency or alpha: upstream drops them.

use super::{CodecError, Raster, Samples};
use crate::image::{Gray, Image, Rgb};

/// `convert("RGB")`, with the alpha plane for mode `RGBA` only.
///
/// `RGB` is moved, `RGBA` is compacted in place; every other mode is written once into a new buffer.
///
/// # Errors
/// [`CodecError::Image`] if the samples do not fit the sides.
///
/// Source: Pillow 10.4 `Convert.c`; Lama Cleaner `helper.load_img`, 1.2.5, for which alpha is kept.
pub(super) fn to_rgb(raster: Raster) -> Result<(Image<Rgb>, Option<Gray>), CodecError> {
    let Raster { height, width, samples } = raster;
    let (colours, alpha) = match samples {
        Samples::Rgb(data) => (data, None),
        Samples::Rgba(data) => {
            let (colours, alpha) = split_alpha(data);
            (colours, Some(Gray::new(height, width, alpha)?))
        }
        Samples::L(data) => (expand(&data, |&grey| [grey; 3]), None),
        Samples::La(data) => (expand(data.as_chunks().0, |&[grey, _]: &[u8; 2]| [grey; 3]), None),
        Samples::P(data, palette) => {
            let colours = full_palette(&palette);
            (expand(&data, |&index| colours[usize::from(index)]), None)
        }
        Samples::I16(data) => (expand(&data, |&grey| [saturate(grey); 3]), None),
        Samples::Cmyk(data) => (expand(data.as_chunks().0, ink_to_rgb), None),
    };
    Ok((Image::new(height, width, colours)?, alpha))
}

/// `convert("L")`.
///
/// # Errors
/// As [`to_rgb`].
///
/// Source: Pillow 10.4 `Convert.c`, which also converts `CMYK` via `RGB`.
pub(super) fn to_luma(raster: Raster) -> Result<Gray, CodecError> {
    let Raster { height, width, samples } = raster;
    let grey: Vec<u8> = match samples {
        Samples::L(data) => data,
        Samples::La(data) => data.as_chunks().0.iter().map(|&[grey, _]: &[u8; 2]| grey).collect(),
        Samples::Rgb(data) => data.as_chunks().0.iter().map(luma).collect(),
        Samples::Rgba(data) => {
            data.as_chunks().0.iter().map(|&pixel| luma_of_word(u32::from_le_bytes(pixel))).collect()
        }
        Samples::P(data, palette) => {
            let greys = full_palette(&palette).map(|colour| luma(&colour));
            data.iter().map(|&index| greys[usize::from(index)]).collect()
        }
        Samples::I16(data) => data.iter().map(|&grey| saturate(grey)).collect(),
        Samples::Cmyk(data) => data.as_chunks().0.iter().map(|ink| luma(&ink_to_rgb(ink))).collect(),
    };
    Ok(Image::new(height, width, grey)?)
}

/// Sets values above 127 to 255 and others to 0, in place.
///
/// Source: `cv2.threshold(mask, 127, 255, THRESH_BINARY)`.
pub(super) fn threshold(mut grey: Gray) -> Gray {
    for sample in grey.data_mut() {
        *sample = if *sample > 127 { 255 } else { 0 };
    }
    grey
}

/// Writes three samples for each of `pixels`.
fn expand<P>(pixels: &[P], colour: impl Fn(&P) -> [u8; 3]) -> Vec<u8> {
    let mut colours = vec![0; 3 * pixels.len()];
    for (to, from) in colours.as_chunks_mut().0.iter_mut().zip(pixels) {
        *to = colour(from);
    }
    colours
}

/// Splits `RGBA` into `RGB`, in the same buffer, and alpha.
fn split_alpha(mut data: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let pixels = data.len() / 4;
    let alpha = data.as_chunks().0.iter().map(|&[_, _, _, a]: &[u8; 4]| a).collect();
    // Four pixels at a time: read as four words, written as three. A group is written at 3/4 of its read offset,
    // so no group is overwritten before it is read.
    let word =
        |data: &[u8], at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
    let groups = pixels / 4;
    for group in 0..groups {
        let from = &data[16 * group..16 * group + 16];
        let (a, b, c, d) = (word(from, 0), word(from, 4), word(from, 8), word(from, 12));
        let to = &mut data[12 * group..12 * group + 12];
        to[..4].copy_from_slice(&(a & 0x00ff_ffff | b << 24).to_le_bytes());
        to[4..8].copy_from_slice(&(b >> 8 & 0xffff | c << 16).to_le_bytes());
        to[8..].copy_from_slice(&(c >> 16 & 0xff | d << 8).to_le_bytes());
    }
    for pixel in 4 * groups..pixels {
        data.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
    }
    data.truncate(3 * pixels);
    // Large blocks shrink in place. Otherwise the unused quarter stays allocated as long as the picture.
    data.shrink_to_fit();
    (data, alpha)
}

/// Pillow's `L24`, 16-bit fixed point with rounding.
fn luma(&[red, green, blue]: &[u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// [`luma`] of the low three bytes. `green << 16` is left out of the sum and added after the shift: all multipliers
/// then fit 16 bits, for which every x86-64 has a vector instruction.
fn luma_of_word(word: u32) -> u8 {
    let [red, green, blue, _] = word.to_le_bytes().map(i32::from);
    (green + ((red * 19595 - green * 27066 + blue * 7471 + 0x8000) >> 16)) as u8
}

/// 16-bit to 8-bit grey: values above 255 become white, as in Pillow.
fn saturate(grey: u16) -> u8 {
    grey.min(255) as u8
}

/// All 256 colours of a palette; missing ones are black.
fn full_palette(palette: &[[u8; 3]]) -> [[u8; 3]; 256] {
    let mut full = [[0; 3]; 256];
    for (to, from) in full.iter_mut().zip(palette) {
        *to = *from;
    }
    full
}

/// Converts inks to RGB: each colour is `left - ink * left / 255`, where `left` is `255 - black`.
fn ink_to_rgb(&[cyan, magenta, yellow, black]: &[u8; 4]) -> [u8; 3] {
    let left = u16::from(255 - black);
    // The rounded quotient is at most `left`, so nothing wraps; wrapping operations allow vectorisation.
    [cyan, magenta, yellow].map(|ink| {
        let product = u16::from(ink).wrapping_mul(left).wrapping_add(128);
        left.wrapping_sub((product >> 8).wrapping_add(product) >> 8) as u8
    })
}
