//! Parses the segments before a JPEG file's first scan, and checks whether Pillow opens the file.
//!
//! Does not: read scans; libjpeg reads the whole file again and checks the rest.
//!
//! Source: Pillow 10.4 `JpegImageFile._open` and the handlers of its markers.

use lamagrid_domain::PictureFormat;

use crate::codec::CodecError;

const SOF0: u8 = 0xc0;
const DHT: u8 = 0xc4;
const JPG: u8 = 0xc8;
const DAC: u8 = 0xcc;
const SOF15: u8 = 0xcf;
const RST0: u8 = 0xd0;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DQT: u8 = 0xdb;
const DHP: u8 = 0xde;
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP2: u8 = 0xe2;
const APP13: u8 = 0xed;
const APP14: u8 = 0xee;
const JPG0: u8 = 0xf0;
const JPG13: u8 = 0xfd;

pub(super) fn malformed(reason: impl Into<String>) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Jpeg, reason: reason.into() }
}

pub(super) fn unsupported(what: impl Into<String>) -> CodecError {
    CodecError::Unsupported { format: PictureFormat::Jpeg, what: what.into() }
}

/// The frame header; sides are not 0.
#[derive(Debug)]
pub(super) struct Frame {
    /// The marker SOF0 to SOF15 or DHP, without `0xff`.
    marker: u8,
    /// Bits per sample.
    precision: u8,
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) channels: u8,
}

impl Frame {
    fn parse(marker: u8, body: &[u8]) -> Result<Self, CodecError> {
        let &[precision, h1, h0, w1, w0, channels, ref components @ ..] = body else {
            return Err(malformed("frame header too short"));
        };
        if !components.len().is_multiple_of(3) {
            return Err(malformed("frame header of wrong length"));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        Ok(Self { marker, precision, width, height, channels })
    }

    /// Whether it is decoded here: baseline, extended or progressive; Huffman; 8 bits.
    pub(super) fn decodes(&self) -> bool {
        matches!(self.marker, 0xc0..=0xc2) && self.precision == 8 && matches!(self.channels, 1 | 3 | 4)
    }
}

/// The data of the segments before the first scan.
#[derive(Debug)]
pub(super) struct Prologue {
    pub(super) frame: Frame,
    /// The bodies of the EXIF segments, joined, without their prefixes.
    pub(super) exif: Option<Vec<u8>>,
}

impl Prologue {
    /// Reads the segments up to the first scan.
    ///
    /// # Errors
    /// [`CodecError::Malformed`] if Pillow does not open the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut markers = Markers { bytes, at: 2 };
        let mut frame = None;
        let mut exif: Option<Vec<u8>> = None;
        let mut has_profile = false;
        loop {
            let (marker, body) = markers.segment()?;
            match marker {
                SOS => {
                    let frame: Frame = frame.ok_or_else(|| malformed("a scan before the frame header"))?;
                    if frame.width == 0 || frame.height == 0 {
                        return Err(malformed("a side is 0"));
                    }
                    return Ok(Self { frame, exif });
                }
                DHT | JPG | DAC => {}
                SOF0..=SOF15 | DHP => frame = Some(Frame::parse(marker, body)?),
                DQT => check_quantization(body)?,
                APP1 if body.starts_with(b"Exif\0\0") => {
                    exif.get_or_insert_default().extend_from_slice(&body[6..]);
                }
                APP2 if body.starts_with(b"ICC_PROFILE\0") && !has_profile => {
                    has_profile = true;
                    check_length("ICC profile", body, 14)?;
                }
                APP0 if body.starts_with(b"JFIF") => check_length("JFIF header", body, 7)?,
                APP13 if body.starts_with(b"Photoshop 3.0\0") => check_photoshop(body)?,
                APP14 if body.starts_with(b"Adobe") => check_length("Adobe segment", body, 7)?,
                _ => {}
            }
        }
    }
}

/// Reads markers one by one.
struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Markers<'a> {
    /// The next marker and its body, which is empty for markers without one. Bytes between segments are skipped.
    fn segment(&mut self) -> Result<(u8, &'a [u8]), CodecError> {
        let marker = self.marker()?;
        if matches!(marker, JPG | RST0..=EOI | JPG0..=JPG13) {
            return Ok((marker, &[]));
        }
        let truncated = || malformed("truncated");
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk().ok_or_else(truncated)?)).max(2);
        self.at += length;
        Ok((marker, rest.get(2..length).ok_or_else(truncated)?))
    }

    fn marker(&mut self) -> Result<u8, CodecError> {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let here = memchr::memchr(0xff, rest).ok_or_else(|| malformed("truncated"))?;
            self.at += here + 1;
            match rest.get(here + 1) {
                None => return Err(malformed("truncated")),
                Some(0xff) => {}
                Some(0) => self.at += 1,
                Some(&marker @ SOF0..) => {
                    self.at += 1;
                    return Ok(marker);
                }
                Some(marker) => return Err(malformed(format!("marker 0x{marker:02x} between segments"))),
            }
        }
    }
}

fn check_length(what: &str, body: &[u8], least: usize) -> Result<(), CodecError> {
    if body.len() < least { Err(malformed(format!("{what} too short"))) } else { Ok(()) }
}

/// Checks quantisation tables up to the end of the segment. The high half of a table's first byte selects 8 or 16 bits.
fn check_quantization(mut body: &[u8]) -> Result<(), CodecError> {
    while let Some(&kind) = body.first() {
        let length = if kind >> 4 == 0 { 1 + 64 } else { 1 + 128 };
        body = body.get(length..).ok_or_else(|| malformed("quantization table too short"))?;
    }
    Ok(())
}

/// Checks Photoshop resources: Pillow fails if the segment ends before the length of a resource's name.
fn check_photoshop(body: &[u8]) -> Result<(), CodecError> {
    const RESOLUTION: u16 = 0x03ed;
    const RESOLUTION_BYTES: usize = 14;
    let mut at = 14;
    while let Some(resource) = body.get(at..).and_then(|rest| rest.strip_prefix(b"8BIM")) {
        let Some(code) = resource.first_chunk().map(|code| u16::from_be_bytes(*code)) else { break };
        let name = *resource.get(2).ok_or_else(|| malformed("Photoshop resource too short"))?;
        let start = (at + 7 + usize::from(name)).next_multiple_of(2);
        let Some(size) = body.get(start..).and_then(|rest| rest.first_chunk()) else { break };
        let data = start + 4;
        let end = data + u32::from_be_bytes(*size) as usize;
        if code == RESOLUTION && end.min(body.len()).saturating_sub(data) < RESOLUTION_BYTES {
            break;
        }
        at = end.next_multiple_of(2);
    }
    Ok(())
}
