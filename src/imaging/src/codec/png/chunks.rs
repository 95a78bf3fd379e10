//! Reads the chunks of a PNG file as Pillow does.
//!
//! Does not: decode pixel data; it finds the data and reads the chunks before and after it.
//!
//! Like Pillow, it is less strict than the specification: it accepts any order and repeated chunks, and checks no
//! checksum after the first pixel data.
//!
//! Source: Pillow `PngImagePlugin`, 10.4: `ChunkStream`, `PngImageFile`.

use super::SIGNATURE;
use super::info::{Fault, Info, Texts, u32_at};
use super::kind::Kind;

/// The chunk at which reading the headers stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// `IDAT`.
    Pixels,
    /// `fdAT`, a later frame of an animation.
    Frame,
    /// The end.
    Nothing,
}

/// A file that was read up to its pixels.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    bytes: &'a [u8],
    /// Starts at the content of the first pixel chunk.
    data: Data<'a>,
    pub(super) info: Info<'a>,
    pub(super) kind: Kind,
    pub(super) found: Found,
    texts: Texts,
}

/// Reads the chunk head at `at`: the kind, the offset of the content, and the stated length.
fn head(bytes: &[u8], at: usize) -> Result<([u8; 4], usize, usize), Fault> {
    let length = u32_at(bytes, at).ok_or("it ends early")?;
    let kind: [u8; 4] = *bytes.get(at + 4..).and_then(<[u8]>::first_chunk).ok_or("it ends early")?;
    if !kind.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_') {
        return Err("something where a chunk should be");
    }
    Ok((kind, at + 8, length as usize))
}

fn content(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], Fault> {
    bytes.get(at..).and_then(|rest| rest.get(..length)).ok_or("it ends early")
}

impl<'a> Opened<'a> {
    /// Reads up to the pixels.
    ///
    /// # Errors
    /// The reason for which Pillow does not open the file.
    pub(super) fn open(bytes: &'a [u8], texts: Texts) -> Result<Self, Fault> {
        let mut info = Info::default();
        let mut at = SIGNATURE.len();
        let (found, length) = loop {
            let (kind, start, length) = head(bytes, at)?;
            match &kind {
                // Pillow handles pixels of an unknown kind like an unknown chunk.
                b"IDAT" if info.kind.is_some() => {
                    if info.frame.is_none() && info.frames.is_some() {
                        info.default_image = true;
                        info.any = true;
                    }
                    at = start;
                    break (Found::Pixels, length);
                }
                b"fdAT" => {
                    info.frame_data(content(bytes, start, length.min(4))?)?;
                    break (Found::Frame, length);
                }
                b"IEND" => break (Found::Nothing, length),
                _ => {
                    let content = content(bytes, start, length)?;
                    info.take(kind, content, texts)?;
                    let end = start + length;
                    if u32_at(bytes, end) != Some(crc32fast::hash(&bytes[start - 4..end])) {
                        return Err("a chunk's checksum is wrong");
                    }
                    at = end + 4;
                }
            }
        };
        match info.kind {
            Some(kind) if info.width > 0 && info.height > 0 => {
                let data = Data { bytes, at, left: length, cut_off: false };
                Ok(Self { bytes, data, info, kind, found, texts })
            }
            _ => Err("its header says nothing of use"),
        }
    }

    /// The pixels' data.
    pub(super) fn data(&self) -> Data<'a> {
        self.data.clone()
    }

    /// Whether Pillow would take more pixels from chunks of other kinds.
    pub(super) fn goes_on(&self) -> bool {
        let data = self.data.end();
        head(self.bytes, data.at + 4).is_ok_and(|(kind, _, _)| matches!(&kind, b"DDAT" | b"fdAT"))
    }

    /// The metadata after reading the chunks behind the pixels, too.
    ///
    /// # Errors
    /// The reason for which Pillow raises an exception after decoding the pixels.
    pub(super) fn after(&self) -> Result<Info<'a>, Fault> {
        let data = self.data.end();
        if data.cut_off {
            return Err("it ends within its pixels");
        }
        let mut info = self.info.clone();
        let is_animated = info.is_animated();
        let mut at = data.at;
        // Pillow no longer checks checksums here, and accepts the end of the file instead of `IEND`.
        while let Ok((kind, start, length)) = head(self.bytes, at + 4) {
            match &kind {
                b"IEND" => break,
                b"fcTL" if is_animated => break,
                b"IDAT" => {}
                b"fdAT" => info.frame_data(content(self.bytes, start, length.min(4))?)?,
                _ => info.take(kind, content(self.bytes, start, length)?, self.texts)?,
            }
            at = start + content(self.bytes, start, length)?.len();
        }
        Ok(info)
    }
}

/// The contents of the `IDAT` chunks that follow each other.
#[derive(Debug, Clone)]
pub(super) struct Data<'a> {
    bytes: &'a [u8],
    /// Read position in the current chunk, which states `left` more bytes.
    at: usize,
    left: usize,
    /// Whether the file ends within a chunk.
    cut_off: bool,
}

impl Data<'_> {
    /// The state after the last pixel chunk.
    fn end(&self) -> Self {
        let mut data = self.clone();
        data.by_ref().for_each(drop);
        data
    }
}

impl<'a> Iterator for Data<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.cut_off {
            return None;
        }
        if self.left == 0 {
            let (kind, start, length) = head(self.bytes, self.at + 4).ok()?;
            if &kind != b"IDAT" {
                return None;
            }
            (self.at, self.left) = (start, length);
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let piece = &rest[..self.left.min(rest.len())];
        self.cut_off = piece.len() < self.left;
        self.at += piece.len();
        self.left = 0;
        Some(piece)
    }
}
