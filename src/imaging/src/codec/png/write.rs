//! Pixels to a PNG file.
//!
//! Does not: interlace, write palettes, or keep any chunk but `parameters` and `eXIf`; upstream keeps no other.
//!
//! Large pictures are written by several threads, a band of rows each: the bands' streams follow each other, for
//! each but the last ends at a whole byte without ending the data. Nothing depends on the number of threads but
//! the file's bytes.

use std::num::NonZero;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use simd_adler32::Adler32;

use super::bits::Bits;
use super::deflate::Deflate;
use super::filter::{apply, choose};
use super::{PARAMETERS, SIGNATURE};
use crate::codec::Metadata;
use crate::image::{Gray, Image, Rgb};

/// A thread is worth its beginning and end for so many pixels; about 10 ms of work.
const PIXELS_PER_THREAD: usize = 1 << 20;

/// zlib's header: 32 KiB window, the fastest method; a multiple of 31.
const ZLIB: [u8; 2] = [0x78, 0x01];

/// Where Pillow's EXIF blocks have the number of their entries; with none Pillow writes no chunk.
const ENTRIES: Range<usize> = 8..10;

/// The picture as its rows are written.
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

    /// Row `y` as the file has it: the picture's own, or put together with alpha in `buffer`.
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

/// Rows `top..bottom` as data chunks after `out`, and the Adler-32 of what is compressed there.
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
    (stream.finish(bottom == source.pixels.height()), checksum.finish())
}

/// The Adler-32 of two pieces after each other, the second `length` bytes long.
///
/// Source: `adler32_combine` of zlib.
fn combine(first: u32, second: u32, length: u64) -> u32 {
    const BASE: u64 = 65521;
    let sums = |checksum: u32| (u64::from(checksum & 0xffff), u64::from(checksum >> 16));
    let ((a1, b1), (a2, b2)) = (sums(first), sums(second));
    // Each begins with a sum of 1, which must count once.
    let a = (a1 + a2 + BASE - 1) % BASE;
    let b = (b1 + b2 + length % BASE * (a1 + BASE - 1)) % BASE;
    (b << 16 | a) as u32
}

/// Appends the beginning of a chunk, up to its content; answers where it begins.
pub(super) fn open(out: &mut Vec<u8>, kind: &[u8; 4]) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
    start
}

/// Ends the chunk that begins at `start`: its length before, its checksum behind it.
pub(super) fn close(out: &mut Vec<u8>, start: usize) {
    // Far below 2^31, a block more than `bits::CHUNK` at most.
    let length = (out.len() - start - 8) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32fast::hash(&out[start + 4..]);
    out.extend_from_slice(&checksum.to_be_bytes());
}

fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], content: &[&[u8]]) {
    let start = open(out, kind);
    content.iter().for_each(|part| out.extend_from_slice(part));
    close(out, start);
}

/// The chunk for `parameters`: Latin-1 where the text allows it, as Pillow's `PngInfo.add_text` does it.
fn text(out: &mut Vec<u8>, value: &str) {
    match value.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<Vec<u8>, _>>() {
        Ok(latin_1) => chunk(out, b"tEXt", &[PARAMETERS, b"\0", &latin_1]),
        Err(_) => chunk(out, b"iTXt", &[PARAMETERS, b"\0\0\0\0\0", value.as_bytes()]),
    }
}

/// How many bands a picture of `height` x `width` pixels is written in.
fn bands(height: usize, width: usize) -> usize {
    let wanted = (height * width / PIXELS_PER_THREAD).min(height);
    // Asking for the processors reads files.
    if wanted < 2 { 1 } else { thread::available_parallelism().map_or(1, NonZero::get).min(wanted) }
}

/// A file of 8 bits per sample, RGB or (with `alpha`, of the same size) RGBA.
pub(super) fn write(pixels: &Image<Rgb>, alpha: Option<&Gray>, metadata: &Metadata) -> Vec<u8> {
    let (height, width) = pixels.shape();
    write_in(bands(height, width), pixels, alpha, metadata)
}

/// [`write`] in `bands` bands, at most one per row.
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
            // The system has no thread left; this one does it.
            Err(_) => one(i, Vec::new()),
        });
        (first, others.collect::<Vec<_>>())
    });
    for (i, (chunks, its_checksum)) in others.into_iter().enumerate() {
        out.extend_from_slice(&chunks);
        let rows = height * (i + 2) / bands - height * (i + 1) / bands;
        checksum = combine(checksum, its_checksum, rows as u64 * (1 + width * source.bpp()) as u64);
    }
    // The end of zlib's data, in a chunk of its own: no band knows it.
    chunk(&mut out, b"IDAT", &[&checksum.to_be_bytes()]);
    chunk(&mut out, b"IEND", &[]);
    out
}
