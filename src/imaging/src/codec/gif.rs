//! GIF files: the first frame, on the canvas that Pillow gives it.
//!
//! Does not: write files, decode later frames, or apply transparency. The canvas outside the frame has the
//! transparent index, else 0.
//!
//! Source: Pillow 10.4 `GifImagePlugin.py` and `GifDecode.c`.

use weezl::decode::Configuration;
use weezl::{BitOrder, LzwStatus};

use lamagrid_domain::PictureFormat;

use super::{CodecError, Header, Mode, Raster, Samples};

/// Initial step by which the buffer of the decoded frame grows, samples.
const FIRST_SAMPLES: usize = 1 << 16;

/// The headers before the pixels of the first frame.
struct Layout<'a> {
    width: u16,
    height: u16,
    /// The colours; `None` for a grey picture without a palette.
    palette: Option<&'a [[u8; 3]]>,
    /// Whether Pillow confuses a grey local palette with a coloured global one.
    ambiguous: bool,
    /// Index of the canvas outside the frame.
    background: u8,
    left: u16,
    top: u16,
    frame_width: u16,
    frame_height: u16,
    interlaced: bool,
    code_bits: u8,
    /// The file from the first block of compressed pixels on.
    data: &'a [u8],
}

impl Layout<'_> {
    fn mode(&self) -> Mode {
        if self.palette.is_some() { Mode::P } else { Mode::L }
    }

    /// Whether the frame is decoded here. For other code sizes Pillow's decoder deviates from the specification.
    fn decodes(&self) -> bool {
        !self.ambiguous && matches!(self.code_bits, 2..=8) && self.frame_width > 0 && self.frame_height > 0
    }
}

fn malformed(reason: &str) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Gif, reason: reason.into() }
}

fn unsupported(what: &str) -> CodecError {
    CodecError::Unsupported { format: PictureFormat::Gif, what: what.into() }
}

/// The unread rest of a file.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// Reads a block with its length; `None` if the length is 0. A truncated block is returned as it is.
    fn block(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?);
        if length == 0 { None } else { self.take(length.min(self.0.len())) }
    }

    /// Reads the palette whose size is in `flags`; the inner value is `None` for a grey ramp, which Pillow does not
    /// treat as a palette.
    fn palette(&mut self, flags: u8) -> Option<Option<&'a [[u8; 3]]>> {
        let colours = self.take(6 << (flags & 7))?.as_chunks().0;
        let needed = colours.iter().enumerate().any(|(index, colour)| *colour != [index as u8; 3]);
        Some(needed.then_some(colours))
    }
}

fn layout(bytes: &[u8]) -> Result<Layout<'_>, CodecError> {
    first_frame(bytes).ok_or_else(|| malformed("it ends before a frame begins"))
}

fn first_frame(bytes: &[u8]) -> Option<Layout<'_>> {
    let mut reader = Reader(bytes);
    let screen = reader.take(13)?;
    let number = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (width, height) = (number(screen, 6), number(screen, 8));
    let global = if screen[10] & 0x80 != 0 { reader.palette(screen[10])? } else { None };
    let mut transparent = None;
    loop {
        match reader.byte()? {
            b';' => return None,
            b'!' => {
                let label = reader.byte()?;
                let block = reader.block();
                match (label, block) {
                    (0xf9, Some(&[flags, _, _, index, ..])) if flags & 1 != 0 => transparent = Some(index),
                    (0xf9, Some(&[_, _, _, _, ..])) => {}
                    // Pillow accepts a block without the index if transparency is off.
                    (0xf9, Some(&[flags, _, _])) if flags & 1 == 0 => {}
                    (0xf9, Some(_)) => return None,
                    // An empty comment has already ended.
                    (0xfe, None) => continue,
                    (0xff, Some(name)) if name.starts_with(b"NETSCAPE2.0") => {
                        reader.block();
                    }
                    _ => {}
                }
                while reader.block().is_some_and(|block| !block.is_empty()) {}
            }
            b',' => {
                let frame = reader.take(9)?;
                let (left, top) = (number(frame, 0), number(frame, 2));
                let (frame_width, frame_height) = (number(frame, 4), number(frame, 6));
                let flags = frame[8];
                let local = if flags & 0x80 != 0 { Some(reader.palette(flags)?) } else { None };
                return Some(Layout {
                    // The frame extends the canvas.
                    width: width.max(left.checked_add(frame_width)?),
                    height: height.max(top.checked_add(frame_height)?),
                    palette: local.unwrap_or(global),
                    ambiguous: local == Some(None) && global.is_some(),
                    background: transparent.unwrap_or(0),
                    left,
                    top,
                    frame_width,
                    frame_height,
                    interlaced: flags & 0x40 != 0,
                    code_bits: reader.byte()?,
                    data: reader.0,
                });
            }
            _ => {}
        }
    }
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, CodecError> {
    let layout = layout(bytes)?;
    let (width, height) = (u32::from(layout.width), u32::from(layout.height));
    if width == 0 || height == 0 {
        return Err(malformed("it has no pixels"));
    }
    let (mode, decodes) = (layout.mode(), layout.decodes());
    Ok(Header { format: PictureFormat::Gif, width, height, mode, decodes })
}

pub(super) fn read(bytes: &[u8]) -> Result<Raster, CodecError> {
    let layout = layout(bytes)?;
    if !layout.decodes() {
        return Err(unsupported("code sizes or palettes"));
    }
    let (width, height) = (usize::from(layout.width), usize::from(layout.height));
    let (columns, rows) = (usize::from(layout.frame_width), usize::from(layout.frame_height));
    let frame = decompress(layout.data, layout.code_bits, columns * rows)?;
    let canvas = if (columns, rows) == (width, height) && !layout.interlaced {
        frame
    } else {
        let mut canvas = vec![layout.background; width * height];
        for (y, from) in row_order(rows, layout.interlaced).zip(frame.chunks_exact(columns)) {
            let start = (usize::from(layout.top) + y) * width + usize::from(layout.left);
            canvas[start..start + columns].copy_from_slice(from);
        }
        canvas
    };
    let samples = match layout.palette {
        Some(palette) => Samples::P(canvas, palette.to_vec()),
        None => Samples::L(canvas),
    };
    Ok(Raster { height, width, samples })
}

/// The frame's row for each row of the data.
fn row_order(rows: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..rows).step_by(step))
}

/// Decompresses the first `count` samples.
///
/// # Errors
/// [`CodecError::Malformed`] if the file ends first; [`CodecError::Unsupported`] if the codes are invalid or end
/// first: Pillow's first attempt fails, and upstream continues with its partial result.
fn decompress(data: &[u8], code_bits: u8, count: usize) -> Result<Vec<u8>, CodecError> {
    let mut reader = Reader(data);
    let mut codes = Vec::new();
    let complete = loop {
        // Pillow ignores a truncated block.
        match reader.byte().map(|length| (length, reader.take(length.into()))) {
            Some((0, _)) => break true,
            Some((_, Some(block))) => codes.extend_from_slice(block),
            _ => break false,
        }
    };
    let mut decoder = Configuration::new(BitOrder::Lsb, code_bits).with_yield_on_full_buffer(true).build();
    let mut codes = codes.as_slice();
    let mut samples = Vec::new();
    let mut filled = 0;
    while filled < count {
        if filled == samples.len() {
            samples.resize(count.min(FIRST_SAMPLES.max(2 * filled)), 0);
        }
        let step = decoder.decode_bytes(codes, &mut samples[filled..]);
        codes = &codes[step.consumed_in..];
        filled += step.consumed_out;
        match step.status {
            Ok(LzwStatus::Ok) if step.consumed_in > 0 || step.consumed_out > 0 => {}
            _ if filled == count => {}
            Ok(LzwStatus::Ok | LzwStatus::NoProgress) if !complete => {
                return Err(malformed("its pixels are cut short"));
            }
            _ => return Err(unsupported("damaged pixels")),
        }
    }
    Ok(samples)
}
