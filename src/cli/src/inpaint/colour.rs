//! Makes a mask of the area that has a certain colour in the picture itself.

use std::fmt;
use std::str::FromStr;

use lamagrid_domain::{Failure, FailureKind, PictureFormat};
use lamagrid_imaging::codec::{self, Metadata};
use lamagrid_imaging::{Image, Rgb};

/// A colour as red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Colour([u8; 3]);

/// The error for a text that is no colour.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a colour as '#' and six hexadecimal digits, for example '#ff00ff'")]
pub(crate) struct ColourError;

impl FromStr for Colour {
    type Err = ColourError;

    fn from_str(text: &str) -> Result<Self, ColourError> {
        let digits = text.strip_prefix('#').unwrap_or(text);
        if digits.len() != 6 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ColourError);
        }
        let [_, red, green, blue] = u32::from_str_radix(digits, 16).map_err(|_| ColourError)?.to_be_bytes();
        Ok(Self([red, green, blue]))
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

/// A colour and the colours that count as it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColourRange {
    pub(crate) colour: Colour,
    /// Largest difference of each of red, green and blue.
    pub(crate) tolerance: u8,
}

impl ColourRange {
    fn holds(&self, pixel: [u8; 3]) -> bool {
        pixel.iter().zip(self.colour.0).all(|(a, b)| a.abs_diff(b) <= self.tolerance)
    }

    /// Makes the mask of a picture file, as a PNG file. Decodes the picture, so it takes processor time.
    ///
    /// # Errors
    /// `InvalidInput` if the picture cannot be decoded or has no pixel of the colour.
    pub(crate) fn mask_of(&self, picture: &[u8], max_pixels: u64) -> Result<Vec<u8>, Failure> {
        let invalid = |text: String| Failure::new(FailureKind::InvalidInput, text);
        let unreadable = |error: codec::CodecError| invalid(format!("the picture cannot be read: {error}"));
        let pixels = codec::decode_upright(picture, max_pixels).map_err(unreadable)?.pixels;
        let (height, width) = pixels.shape();
        let mut data = pixels.into_data();
        if self.mark(&mut data) == 0 {
            return Err(invalid(format!(
                "no pixel is within {} of the colour {}; check --mask-color, or raise --mask-tolerance",
                self.tolerance, self.colour
            )));
        }
        let mask = Image::<Rgb>::new(height, width, data).map_err(|error| unreadable(error.into()))?;
        codec::encode(&mask, None, PictureFormat::Png, 95, &Metadata::default()).map_err(unreadable)
    }

    /// Makes pixels of the colour white and all others black. Returns the number of white ones.
    fn mark(&self, pixels: &mut [u8]) -> usize {
        let mut found = 0;
        for pixel in pixels.as_chunks_mut::<3>().0 {
            let is_marked = self.holds(*pixel);
            found += usize::from(is_marked);
            *pixel = if is_marked { [255; 3] } else { [0; 3] };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_read_and_written() {
        assert_eq!("#FF0080".parse(), Ok(Colour([255, 0, 128])));
        assert_eq!("00ff00".parse::<Colour>().unwrap().to_string(), "#00ff00");
        for wrong in ["", "#fff", "#ff00f", "#ff00fg", "#+f00ff", "magenta"] {
            assert_eq!(wrong.parse::<Colour>(), Err(ColourError), "{wrong}");
        }
    }

    #[test]
    fn the_tolerance_holds_for_each_channel() {
        let range = ColourRange { colour: Colour([250, 0, 100]), tolerance: 5 };
        for (pixel, is_held) in
            [([250, 0, 100], true), ([255, 5, 95], true), ([244, 0, 100], false), ([250, 0, 106], false)]
        {
            assert_eq!(range.holds(pixel), is_held, "{pixel:?}");
        }
    }

    #[test]
    fn the_mask_is_white_where_the_colour_is() {
        let data = vec![255, 0, 255, 10, 20, 30, 250, 4, 250, 0, 0, 0];
        let picture = Image::<Rgb>::new(2, 2, data).unwrap();
        let file = codec::encode(&picture, None, PictureFormat::Png, 95, &Metadata::default()).unwrap();
        let range = ColourRange { colour: Colour([255, 0, 255]), tolerance: 5 };
        let mask = codec::decode_mask(&range.mask_of(&file, 100).unwrap(), 100).unwrap();
        assert_eq!(mask.data(), [255, 0, 255, 0]);
        let missing = ColourRange { colour: Colour([0, 255, 0]), tolerance: 5 };
        let text = missing.mask_of(&file, 100).unwrap_err().message;
        assert_eq!(
            text,
            "no pixel is within 5 of the colour #00ff00; check --mask-color, or raise --mask-tolerance"
        );
    }
}
