//! Collects the metadata in the chunks of a PNG file as Pillow does.
//!
//! Does not: find chunks or check their checksums and order; `chunks` does. Every [`Fault`] is an exception in Pillow.
//!
//! Source: Pillow `PngImagePlugin.PngStream`, 10.4.

use fdeflate::Decompressor;

use super::PARAMETERS;
use super::kind::Kind;
use crate::codec::{Mode, exif};

/// Maximum size of one compressed text and of all texts, bytes: Pillow's `MAX_TEXT_CHUNK` and `MAX_TEXT_MEMORY`.
const MAX_TEXT: usize = 1 << 20;
const MAX_TEXTS: usize = 64 * MAX_TEXT;

/// The reason of an exception in Pillow.
pub(super) type Fault = &'static str;

/// The metadata so far; of several chunks of a kind the last one counts.
#[derive(Debug, Default, Clone)]
pub(super) struct Info<'a> {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) kind: Option<Kind>,
    pub(super) interlaced: bool,
    /// Colours, three bytes each.
    pub(super) palette: Option<&'a [u8]>,
    /// Whether Pillow's `info` has any entry.
    pub(super) any: bool,
    pub(super) parameters: Option<String>,
    /// The text `XML:com.adobe.xmp`.
    pub(super) xmp: Option<Vec<u8>>,
    /// The EXIF block, possibly with a prefix before the TIFF structure.
    pub(super) exif: Option<Vec<u8>>,
    /// The text `Raw profile type exif`.
    raw_profile: Option<String>,
    /// Number of frames of an animation.
    pub(super) frames: Option<u32>,
    sequence: Option<u32>,
    /// Left, top, right and bottom of the current frame.
    pub(super) frame: Option<[u64; 4]>,
    pub(super) default_image: bool,
    /// Bytes of text so far.
    texts: usize,
    /// Content that Pillow accepts, but whose result is not reproduced here.
    pub(super) odd: Option<Fault>,
}

/// A text's value: Latin-1 from `tEXt` and `zTXt`, or UTF-8 from `iTXt`.
enum Text<'t> {
    /// From a chunk that is not compressed.
    Latin1(&'t [u8]),
    /// Latin-1, from a compressed chunk.
    Inflated(&'t [u8]),
    Utf8(&'t str),
}

impl Text<'_> {
    fn decoded(&self) -> String {
        match self {
            Self::Latin1(bytes) | Self::Inflated(bytes) => bytes.iter().copied().map(char::from).collect(),
            Self::Utf8(text) => (*text).to_owned(),
        }
    }
}

/// Whether texts and profiles are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texts {
    Read,
    Skip,
}

/// The big-endian number at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The bytes before the first 0 and those after it.
fn split_at_nul(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let nul = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..nul], &bytes[nul + 1..]))
}

/// Inflates a text or a profile; `None` if its data is damaged.
fn inflate(data: &[u8], odd: &mut Option<Fault>) -> Result<Option<Vec<u8>>, Fault> {
    // More than the longest repeat, because fdeflate 0.3.7 omits one that does not fit from its checksum.
    const ROOM: usize = 1 << 10;
    let mut inflater = Decompressor::new();
    let mut out = vec![0; data.len().clamp(ROOM, MAX_TEXT)];
    let (mut read, mut written) = (0, 0);
    while !inflater.is_done() {
        let Ok((more_read, more_written)) = inflater.read(&data[read..], &mut out, written, false) else {
            return Ok(None);
        };
        read += more_read;
        written += more_written;
        if written > MAX_TEXT {
            return Err("a text of more than 1 MiB");
        }
        if written == out.len() {
            out.resize((2 * written).min(MAX_TEXT + ROOM), 0);
        } else if !inflater.is_done() {
            // The data is truncated. Pillow uses the available part, but not always the same length of it.
            if !data.is_empty() {
                *odd = Some("a text that is cut off");
            }
            break;
        }
    }
    out.truncate(written);
    Ok(Some(out))
}

impl<'a> Info<'a> {
    /// Reads a chunk and ignores unknown kinds.
    pub(super) fn take(&mut self, kind: [u8; 4], content: &'a [u8], texts: Texts) -> Result<(), Fault> {
        let at_least =
            |length: usize| if content.len() < length { Err("a chunk is too short") } else { Ok(()) };
        match &kind {
            b"IHDR" => self.header(content)?,
            b"PLTE" if self.kind.is_some_and(|kind| kind.mode() == Mode::P) => {
                self.palette = Some(content);
            }
            b"tRNS" => match self.kind.map(Kind::mode) {
                Some(Mode::P) => self.any = true,
                Some(Mode::Bilevel | Mode::L | Mode::I16) => {
                    at_least(2)?;
                    self.any = true;
                }
                Some(Mode::Rgb) => {
                    at_least(6)?;
                    self.any = true;
                }
                _ => {}
            },
            b"gAMA" => {
                at_least(4)?;
                self.any = true;
            }
            b"cHRM" => {
                if !content.len().is_multiple_of(4) {
                    return Err("a chunk is too short");
                }
                self.any = true;
            }
            b"sRGB" => {
                at_least(1)?;
                self.any = true;
            }
            b"pHYs" => {
                at_least(9)?;
                self.any |= content[8] <= 1;
            }
            b"iCCP" => {
                self.any = true;
                if texts == Texts::Read {
                    self.profile(content)?;
                }
            }
            b"tEXt" | b"zTXt" | b"iTXt" if texts == Texts::Skip => self.any = true,
            b"tEXt" => {
                let (key, value) = split_at_nul(content).unwrap_or((content, &[]));
                if !key.is_empty() {
                    self.text(key, &Text::Latin1(value))?;
                }
            }
            b"zTXt" => {
                let (key, value) = split_at_nul(content).unwrap_or((content, &[]));
                if value.first().is_some_and(|method| *method != 0) {
                    return Err("a text of an unknown compression");
                }
                let value = inflate(value.get(1..).unwrap_or_default(), &mut self.odd)?.unwrap_or_default();
                if !key.is_empty() {
                    self.text(key, &Text::Inflated(&value))?;
                }
            }
            b"iTXt" => self.international_text(content)?,
            b"eXIf" => {
                self.exif = Some([exif::PREFIX, content].concat());
                self.any = true;
            }
            b"acTL" => {
                at_least(8)?;
                let frames = u32_at(content, 0).filter(|frames| (1..=0x8000_0000).contains(frames));
                if self.frames.is_some() {
                    self.frames = None;
                } else if frames.is_some() {
                    self.frames = frames;
                    self.any = true;
                }
            }
            b"fcTL" => {
                at_least(26)?;
                self.follow(content, self.sequence.map_or(Some(0), |last| last.checked_add(1)))?;
                let field = |i: usize| u64::from(u32_at(content, 4 * i).unwrap_or_default());
                let (right, bottom) = (field(3) + field(1), field(4) + field(2));
                if right > self.width.into() || bottom > self.height.into() {
                    return Err("a frame does not fit into the picture");
                }
                self.frame = Some([field(3), field(4), right, bottom]);
                self.any = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn header(&mut self, content: &[u8]) -> Result<(), Fault> {
        let fields = content.get(8..).and_then(<[u8]>::first_chunk);
        let (Some(width), Some(height), Some(&[depth, colour_type, _, filter, interlace])) =
            (u32_at(content, 0), u32_at(content, 4), fields)
        else {
            return Err("the header is too short");
        };
        (self.width, self.height) = (width, height);
        if let Some(kind) = Kind::of(depth, colour_type) {
            self.kind = Some(kind);
        }
        if interlace != 0 {
            self.interlaced = true;
            self.any = true;
        }
        if filter != 0 { Err("unknown filters") } else { Ok(()) }
    }

    /// Checks the sequence number at the start of an animation's chunk.
    fn follow(&mut self, content: &[u8], expected: Option<u32>) -> Result<(), Fault> {
        let number = u32_at(content, 0);
        if number.is_none() || number != expected {
            return Err("the chunks of its animation are out of order");
        }
        self.sequence = number;
        Ok(())
    }

    /// Checks the start of a later frame's pixels; an earlier chunk of the animation must precede it.
    pub(super) fn frame_data(&mut self, content: &[u8]) -> Result<(), Fault> {
        self.follow(content, self.sequence.and_then(|last| last.checked_add(1)))
    }

    /// Checks a colour profile. It is not used, but Pillow fails if it is too large.
    fn profile(&mut self, content: &[u8]) -> Result<(), Fault> {
        // Without a 0, Pillow reads the first byte as the compression method.
        let method = content.iter().position(|byte| *byte == 0).map_or(0, |nul| nul + 1);
        match content.get(method) {
            Some(0) => {}
            _ => return Err("a profile of an unknown compression"),
        }
        let profile = inflate(&content[method + 1..], &mut self.odd)?;
        self.count_text(profile.map_or(0, |profile| profile.len()))
    }

    fn international_text(&mut self, content: &[u8]) -> Result<(), Fault> {
        let Some((key, rest)) = split_at_nul(content) else { return Ok(()) };
        let Some((&[compressed, method], rest)) = rest.split_first_chunk() else { return Ok(()) };
        let Some((language, rest)) = split_at_nul(rest) else { return Ok(()) };
        let Some((translated, value)) = split_at_nul(rest) else { return Ok(()) };
        let inflated;
        let value = match (compressed, method) {
            (0, _) => value,
            (_, 0) => {
                let Some(text) = inflate(value, &mut self.odd)? else { return Ok(()) };
                inflated = text;
                &inflated
            }
            _ => return Ok(()),
        };
        // Pillow adds an entry to `info` even if the text is not UTF-8, under a name that is not used here.
        self.any |= key == b"XML:com.adobe.xmp";
        let utf8 = [language, translated].into_iter().all(|text| std::str::from_utf8(text).is_ok());
        match std::str::from_utf8(value) {
            Ok(value) if utf8 => self.text(key, &Text::Utf8(value)),
            _ => Ok(()),
        }
    }

    fn count_text(&mut self, length: usize) -> Result<(), Fault> {
        self.texts += length;
        if self.texts > MAX_TEXTS { Err("more than 64 MiB of text") } else { Ok(()) }
    }

    /// Stores a text under its key. Pillow keeps an uncompressed `exif` as bytes.
    fn text(&mut self, key: &[u8], value: &Text<'_>) -> Result<(), Fault> {
        self.any = true;
        match key {
            PARAMETERS => self.parameters = Some(value.decoded()),
            b"Raw profile type exif" => self.raw_profile = Some(value.decoded()),
            b"XML:com.adobe.xmp" => self.xmp = Some(value.decoded().into_bytes()),
            b"exif" => match value {
                Text::Latin1(bytes) => self.exif = Some(bytes.to_vec()),
                _ => self.odd = Some("EXIF as text"),
            },
            // In Pillow, texts share a dictionary with entries that it reads itself.
            b"interlace" | b"bbox" | b"transparency" | b"default_image" => {
                self.odd = Some("a text of a name that Pillow uses");
            }
            _ => {}
        }
        self.count_text(match value {
            Text::Latin1(bytes) | Text::Inflated(bytes) => bytes.len(),
            Text::Utf8(text) => text.chars().count(),
        })
    }

    /// The TIFF structure that `getexif` reads, if any.
    pub(super) fn exif_block(&self) -> Result<Option<Vec<u8>>, Fault> {
        let block = match (&self.exif, &self.raw_profile) {
            (Some(exif), _) => exif.clone(),
            (None, Some(profile)) => from_hex(profile.split('\n').skip(3))?,
            (None, None) => return Ok(None),
        };
        let block = exif::strip_prefix(&block);
        Ok((!block.is_empty()).then(|| block.to_vec()))
    }

    /// The inputs of `getexif`: EXIF, EXIF as text, XMP.
    pub(super) fn tags(&self) -> [Option<&[u8]>; 3] {
        [self.exif.as_deref(), self.raw_profile.as_deref().map(str::as_bytes), self.xmp.as_deref()]
    }

    pub(super) fn is_animated(&self) -> bool {
        self.frames.is_some_and(|frames| frames > 1 || self.default_image)
    }
}

/// Python's `bytes.fromhex` of the joined lines.
fn from_hex<'t>(lines: impl Iterator<Item = &'t str>) -> Result<Vec<u8>, Fault> {
    const FAULT: Fault = "an EXIF profile that is not hexadecimal";
    let is_space = |c: &char| matches!(c, ' ' | '\t'..='\r');
    let mut digits = lines.flat_map(str::chars);
    let mut bytes = Vec::new();
    while let Some(high) = digits.by_ref().find(|c| !is_space(c)) {
        let low = digits.next().and_then(|c| c.to_digit(16)).ok_or(FAULT)?;
        bytes.push((high.to_digit(16).ok_or(FAULT)? << 4 | low) as u8);
    }
    Ok(bytes)
}
