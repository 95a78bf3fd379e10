//! Defines the picture file formats and the form of a task's result.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A picture file format. Its name is also the media subtype and the value that upstream calls the extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureFormat {
    /// PNG, lossless.
    Png,
    /// JPEG, lossy, 4:2:0 chroma subsampling.
    Jpeg,
    /// WebP, lossy.
    Webp,
    /// BMP, uncompressed.
    Bmp,
    /// GIF, at most 256 colours; can be read but not written.
    Gif,
    /// TIFF; written uncompressed.
    Tiff,
}

impl PictureFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [Self::Png, Self::Jpeg, Self::Webp, Self::Bmp, Self::Gif, Self::Tiff];

    /// The format's name: `png`, `jpeg`, ...
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Bmp => "bmp",
            Self::Gif => "gif",
            Self::Tiff => "tiff",
        }
    }
}

impl fmt::Display for PictureFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error for a word that names no picture format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no picture format; there are png, jpeg, webp, bmp, gif and tiff")]
pub struct PictureFormatError(String);

impl FromStr for PictureFormat {
    type Err = PictureFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|format| format.as_str() == text);
        known.ok_or_else(|| PictureFormatError(text.chars().take(20).collect()))
    }
}

/// The size of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureSize {
    /// Rows, in pixels.
    pub height: u32,
    /// Columns, in pixels.
    pub width: u32,
}

impl PictureSize {
    /// Height times width.
    #[must_use]
    pub fn pixels(self) -> u64 {
        u64::from(self.height) * u64::from(self.width)
    }
}

/// The form of a task's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputForm {
    /// Pixels in BGR order, as upstream's models return them, without the input's alpha and metadata.
    #[default]
    Raw,
    /// A picture file, with the input's alpha and metadata if the format can hold them.
    Encoded {
        /// The file's format.
        format: PictureFormat,
        /// Quality from 1 to 100 for lossy formats, as Pillow defines it.
        quality: u8,
    },
}
