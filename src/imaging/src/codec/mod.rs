//! Picture files to pixels and back, as Pillow 10.4 and upstream's `load_img` and `pil_to_bytes` do it.
//!
//! Does not: trust a header. Every size is checked against the caller's limit before anything is allocated, and
//! a file that is not what it says is an error, never a panic.
//!
//! The invariant worth knowing: what is decoded here has the pixels that Pillow gives, or is refused as
//! [`CodecError::Unsupported`]; a caller that has Pillow at hand lets it decode those.

use lamagrid_domain::PictureFormat;

use crate::image::{Gray, Image, ImageError, MAX_PIXELS, Rgb};

mod bmp;
mod convert;
mod exif;
mod gif;
mod ifd;
mod jpeg;
mod orient;
mod png;
mod tiff;
mod webp;

/// A picture's mode, by Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `1`: black and white.
    Bilevel,
    /// `L`: grey.
    L,
    /// `LA`: grey with alpha.
    La,
    /// `P`: a palette.
    P,
    /// `RGB`.
    Rgb,
    /// `RGBA`.
    Rgba,
    /// `CMYK`.
    Cmyk,
    /// `I;16`: 16-bit grey.
    I16,
    /// Any other, which is not decoded here.
    Other,
}

impl Mode {
    /// Pillow's name; `?` for [`Mode::Other`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bilevel => "1",
            Self::L => "L",
            Self::La => "LA",
            Self::P => "P",
            Self::Rgb => "RGB",
            Self::Rgba => "RGBA",
            Self::Cmyk => "CMYK",
            Self::I16 => "I;16",
            Self::Other => "?",
        }
    }
}

/// What a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// By content, as Pillow decides it.
    pub format: PictureFormat,
    /// Columns, before orientation.
    pub width: u32,
    /// Rows, before orientation.
    pub height: u32,
    /// As Pillow opens it.
    pub mode: Mode,
    /// Whether [`decode`] promises Pillow's pixels for files of this kind.
    pub decodes: bool,
}

/// What goes from the input file into the answer besides pixels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The TIFF structure of the EXIF block (it begins with `II*\0` or `MM\0*`), as Pillow writes it back (a TIFF
    /// file's own: as found). Of [`decode`], the orientation tag stays although the pixels are upright, as upstream does
    /// it; of [`decode_upright`] it is 1.
    pub exif: Option<Vec<u8>>,
    /// The PNG text chunk `parameters`.
    pub parameters: Option<String>,
}

/// A decoded picture, upright.
#[derive(Debug)]
pub struct Picture {
    /// Colours, not premultiplied.
    pub pixels: Image<Rgb>,
    /// Of the same size; there for mode `RGBA` alone, as upstream keeps no other.
    pub alpha: Option<Gray>,
    /// What is written back.
    pub metadata: Metadata,
}

/// Why a file has no pixels, or pixels no file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// No known format begins like this.
    #[error("it is no picture file of a known format")]
    UnknownFormat,
    /// Pillow's result is not promised for files of this kind.
    #[error("{format} pictures of this kind ({what}) are not supported")]
    Unsupported {
        /// The format.
        format: PictureFormat,
        /// Which kind.
        what: String,
    },
    /// The file breaks the rules of its format.
    #[error("it is a damaged {format} file: {reason}")]
    Malformed {
        /// The format.
        format: PictureFormat,
        /// Which rule.
        reason: String,
    },
    /// More pixels than the caller allows.
    #[error("it has {width} x {height} pixels, at most {max_pixels} are accepted")]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit.
        max_pixels: u64,
    },
    /// The pixels cannot exist.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What a format's reader gives: samples as the file has them, not yet upright.
#[derive(Debug)]
struct Raster {
    height: usize,
    width: usize,
    samples: Samples,
}

/// Row-major samples by mode.
#[derive(Debug)]
enum Samples {
    /// One byte per pixel; `1` comes as 0 and 255.
    L(Vec<u8>),
    La(Vec<u8>),
    Rgb(Vec<u8>),
    Rgba(Vec<u8>),
    /// Indices, and as many RGB colours as the file has.
    P(Vec<u8>, Vec<[u8; 3]>),
    I16(Vec<u16>),
    /// As Pillow holds it: 0 is no ink.
    Cmyk(Vec<u8>),
}

/// The format that `bytes` begin with, as Pillow's plugins decide it.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<PictureFormat> {
    let begins = |prefix: &[u8]| bytes.starts_with(prefix);
    if begins(b"\x89PNG\r\n\x1a\n") {
        Some(PictureFormat::Png)
    } else if begins(b"\xff\xd8\xff") {
        Some(PictureFormat::Jpeg)
    } else if begins(b"RIFF")
        && bytes.get(8..12) == Some(b"WEBP")
        && matches!(bytes.get(12..16), Some(b"VP8 " | b"VP8L" | b"VP8X"))
    {
        Some(PictureFormat::Webp)
    } else if begins(b"BM") {
        Some(PictureFormat::Bmp)
    } else if begins(b"GIF87a") || begins(b"GIF89a") {
        Some(PictureFormat::Gif)
    } else if let Some(b"II*\0" | b"II\0*" | b"II+\0" | b"MM\0*" | b"MM*\0" | b"MM\0+") = bytes.first_chunk()
    {
        Some(PictureFormat::Tiff)
    } else {
        None
    }
}

/// Reads a file's header, and nothing else of it.
///
/// # Errors
/// [`CodecError::UnknownFormat`], [`CodecError::Malformed`].
pub fn probe(bytes: &[u8]) -> Result<Header, CodecError> {
    match sniff(bytes).ok_or(CodecError::UnknownFormat)? {
        PictureFormat::Png => png::header(bytes),
        PictureFormat::Jpeg => jpeg::header(bytes),
        PictureFormat::Webp => webp::header(bytes),
        PictureFormat::Bmp => bmp::header(bytes),
        PictureFormat::Gif => gif::header(bytes),
        PictureFormat::Tiff => tiff::header(bytes),
    }
}

/// Checks the size that a header claims, before anything of that size is allocated.
fn admit(bytes: &[u8], max_pixels: u64) -> Result<Header, CodecError> {
    let header = probe(bytes)?;
    let Header { width, height, format, mode, decodes } = header;
    // Beyond the second limit no picture exists, and what readers reckon with sizes may overflow.
    if u64::from(width) * u64::from(height) > max_pixels.min(MAX_PIXELS as u64) {
        return Err(CodecError::TooLarge { width, height, max_pixels });
    }
    if !decodes {
        return Err(CodecError::Unsupported { format, what: format!("mode {}", mode.as_str()) });
    }
    Ok(header)
}

fn read(header: &Header, bytes: &[u8]) -> Result<Raster, CodecError> {
    match header.format {
        PictureFormat::Png => png::read(bytes),
        PictureFormat::Jpeg => jpeg::read(bytes),
        PictureFormat::Webp => webp::read(bytes),
        PictureFormat::Bmp => bmp::read(bytes),
        PictureFormat::Gif => gif::read(bytes),
        PictureFormat::Tiff => tiff::read(bytes),
    }
}

/// The block that Pillow's `getexif` reads, and the text of an XMP packet where Pillow looks for an
/// orientation that EXIF does not have.
#[derive(Debug, Default)]
struct Tags {
    metadata: Metadata,
    xmp: Option<Vec<u8>>,
    /// Why the EXIF block that the file has cannot be read.
    fault: Option<&'static str>,
}

fn tags(header: &Header, bytes: &[u8]) -> Tags {
    match header.format {
        PictureFormat::Png => png::tags(bytes),
        PictureFormat::Jpeg => jpeg::tags(bytes),
        PictureFormat::Webp => webp::tags(bytes),
        PictureFormat::Tiff => tiff::tags(bytes),
        PictureFormat::Bmp | PictureFormat::Gif => Tags::default(),
    }
}

/// Which answer the EXIF block of a file goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Upstream's, tag by tag.
    Upstreams,
    /// One that viewers show as it lies.
    Upright,
}

/// Decodes a picture as upstream does: upright, RGB, alpha apart for mode `RGBA`.
///
/// # Errors
/// [`CodecError`]; [`CodecError::TooLarge`] before anything is allocated.
///
/// Source: Lama Cleaner `helper.load_img`, 1.2.5, on Pillow 10.4.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Picture, CodecError> {
    decode_for(Answer::Upstreams, bytes, max_pixels)
}

/// As [`decode`], but the orientation that is written back is 1, and EXIF that cannot be read is left out.
///
/// # Errors
/// As [`decode`].
pub fn decode_upright(bytes: &[u8], max_pixels: u64) -> Result<Picture, CodecError> {
    decode_for(Answer::Upright, bytes, max_pixels)
}

fn decode_for(answer: Answer, bytes: &[u8], max_pixels: u64) -> Result<Picture, CodecError> {
    let header = admit(bytes, max_pixels)?;
    let tags = tags(&header, bytes);
    let mut exif = exif_of(answer, &tags, header.format)?;
    if answer == Answer::Upstreams && header.format == PictureFormat::Tiff && exif.orientation != 1 {
        exif.block = exif.block.and_then(|block| tiff::without_orientation(&block));
    }
    let (pixels, alpha) = convert::to_rgb(read(&header, bytes)?)?;
    let pixels = orient::upright(pixels, exif.orientation);
    let alpha = alpha.map(|alpha| orient::upright(alpha, exif.orientation));
    Ok(Picture { pixels, alpha, metadata: Metadata { exif: exif.block, ..tags.metadata } })
}

fn exif_of(answer: Answer, tags: &Tags, format: PictureFormat) -> Result<exif::Exif, CodecError> {
    match answer {
        Answer::Upstreams => exif::read(tags, format),
        Answer::Upright => Ok(exif::read_upright(tags, format)),
    }
}

/// Decodes a mask as upstream does: upright, grey, then 255 above 127 and 0 else.
///
/// # Errors
/// As [`decode`].
///
/// Source: Lama Cleaner `server.process`, 1.2.5, on Pillow 10.4.
pub fn decode_mask(bytes: &[u8], max_pixels: u64) -> Result<Gray, CodecError> {
    decode_mask_for(Answer::Upstreams, bytes, max_pixels)
}

/// As [`decode_mask`], but EXIF that cannot be read is left out.
///
/// # Errors
/// As [`decode`].
pub fn decode_mask_upright(bytes: &[u8], max_pixels: u64) -> Result<Gray, CodecError> {
    decode_mask_for(Answer::Upright, bytes, max_pixels)
}

fn decode_mask_for(answer: Answer, bytes: &[u8], max_pixels: u64) -> Result<Gray, CodecError> {
    let header = admit(bytes, max_pixels)?;
    let exif = exif_of(answer, &tags(&header, bytes), header.format)?;
    let grey = convert::to_luma(read(&header, bytes)?)?;
    Ok(orient::upright(convert::threshold(grey), exif.orientation))
}

/// Whether [`encode`] writes this format.
#[must_use]
pub fn encodes(format: PictureFormat) -> bool {
    !matches!(format, PictureFormat::Gif)
}

/// Writes a file: `quality` is Pillow's, 1 to 100, and only lossy formats read it.
///
/// # Errors
/// [`CodecError::Unsupported`] for a format that [`encodes`] denies, or alpha that the format has no room for
/// (JPEG); [`CodecError::Malformed`] if the picture is larger than the format allows.
///
/// Source: Lama Cleaner `helper.pil_to_bytes`, 1.2.5, on Pillow 10.4.
pub fn encode(
    pixels: &Image<Rgb>,
    alpha: Option<&Gray>,
    format: PictureFormat,
    quality: u8,
    metadata: &Metadata,
) -> Result<Vec<u8>, CodecError> {
    match format {
        PictureFormat::Png => png::write(pixels, alpha, metadata),
        PictureFormat::Jpeg => jpeg::write(pixels, alpha, quality, metadata),
        PictureFormat::Webp => webp::write(pixels, alpha, quality, metadata),
        PictureFormat::Bmp => bmp::write(pixels, alpha),
        PictureFormat::Tiff => tiff::write(pixels, alpha, metadata),
        PictureFormat::Gif => Err(CodecError::Unsupported { format, what: "writing".into() }),
    }
}
