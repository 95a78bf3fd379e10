//! Writes pixels to a PNG file.
//!
//! Does not: interlace, write palettes, or keep other metadata than `parameters` and `eXIf`, as upstream.
//!
//! Several threads write large pictures, each a band of rows. The streams of the bands are concatenated: each but the
//! last ends at a whole byte without ending the data. The number of threads changes the file's bytes but not its
//! pixels.

use std::num::NonZero;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use simd_adler32::Adler32;

use super::bits::{Bits, BlockPosition};
use super::chunk_writer::chunk;
use super::deflate::Deflate;
use super::filter::{apply, choose};
use super::{PARAMETERS, SIGNATURE};
use crate::codec::Metadata;
use crate::image::{Gray, Image, Rgb};

/// Pixels for which starting a thread pays off; about 10 ms of work.
const PIXELS_PER_THREAD: usize = 1 << 20;

/// zlib's header: 32 KiB window, the fastest method; a multiple of 31.
const ZLIB: [u8; 2] = [0x78, 0x01];

/// Position of the number of entries in Pillow's EXIF blocks; if it is 0, Pillow writes no chunk.
const ENTRIES: Range<usize> = 8..10;

/// The picture to be written.
#[derive(Clone, Copy)]
struct Source<'a> {
    pixels: &'a Image<Rgb>,
    alpha: Option<&'a Gray>,
}

impl Source<'_> {
    /// Bytes per pixel.
    fn bpp(&self) -> usize {
        if self.alpha.is_some() { 4 } else { 3 }
    }

    /// Row `y` in the file's sample format: borrowed, or combined with alpha in `buffer`.
    fn row<'b>(&'b self, y: usize, buffer: &'b mut [u8]) -> &'b [u8] {
        let colours = self.pixels.span(y, 0, self.pixels.width());
        let Some(alpha) = self.alpha else { return colours };
        let alpha = alpha.span(y, 0, self.pixels.width());
        let pixels = buffer.as_chunks_mut::<4>().0.iter_mut();
        for ((pixel, colour), alpha) in pixels.zip(colours.as_chunks::<3>().0).zip(alpha) {
            *pixel = [colour[0], colour[1], colour[2], *alpha];
        }
        buffer
    }
}

/// Writes rows `top..bottom` as data chunks after `out`, and returns the Adler-32 of their uncompressed data.
fn band(source: Source<'_>, top: usize, bottom: usize, out: Vec<u8>) -> (Vec<u8>, u32) {
    let bpp = source.bpp();
    let length = source.pixels.width() * bpp;
    let first: &[u8] = if top == 0 { &ZLIB } else { &[] };
    let mut stream = Deflate::new(Bits::after(out, first), 1 + length, bpp);
    let mut checksum = Adler32::new();
    let (mut buffer, mut buffer_above) = (vec![0; length], vec![0; length]);
    let black = vec![0; length];
    if top > 0 {
        source.row(top - 1, &mut buffer_above);
    }
    for y in top..bottom {
        let row = source.row(y, &mut buffer);
        let above = match (y, source.alpha) {
            (0, _) => &black,
            (_, None) => source.pixels.span(y - 1, 0, source.pixels.width()),
            (_, Some(_)) => &buffer_above[..],
        };
        let filter = choose(row, above, bpp);
        stream.row(|out| {
            out[0] = filter as u8;
            apply(filter, row, above, bpp, &mut out[1..]);
            checksum.write(out);
        });
        std::mem::swap(&mut buffer, &mut buffer_above);
    }
    let is_last = bottom == source.pixels.height();
    let position = if is_last { BlockPosition::Last } else { BlockPosition::Earlier };
    (stream.finish(position), checksum.finish())
}

/// The Adler-32 of two concatenated parts; the second has `length` bytes.
///
/// Source: `adler32_combine` of zlib.
fn combine(first: u32, second: u32, length: u64) -> u32 {
    const BASE: u64 = 65521;
    let sums = |checksum: u32| (u64::from(checksum & 0xffff), u64::from(checksum >> 16));
    let ((a1, b1), (a2, b2)) = (sums(first), sums(second));
    // Each part starts with a sum of 1, which must count once.
    let a = (a1 + a2 + BASE - 1) % BASE;
    let b = (b1 + b2 + length % BASE * (a1 + BASE - 1)) % BASE;
    (b << 16 | a) as u32
}

/// Writes the chunk for `parameters`: in Latin-1 if possible, as Pillow's `PngInfo.add_text` does.
fn text(out: &mut Vec<u8>, value: &str) {
    match value.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<Vec<u8>, _>>() {
        Ok(latin_1) => chunk(out, b"tEXt", &[PARAMETERS, b"\0", &latin_1]),
        Err(_) => chunk(out, b"iTXt", &[PARAMETERS, b"\0\0\0\0\0", value.as_bytes()]),
    }
}

/// The number of bands for a picture of `height` x `width` pixels.
fn bands(height: usize, width: usize) -> usize {
    let wanted = (height * width / PIXELS_PER_THREAD).min(height);
    // Only for large pictures: counting the processors reads files.
    if wanted < 2 { 1 } else { thread::available_parallelism().map_or(1, NonZero::get).min(wanted) }
}

/// Writes a file with 8 bits per sample: RGB, or RGBA with `alpha` of the same size.
pub(super) fn write(pixels: &Image<Rgb>, alpha: Option<&Gray>, metadata: &Metadata) -> Vec<u8> {
    let (height, width) = pixels.shape();
    write_in(bands(height, width), pixels, alpha, metadata)
}

/// [`write()`] with this number of bands, at most one per row.
fn write_in(bands: usize, pixels: &Image<Rgb>, alpha: Option<&Gray>, metadata: &Metadata) -> Vec<u8> {
    let source = Source { pixels, alpha };
    let (height, width) = pixels.shape();
    let mut out = SIGNATURE.to_vec();
    let colour_type = if alpha.is_some() { 6 } else { 2 };
    let size = [(width as u32).to_be_bytes(), (height as u32).to_be_bytes()].concat();
    chunk(&mut out, b"IHDR", &[&size, &[8, colour_type, 0, 0, 0]]);
    if let Some(value) = &metadata.parameters {
        text(&mut out, value);
    }
    if let Some(exif) = metadata.exif.as_ref().filter(|exif| exif.get(ENTRIES).is_some_and(|n| n != [0, 0])) {
        chunk(&mut out, b"eXIf", &[exif]);
    }

    let one = |i: usize, out| band(source, height * i / bands, height * (i + 1) / bands, out);
    let ((mut out, mut checksum), others) = thread::scope(|scope| {
        let threads: Vec<_> = (1..bands)
            .map(|i| (i, thread::Builder::new().spawn_scoped(scope, move || one(i, Vec::new()))))
            .collect();
        let first = one(0, out);
        let others = threads.into_iter().map(|(i, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // No thread could be started; use this one.
            Err(_) => one(i, Vec::new()),
        });
        (first, others.collect::<Vec<_>>())
    });
    for (i, (chunks, its_checksum)) in others.into_iter().enumerate() {
        out.extend_from_slice(&chunks);
        let rows = height * (i + 2) / bands - height * (i + 1) / bands;
        checksum = combine(checksum, its_checksum, rows as u64 * (1 + width * source.bpp()) as u64);
    }
    // zlib's checksum in a separate chunk, because it covers all bands.
    chunk(&mut out, b"IDAT", &[&checksum.to_be_bytes()]);
    chunk(&mut out, b"IEND", &[]);
    out
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::codec::Samples;

    /// Number `i` of stream `seed`.
    fn mix(seed: u64, i: usize) -> u64 {
        let z = seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z ^ (z >> 29)
    }

    /// Samples of a picture of one of eight kinds, `channels` per pixel.
    fn content(kind: u64, seed: u64, height: usize, width: usize, channels: usize) -> Vec<u8> {
        let of = |y: usize, x: usize, c: usize| {
            let noise = mix(seed, (y * width + x) * channels + c);
            match kind {
                0 => noise as u8,
                1 => (seed >> (8 * c)) as u8,
                2 => ((x * (c + 1) + y * 2) / 3) as u8,
                3 => ((x * 3 + y) / 2 + noise as usize % 4) as u8,
                4 => ((x / 9 + y / 7) % 2 * 255) as u8,
                5 => (if noise.is_multiple_of(50) { noise >> 8 } else { 200 }) as u8,
                // Repeated rows, and rows of repeated pixels.
                6 => mix(seed, x * channels + c) as u8,
                _ => mix(seed, y * channels + c) as u8,
            }
        };
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
        places.flat_map(|(y, x)| (0..channels).map(move |c| of(y, x, c))).collect()
    }

    fn picture(data: Vec<u8>, height: usize, width: usize) -> Image<Rgb> {
        Image::new(height, width, data).unwrap()
    }

    fn check(kind: u64, seed: u64, height: usize, width: usize, bands: usize, has_alpha: bool) -> usize {
        let colours = content(kind, seed, height, width, 3);
        let alpha =
            has_alpha.then(|| Gray::new(height, width, content(kind, !seed, height, width, 1)).unwrap());
        let pixels = picture(colours.clone(), height, width);
        let file = write_in(bands.min(height), &pixels, alpha.as_ref(), &Metadata::default());
        let raster = read(&file).unwrap();
        assert_eq!((raster.height, raster.width), (height, width));
        let same = match (&raster.samples, &alpha) {
            (Samples::Rgb(read), None) => *read == colours,
            (Samples::Rgba(read), Some(alpha)) => {
                let pixels = colours.as_chunks::<3>().0.iter().zip(alpha.data());
                read.as_chunks::<4>()
                    .0
                    .iter()
                    .eq(pixels.map(|([r, g, b], a)| [*r, *g, *b, *a]).collect::<Vec<_>>().iter())
            }
            _ => false,
        };
        assert!(same, "kind {kind}, seed {seed}, {height} x {width} in {bands}, alpha {has_alpha}");
        file.len()
    }

    #[test]
    fn what_is_written_is_read_again() {
        for seed in 0..4000 {
            let draw = |i: usize, n: usize| (mix(seed, i) >> 20) as usize % n;
            let (height, width) = match seed % 4 {
                0 => (1 + draw(0, 4), 1 + draw(1, 400)),
                1 => (1 + draw(0, 400), 1 + draw(1, 4)),
                _ => (1 + draw(0, 60), 1 + draw(1, 60)),
            };
            check(seed / 4 % 8, seed, height, width, 1 + draw(2, 4), seed / 32 % 3 == 0);
        }
    }

    #[test]
    fn pictures_of_many_blocks_and_chunks_are_read_again() {
        for kind in 0..8 {
            check(kind, kind, 700, 901, 1, false);
            check(kind, kind, 700, 301, 3, true);
            check(kind, kind, 2, 200_000, 2, false);
        }
    }

    #[test]
    fn nothing_grows_and_what_is_plain_gets_small() {
        let raw = 3 * 700 * 900;
        assert!(check(0, 1, 700, 900, 1, false) < raw + raw / 1000, "noise");
        // Pillow's have 3,409 and 4,582 bytes.
        assert!(check(1, 1, 700, 900, 1, false) < 5000, "one colour");
        assert!(check(4, 1, 700, 900, 1, false) < 9000, "a chess board");
    }

    #[test]
    fn checksums_of_pieces_are_that_of_the_whole() {
        let bytes = content(0, 5, 1, 200_000, 1);
        for cut in [0, 1, 5551, 65_521, 70_000, 200_000] {
            let (first, second) = bytes.split_at(cut);
            let [first, second_checksum] = [first, second].map(|piece| simd_adler32::adler32(&piece));
            assert_eq!(
                combine(first, second_checksum, second.len() as u64),
                simd_adler32::adler32(&&bytes[..])
            );
        }
    }
}
