//! Owned pictures whose colour order is part of their type.
//!
//! Does not: convert between float and integer pixels (`blend`, `tensor`) or change sizes (`pad`, `resize`).
//! Every module here builds on [`Image`], whose sides are never zero and whose buffer always fits its shape.

use std::fmt::Debug;
use std::marker::PhantomData;

/// Most pixels one picture may have. Pillow refuses to decode more than 178,956,970, so every picture that
/// upstream can open passes; the rest of the room is for padding. 768 MiB as RGB.
pub const MAX_PIXELS: usize = 1 << 28;

/// Longest side of a picture, pixels: beyond it OpenCV's float32 source coordinates are no longer exact.
pub const MAX_SIDE_PX: usize = 1 << 24;

/// Why a picture, or a picture derived from it, cannot exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A side is 0.
    #[error("picture of {height}x{width} pixels is empty")]
    Empty {
        /// Rows asked for.
        height: usize,
        /// Columns asked for.
        width: usize,
    },
    /// Over [`MAX_PIXELS`] or [`MAX_SIDE_PX`].
    #[error("picture of {height}x{width} pixels is too large")]
    TooLarge {
        /// Rows asked for.
        height: usize,
        /// Columns asked for.
        width: usize,
    },
    /// The buffer does not have `H * W * C` samples.
    #[error("buffer has {found} samples where {expected} are needed")]
    WrongLength {
        /// `H * W * C`.
        expected: usize,
        /// Length of the buffer given.
        found: usize,
    },
    /// The modulus is 0, or the least size is not a multiple of it. Upstream dies on both.
    #[error("pad rule with modulus {modulo} and least size {min_size:?} is impossible")]
    PadRule {
        /// The modulus, pixels.
        modulo: usize,
        /// The least side, pixels.
        min_size: Option<usize>,
    },
}

mod sealed {
    pub trait Sealed {}
}

/// How the samples of one pixel are ordered. Sealed: [`Rgb`], [`Bgr`] and [`Luma`] are all there are.
pub trait Layout: sealed::Sealed + Copy + Debug + PartialEq + Eq + 'static {
    /// Samples per pixel.
    const CHANNELS: usize;
}

/// Red, green, blue: what a decoder gives and a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rgb;
/// Blue, green, red: what OpenCV speaks and upstream's models return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bgr;
/// One sample per pixel: masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Luma;

impl sealed::Sealed for Rgb {}
impl sealed::Sealed for Bgr {}
impl sealed::Sealed for Luma {}
impl Layout for Rgb {
    const CHANNELS: usize = 3;
}
impl Layout for Bgr {
    const CHANNELS: usize = 3;
}
impl Layout for Luma {
    const CHANNELS: usize = 1;
}

/// An owned u8 picture, `(H, W, C)` row-major; sides 1 to [`MAX_SIDE_PX`], at most [`MAX_PIXELS`] pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<L: Layout> {
    height: usize,
    width: usize,
    data: Vec<u8>,
    layout: PhantomData<L>,
}

/// A `(H, W)` u8 mask or grey picture.
pub type Gray = Image<Luma>;

/// Pixels of an `height` x `width` picture, if such a picture may exist.
///
/// # Errors
/// [`ImageError::Empty`] if a side is 0, [`ImageError::TooLarge`] over [`MAX_PIXELS`] or [`MAX_SIDE_PX`].
pub(crate) fn pixels(height: usize, width: usize) -> Result<usize, ImageError> {
    if height == 0 || width == 0 {
        return Err(ImageError::Empty { height, width });
    }
    match height.checked_mul(width) {
        Some(area) if area <= MAX_PIXELS && height.max(width) <= MAX_SIDE_PX => Ok(area),
        _ => Err(ImageError::TooLarge { height, width }),
    }
}

impl<L: Layout> Image<L> {
    /// Takes `data`, `(H, W, C)` row-major, without copying it.
    ///
    /// # Errors
    /// [`ImageError::Empty`] if a side is 0, [`ImageError::TooLarge`] over [`MAX_PIXELS`] or
    /// [`MAX_SIDE_PX`], [`ImageError::WrongLength`] if `data` does not have `H * W * C` samples.
    pub fn new(height: usize, width: usize, data: Vec<u8>) -> Result<Self, ImageError> {
        // At most 3 * 2^28, which every usize of 32 bits and more holds.
        let expected = pixels(height, width)? * L::CHANNELS;
        if data.len() != expected {
            return Err(ImageError::WrongLength { expected, found: data.len() });
        }
        Ok(Self { height, width, data, layout: PhantomData })
    }

    /// A black picture.
    ///
    /// # Errors
    /// As [`Image::new`], the length excepted.
    pub fn black(height: usize, width: usize) -> Result<Self, ImageError> {
        let samples = pixels(height, width)? * L::CHANNELS;
        Ok(Self { height, width, data: vec![0; samples], layout: PhantomData })
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `(H, W)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// The samples, `(H, W, C)` row-major.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The buffer itself, `(H, W, C)` row-major.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Samples `left..right` (in pixels) of row `y`; the caller keeps them inside the picture.
    pub(crate) fn span(&self, y: usize, left: usize, right: usize) -> &[u8] {
        let row = y * self.width;
        &self.data[(row + left) * L::CHANNELS..(row + right) * L::CHANNELS]
    }

    pub(crate) fn span_mut(&mut self, y: usize, left: usize, right: usize) -> &mut [u8] {
        let row = y * self.width;
        &mut self.data[(row + left) * L::CHANNELS..(row + right) * L::CHANNELS]
    }

    fn relabel<M: Layout>(self) -> Image<M> {
        Image { height: self.height, width: self.width, data: self.data, layout: PhantomData }
    }
}

/// Exchanges the first and third sample of each pixel, in place.
fn swap_red_blue(data: &mut [u8]) {
    for pixel in data.chunks_exact_mut(3) {
        pixel.swap(0, 2);
    }
}

impl Image<Rgb> {
    /// The same picture in the other order, in the same buffer.
    pub fn into_bgr(mut self) -> Image<Bgr> {
        swap_red_blue(&mut self.data);
        self.relabel()
    }
}

impl Image<Bgr> {
    /// The same picture in the other order, in the same buffer.
    pub fn into_rgb(mut self) -> Image<Rgb> {
        swap_red_blue(&mut self.data);
        self.relabel()
    }
}
