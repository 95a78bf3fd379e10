//! Decodes strips and tiles: decompresses them, undoes the predictor, and copies them to their positions.
//!
//! Does not: accept a chunk with less data than the picture needs. Pillow fails, too, and upstream then continues with
//! the pixels decoded so far.
//!
//! Source: libtiff 4.6, of which Pillow uses the codecs; Pillow 10.4 `Unpack.c`.

use fdeflate::Decompressor;
use weezl::BitOrder;
use weezl::decode::{Configuration, Decoder};

use super::layout::{Compression, Pixel, Plan};
use crate::codec::ifd::Order;

/// Decodes all chunks of a picture to one byte per sample; 16-bit grey stays as stored.
pub(super) fn decode(plan: &Plan<'_>, width: usize, height: usize) -> Option<Vec<u8>> {
    let bytes_per_pixel = if plan.pixel == Pixel::Grey16 { 2 } else { plan.pixel.samples() };
    let mut picture = vec![0; width * height * bytes_per_pixel];
    let row_bytes = plan.row_bytes();
    let mut decompressor = Codec::new(plan.compression);
    let mut decoded = Vec::new();
    let whole_rows = is_as_it_is(plan) && plan.chunk_width == width;
    for chunk in &plan.chunks {
        if whole_rows && chunk.top + chunk.rows <= height {
            // The decoded chunk is a contiguous part of the picture.
            let start = chunk.top * row_bytes;
            let place = &mut picture[start..start + chunk.rows * row_bytes];
            decompressor.decode(chunk.data, place)?;
            add_up(plan, place);
            continue;
        }
        decoded.resize(chunk.rows * row_bytes, 0);
        decompressor.decode(chunk.data, &mut decoded)?;
        add_up(plan, &mut decoded);
        let columns = plan.chunk_width.min(width - chunk.left);
        let start = (chunk.top * width + chunk.left) * bytes_per_pixel;
        let rows = picture[start..].chunks_mut(width * bytes_per_pixel);
        for (to, from) in rows.zip(decoded.chunks_exact(row_bytes)).take(chunk.rows) {
            unpack(plan, chunk.plane, from, &mut to[..columns * bytes_per_pixel]);
        }
    }
    Some(picture)
}

/// Whether a chunk's rows need no conversion.
fn is_as_it_is(plan: &Plan<'_>) -> bool {
    let plain = match plan.pixel {
        Pixel::Bilevel { .. } | Pixel::Premultiplied => false,
        Pixel::Grey { inverted } => !inverted,
        Pixel::Grey16 => return true,
        Pixel::GreyAlpha | Pixel::Rgb | Pixel::Rgba | Pixel::Index | Pixel::Cmyk => true,
    };
    plain && plan.bits == 8 && plan.samples == plan.pixel.samples()
}

/// A decoder that is reused for all chunks.
enum Codec {
    None,
    Lzw(Box<Decoder>),
    Deflate,
    PackBits,
}

impl Codec {
    fn new(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Lzw => {
                let configuration = Configuration::with_tiff_size_switch(BitOrder::Msb, 8);
                Self::Lzw(Box::new(configuration.with_yield_on_full_buffer(true).build()))
            }
            Compression::Deflate => Self::Deflate,
            Compression::PackBits => Self::PackBits,
        }
    }

    /// Fills `out`. `None` if the data decode to less, or with Deflate to more.
    fn decode(&mut self, data: &[u8], out: &mut [u8]) -> Option<()> {
        match self {
            Self::None => out.copy_from_slice(data.get(..out.len())?),
            Self::Lzw(decoder) => {
                // The data must start with the clear code; libtiff also reads an old variant that starts otherwise.
                if !matches!(data, [0x80, 0..0x80, ..]) {
                    return None;
                }
                decoder.reset();
                let (mut data, mut filled) = (data, 0);
                while filled < out.len() {
                    let step = decoder.decode_bytes(data, &mut out[filled..]);
                    data = &data[step.consumed_in..];
                    filled += step.consumed_out;
                    if filled < out.len()
                        && (step.status.is_err() || step.consumed_in + step.consumed_out == 0)
                    {
                        return None;
                    }
                }
            }
            Self::Deflate => {
                let mut inflater = Decompressor::new();
                let (mut data, mut filled) = (data, 0);
                // Read to the end, because whether zlib checks the checksum depends on where its fast loop stops.
                while !inflater.is_done() {
                    let (consumed, produced) = inflater.read(data, out, filled, true).ok()?;
                    data = &data[consumed..];
                    filled += produced;
                    if consumed + produced == 0 {
                        return None;
                    }
                }
                if filled < out.len() {
                    return None;
                }
            }
            Self::PackBits => unpack_bits(data, out)?,
        }
        Some(())
    }
}

/// Decodes runs and literals; data beyond the end of `out` is dropped.
fn unpack_bits(mut data: &[u8], mut out: &mut [u8]) -> Option<()> {
    while !out.is_empty() {
        let (&control, rest) = data.split_first()?;
        data = rest;
        let count = match control {
            0..128 => usize::from(control) + 1,
            128 => continue,
            129.. => 257 - usize::from(control),
        };
        let (place, after) = out.split_at_mut(count.min(out.len()));
        let taken = if control < 128 {
            place.copy_from_slice(data.get(..place.len())?);
            place.len()
        } else {
            place.fill(*data.first()?);
            1
        };
        data = &data[taken..];
        out = after;
    }
    Some(())
}

/// Undoes the predictor row by row: converts differences to samples.
fn add_up(plan: &Plan<'_>, rows: &mut [u8]) {
    if !plan.differences {
        return;
    }
    for row in rows.chunks_exact_mut(plan.row_bytes()) {
        match (plan.bits, plan.samples) {
            (8, 1) => add_up_row::<1>(row),
            (8, 3) => add_up_row::<3>(row),
            (8, 4) => add_up_row::<4>(row),
            (8, samples) => {
                for at in samples..row.len() {
                    row[at] = row[at].wrapping_add(row[at - samples]);
                }
            }
            (_, samples) => {
                let (row, _) = row.as_chunks_mut();
                for at in samples..row.len() {
                    let sum = plan.order.u16(row[at]).wrapping_add(plan.order.u16(row[at - samples]));
                    row[at] = plan.order.u16_bytes(sum);
                }
            }
        }
    }
}

fn add_up_row<const SAMPLES: usize>(row: &mut [u8]) {
    let mut sum = [0_u8; SAMPLES];
    for pixel in row.as_chunks_mut::<SAMPLES>().0 {
        for (sum, sample) in sum.iter_mut().zip(pixel.iter_mut()) {
            *sum = sum.wrapping_add(*sample);
            *sample = *sum;
        }
    }
}

/// Converts a row of a chunk, cut to the length of `to`, for the picture.
fn unpack(plan: &Plan<'_>, plane: usize, from: &[u8], to: &mut [u8]) {
    let kept = plan.pixel.samples();
    if plan.planar {
        for (to, &from) in to.chunks_exact_mut(kept).zip(from) {
            to[plane] = from;
        }
        return;
    }
    match plan.pixel {
        Pixel::Bilevel { white } => {
            let colours = if white == 1 { [0, 255] } else { [255, 0] };
            split(from, 1, to, |bit| colours[usize::from(bit)]);
        }
        Pixel::Grey { inverted } => {
            let white = 255_u16 >> (8 - plan.bits);
            let flip = if inverted { 255 } else { 0 };
            split(from, plan.bits, to, |grey| (u16::from(grey) * (255 / white)) as u8 ^ flip);
        }
        Pixel::Index => split(from, plan.bits, to, |index| index),
        Pixel::Grey16 => to.copy_from_slice(&from[..to.len()]),
        Pixel::GreyAlpha | Pixel::Rgb | Pixel::Rgba | Pixel::Cmyk => {
            // Pillow keeps the upper 8 of 16 bits.
            let size = plan.bits / 8;
            let upper = if size == 2 && plan.order == Order::Little { 1 } else { 0 };
            for (to, from) in to.chunks_exact_mut(kept).zip(from.chunks_exact(plan.samples * size)) {
                for (to, from) in to.iter_mut().zip(from.chunks_exact(size)) {
                    *to = from[upper];
                }
            }
        }
        Pixel::Premultiplied => {
            for (to, from) in to.as_chunks_mut::<4>().0.iter_mut().zip(from.chunks_exact(plan.samples)) {
                let alpha = u16::from(from[3]);
                // With alpha 0 the colour is black.
                let divide =
                    |colour: u8| (u16::from(colour) * 255).checked_div(alpha).unwrap_or(0).min(255) as u8;
                *to = [divide(from[0]), divide(from[1]), divide(from[2]), from[3]];
            }
        }
    }
}

/// Unpacks samples of 1, 2, 4 or 8 bits, the highest bits first.
fn split(from: &[u8], bits: usize, to: &mut [u8], sample: impl Fn(u8) -> u8) {
    let mask = (255_u16 >> (8 - bits)) as u8;
    for (to, &byte) in to.chunks_mut(8 / bits).zip(from) {
        for (index, to) in to.iter_mut().enumerate() {
            *to = sample(byte >> (8 - bits * (index + 1)) & mask);
        }
    }
}
