//! Calls libwebp; no other module does.
//!
//! Does not: know Pillow's rules or modes. Sizes that libwebp reads from a file are checked before they are used for
//! pointers.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use libwebp_sys::{
    VP8StatusCode, WEBP_CSP_MODE, WebPBitstreamFeatures, WebPChunkIterator, WebPConfig, WebPData, WebPDecode,
    WebPDecoderConfig, WebPDemuxDelete, WebPDemuxGetChunk, WebPDemuxGetFrame, WebPDemuxGetI,
    WebPDemuxInternal, WebPDemuxReleaseChunkIterator, WebPDemuxReleaseIterator, WebPDemuxer, WebPEncode,
    WebPFormatFeature, WebPFreeDecBuffer, WebPGetDemuxABIVersion, WebPGetFeatures, WebPIterator, WebPPicture,
    WebPPictureFree, WebPRGBABuffer, WebPValidateConfig,
};

/// A parsed file; its pixels are still compressed.
pub(super) struct File<'a> {
    bytes: &'a [u8],
    demuxer: NonNull<WebPDemuxer>,
}

/// A rectangle of the canvas, with its compressed pixels.
pub(super) struct Frame<'a> {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) bitstream: &'a [u8],
}

impl<'a> File<'a> {
    /// Parses the container; `None` if libwebp refuses it or it is truncated.
    #[expect(unsafe_code, reason = "libwebp is C")]
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        let data = WebPData { bytes: bytes.as_ptr(), size: bytes.len() };
        // SAFETY: `data` is copied; its slice outlives the demuxer, which lives as long as `Self`.
        let demuxer = unsafe { WebPDemuxInternal(&data, 0, ptr::null_mut(), WebPGetDemuxABIVersion()) };
        Some(Self { bytes, demuxer: NonNull::new(demuxer)? })
    }

    /// Columns and rows of the canvas.
    #[expect(unsafe_code, reason = "libwebp is C")]
    pub(super) fn canvas(&self) -> (u32, u32) {
        // SAFETY: the demuxer lives.
        let number = |feature| unsafe { WebPDemuxGetI(self.demuxer.as_ptr(), feature) };
        (number(WebPFormatFeature::WEBP_FF_CANVAS_WIDTH), number(WebPFormatFeature::WEBP_FF_CANVAS_HEIGHT))
    }

    /// The first frame, or the picture itself if it is not animated; `None` if it exceeds the canvas.
    #[expect(unsafe_code, reason = "libwebp is C")]
    pub(super) fn first_frame(&self) -> Option<Frame<'a>> {
        let mut iterator = MaybeUninit::<WebPIterator>::zeroed();
        // SAFETY: the demuxer lives, and the iterator is plain numbers and pointers, all of which may be zero.
        let iterator = unsafe {
            if WebPDemuxGetFrame(self.demuxer.as_ptr(), 1, iterator.as_mut_ptr()) == 0 {
                return None;
            }
            WebPDemuxReleaseIterator(iterator.as_mut_ptr());
            iterator.assume_init()
        };
        let side = |side: c_int| usize::try_from(side).ok();
        let frame = Frame {
            left: side(iterator.x_offset)?,
            top: side(iterator.y_offset)?,
            width: side(iterator.width)?,
            height: side(iterator.height)?,
            bitstream: self.part(&iterator.fragment)?,
        };
        let (width, height) = self.canvas();
        (frame.left + frame.width <= width as usize && frame.top + frame.height <= height as usize)
            .then_some(frame)
    }

    /// The content of the first chunk with this name.
    #[expect(unsafe_code, reason = "libwebp is C")]
    pub(super) fn chunk(&self, name: &CStr) -> Option<&'a [u8]> {
        let mut iterator = MaybeUninit::<WebPChunkIterator>::zeroed();
        // SAFETY: as in `first_frame`; the name is four letters and a zero.
        let iterator = unsafe {
            if WebPDemuxGetChunk(self.demuxer.as_ptr(), name.as_ptr(), 1, iterator.as_mut_ptr()) == 0 {
                return None;
            }
            WebPDemuxReleaseChunkIterator(iterator.as_mut_ptr());
            iterator.assume_init()
        };
        self.part(&iterator.chunk)
    }

    /// The part of the file that libwebp points to.
    fn part(&self, data: &WebPData) -> Option<&'a [u8]> {
        let start = (data.bytes as usize).checked_sub(self.bytes.as_ptr() as usize)?;
        self.bytes.get(start..start.checked_add(data.size)?)
    }
}

impl Drop for File<'_> {
    #[expect(unsafe_code, reason = "libwebp is C")]
    fn drop(&mut self) {
        // SAFETY: it was made by `open` and nothing that came from it outlives `self`.
        unsafe { WebPDemuxDelete(self.demuxer.as_ptr()) }
    }
}

/// Whether `WebPGetFeatures` reports alpha; `None` if it refuses the file.
#[expect(unsafe_code, reason = "libwebp is C")]
pub(super) fn has_alpha(bytes: &[u8]) -> Option<bool> {
    let mut features = MaybeUninit::<WebPBitstreamFeatures>::zeroed();
    // SAFETY: pointer and length are one slice's, and the features are plain numbers.
    unsafe {
        let status = WebPGetFeatures(bytes.as_ptr(), bytes.len(), features.as_mut_ptr());
        (status == VP8StatusCode::VP8_STATUS_OK).then(|| features.assume_init().has_alpha != 0)
    }
}

/// The samples of a decoded pixel, one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    Rgb,
    Rgba,
}

impl Channels {
    pub(super) const fn count(self) -> usize {
        match self {
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

/// Decodes `frame` to its rectangle of a canvas with `stride` bytes per row. `None` if it is damaged or has another
/// size.
#[expect(unsafe_code, reason = "libwebp is C")]
pub(super) fn decode(frame: &Frame<'_>, canvas: &mut [u8], stride: usize, channels: Channels) -> Option<()> {
    let samples = channels.count();
    let first = frame.top * stride + frame.left * samples;
    // The last row may be shorter than the stride.
    let last = first + frame.height.checked_sub(1)? * stride + frame.width * samples;
    let place = canvas.get_mut(first..last)?;
    let mut config = WebPDecoderConfig::new().ok()?;
    config.output.colorspace = match channels {
        Channels::Rgb => WEBP_CSP_MODE::MODE_RGB,
        Channels::Rgba => WEBP_CSP_MODE::MODE_RGBA,
    };
    config.output.is_external_memory = 1;
    config.output.u.RGBA =
        WebPRGBABuffer { rgba: place.as_mut_ptr(), stride: c_int::try_from(stride).ok()?, size: place.len() };
    // SAFETY: input and output are live slices with their lengths, and libwebp refuses a picture for which the
    // output is too small.
    let status = unsafe {
        let status = WebPDecode(frame.bitstream.as_ptr(), frame.bitstream.len(), &mut config);
        WebPFreeDecBuffer(&mut config.output);
        status
    };
    (status == VP8StatusCode::VP8_STATUS_OK).then_some(())
}

/// Encodes `0xAARRGGBB` pixels, `width` per row, as lossy WebP with libwebp's defaults except for the quality.
/// `None` if libwebp refuses: a side is over 16383 or 0, or the quality is over 100.
#[expect(unsafe_code, reason = "libwebp is C")]
pub(super) fn encode(pixels: &mut [u32], width: usize, quality: u8) -> Option<Vec<u8>> {
    let mut file = Vec::new();
    let mut config = WebPConfig::new().ok()?;
    config.quality = f32::from(quality);
    let mut picture = WebPPicture::new().ok()?;
    picture.use_argb = 1;
    picture.width = c_int::try_from(width).ok()?;
    picture.height = c_int::try_from(pixels.len().checked_div(width)?).ok()?;
    picture.argb = pixels.as_mut_ptr();
    picture.argb_stride = picture.width;
    picture.writer = Some(append);
    picture.custom_ptr = (&raw mut file).cast();
    // SAFETY: `pixels` has `height` rows of `argb_stride`; it and `file` outlive the call, and `append` casts
    // `custom_ptr` back to its type. The picture's own allocations are freed; `pixels` is not among them.
    let encoded = unsafe {
        let encoded = WebPValidateConfig(&config) != 0 && WebPEncode(&config, &mut picture) != 0;
        WebPPictureFree(&mut picture);
        encoded
    };
    encoded.then_some(file)
}

/// Appends a part of the encoded file.
#[expect(unsafe_code, reason = "libwebp is C")]
unsafe extern "C" fn append(data: *const u8, size: usize, picture: *const WebPPicture) -> c_int {
    if size > 0 {
        // SAFETY: libwebp calls this from `encode` alone, with its picture, whose `custom_ptr` is a vector that
        // nothing else touches meanwhile, and with `size` readable bytes.
        unsafe {
            let file: &mut Vec<u8> = &mut *(*picture).custom_ptr.cast();
            file.extend_from_slice(slice::from_raw_parts(data, size));
        }
    }
    1
}
