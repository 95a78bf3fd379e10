//! Calls libjpeg-turbo through `libjpeg.c`; no other module does.
//!
//! Does not: know markers, modes or EXIF. Output has exactly the size that the caller read from the header; if
//! libjpeg finds another size, the file is refused before a pixel is written.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::{ptr, slice};

// Links the library.
use turbojpeg_sys as _;

/// `JMSG_LENGTH_MAX`.
const MESSAGE_BYTES: usize = 200;

const DONE: c_int = 0;
const TOO_MANY_SCANS: c_int = 2;

#[expect(unsafe_code, reason = "libjpeg is C")]
unsafe extern "C" {
    fn lamagrid_jpeg_decode(
        file: *const u8,
        length: usize,
        width: c_uint,
        height: c_uint,
        channels: c_int,
        max_scans: c_int,
        pixels: *mut u8,
        message: *mut c_char,
    ) -> c_int;

    fn lamagrid_jpeg_encode(
        pixels: *const u8,
        width: c_uint,
        height: c_uint,
        quality: c_int,
        exif: *const u8,
        exif_length: c_uint,
        file: *mut *mut u8,
        length: *mut usize,
        message: *mut c_char,
    ) -> c_int;
}

/// Why decoding or encoding failed.
pub(super) enum Failure {
    /// The file has more scans than allowed.
    TooManyScans,
    /// libjpeg's error message.
    Refused(String),
}

impl Failure {
    fn new(outcome: c_int, message: &[u8]) -> Self {
        if outcome == TOO_MANY_SCANS {
            return Self::TooManyScans;
        }
        let text = CStr::from_bytes_until_nul(message).unwrap_or_default();
        Self::Refused(text.to_string_lossy().into_owned())
    }
}

/// Decodes a file whose header states this size: grey, RGB, or CMYK as stored.
#[expect(unsafe_code, reason = "libjpeg is C")]
pub(super) fn decode(
    bytes: &[u8],
    (width, height): (u16, u16),
    channels: u8,
    max_scans: u16,
) -> Result<Vec<u8>, Failure> {
    let mut pixels = vec![0; usize::from(width) * usize::from(height) * usize::from(channels)];
    let mut message = [0; MESSAGE_BYTES];
    // SAFETY: input and output are live slices; the output has the size that the function is told, and it refuses
    // a file of another size. The message has room for `JMSG_LENGTH_MAX` bytes.
    let outcome = unsafe {
        lamagrid_jpeg_decode(
            bytes.as_ptr(),
            bytes.len(),
            width.into(),
            height.into(),
            channels.into(),
            max_scans.into(),
            pixels.as_mut_ptr(),
            message.as_mut_ptr().cast(),
        )
    };
    if outcome == DONE { Ok(pixels) } else { Err(Failure::new(outcome, &message)) }
}

/// Encodes rows of `width` RGB pixels with libjpeg's defaults, which are 4:2:0 and the Huffman tables of the
/// standard, and the body of an APP1 segment.
#[expect(unsafe_code, reason = "libjpeg is C")]
pub(super) fn encode(pixels: &[u8], width: u16, quality: u8, exif: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut file = ptr::null_mut();
    let mut length = 0;
    let mut message = [0; MESSAGE_BYTES];
    let height = pixels.len() / (3 * usize::from(width)).max(1);
    // SAFETY: the input has `width * height * 3` bytes, the segment its length, the message as above. The function
    // sets `file` to null or to `length` bytes from `malloc`, which are copied and freed here.
    unsafe {
        let outcome = lamagrid_jpeg_encode(
            pixels.as_ptr(),
            width.into(),
            height as c_uint, // libjpeg refuses sides over 65500
            quality.into(),
            exif.as_ptr(),
            exif.len() as c_uint, // libjpeg refuses segments over 65533
            &mut file,
            &mut length,
            message.as_mut_ptr().cast(),
        );
        let result = if outcome == DONE {
            Ok(slice::from_raw_parts(file, length).to_vec())
        } else {
            Err(Failure::new(outcome, &message))
        };
        libc::free(file.cast());
        result
    }
}
