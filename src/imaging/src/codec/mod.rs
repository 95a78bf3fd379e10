//! Decodes and encodes picture files as Pillow 10.4 and upstream's `load_img` and `pil_to_bytes` do.
//!
//! Does not: trust a header. Every size is checked against the caller's limit before memory is allocated, and a
//! file that contradicts its header is an error, never a panic.
//!
//! Invariant: decoded pixels equal Pillow's. Other files are refused as [`CodecError::Unsupported`], so that a caller
//! with Pillow can decode them.

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

/// A picture's mode in Pillow's terms.
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

/// The contents of a file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Detected from the content as Pillow does.
    pub format: PictureFormat,
    /// Columns, before the orientation is applied.
    pub width: u32,
    /// Rows, before the orientation is applied.
    pub height: u32,
    /// The mode in which Pillow opens it.
    pub mode: Mode,
    /// Whether [`decode`] supports files of this kind.
    pub decodes: bool,
}

/// Metadata that is copied from the input file to the answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The TIFF structure of the EXIF block (it begins with `II*\0` or `MM\0*`), as Pillow writes it back; that of a
    /// TIFF file is unchanged. [`decode`] keeps the orientation tag although the pixels are upright, as upstream does;
    /// [`decode_upright`] sets it to 1.
    pub exif: Option<Vec<u8>>,
    /// The PNG text chunk `parameters`.
    pub parameters: Option<String>,
}

/// A decoded picture, upright.
#[derive(Debug)]
pub struct Picture {
    /// Colours, not premultiplied.
    pub pixels: Image<Rgb>,
    /// Alpha of the same size; only for mode `RGBA`, because upstream drops it for other modes.
    pub alpha: Option<Gray>,
    /// Metadata for the answer.
    pub metadata: Metadata,
}

/// Why a file cannot be decoded or encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// No known format begins like this.
    #[error("it is no picture file of a known format")]
    UnknownFormat,
    /// This kind of file is not supported, because Pillow's result is not guaranteed.
    #[error("{format} pictures of this kind ({what}) are not supported")]
    Unsupported {
        /// The format.
        format: PictureFormat,
        /// The unsupported feature.
        what: String,
    },
    /// The file breaks the rules of its format.
    #[error("it is a damaged {format} file: {reason}")]
    Malformed {
        /// The format.
        format: PictureFormat,
        /// The broken rule.
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
    /// No image of this size can exist.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The result of a format's reader: samples as stored in the file, before the orientation is applied.
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
    /// Indices, and the RGB colours of the file's palette.
    P(Vec<u8>, Vec<[u8; 3]>),
    I16(Vec<u16>),
    /// In Pillow's representation: 0 is no ink.
    Cmyk(Vec<u8>),
}

/// Detects the format from the first bytes, as Pillow's plugins do.
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

/// Reads only a file's header.
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

/// Checks the size in the header before memory of that size is allocated.
fn admit(bytes: &[u8], max_pixels: u64) -> Result<Header, CodecError> {
    let header = probe(bytes)?;
    let Header { width, height, format, mode, decodes } = header;
    // No image exceeds MAX_PIXELS; beyond it, the readers' size calculations could overflow.
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

/// The EXIF block that Pillow's `getexif` reads, and the XMP packet in which Pillow looks for the orientation if EXIF
/// has none.
#[derive(Debug, Default)]
struct Tags {
    metadata: Metadata,
    xmp: Option<Vec<u8>>,
    /// Why the file's EXIF block cannot be read.
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

/// The orientation tag of an answer's EXIF block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Kept, as upstream does.
    Upstreams,
    /// Set to 1, because the pixels are upright.
    Upright,
}

/// Decodes a picture as upstream does: upright, RGB, with separate alpha for mode `RGBA`.
///
/// # Errors
/// [`CodecError`]; [`CodecError::TooLarge`] before memory is allocated.
///
/// Source: Lama Cleaner `helper.load_img`, 1.2.5, on Pillow 10.4.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Picture, CodecError> {
    decode_for(Answer::Upstreams, bytes, max_pixels)
}

/// Like [`decode`], but sets the orientation tag to 1 and leaves out EXIF that cannot be read.
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

/// Decodes a mask as upstream does: upright, grey, then 255 above 127, else 0.
///
/// # Errors
/// As [`decode`].
///
/// Source: Lama Cleaner `server.process`, 1.2.5, on Pillow 10.4.
pub fn decode_mask(bytes: &[u8], max_pixels: u64) -> Result<Gray, CodecError> {
    decode_mask_for(Answer::Upstreams, bytes, max_pixels)
}

/// Like [`decode_mask`], but leaves out EXIF that cannot be read.
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

/// Encodes a file. `quality` is Pillow's, 1 to 100, and only affects lossy formats.
///
/// # Errors
/// [`CodecError::Unsupported`] for a format that [`encodes`] rejects, or for alpha in JPEG;
/// [`CodecError::Malformed`] if the picture is larger than the format allows.
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
